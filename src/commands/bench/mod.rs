//! `pp-run bench`: llama-bench's tests and columns; pruning ratios and llama.cpp's own engine alternately in one process.

mod engines;
mod measure;
mod options;
mod table;

use ggml::llama::Model as LlamaModel;

use super::load::load;
use super::signals::Signals;
use crate::error::{Error, Result};
use crate::log::Log;
use engines::Test;
use measure::measure;
pub use options::{Format, Options};
use table::Table;

/// Runs the tests on every model.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let mut tests = Vec::new();
    for &n_depth in &options.n_depth {
        let mut add =
            |p: u32, g: u32| tests.push(Test { n_prompt: p as usize, n_gen: g as usize, n_depth: n_depth as usize });
        options.n_prompt.iter().for_each(|&p| add(p, 0));
        options.n_gen.iter().for_each(|&g| add(0, g));
        options.prompt_gen.iter().for_each(|&(p, g)| add(p, g));
    }
    if tests.is_empty() {
        return Err(Error::usage("nothing to measure: -p and -n are both 0"));
    }
    let mut table = Table {
        format: options.format,
        baseline: options.baseline,
        prune: options.prune.iter().any(Option::is_some),
        rows: Vec::new(),
    };
    for path in &options.models {
        let mut model_options = options.model.clone();
        model_options.path = path.clone();
        let (model, _) = load(&model_options, &options.context, &log, signals)?;
        let n_gpu_layers = options.model.weights.n_gpu_layers.unwrap_or(u32::MAX);
        let llama = if options.baseline {
            let refused = |e: ggml::llama::LlamaError| Error::failed(format!("llama.cpp: {}", e.0)).in_file(path);
            Some(LlamaModel::load(path, n_gpu_layers).map_err(refused)?)
        } else {
            None
        };
        for &n_threads in &options.n_threads {
            for test in &tests {
                for row in measure(options, &model, llama.as_ref(), n_threads, *test, &log, signals)? {
                    table.add(&row, &model, options)?;
                }
            }
        }
    }
    table.finish()
}
