//! `pp-run bench`: llama-bench's tests and columns; pruning ratios and llama.cpp's own engine alternately in one process.

mod baseline;
mod engines;
mod measure;
mod options;
mod steps;
mod table;

use super::load::load;
use super::signals::Signals;
use crate::error::{Error, Result};
use crate::log::Log;
use baseline::Baseline;
use engines::Test;
use measure::{Row, Subject};
pub use options::{Format, Options};
use table::Table;

/// Runs the tests on every model.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let mut tests = Vec::new();
    for &n_depth in &options.n_depth {
        let mut add = |p: u32, g: u32| {
            let (n_prompt, n_gen, n_depth) = (p as usize, g as usize, n_depth as usize);
            tests.push(Test { n_prompt, n_gen, n_depth, is_step: false });
        };
        options.n_prompt.iter().for_each(|&p| add(p, 0));
        options.n_gen.iter().for_each(|&g| add(0, g));
        options.prompt_gen.iter().for_each(|&(p, g)| add(p, g));
    }
    if tests.is_empty() && options.steps.is_empty() {
        return Err(Error::usage("nothing to measure: -p and -n are both 0"));
    }
    let mut table = Table {
        format: options.format,
        baseline: options.baseline,
        prune: options.prune.iter().any(Option::is_some),
        steps: !options.steps.is_empty(),
        names: options.models.len() > 1,
        rows: Vec::new(),
    };
    for path in &options.models {
        let mut model_options = options.model.clone();
        model_options.path = path.clone();
        let (model, _) = load(&model_options, &options.context, &options.prune, &log, signals)?;
        let n_gpu_layers = options.model.weights.gpu.n_layers.unwrap_or(u32::MAX);
        let baselines = match options.baseline {
            true => Baseline::load(model.gguf(), n_gpu_layers, &log, signals)?,
            false => Vec::new(),
        };
        for &n_threads in &options.n_threads {
            let subject = Subject { options, model: &model, baselines: &baselines, n_threads, log: &log, signals };
            let mut add = |rows: Vec<Row>| rows.iter().try_for_each(|row| table.add(row, &model, options));
            for &test in &tests {
                add(subject.test(test)?)?;
            }
            for &n_depth in options.n_depth.iter().filter(|_| !options.steps.is_empty()) {
                add(subject.steps(n_depth as usize)?)?;
            }
        }
    }
    table.finish()
}
