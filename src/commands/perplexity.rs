//! `pp-run perplexity`: as llama-perplexity, so that numbers can be compared; and as Probe Pruning's paper.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::input::read_text;
use super::load::load;
use super::output::print;
use super::pruning;
use super::signals::Signals;
use crate::engine::{OUTPUT_ROWS, Session};
use crate::error::{Error, Result};
use crate::log::{self, Log};
use crate::model::Model;
use crate::tokenizer::Token;
use crate::{engine, model, prune};

#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    pub model: model::Options,
    /// The session; `n_ctx` is the window's length (512 if not given).
    pub context: engine::Options,
    /// `-f`
    pub file: PathBuf,
    /// `--chunks`; `None` = all
    pub chunks: Option<usize>,
    /// `--batch`, `--seq`: windows in one pass, tokens of a window
    pub batch: Option<(usize, usize)>,
    /// `--context`, `--after`: tokens that are read, and tokens that are scored after them
    pub reading: Option<(usize, usize)>,
    /// `--kl`
    pub kl: bool,
    /// What to prune, if at all
    pub prune: Option<prune::Options>,
}

/// Sums over the tokens scored so far.
#[derive(Debug, Default)]
struct Sums {
    nll: f64,
    nll_squared: f64,
    count: usize,
}

impl Sums {
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.nll_squared += nll * nll;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        self.nll / self.count as f64
    }

    /// Standard error of the mean.
    fn error(&self) -> f64 {
        let n = self.count as f64;
        let variance = self.nll_squared / n - self.mean() * self.mean();
        if variance > 0.0 && self.count > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 }
    }

    /// Perplexity and its standard error.
    fn estimate(&self) -> (f64, f64) {
        let perplexity = self.mean().exp();
        (perplexity, self.error() * perplexity)
    }
}

/// Negative log-likelihood of `token`: floats for the exponentials, doubles for their sum, as llama-perplexity.
fn negative_log_likelihood(logits: &[f32], token: Token) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

/// Scores of the tokens `next` by the rows of logits before them, on `n_threads` threads.
fn score_rows(logits: &[f32], next: &[Token], n_threads: usize) -> Vec<f64> {
    let n_vocab = logits.len() / next.len().max(1);
    let share = next.len().div_ceil(n_threads).max(1);
    let score = |logits: &[f32], next: &[Token]| -> Vec<f64> {
        logits.chunks_exact(n_vocab).zip(next).map(|(row, &token)| negative_log_likelihood(row, token)).collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = logits
            .chunks((share * n_vocab).max(1))
            .zip(next.chunks(share))
            .map(|(logits, next)| scope.spawn(move || score(logits, next)))
            .collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// KL divergence of `other` from `base`, and whether both have the same most likely token.
fn compare(base: &[f32], other: &[f32]) -> (f64, bool) {
    let best = |logits: &[f32]| {
        let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        let best = (0..logits.len()).fold(0, better);
        (best, logits[best])
    };
    let ((top_base, max_base), (top_other, max_other)) = (best(base), best(other));
    let sum_other: f64 = other.iter().map(|l| f64::from((l - max_other).exp())).sum();
    let (mut sum_base, mut weighted) = (0.0f64, 0.0f64);
    for (&b, &o) in base.iter().zip(other) {
        let e = f64::from((b - max_base).exp());
        sum_base += e;
        weighted += e * f64::from((b - max_base) - (o - max_other));
    }
    (weighted / sum_base - sum_base.ln() + sum_other.ln(), top_base == top_other)
}

/// [`compare`] for rows of logits, on `n_threads` threads.
fn compare_rows(base: &[f32], other: &[f32], n_vocab: usize, n_threads: usize) -> Vec<(f64, bool)> {
    let share = (base.len() / n_vocab).div_ceil(n_threads).max(1) * n_vocab;
    let part = |base: &[f32], other: &[f32]| -> Vec<(f64, bool)> {
        base.chunks_exact(n_vocab).zip(other.chunks_exact(n_vocab)).map(|(b, o)| compare(b, o)).collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            base.chunks(share).zip(other.chunks(share)).map(|(b, o)| scope.spawn(move || part(b, o))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// What a run computes.
struct Protocol {
    /// Windows of equal length
    windows: Vec<Vec<Token>>,
    /// Windows in one pass
    n_seq: usize,
    /// First position that is scored
    first: usize,
}

/// llama-perplexity's windows: of `-c` tokens, each beginning with BOS if the model wants it; the second half of each is scored.
/// With `--batch` and `--seq` Probe Pruning's: consecutive pieces of the text as it is, scored whole.
fn protocol(options: &Options, tokens: &[Token], bos: Option<Token>, n_ctx_train: usize) -> Result<Protocol> {
    let (n_ctx, n_seq) = match options.batch {
        Some((batch, seq)) => (seq, batch),
        None => {
            let n_ctx = options.context.n_ctx.filter(|&n| n > 0).map_or(n_ctx_train, |n| n as usize);
            if n_ctx < 4 {
                return Err(Error::usage(format!("-c is {n_ctx}, expected 4 or more: half of a window is scored")));
            }
            (n_ctx, options.context.n_batch as usize / n_ctx)
        }
    };
    let (least, windows) = if options.batch.is_some() { (n_ctx, "one window") } else { (2 * n_ctx, "two windows") };
    if tokens.len() < least {
        return Err(Error::malformed(format!(
            "has {} tokens, but {windows} of {n_ctx} are needed at least: use a longer text or shorter windows",
            tokens.len()
        ))
        .in_file(&options.file));
    }
    let n_chunks = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / n_ctx);
    let mut windows: Vec<Vec<Token>> = tokens.chunks_exact(n_ctx).take(n_chunks).map(<[_]>::to_vec).collect();
    if options.batch.is_none() {
        windows.iter_mut().for_each(|w| w[0] = bos.unwrap_or(w[0]));
    }
    let first = if options.batch.is_some() { 0 } else { n_ctx / 2 };
    Ok(Protocol { n_seq: n_seq.clamp(1, n_chunks), windows, first })
}

/// What was scored so far.
#[derive(Debug, Default)]
struct Scores {
    sums: Sums,
    /// `--kl`: the same of the dense model
    dense: Sums,
    /// `--kl`: divergences of both
    kl: Sums,
    /// `--kl`: tokens for which both have the same most likely token
    agreed: usize,
}

impl Scores {
    /// Scores the tokens `next` by the states before them, `[n_embd]` each; those of the `dense` model are compared with them.
    fn add(
        &mut self,
        session: &mut Session,
        states: &[f32],
        dense: Option<&[f32]>,
        next: &[Token],
        n_threads: usize,
    ) -> Result<()> {
        let logits = session.outputs(states)?;
        let base = dense.map(|dense| session.outputs(dense)).transpose()?;
        self.add_rows(&logits, base.as_deref(), next, n_threads);
        Ok(())
    }

    /// Scores the tokens `next` by the rows of logits before them; those of the `dense` model are compared with them.
    fn add_rows(&mut self, logits: &[f32], dense: Option<&[f32]>, next: &[Token], n_threads: usize) {
        score_rows(logits, next, n_threads).into_iter().for_each(|nll| self.sums.add(nll));
        if let Some(base) = dense {
            score_rows(base, next, n_threads).into_iter().for_each(|nll| self.dense.add(nll));
            for (kl, same) in compare_rows(base, logits, base.len() / next.len(), n_threads) {
                self.kl.add(kl);
                self.agreed += usize::from(same);
            }
        }
    }

    /// The comparison with the dense model.
    fn comparison(&self) -> String {
        let (dense, dense_error) = self.dense.estimate();
        format!(
            "Mean KL divergence: {:.5} +/- {:.5}\nTop-1 agreement: {:.2}%\nDense: PPL = {dense:.4} +/- {dense_error:.5}\n",
            self.kl.mean(),
            self.kl.error(),
            100.0 * self.agreed as f64 / self.kl.count as f64
        )
    }
}

/// Scores what follows each of a text's contexts, which are read as prompts are. With `--kl` the dense model reads them, too.
fn reading(
    options: &Options,
    model: &Model,
    tokens: &[Token],
    bos: Option<Token>,
    (n_read, n_after): (usize, usize),
    log: &Log,
    signals: &Signals,
) -> Result<()> {
    let n = n_read + n_after;
    let n_chunks = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / n);
    if n_chunks == 0 {
        return Err(
            Error::malformed(format!("has {} tokens, but one window has {n}", tokens.len())).in_file(&options.file)
        );
    }
    let n_threads = options.context.n_threads_batch;
    let context = engine::Options { n_ctx: Some(u32::try_from(n).unwrap_or(u32::MAX)), ..options.context.clone() };
    let new = || Session::new(model, &context, 1, n_after, signals.interrupt.clone());
    let mut session = new()?;
    pruning::apply(&mut session, model, options.prune.as_ref(), n_threads)?;
    let mut dense = options.kl.then(new).transpose()?;
    log.note(&format!("{n_chunks} windows of {n_read} tokens that are read and {n_after} that are scored"));
    let bar = log.progress("perplexity", (n_chunks * n) as u64, "tokens");
    let mut scores = Scores::default();
    let (mut time, mut dense_time) = (Duration::ZERO, Duration::ZERO);
    for (done, window) in tokens.chunks_exact(n).take(n_chunks).enumerate() {
        let mut window = window.to_vec();
        window[0] = bos.unwrap_or(window[0]);
        let (context, after) = window.split_at(n_read);
        let read = |session: &mut Session, time: &mut Duration| {
            session.rewind(0);
            let start = Instant::now();
            session.sync(context, &mut |_, _| {})?;
            *time += start.elapsed();
            let first = session.logits().to_vec();
            let states = session.states_after(&after[..n_after - 1])?;
            // The other session's turn comes: this one's threads would wait by spinning.
            session.pause();
            Ok((first, states))
        };
        let base = dense.as_mut().map(|dense| read(dense, &mut dense_time)).transpose();
        let base = base.map_err(|e| signals.named(e))?;
        let (first, states) = read(&mut session, &mut time).map_err(|e| signals.named(e))?;
        scores.add_rows(&first, base.as_ref().map(|b| &b.0[..]), &after[..1], n_threads);
        let n_embd = model.hparams().n_embd;
        for (i, next) in after[1..].chunks(OUTPUT_ROWS).enumerate() {
            let part = i * OUTPUT_ROWS * n_embd..(i * OUTPUT_ROWS + next.len()) * n_embd;
            let base = base.as_ref().map(|b| &b.1[part.clone()]);
            scores.add(&mut session, &states[part], base, next, n_threads).map_err(|e| signals.named(e))?;
        }
        session.pause();
        bar.set_position(((done + 1) * n) as u64);
        bar.suspend(|| print(&format!("[{}]{:.4},", done + 1, scores.sums.estimate().0)))?;
    }
    bar.finish_and_clear();
    pruning::write_dump(&session, model, options.prune.as_ref())?;
    finish(options, &session, &scores, time, dense_time, log)
}

/// Scores a text. With `--kl` the dense model scores it too, batch by batch.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let text = read_text(&options.file)?;
    let (model, tokenizer) = load(&options.model, &options.context, &log, signals)?;
    let tokens = tokenizer.encode(&text, true, false)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    if let Some((n_read, n_after)) = options.reading {
        return reading(options, &model, &tokens, bos, (n_read, n_after), &log, signals);
    }
    let Protocol { windows, n_seq, first } = protocol(options, &tokens, bos, model.hparams().n_ctx_train as usize)?;
    let n_ctx = windows[0].len();
    let n_threads = options.context.n_threads_batch;
    let mut context = options.context.clone();
    context.n_ctx = Some(u32::try_from(n_ctx).unwrap_or(u32::MAX));
    if options.batch.is_some() {
        // Scores decide between near equals: they are as exact as those of the reference.
        context.exact = true;
        // One pass prunes all windows together, so all of their tokens are one micro-batch.
        context.n_ubatch = u32::try_from(n_seq * n_ctx).unwrap_or(u32::MAX);
        context.n_batch = context.n_ubatch;
    }
    let mut session = Session::new(&model, &context, n_seq, n_seq * n_ctx, signals.interrupt.clone())?;
    pruning::apply(&mut session, &model, options.prune.as_ref(), n_threads)?;

    log.note(&format!("{} windows of {n_ctx} tokens, {n_seq} at a time", windows.len()));
    let bar = log.progress("perplexity", (windows.len() * n_ctx) as u64, "tokens");
    let mut scores = Scores::default();
    let (mut time, mut dense_time) = (Duration::ZERO, Duration::ZERO);
    let mut done = 0;
    let interrupted = |e| signals.named(e);
    for group in windows.chunks(n_seq) {
        let seqs: Vec<&[Token]> = group.iter().map(Vec::as_slice).collect();
        let mut states = |prune: bool, time: &mut Duration| {
            let start = Instant::now();
            let states = session.states(&seqs, first, prune).map_err(interrupted);
            *time += start.elapsed();
            states
        };
        let dense = if options.kl { Some(states(false, &mut dense_time)?) } else { None };
        let pruned = states(true, &mut time)?;
        let n_embd = model.hparams().n_embd;
        for (i, window) in group.iter().enumerate() {
            // The state of token i predicts token i + 1; for the state of the last token there is nothing to compare with.
            let n = n_ctx - 1 - first;
            let row = i * (n_ctx - first);
            let next = &window[first + 1..];
            for start in (0..n).step_by(OUTPUT_ROWS) {
                let end = n.min(start + OUTPUT_ROWS);
                let part = (row + start) * n_embd..(row + end) * n_embd;
                let dense = dense.as_ref().map(|d| &d[part.clone()]);
                let scored = scores.add(&mut session, &pruned[part], dense, &next[start..end], n_threads);
                scored.map_err(interrupted)?;
            }
            done += 1;
            bar.set_position((done * n_ctx) as u64);
            bar.suspend(|| print(&format!("[{done}]{:.4},", scores.sums.estimate().0)))?;
        }
    }
    bar.finish_and_clear();
    pruning::write_dump(&session, &model, options.prune.as_ref())?;
    finish(options, &session, &scores, time, dense_time, &log)
}

/// Says what came of it.
fn finish(
    options: &Options,
    session: &Session,
    scores: &Scores,
    time: Duration,
    dense_time: Duration,
    log: &Log,
) -> Result<()> {
    let (perplexity, error) = scores.sums.estimate();
    if !perplexity.is_finite() {
        print("\n")?;
        return Err(Error::failed("the perplexity is not a number: the model computes NaN (try --check-tensors)"));
    }
    if let Some(report) = session.prune_report() {
        log.note(&report.line());
    }
    let seconds = |t: Duration| t.as_secs_f64();
    log.note(&match options.kl {
        true => format!("passes {:.3} s, dense {:.3} s", seconds(time), seconds(dense_time)),
        false => format!("passes {:.3} s", seconds(time)),
    });
    print("\n")?;
    if options.kl {
        print(&scores.comparison())?;
    }
    print(&format!("Final estimate: PPL = {perplexity:.4} +/- {error:.5}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_two_coins() {
        // 1/2, 1/2 against 1/4, 3/4, at any offset.
        let (kl, same) = compare(&[3.0, 3.0], &[1.0, 1.0 + 3.0f32.ln()]);
        assert!((kl - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-6 && !same, "{kl}");
        let (kl, same) = compare(&[0.5, 2.0], &[7.5, 9.0]);
        assert!(kl.abs() < 1e-6 && same, "{kl}");
    }

    #[test]
    fn equal_logits_give_the_size_of_the_vocabulary() {
        let mut sums = Sums::default();
        for token in 0..4 {
            sums.add(negative_log_likelihood(&[1.5; 4], token));
        }
        let (perplexity, error) = sums.estimate();
        assert!((perplexity - 4.0).abs() < 1e-12 && error < 1e-6, "{perplexity} {error}");
    }
}
