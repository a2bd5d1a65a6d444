//! What a step of several tokens costs, beside one of a single token: as many as a draft of the answer may have.

use std::time::{Duration, Instant};

use super::engines::{Engine, Test, require_usable};
use super::measure::{Row, Sample, Step, Subject, median};
use crate::error::Result;
use crate::tokenizer::Token;

/// Steps that make up a sample: a single one is too short to time.
const STEPS: u32 = 8;

/// How far the logits of a step may be from those of single tokens before that is worth a warning, as normalised mean squared error: tokens
/// one by one and many at once are multiplied by different kernels, which round differently.
const MAX_NMSE: f64 = 0.1;

/// One engine's steps.
struct Steps<'m> {
    engine: Engine<'m>,
    /// Logits after each token of the longest step, computed one by one
    singles: Vec<f32>,
    /// Of each length
    samples: Vec<Vec<Sample>>,
    nmse: Vec<f64>,
}

impl Steps<'_> {
    /// Times steps of `n` tokens after `depth` tokens. The first one is not counted: it makes the graph.
    fn time(&mut self, tokens: &[Token], depth: usize, n: usize, logits: &mut Vec<f32>) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for i in 0..=STEPS {
            self.engine.go_to(&tokens[..depth])?;
            let start = Instant::now();
            self.engine.step(&tokens[depth..depth + n], depth, logits)?;
            if i > 0 {
                time += start.elapsed();
            }
        }
        self.engine.pause();
        Ok(time / STEPS)
    }
}

impl Subject<'_> {
    /// Steps of each length after `depth` tokens, on every engine alternately.
    pub fn steps(&self, depth: usize) -> Result<Vec<Row>> {
        let lengths = &self.options.steps;
        let longest = *lengths.last().expect("at least one");
        let tokens = self.tokens(depth + longest);
        let interrupted = |e| self.signals.named(e);
        let mut all = Vec::new();
        for mut engine in self.engines(tokens.len())? {
            let (mut singles, mut logits) = (Vec::new(), Vec::new());
            engine.go_to(&tokens[..depth]).map_err(interrupted)?;
            for i in depth..tokens.len() {
                engine.step(&tokens[i..=i], i, &mut logits).map_err(interrupted)?;
                require_usable(&logits)?;
                singles.extend_from_slice(&logits);
            }
            engine.pause();
            let (samples, nmse) = (vec![Vec::new(); lengths.len()], vec![0.0; lengths.len()]);
            all.push(Steps { engine, singles, samples, nmse });
        }
        let bar = self.log.progress("steps", u64::from(self.options.repetitions), "");
        let mut logits = Vec::new();
        for repetition in 0..self.options.repetitions {
            let mut order: Vec<usize> = (0..all.len()).collect();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for (i, &n) in lengths.iter().enumerate() {
                for &engine in &order {
                    let steps = &mut all[engine];
                    let time = steps.time(&tokens, depth, n, &mut logits).map_err(interrupted)?;
                    steps.samples[i].push(Sample { time, freeze: Duration::ZERO });
                    steps.nmse[i] = steps.nmse[i].max(nmse(&logits, &steps.singles));
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let (mut engines, mut samples, mut nmses) = (Vec::new(), Vec::new(), Vec::new());
        for steps in all {
            engines.push(steps.engine);
            samples.push(steps.samples);
            nmses.push(steps.nmse);
        }
        self.note_fewer_threads("steps", &mut engines);
        let mut rows = Vec::new();
        for (i, &n_prompt) in lengths.iter().enumerate() {
            let test = Test { n_prompt, n_gen: 0, n_depth: depth, is_step: true };
            let of_length = samples.iter().map(|samples| samples[i].clone()).collect();
            for (engine, mut row) in self.rows(test, &engines, of_length) {
                let pairs = samples[engine][i].iter().zip(&samples[engine][0]);
                let cost = median(pairs.map(|(n, one)| n.time.as_secs_f64() / one.time.as_secs_f64()).collect());
                let nmse = nmses[engine][i];
                if nmse > MAX_NMSE {
                    let name = test.name();
                    self.log.warn(&format!(
                        "{name}, {}: other logits than those of single tokens (NMSE {nmse:.3})",
                        row.engine
                    ));
                }
                row.step = Some(Step { cost, nmse });
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

/// Normalised mean squared error of `a` beside the beginning of `b`.
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    // What models ban by a logit of minus infinity is no difference.
    let pairs = || a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite());
    pairs().map(|(a, b)| square(a - b)).sum::<f64>()
        / pairs().map(|(_, &b)| square(b)).sum::<f64>().max(f64::MIN_POSITIVE)
}
