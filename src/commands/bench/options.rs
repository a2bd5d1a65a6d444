//! What `pp-run bench` runs with.

use std::path::PathBuf;

use crate::{engine, log, model, prune};

/// Format of a table on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Markdown
    Md,
    /// JSON array
    Json,
    /// CSV
    Csv,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    /// The models, which are measured one after the other
    pub models: Vec<PathBuf>,
    /// Options of each model; their `path` is replaced by each of `models`.
    pub model: model::Options,
    pub context: engine::Options,
    /// `-p`: prompt lengths
    pub n_prompt: Vec<u32>,
    /// `-n`: tokens generated
    pub n_gen: Vec<u32>,
    /// `-pg`: prompt then generation
    pub prompt_gen: Vec<(u32, u32)>,
    /// `--steps`: lengths of steps, the shortest first; 1 is one of them, or there are none
    pub steps: Vec<usize>,
    /// `-d`: tokens in the cache before the test
    pub n_depth: Vec<u32>,
    /// `-r`
    pub repetitions: u32,
    /// `-t` list
    pub n_threads: Vec<usize>,
    /// `-o`
    pub format: Format,
    /// `--baseline llama.cpp`: run libllama alternately, print both and the ratio
    pub baseline: bool,
    /// What to prune, if at all: each test runs with each of these
    pub prune: Vec<Option<prune::Options>>,
}
