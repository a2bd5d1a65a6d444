//! Scores of tokens by a model's logits: perplexity, and how far two readings of one text are apart.

use std::time::{Duration, Instant};

use super::kld::Compared;
use crate::engine::{OUTPUT_ROWS, Session, divergences, normaliser};
use crate::error::Result;
use crate::tokenizer::Token;

/// Sums over the tokens scored so far.
#[derive(Debug, Clone, Default)]
pub struct Sums {
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

    pub fn mean(&self) -> f64 {
        self.nll / self.count as f64
    }

    /// Standard error of the mean.
    fn error(&self) -> f64 {
        let n = self.count as f64;
        let variance = self.nll_squared / n - self.mean() * self.mean();
        if variance > 0.0 && self.count > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 }
    }

    /// Perplexity and its standard error.
    pub fn estimate(&self) -> (f64, f64) {
        let perplexity = self.mean().exp();
        (perplexity, self.error() * perplexity)
    }
}

/// Negative log-likelihood of `token`.
fn negative_log_likelihood(logits: &[f32], token: Token) -> f64 {
    let (best, ln_sum) = normaliser(logits);
    ln_sum - f64::from(logits[token as usize] - logits[best])
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

/// What was scored so far.
#[derive(Debug, Default)]
pub struct Scores {
    /// Negative log-likelihoods
    pub sums: Sums,
    /// `--kl`: each token, beside what a base makes of it
    pub compared: Vec<Compared>,
}

impl Scores {
    /// Scores the tokens `next` by the rows of logits before them; those of a base are compared with them.
    pub fn add(&mut self, logits: &[f32], base: Option<&[f32]>, next: &[Token], n_threads: usize) {
        let nlls = score_rows(logits, next, n_threads);
        nlls.iter().for_each(|&nll| self.sums.add(nll));
        if let Some(base) = base {
            let of_base = score_rows(base, next, n_threads);
            let divergences = divergences(base, logits, base.len() / next.len(), n_threads);
            let compared = nlls.into_iter().zip(of_base).zip(divergences);
            self.compared.extend(compared.map(|((nll, nll_base), (kl, same_top))| Compared {
                nll,
                nll_base,
                kl,
                same_top,
            }));
        }
    }

    /// The same with tokens that were compared with those of a file.
    pub fn add_compared(&mut self, compared: Vec<Compared>) {
        compared.iter().for_each(|c| self.sums.add(c.nll));
        self.compared.extend(compared);
    }

    /// Scores the tokens `after` a context; `base` is what followed another reading of it, by another model if that has a session.
    pub fn add_followed(
        &mut self,
        session: &mut Session,
        read: &Followed,
        base: Option<&Followed>,
        mut base_session: Option<&mut Session>,
        after: &[Token],
        n_threads: usize,
    ) -> Result<()> {
        self.add(&read.first, base.map(|b| &b.first[..]), &after[..1], n_threads);
        for (i, next) in after[1..].chunks(OUTPUT_ROWS).enumerate() {
            let logits = session.outputs(read.rows(i * OUTPUT_ROWS, next.len()))?;
            let of_base = |base: &Followed| {
                let states = base.rows(i * OUTPUT_ROWS, next.len());
                match base_session.as_deref_mut() {
                    Some(session) => session.outputs(states),
                    None => session.outputs(states),
                }
            };
            let base = base.map(of_base).transpose()?;
            self.add(&logits, base.as_deref(), next, n_threads);
        }
        // Another session's turn may come: this one's threads would wait by spinning.
        session.pause();
        if let Some(session) = base_session {
            session.pause();
        }
        Ok(())
    }
}

/// A context that was read as a prompt, and what the model makes of the tokens after it.
#[derive(Debug)]
pub struct Followed {
    /// Logits `[n_vocab]` after the context
    first: Vec<f32>,
    /// States before the output matrix `[n_embd, n]`, of all tokens after the context but the last
    states: Vec<f32>,
    n_embd: usize,
    /// Time that reading the context took
    pub time: Duration,
}

impl Followed {
    /// Reads `context` from the start, and runs the tokens `after` it dense.
    pub fn new(session: &mut Session, context: &[Token], after: &[Token]) -> Result<Followed> {
        session.rewind(0);
        let start = Instant::now();
        session.sync(context, &mut |_, _| {})?;
        let read = Followed { first: session.logits().to_vec(), states: Vec::new(), n_embd: 0, time: start.elapsed() };
        read.instead(session, context.len(), after)
    }

    /// The same context, which the session has read as its first `n_context` tokens, and other tokens `after` it.
    pub fn instead(&self, session: &mut Session, n_context: usize, after: &[Token]) -> Result<Followed> {
        session.rewind(n_context);
        let states = session.states_after(&after[..after.len() - 1])?;
        // Another session's turn may come: this one's threads would wait by spinning.
        session.pause();
        let n_embd = states.len() / (after.len() - 1).max(1);
        Ok(Followed { first: self.first.clone(), states, n_embd, time: self.time })
    }

    /// The states of `n` tokens from the one at `first` on.
    fn rows(&self, first: usize, n: usize) -> &[f32] {
        &self.states[first * self.n_embd..(first + n) * self.n_embd]
    }
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
