//! What is asked for.

use std::path::PathBuf;

use crate::eval::Rules;
use crate::{engine, log, model, prune};

#[derive(Debug, Clone)]
pub enum Options {
    /// Answer the questions of some tasks
    Run(Box<RunOptions>),
    /// `--compare`: two runs
    Compare(PathBuf, PathBuf),
}

#[derive(Debug, Clone)]
pub struct RunOptions {
    pub log: log::Options,
    pub model: model::Options,
    /// The session; `n_ctx` is how many tokens of a question are read at most.
    pub context: engine::Options,
    /// `--tasks`: names and files
    pub tasks: Vec<String>,
    /// `--data`: where the files of named tasks are
    pub data: Option<PathBuf>,
    pub rules: Rules,
    /// `--limit`: questions of each task
    pub limit: Option<usize>,
    /// `--read`: contexts are read as prompts are, and choices run dense
    pub read: bool,
    /// What to prune in each run; `None`: nothing
    pub runs: Vec<Option<prune::Options>>,
    /// `-o`
    pub output: Option<PathBuf>,
}
