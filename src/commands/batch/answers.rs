//! Several answers at a time. Each is what it would be alone: the sampler is its own, prompts are read as in an empty session, and tokens of
//! several answers are computed in one step only where that changes no bit.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::results::Held;
use super::rows::{Row, Rows};
use crate::chat::Template;
use crate::commands::answer::{Answer, Run, constraint, marks, sampler, stats_of_prompt};
use crate::commands::pruning;
use crate::commands::run::{self, Prompt, as_json, context, tokens};
use crate::constraint::{Constraint, Grammar};
use crate::engine::{self, Next as NextToken, Report, Session, Timeline, are_usable};
use crate::error::{Error, Kind, Result};
use crate::eval::sha256;
use crate::generate::{self, Guide, Next, Step, StopReason};
use crate::stats::{Stats, logits_hash};
use crate::tokenizer::Token;

/// Flags that change nothing about an answer.
const NOT_OF_ANSWERS: &[&str] = &[
    "input",
    "output",
    "model",
    "threads",
    "threads-batch",
    "power",
    "prio",
    "load-mode",
    "no-mmap",
    "mmap",
    "mlock",
    "check-tensors",
    "verbose",
    "verbosity",
    "quiet",
    "log-file",
    "system-prompt-file",
];

/// A batch at work.
pub struct Batch<'a> {
    pub run: Run<'a>,
    /// The flags: those of `run` are those of the row that began last
    base: run::Options,
    template: Option<&'a Template>,
    system: Option<&'a str>,
    /// What holds answers to the form of the flags, if they have one
    constraint: Option<Constraint>,
    load_time: Duration,
}

/// A row that is to be answered: its number, and the options of its context.
pub struct Left {
    row: usize,
    asked: String,
    context: Result<engine::Options>,
}

/// An answer that is being written.
struct Writing<'a> {
    row: usize,
    asked: String,
    options: run::Options,
    answer: generate::Answer<'a>,
    opened: Option<&'static str>,
    text: String,
    /// The token to decode, and its position
    next: Token,
    pos: usize,
    stats: Stats,
    began: Instant,
}

/// Is given each line that is done, and whether it is one of an error.
type Sink<'s> = &'s mut dyn FnMut(&str, bool) -> Result<()>;

impl<'a> Batch<'a> {
    pub fn new(run: Run<'a>, template: Option<&'a Template>, system: Option<&'a str>) -> Result<Batch<'a>> {
        let (base, load_time) = (run.options.clone(), run.start.elapsed());
        Ok(Batch { base, constraint: constraint(&run)?, run, template, system, load_time })
    }

    /// The rows that have no answer yet. [`Kind::Usage`] if one has an answer to something else.
    pub fn left(&mut self, rows: &Rows, mut held: Held, output: &Path) -> Result<Vec<Left>> {
        let mut left = Vec::new();
        for i in 0..rows.len() {
            if self.run.signals.interrupt.load(Ordering::Relaxed) {
                return Err(self.run.signals.error());
            }
            let row = rows.get(i);
            let asked = self.asked(row);
            match held.remove(&row.id.to_string()) {
                Some(before) if before == asked => {}
                Some(_) => {
                    let message = format!(
                        "row {} was answered with another prompt, model or flags: use another -o, or delete it",
                        row.id
                    );
                    return Err(Error::usage(message).in_file(output));
                }
                None => {
                    let context = self.prompt(row).map(|(prompt, _)| context(&self.run, prompt.tokens.len()));
                    let context = match context {
                        Err(e) if !is_of_row(&e) => return Err(e),
                        other => other,
                    };
                    left.push(Left { row: i, asked, context });
                }
            }
        }
        Ok(left)
    }

    /// What tells a row's answer from those to other questions, and by other flags or models: 16 hexadecimal digits.
    fn asked(&self, row: &Row) -> String {
        let changes = |arg: &str| {
            let name = arg.strip_prefix("--").map_or("", |a| a.split('=').next().unwrap_or(a));
            !name.is_empty() && !NOT_OF_ANSWERS.contains(&name)
        };
        let args: Vec<String> =
            self.base.settings.args.iter().map(|a| a.to_string_lossy().into_owned()).filter(|a| changes(a)).collect();
        let model = format!("{:016x}", self.run.model.gguf().fingerprint());
        let template = self.template.map(Template::fingerprint);
        let of = json!({
            "batch": 1, "model": model, "args": args, "system": self.system, "template": template, "row": row.text(),
        });
        sha256(&of.to_string())[..16].to_owned()
    }

    /// The prompt of a row, whose options the run has from now on, and the form that its answer is to have.
    fn prompt(&mut self, row: &Row) -> Result<(Prompt<'a>, Option<Grammar>)> {
        let question = row.question(&self.base)?;
        if self.template.is_none() && !question.before.is_empty() {
            return Err(Error::malformed("'messages' want a chat template (--chat-template NAME gives one)"));
        }
        self.run.options = question.options;
        let form = self.run.options.form.as_ref().filter(|_| self.run.options.form != self.base.form);
        let grammar = form.map(Grammar::new).transpose()?;
        let system = question.system.as_deref().or(self.system);
        let prompt = tokens(&self.run, self.template, system, question.before, &question.prompt)?;
        Ok((prompt, grammar))
    }

    /// Answers rows, and returns how many tokens were written.
    pub fn answer(&mut self, rows: &Rows, left: &[Left], done: Sink) -> Result<usize> {
        for row in left {
            if let Err(e) = &row.context {
                done(&failed(rows.get(row.row), &row.asked, e), true)?;
            }
        }
        let mut n_tokens = 0;
        // A longer context may make other answers, so that rows which need one have theirs to themselves.
        let model = self.run.model;
        for is_long in [false, true] {
            let n_ctx = |context: &engine::Options| match context.n_ctx {
                None | Some(0) => model.n_ctx_train() as usize,
                Some(n) => n as usize,
            };
            let those = left.iter().filter_map(|l| Some((l, l.context.as_ref().ok()?)));
            let those: Vec<(&Left, &engine::Options)> =
                those.filter(|(_, c)| model.is_long(n_ctx(c)) == is_long).collect();
            let Some((_, largest)) = those.iter().copied().max_by_key(|(_, c)| (n_ctx(c), c.n_ctx.is_none())) else {
                continue;
            };
            let (mut timeline, n) = self.timeline(largest, those.len())?;
            let those: Vec<&Left> = those.into_iter().map(|(l, _)| l).collect();
            n_tokens += self.side_by_side(timeline.as_mut(), n, rows, &those, done)?;
        }
        Ok(n_tokens)
    }

    /// A timeline for up to `n_rows` answers at a time, and how many it takes: as many as there is memory for. Beside the sequence that reads
    /// prompts each has one of its own, unless it is one only.
    fn timeline(&self, context: &engine::Options, n_rows: usize) -> Result<(Box<dyn Timeline<'a> + 'a>, usize)> {
        let interrupt = || self.run.signals.interrupt.clone();
        let prune = |timeline: &mut dyn Timeline| {
            let n_threads = context.n_threads_batch;
            pruning::apply_to(timeline, self.run.model, self.base.prune.as_ref(), n_threads, &self.run.log)
        };
        let mut n = Session::SIDE_BY_SIDE.min(n_rows);
        while let Some(model) = self.run.model.own().filter(|_| n > 1) {
            // The largest context is wanted, and not as much as there is memory for.
            let n_ctx = context.n_ctx.or(Some(0));
            match Session::new(model, &engine::Options { n_ctx, ..context.clone() }, n + 1, n + 1, interrupt()) {
                Ok(mut session) if session.drafts_are_exact() => {
                    if n < Session::SIDE_BY_SIDE.min(n_rows) {
                        self.run.log.note(&format!(
                            "{n} answers at a time, as there is no memory for more: a smaller -n or -c needs less"
                        ));
                    }
                    prune(&mut session)?;
                    return Ok((Box::new(session), n));
                }
                Ok(_) => break,
                Err(e) if e.kind() == Kind::Memory => n /= 2,
                Err(e) => return Err(e),
            }
        }
        if n_rows > 1 {
            self.run.log.note(match n {
                0 | 1 => "one answer at a time, as there is no memory for several: a smaller -n or -c needs less",
                _ => "one answer at a time: with these kernels several at a time would not be what they are alone",
            });
        }
        let mut timeline = self.run.model.timeline(context, interrupt())?;
        prune(timeline.as_mut())?;
        Ok((timeline, 1))
    }

    /// Answers rows, up to `n` at a time. Returns how many tokens were written.
    fn side_by_side(
        &mut self,
        timeline: &mut dyn Timeline<'a>,
        n: usize,
        rows: &Rows,
        left: &[&Left],
        done: Sink,
    ) -> Result<usize> {
        let n_vocab = self.run.model.n_vocab();
        let mut waiting = left.iter();
        let mut places: Vec<Option<Writing>> = (0..n).map(|_| None).collect();
        let mut n_tokens = 0;
        loop {
            for (i, place) in places.iter_mut().enumerate() {
                while place.is_none() {
                    let Some(left) = waiting.next() else { break };
                    let row = rows.get(left.row);
                    match self.begin(timeline, row, left) {
                        Ok((mut writing, step)) => match writing.take(step) {
                            Some(_) => n_tokens += self.finish(writing, row, done)?,
                            None => {
                                if let Some(session) = timeline.own_mut().filter(|_| n > 1) {
                                    session.fork(i + 1);
                                }
                                *place = Some(writing);
                            }
                        },
                        Err(e) if is_of_row(&e) => done(&failed(row, &left.asked, &e), true)?,
                        Err(e) => return Err(e),
                    }
                }
            }
            let next: Vec<NextToken> = (places.iter().enumerate())
                .filter_map(|(i, p)| p.as_ref().map(|w| NextToken { token: w.next, pos: w.pos, seq: i + 1 }))
                .collect();
            let Some(first) = next.first() else { return Ok(n_tokens) };
            let logits = match timeline.own_mut().filter(|_| n > 1) {
                Some(session) => session.step(&next),
                None => timeline.decode(first.token).map(|()| timeline.logits().to_vec()),
            };
            if let Err(e) = &logits
                && (n > 1 || !is_of_row(e))
            {
                return Err(e.clone());
            }
            for (k, NextToken { seq, .. }) in next.iter().enumerate() {
                let place = &mut places[seq - 1];
                let writing = place.as_mut().expect("it asked for a token");
                let row = rows.get(writing.row);
                let step = match logits.as_ref().map(|all| &all[k * n_vocab..][..n_vocab]) {
                    Err(e) => Err(e.clone()),
                    Ok(logits) if !are_usable(logits) => Err(Error::malformed(
                        "the model computes NaN or infinity: the file is damaged, or its numbers are too large",
                    )),
                    Ok(logits) => writing.push(logits),
                };
                match step.map(|step| writing.take(step)) {
                    Ok(None) => {}
                    Ok(Some(_)) => {
                        let writing = place.take().expect("it is there");
                        n_tokens += self.finish(writing, row, done)?;
                    }
                    Err(e) if is_of_row(&e) => {
                        done(&failed(row, &writing.asked, &e), true)?;
                        *place = None;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Reads the prompt of a row, and draws the first token of its answer.
    fn begin(&mut self, timeline: &mut dyn Timeline<'a>, row: &Row, left: &Left) -> Result<(Writing<'a>, Step)> {
        let (Prompt { tokens, reasoning: opened, .. }, grammar) = self.prompt(row)?;
        self.run.model.gguf().check_unchanged()?;
        let constraint = match (grammar, &self.constraint) {
            (Some(grammar), _) => Some(Constraint::new(&grammar, self.run.tokenizer)?),
            (None, Some(constraint)) if self.run.options.form.is_some() => Some(constraint.anew()?),
            _ => None,
        };
        let mut sampler = sampler(&self.run, timeline, 0)?;
        let began = Instant::now();
        let processed = match timeline.own_mut() {
            Some(session) => session.sync_as_whole(&tokens, &mut |_, _| {}),
            None => {
                timeline.clear();
                timeline.sync(&tokens, &mut |_, _| {})
            }
        }?;
        let stats = Stats {
            prune: timeline.prune_report().map(Report::line),
            prune_expected_kl: timeline.prune_report().filter(|r| r.pruned_tokens > 0).and_then(|r| r.expected_kl),
            ..stats_of_prompt(timeline, &tokens, processed, began.elapsed(), sampler.seed())
        };
        tokens.iter().for_each(|&token| sampler.accept(token));
        let options = self.run.options.clone();
        let guide = Guide {
            constraint,
            marks: self.template.and_then(marks),
            opened,
            budget: options.reasoning_budget,
            ..Guide::default()
        };
        let (limits, room) = (options.limits.clone(), timeline.n_ctx() - tokens.len());
        let answer = generate::Answer::new(limits, self.run.tokenizer, sampler, guide, room);
        let mut writing = Writing {
            row: left.row,
            asked: left.asked.clone(),
            options,
            answer,
            opened,
            text: String::new(),
            next: 0,
            pos: 0,
            stats,
            began,
        };
        let step = match writing.answer.stop() {
            Some(stop) => Step { text: String::new(), next: Next::Stop(stop.clone()) },
            None => writing.push(timeline.logits())?,
        };
        Ok((writing, step))
    }

    /// Hands on the line of an answer that ended. Returns how many tokens it has.
    fn finish(&self, writing: Writing, row: &Row, done: Sink) -> Result<usize> {
        let Writing { asked, options, mut answer, opened, text, mut stats, began, .. } = writing;
        let (total, first) = (began.elapsed(), answer.first_token().map(|at| at - began));
        (stats.drawing_time, stats.thought_tokens) = answer.drawn();
        stats.first_token_time = first;
        stats.generation_time = total - first.unwrap_or(total);
        let is_whole = answer.is_whole();
        let (tokens, stop) = answer.finish();
        let n = tokens.len();
        stats.generated_tokens = n;
        stats.context_used += n.saturating_sub(1);
        stats.stop_reason = stop.name();
        stats.is_cut = stop == StopReason::Limit && n > 0;
        let answer = Answer { text, tokens, stop, is_whole, stats };
        let Value::Object(fields) = as_json(&options, &answer, opened, self.load_time) else {
            unreachable!("an answer in JSON is an object")
        };
        let head = [("id".to_owned(), row.id.clone()), ("asked".to_owned(), asked.into())];
        done(&Value::Object(head.into_iter().chain(fields).collect()).to_string(), false)?;
        Ok(n)
    }
}

impl Writing<'_> {
    fn push(&mut self, logits: &[f32]) -> Result<Step> {
        self.stats.logits_hash = logits_hash(logits);
        self.answer.push(logits)
    }

    /// Takes in what came of logits; why the answer ended, if it did.
    fn take(&mut self, step: Step) -> Option<StopReason> {
        self.text.push_str(&step.text);
        match step.next {
            Next::Stop(stop) => Some(stop),
            Next::Decode(token) => {
                // The first token comes after the prompt.
                self.pos = self.stats.prompt_tokens + self.stats.generated_tokens;
                self.stats.generated_tokens += 1;
                self.next = token;
                None
            }
        }
    }
}

/// The line of a row that failed.
fn failed(row: &Row, asked: &str, e: &Error) -> String {
    json!({ "id": row.id, "asked": asked, "error": e.to_string() }).to_string()
}

/// Whether an error concerns the row alone, so that others can go on.
fn is_of_row(e: &Error) -> bool {
    matches!(e.kind(), Kind::Usage | Kind::Malformed | Kind::Failed | Kind::Unsupported | Kind::Input)
}
