//! `pp-run batch`: an answer for each row of a file.

mod answers;
mod results;
mod rows;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Instant;

use super::answer::Run;
use super::kv_types;
use super::load::load;
use super::run::{self, reader, sampling_of_file, template};
use super::signals::Signals;
use crate::chat::terminal::Tristate;
use crate::constraint::Grammar;
use crate::error::{Error, Result};
use crate::log::Log;
use crate::stats::per_second;
use answers::Batch;
use results::Results;
use rows::Rows;

#[derive(Debug, Clone)]
pub struct Options {
    /// How each row is answered unless it says otherwise
    pub run: run::Options,
    /// `-i`; `-` is stdin
    pub input: PathBuf,
    /// `-o`; `-` is stdout
    pub output: PathBuf,
}

/// Answers the rows that have no answer yet.
pub fn run(options: &Options, signals: Signals) -> Result<()> {
    let log = Log::new(&options.run.log, false)?;
    let text = reader(&options.run, &log, &signals).read(&options.input, "")?;
    let rows = Rows::read(&text);
    let system = run::system(&options.run, &log, &signals)?;
    let grammar = options.run.form.as_ref().map(Grammar::new).transpose()?;
    let start = Instant::now();
    let (model, tokenizer) =
        load(&options.run.model, &options.run.context, slice::from_ref(&options.run.prune), &log, &signals)?;
    let (options_of_rows, sampling) = sampling_of_file(&options.run, model.gguf())?;
    sampling.iter().for_each(|how| log.note(how));
    let template = template(&options_of_rows, &model, &tokenizer)?;
    if template.is_none() && options_of_rows.conversation != Tristate::Off {
        log.note(
            "this model has no chat template: prompts are completed as they are (--chat-template NAME gives it one)",
        );
    }
    let (mut results, held) = Results::open(&options.output)?;
    let run = Run {
        options: options_of_rows,
        log,
        signals,
        model: &model,
        tokenizer: &tokenizer,
        drafter: None,
        grammar,
        start,
        sampling: Cell::default(),
        told_of_bos: Cell::new(false),
    };
    kv_types::tell_of_harm(&run);
    let mut batch = Batch::new(run, template.as_ref(), system.as_deref())?;
    let left = batch.left(&rows, held, &options.output)?;
    let (log, n_done) = (&batch.run.log, rows.len() - left.len());
    if n_done > 0 {
        log.note(&format!("goes on after {n_done} of {} rows", rows.len()));
    }
    let bar = log.progress("answers", rows.len() as u64, "rows");
    bar.set_position(n_done as u64);
    bar.reset_eta();
    let began = Instant::now();
    let done = batch.answer(&rows, &left, &mut |line, is_error| {
        results.add(line)?;
        if is_error {
            results.n_failed += 1;
        }
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    let n_tokens = done.map_err(|e| batch.run.signals.named(e))?;
    let time = began.elapsed();
    batch.run.log.note(&format!(
        "{} {} in {:.1} s: {n_tokens} tokens written, {:.1} tok/s in all",
        left.len(),
        if left.len() == 1 { "row" } else { "rows" },
        time.as_secs_f64(),
        per_second(n_tokens, time)
    ));
    let place = if options.output == Path::new("-") { Path::new("stdout") } else { &options.output };
    match results.n_failed {
        0 => Ok(()),
        n => Err(Error::failed(format!("{n} of {} rows failed: their lines have an error", rows.len())).in_file(place)),
    }
}
