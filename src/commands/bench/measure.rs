//! One test on every engine, and what came of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ggml::llama::Context;

use super::baseline::{Baseline, refused};
use super::engines::{Engine, Test};
use super::options::Options;
use crate::commands::pruning;
use crate::commands::signals::Signals;
use crate::engine;
use crate::engine::{Loaded, Report, libllama};
use crate::error::Result;
use crate::log::Log;
use crate::model::Model;
use crate::system::memory;
use crate::tokenizer::Token;
use crate::weights::Kernels;

/// One repetition of a test.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub time: Duration,
    /// The part of that time in which weights were reduced for the answer
    pub freeze: Duration,
}

/// What a step was beside single tokens.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The time of a step divided by that of a step of one token: the median over the repetitions
    pub cost: f64,
    /// How far its logits are from those of single tokens, at most: normalised mean squared error
    pub nmse: f64,
}

/// Times of one engine on one test.
pub struct Row {
    pub engine: &'static str,
    /// Whether the baseline ran on rearranged weights, if that is a difference: the faster way
    pub repack: Option<bool>,
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
    /// What the step was beside single tokens, if it was one
    pub step: Option<Step>,
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

/// A model, and what its tests run with.
pub struct Subject<'a> {
    pub options: &'a Options,
    pub model: &'a Loaded,
    /// llama.cpp's, in each way that it can keep the weights; empty without a baseline
    pub baselines: &'a [Baseline],
    pub n_threads: usize,
    pub log: &'a Log,
    pub signals: &'a Signals,
}

impl Subject<'_> {
    /// One test on every engine, alternately.
    pub fn test(&self, test: Test) -> Result<Vec<Row>> {
        let tokens = self.tokens(test.n_depth + test.n_tokens());
        let mut engines = self.engines(tokens.len())?;
        let interrupted = |e| self.signals.named(e);
        let bar = self.log.progress(&test.name(), u64::from(self.options.repetitions), "");
        for engine in &mut engines {
            let warm = Test { n_gen: test.n_gen.min(1), ..test };
            engine.time(&warm, &tokens[..warm.n_depth + warm.n_tokens()]).map_err(interrupted)?;
        }
        let mut samples = vec![Vec::new(); engines.len()];
        for repetition in 0..self.options.repetitions {
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
        self.note_fewer_threads(&test.name(), &mut engines);
        let rows: Vec<Row> = self.rows(test, &engines, samples).into_iter().map(|(_, row)| row).collect();
        for row in &rows {
            if let Some(how) = row.how() {
                self.log.note(&format!("{} at --prune {}: {how}", row.test.name(), row.prune));
            }
        }
        Ok(rows)
    }

    /// The engines, with a context of `n_ctx` tokens: the baseline's come first, then those that are compared with it.
    pub fn engines(&self, n_ctx: usize) -> Result<Vec<Engine<'_>>> {
        let (options, n_threads) = (self.options, self.n_threads);
        let n_ctx = u32::try_from(n_ctx).unwrap_or(u32::MAX);
        let context =
            engine::Options { n_ctx: Some(n_ctx), n_threads, n_threads_batch: n_threads, ..options.context.clone() };
        let mut engines = Vec::new();
        for Baseline { model, repack } in self.baselines {
            let bytes = libllama::cells_bytes(self.model.gguf(), &context, n_ctx);
            memory::require(bytes, "llama.cpp's context", "use smaller tests, or leave out --baseline")?;
            let params = libllama::context_params(&context, n_ctx);
            let mut context = Context::new(model, &params).map_err(|e| refused(&e))?;
            context.set_interrupt(self.signals.interrupt.clone());
            engines.push(Engine::Llama { context, n_batch: params.n_batch as usize, repack: *repack });
        }
        for pruned in &options.prune {
            let interrupt: Arc<AtomicBool> = self.signals.interrupt.clone();
            let mut session = self.model.timeline(&context, interrupt)?;
            pruning::apply_to(session.as_mut(), self.model, pruned.as_ref(), n_threads, self.log)?;
            engines.push(Engine::Ours { session });
        }
        Ok(engines)
    }

    /// Says so if other programs had our engine take fewer threads.
    pub fn note_fewer_threads(&self, test: &str, engines: &mut [Engine]) {
        for engine in engines {
            if let Engine::Ours { session } = engine
                && let Some(fewer) = session.take_fewer_threads()
            {
                self.log.note(&format!("{test} by pp-run: {fewer}"));
            }
        }
    }

    /// Tokens that are spread over the vocabulary; which ones they are does not matter.
    pub fn tokens(&self, n: usize) -> Vec<Token> {
        let n_vocab = self.model.n_vocab() as u64;
        (0..n as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % n_vocab) as Token).collect()
    }

    /// The rows of a test, each with its engine's number: of the baseline's engines that which was fastest, then ours, with their ratios
    /// to it.
    pub fn rows(&self, test: Test, engines: &[Engine], samples: Vec<Vec<Sample>>) -> Vec<(usize, Row)> {
        let n_baselines = self.baselines.len();
        let total = |i: &usize| samples[*i].iter().map(|s| s.time).sum::<Duration>();
        let baseline = (0..n_baselines).min_by_key(total);
        let row = |i: usize| {
            let ours = i >= n_baselines;
            let ratio = baseline.filter(|_| ours).map(|baseline| {
                let pairs = samples[baseline].iter().zip(&samples[i]);
                median(pairs.map(|(theirs, ours)| theirs.time.as_secs_f64() / ours.time.as_secs_f64()).collect())
            });
            let engine = &engines[i];
            let row = Row {
                engine: engine.name(),
                repack: engine.repack(),
                kernels: self.model.own().filter(|_| ours).map_or(Kernels::Ggml, Model::kernels),
                test,
                n_threads: self.n_threads,
                prune: engine.ratio(),
                report: engine.report().cloned(),
                samples: samples[i].clone(),
                ratio,
                step: None,
            };
            (i, row)
        };
        baseline.into_iter().chain(n_baselines..engines.len()).map(row).collect()
    }
}

/// The middle one of some values, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
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
