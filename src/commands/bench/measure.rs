//! One test on every engine, and what came of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ggml::llama::{Context, Model as LlamaModel};

use super::engines::{Engine, Test};
use super::options::Options;
use crate::commands::pruning;
use crate::commands::signals::Signals;
use crate::engine;
use crate::engine::{Loaded, Report, libllama};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::model::Model;
use crate::tokenizer::Token;
use crate::weights::Kernels;

/// One repetition of a test.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub time: Duration,
    /// The part of that time in which weights were reduced for the answer
    pub freeze: Duration,
}

/// Times of one engine on one test.
pub struct Row {
    pub engine: &'static str,
    pub kernels: Kernels,
    pub test: Test,
    pub n_threads: usize,
    /// The pruning ratio that was asked for; 0 = nothing is left out
    pub prune: f64,
    /// What pruning did, in the last repetition
    pub report: Option<Report>,
    pub samples: Vec<Sample>,
    /// The baseline's time divided by ours: the median over the repetitions
    pub ratio: Option<f64>,
}

impl Row {
    /// Share of the blocks' weights that the test ran on
    pub fn kept(&self) -> f64 {
        match &self.report {
            // What came before an answer is not what is timed.
            Some(r) if r.reduced.is_some() || (self.test.n_prompt > 0 && r.pruned_tokens > 0) => r.kept,
            _ => 1.0,
        }
    }

    /// How a test that was to be pruned ran.
    pub fn how(&self) -> Option<String> {
        let report = self.report.as_ref()?;
        Some(match self.test.n_prompt + self.test.n_depth {
            0 if !report.is_fixed => "dense: there is no prompt to choose masks by (-d N gives one)".to_owned(),
            _ => report.line(),
        })
    }
}

/// One test on every engine, alternately.
pub fn measure(
    options: &Options,
    model: &Loaded,
    llama: Option<&LlamaModel>,
    n_threads: usize,
    test: Test,
    log: &Log,
    signals: &Signals,
) -> Result<Vec<Row>> {
    let n_ctx = u32::try_from(test.n_depth + test.n_tokens()).unwrap_or(u32::MAX);
    let context =
        engine::Options { n_ctx: Some(n_ctx), n_threads, n_threads_batch: n_threads, ..options.context.clone() };
    // The baseline comes first, then the engines that are compared with it.
    let mut engines = Vec::new();
    if let Some(llama) = llama {
        let params = libllama::context_params(&context, n_ctx);
        let refused = |e: ggml::llama::LlamaError| Error::failed(format!("llama.cpp: {}", e.0));
        let n_batch = context.n_batch as usize;
        engines.push(Engine::Llama { context: Context::new(llama, &params).map_err(refused)?, n_batch });
    }
    for pruned in &options.prune {
        let interrupt: Arc<AtomicBool> = signals.interrupt.clone();
        let mut session = model.timeline(&context, interrupt)?;
        pruning::apply_to(session.as_mut(), model, pruned.as_ref(), n_threads, log)?;
        engines.push(Engine::Ours { session });
    }
    // The tokens are spread over the vocabulary; which ones they are does not matter.
    let n_vocab = model.n_vocab() as u64;
    let tokens: Vec<Token> =
        (0..n_ctx as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % n_vocab) as Token).collect();

    let interrupted = |e| signals.named(e);
    let bar = log.progress(&test.name(), u64::from(options.repetitions), "");
    for engine in &mut engines {
        let warm = Test { n_gen: test.n_gen.min(1), ..test };
        engine.time(&warm, &tokens[..warm.n_depth + warm.n_tokens()]).map_err(interrupted)?;
    }
    let mut samples = vec![Vec::new(); engines.len()];
    for repetition in 0..options.repetitions {
        let mut order: Vec<usize> = (0..engines.len()).collect();
        if repetition % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let time = engines[i].time(&test, &tokens).map_err(interrupted)?;
            let reduced = engines[i].report().and_then(|r| r.reduced);
            samples[i].push(Sample { time, freeze: reduced.map_or(Duration::ZERO, |f| f.0) });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for engine in &mut engines {
        if let Engine::Ours { session } = engine
            && let Some(fewer) = session.take_fewer_threads()
        {
            log.note(&format!("{} by pp-run: {fewer}", test.name()));
        }
    }
    let baseline = llama.map(|_| samples[0].clone());
    let row = |(engine, samples): (&Engine, Vec<Sample>)| {
        let ours = matches!(engine, Engine::Ours { .. });
        let ratio = baseline.as_ref().filter(|_| ours).map(|baseline| {
            let pairs = baseline.iter().zip(&samples);
            median(pairs.map(|(theirs, ours)| theirs.time.as_secs_f64() / ours.time.as_secs_f64()).collect())
        });
        Row {
            engine: engine.name(),
            kernels: model.own().filter(|_| ours).map_or(Kernels::Ggml, Model::kernels),
            test,
            n_threads,
            prune: engine.ratio(),
            report: engine.report().cloned(),
            samples,
            ratio,
        }
    };
    let rows: Vec<Row> = engines.iter().zip(samples).map(row).collect();
    for row in &rows {
        if let Some(how) = row.how() {
            log.note(&format!("{} at --prune {}: {how}", row.test.name(), row.prune));
        }
    }
    Ok(rows)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] + values[n / 2]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
