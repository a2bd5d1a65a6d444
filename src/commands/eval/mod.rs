//! `pp-run eval`: accuracy on questions with choices, dense and pruned, by lm-evaluation-harness's rules or by those of Probe Pruning's paper.

mod asked;
mod compare;
mod options;
mod part;
mod results;
mod run;
mod table;
mod way;

use super::signals::Signals;
use crate::error::Result;
pub use options::{Options, RunOptions};

/// Answers questions, or compares two runs that did.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    match options {
        Options::Run(options) => run::run(options, signals),
        Options::Compare(a, b) => compare::run([a, b]),
    }
}
