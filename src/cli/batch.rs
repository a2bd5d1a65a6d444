//! Flags of `pp-run batch`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::answer::AnswerArgs;
use super::context::ContextArgs;
use super::log::LogArgs;
use super::model::ModelArgs;
use super::prune::{PruneArgs, PruneHowArgs};
use super::run::{self, RunArgs};
use super::sampling::SamplingArgs;
use crate::commands::batch::Options;
use crate::commands::run::{Options as RunOptions, Settings};
use crate::error::{Error, Result};
use crate::prune::HistoryKind;

#[derive(Debug, Args)]
pub struct BatchArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// The rows; '-' = stdin
    #[arg(long, short = 'i', value_name = "FILE", default_value = "-", allow_hyphen_values = true)]
    pub input: PathBuf,
    /// Where answers go; '-' = stdout
    ///
    /// A file that is there is gone on with: answers are appended to it. What is no file of answers is left alone.
    #[arg(long, short = 'o', value_name = "FILE", default_value = "-", allow_hyphen_values = true)]
    pub output: PathBuf,
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Share of the blocks' weights that reading a prompt leaves out, 0 to 0.8, or auto[:KL]
    #[arg(long, value_name = "R|auto[:KL]", allow_hyphen_values = true, help_heading = "Probe Pruning")]
    pub prune: Option<String>,
    #[command(flatten)]
    pub how: PruneHowArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// `run` are the flags of an answer as they are if none is given.
pub fn options(a: BatchArgs, run: RunArgs, settings: Settings) -> Result<Options> {
    let (input, output) = (a.input.clone(), a.output.clone());
    Ok(Options { run: run_options(a, run, settings)?, input, output })
}

/// What each row is answered with, unless it says otherwise.
pub fn run_options(a: BatchArgs, run: RunArgs, settings: Settings) -> Result<RunOptions> {
    if a.how.prune_answer.is_some() {
        return Err(Error::usage("--prune-answer is not for several answers at a time"));
    }
    let run = RunArgs {
        answer: a.answer,
        prune: PruneArgs { prune: a.prune, how: a.how, prune_dump: None, prune_replay: None },
        sampling: a.sampling,
        context: a.context,
        model_args: a.model_args,
        log: a.log,
        ..run
    };
    let options = run::options(a.model, run, settings)?;
    if options.prune.as_ref().is_some_and(|p| p.history != HistoryKind::None) {
        return Err(Error::usage(
            "--prune-history goes on from prompt to prompt, and an answer depends on no other row: use none",
        ));
    }
    Ok(options)
}
