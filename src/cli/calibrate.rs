//! Flags of `pp-run calibrate`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::context::{self, ContextArgs};
use super::log::{self, LogArgs};
use super::model::{self, ModelArgs};
use crate::commands::calibrate::Options;
use crate::error::Result;

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// A text [default: text that the model itself writes]
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<PathBuf>,
    /// Where to write [default: the model's name with .ppcal]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Windows of the text
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub seqs: u32,
    /// Tokens of a window
    #[arg(long, value_name = "T", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub seq_len: u32,
    /// Windows in one pass (FLAP's running means depend on it)
    #[arg(long, value_name = "B", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Leave out the means by position: a smaller file, but no --prune-history position and no --prune-paper
    #[arg(long)]
    pub no_positions: bool,
    /// Do not measure what leaving out parts of the model costs: fast, but no --prune auto and no --prune-plan calibrated
    ///
    /// Each block's cost and the curve of whole budgets are measured on further windows: 20 of 512 tokens that are read and 128 that are
    /// scored after them, and for blocks 64 that repeat some of what was read. It takes as long as reading some 300,000 tokens on a model
    /// of 30 layers; what is done is kept until the end in a file ending in .part, with which the same command goes on.
    #[arg(long)]
    pub no_costs: bool,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

pub fn options(a: CalibrateArgs) -> Result<Options> {
    Ok(Options {
        log: log::options(a.log),
        model: model::options(a.model, a.model_args)?,
        context: context::options(a.context)?,
        file: a.file,
        output: a.output,
        n_seqs: a.seqs as usize,
        seq_len: a.seq_len as usize,
        batch: (a.batch.min(a.seqs)) as usize,
        positions: !a.no_positions,
        costs: !a.no_costs,
    })
}
