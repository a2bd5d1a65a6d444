//! The runs: each task with each way of pruning.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::asked::Asked;
use super::options::RunOptions;
use super::part::Part;
use super::results::{self, Outcome, Run};
use super::table;
use super::way::Way;
use crate::commands::input::read_text;
use crate::commands::load::load;
use crate::commands::output::print;
use crate::commands::signals::Signals;
use crate::engine::Loaded;
use crate::error::{Error, Result};
use crate::eval::{PAPER_LENGTH, Rules, Task, name_of_file};
use crate::log::Log;
use crate::prune;

/// The file of a task, and its name: a path, or a name of which a file is in the folder of the data.
fn find(wanted: &str, data: Option<&Path>) -> Result<(PathBuf, String)> {
    let path = Path::new(wanted);
    let is_path = ["jsonl", "json", "txt"].iter().any(|e| path.extension().is_some_and(|x| x == *e))
        || path.components().count() > 1;
    if is_path {
        return Ok((path.to_owned(), name_of_file(path)));
    }
    let folder = data.unwrap_or(Path::new("."));
    let spellings: &[&str] = if wanted == "openbookqa" { &["openbookqa", "openbook_qa"] } else { &[wanted] };
    let files = spellings.iter().flat_map(|name| ["jsonl", "txt"].map(|e| folder.join(format!("{name}.{e}"))));
    let found = files.clone().find(|f| f.is_file());
    let tried = || files.clone().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
    let missing = || Error::input(format!("no rows of the task '{wanted}': there is none of {} (see --data)", tried()));
    Ok((found.ok_or_else(missing)?, wanted.to_owned()))
}

/// Answers the questions of each task, in each way.
pub fn run(options: &RunOptions, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let limit = options.limit.unwrap_or(usize::MAX);
    let mut tasks: Vec<(PathBuf, Task)> = Vec::new();
    for wanted in &options.tasks {
        let (path, name) = find(wanted, options.data.as_deref())?;
        if tasks.iter().any(|t| t.1.name == name) {
            return Err(Error::usage(format!("--tasks: two of them are named '{name}'")));
        }
        let task = Task::parse(&path, name, &read_text(&path)?, options.rules, limit)?;
        tasks.push((path, task));
    }
    let (loaded, tokenizer) = load(&options.model, &options.context, &options.runs, &log, signals)?;
    let trained = loaded.n_ctx_train() as usize;
    let max_length = match (options.context.n_ctx, options.rules) {
        (Some(n), _) if n > 0 => n as usize,
        (None, Rules::Paper) => PAPER_LENGTH.min(trained),
        _ => trained,
    };
    let asked = |(path, task): (PathBuf, Task)| Asked::new(task, &path, &tokenizer, options.rules, max_length);
    let tasks: Vec<Asked> = tasks.into_iter().map(asked).collect::<Result<_>>()?;
    let mut table = table::Table::new(options.rules);
    for prune in &options.runs {
        let run = Run::new(options, prune.as_ref(), &loaded, &tokenizer, max_length);
        let mut outcomes = Vec::new();
        let start = Instant::now();
        for asked in &tasks {
            let outcome = outcome(options, prune.as_ref(), &run, asked, &loaded, &log, signals)?;
            table.add(&run, asked, &outcome);
            outcomes.push(outcome);
        }
        if let Some(folder) = &options.output {
            let file = results::write(folder, &run, &tasks, &outcomes, start.elapsed())?;
            tasks.iter().for_each(|asked| Part::forget(&run.folder(folder), &asked.task.name));
            log.note(&format!("results are in {}", file.display()));
        }
    }
    print(&table.text())
}

/// Answers the questions of one task.
fn outcome(
    options: &RunOptions,
    prune: Option<&prune::Options>,
    run: &Run,
    asked: &Asked,
    loaded: &Loaded,
    log: &Log,
    signals: &Signals,
) -> Result<Outcome> {
    let start = Instant::now();
    let mut way = Way::new(options, prune, loaded, asked, log, signals)?;
    let units = way.units(asked);
    let mut part = match &options.output {
        None => None,
        Some(folder) => Some(Part::open(&run.folder(folder), asked, &way.identity(options, loaded))?),
    };
    let mut likelihoods = part.as_mut().map(Part::take_done).unwrap_or_default();
    // A history is of all batches so far.
    let n_done = if way.has_history() { 0 } else { units.partition_point(|unit| unit.end <= likelihoods.len()) };
    likelihoods.truncate(if n_done == 0 { 0 } else { units[n_done - 1].end });
    if let Some(part) = &mut part {
        part.keep(&likelihoods)?;
        if n_done > 0 {
            log.note(&format!(
                "{}: goes on after {} of {} choices",
                asked.task.name,
                likelihoods.len(),
                asked.requests.len()
            ));
        }
    }
    let bar = log.progress(&asked.task.name, asked.requests.len() as u64, "choices");
    bar.set_position(likelihoods.len() as u64);
    bar.reset_eta();
    let first = asked.task.form.metrics(options.rules)[0];
    let (mut time, n_before) = (Duration::ZERO, likelihoods.len());
    let (mut n_answered, mut right) = (0, 0.0);
    for unit in &units[n_done..] {
        let began = Instant::now();
        let new = way.likelihoods(asked, unit.clone()).map_err(|e| signals.named(e))?;
        time += began.elapsed();
        if let Some(part) = &mut part {
            part.add(&new)?;
        }
        likelihoods.extend(new);
        bar.set_position(likelihoods.len() as u64);
        let n = asked.n_answered(likelihoods.len());
        right += (n_answered..n).map(|i| asked.value(i, first, &likelihoods)).sum::<f64>();
        n_answered = n;
        if n > 0 {
            bar.set_message(format!("{} {} {:.4}", asked.task.name, first.name(), right / n as f64));
        }
    }
    bar.finish_and_clear();
    let n_scored = likelihoods.len() - n_before;
    if n_scored > 0 {
        log.note(&format!(
            "{}{}: {n_scored} choices in {:.2} s, {:.1} per second",
            asked.task.name,
            run.method.map_or(String::new(), |m| format!(", {m} {}", run.amount)),
            time.as_secs_f64(),
            n_scored as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
        ));
    }
    Ok(Outcome { likelihoods, seconds: start.elapsed().as_secs_f64(), kept: way.kept(), report: way.report() })
}
