//! `pp-run perplexity`: as llama-perplexity, so that numbers can be compared.

use super::load::{Signals, load};
use super::{print, read_text};
use crate::cli::options::PerplexityOptions;
use crate::error::{Error, Kind, Result};
use crate::session::Session;
use crate::stats::Log;
use crate::tokenizer::Token;

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

    /// Perplexity and its standard error.
    fn estimate(&self) -> (f64, f64) {
        let n = self.count as f64;
        let mean = self.nll / n;
        let variance = self.nll_squared / n - mean * mean;
        let error = if variance > 0.0 && self.count > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        (mean.exp(), error * mean.exp())
    }
}

/// Negative log-likelihood of `token`: floats for the exponentials, doubles for their sum, as llama-perplexity.
fn negative_log_likelihood(logits: &[f32], token: Token) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

/// Scores of the tokens `next` by the rows of logits before them, on `n_threads` threads.
fn score_rows(rows: &[&[f32]], next: &[Token], n_threads: usize) -> Vec<f64> {
    let pairs: Vec<(&[f32], Token)> = rows.iter().copied().zip(next.iter().copied()).collect();
    let share = pairs.len().div_ceil(n_threads).max(1);
    let score = |part: &[(&[f32], Token)]| -> Vec<f64> {
        part.iter().map(|(logits, token)| negative_log_likelihood(logits, *token)).collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = pairs.chunks(share).map(|part| scope.spawn(move || score(part))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// Cuts the text into windows of `-c` tokens, each beginning with BOS if the model wants it, and scores the second half of
/// each.
pub fn run(options: &PerplexityOptions) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let signals = Signals::catch()?;
    let text = read_text(&options.file)?;
    let (model, tokenizer) = load(&options.model, &options.context, &log, &signals)?;
    let mut context = options.context.clone();
    let n_ctx = match context.n_ctx {
        Some(0) | None => model.hparams().n_ctx_train as usize,
        Some(n) => n as usize,
    };
    if n_ctx < 4 {
        return Err(Error::usage(format!("-c is {n_ctx}, expected 4 or more: half of a window is scored")));
    }
    context.n_ctx = Some(u32::try_from(n_ctx).unwrap_or(u32::MAX));

    let tokens = tokenizer.encode(&text, true, false)?;
    if tokens.len() < 2 * n_ctx {
        return Err(Error::malformed(format!(
            "has {} tokens, but two windows of {n_ctx} are needed at least: use a longer text or a smaller -c",
            tokens.len()
        ))
        .in_file(&options.file));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let n_chunks = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / n_ctx);
    let windows: Vec<Vec<Token>> = tokens
        .chunks_exact(n_ctx)
        .take(n_chunks)
        .map(|w| {
            let mut window = w.to_vec();
            window[0] = bos.unwrap_or(window[0]);
            window
        })
        .collect();

    let n_seq = (context.n_batch as usize / n_ctx).clamp(1, n_chunks);
    let mut session = Session::new(&model, &context, n_seq, context.n_ubatch as usize, signals.interrupt.clone())?;
    log.note(&format!("{n_chunks} windows of {n_ctx} tokens, {n_seq} at a time"));
    let bar = log.progress("perplexity", (n_chunks * n_ctx) as u64);
    let first = n_ctx / 2;
    let mut sums = Sums::default();
    let mut done = 0;
    for group in windows.chunks(n_seq) {
        let seqs: Vec<&[Token]> = group.iter().map(Vec::as_slice).collect();
        let mut scores = vec![Vec::with_capacity(n_ctx - first); group.len()];
        let scored = session.score(&seqs, first, &mut |seq, pos, rows| {
            let rows: Vec<&[f32]> = rows.chunks_exact(model.n_vocab()).collect();
            // Row i predicts the token after its own; nothing is known to follow the last.
            let next = &seqs[seq][pos + 1..n_ctx.min(pos + 1 + rows.len())];
            scores[seq].extend(score_rows(&rows, next, context.n_threads_batch));
            bar.set_position((done * n_ctx + pos * seqs.len()) as u64);
        });
        scored.map_err(|e| if e.kind() == Kind::Interrupted { signals.error() } else { e })?;
        for window in scores {
            window.into_iter().for_each(|nll| sums.add(nll));
            done += 1;
            bar.suspend(|| print(&format!("[{done}]{:.4},", sums.estimate().0)))?;
        }
    }
    bar.finish_and_clear();
    let (perplexity, error) = sums.estimate();
    if !perplexity.is_finite() {
        print("\n")?;
        return Err(Error::failed("the perplexity is not a number: the model computes NaN (try --check-tensors)"));
    }
    print(&format!("\nFinal estimate: PPL = {perplexity:.4} +/- {error:.5}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
