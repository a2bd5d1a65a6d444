//! One file per command. Commands alone write to stdout and say things on stderr.

mod answer;
pub mod batch;
pub mod bench;
pub mod cache;
pub mod calibrate;
mod chat;
pub mod chats;
mod doctor;
mod drafts;
pub mod eval;
mod input;
mod kld;
mod kv_types;
mod load;
mod logits_file;
mod models;
mod output;
pub mod perplexity;
mod prompt_cache;
mod pruning;
pub mod run;
mod scores;
pub mod show;
mod signals;
pub mod tokenize;
mod trace;

use crate::error::{Kind, Result};
pub use output::print;
use signals::Signals;

/// One invocation of the program.
#[derive(Debug)]
pub enum Command {
    /// Answer a prompt, or chat: `pp-run -m MODEL [-p PROMPT]`.
    Run(Box<run::Options>),
    /// `pp-run batch -m MODEL -i ROWS -o ANSWERS`
    Batch(Box<batch::Options>),
    /// `pp-run`: which models are here?
    Models,
    /// A model is to be run, but none is named
    NoModel,
    /// `pp-run show MODEL`
    Show(show::Options),
    /// `pp-run tokenize -m MODEL`
    Tokenize(tokenize::Options),
    /// `pp-run perplexity -m MODEL -f TEXT`
    Perplexity(Box<perplexity::Options>),
    /// `pp-run eval -m MODEL --tasks TASKS`
    Eval(eval::Options),
    /// `pp-run calibrate -m MODEL`
    Calibrate(calibrate::Options),
    /// `pp-run bench -m MODEL`
    Bench(bench::Options),
    /// `pp-run chats`
    Chats(chats::Options),
    /// `pp-run cache`
    Cache(cache::Options),
    /// `pp-run doctor`
    Doctor,
}

/// Runs a command. `exit_code` is for signals that end the process at once.
pub fn run(command: &Command, exit_code: fn(Kind) -> u8) -> Result<()> {
    let signals = || Signals::catch(exit_code);
    match command {
        Command::Run(o) => run::run(o, signals()?),
        Command::Batch(o) => batch::run(o, signals()?),
        Command::Models => models::run(),
        Command::NoModel => Err(models::missing()),
        Command::Show(o) => show::run(o),
        Command::Tokenize(o) => tokenize::run(o),
        Command::Perplexity(o) => perplexity::run(o, &signals()?),
        Command::Eval(o) => eval::run(o, &signals()?),
        Command::Calibrate(o) => calibrate::run(o, &signals()?),
        Command::Bench(o) => bench::run(o, &signals()?),
        Command::Chats(o) => chats::run(o),
        Command::Cache(o) => cache::run(*o),
        Command::Doctor => doctor::run(),
    }
}
