//! One timeline on a model: its tokens, KV cache and last logits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::cli::options::ContextOptions;
use crate::error::Result;
use crate::model::Model;

/// Id of a token in the vocabulary.
pub type Token = i32;

/// Tokens, KV cache and logits of one text that grows.
#[derive(Debug)]
pub struct Session<'m> {
    #[allow(dead_code)]
    model: &'m Model,
}

impl<'m> Session<'m> {
    /// Reserves all memory that any later call can need: `n_ctx` cache cells for each of `n_seq_max` sequences and
    /// the compute buffers of the largest micro-batch. `interrupt` stops a running computation soon after it is set.
    pub fn new(
        _model: &'m Model,
        _options: &ContextOptions,
        _n_seq_max: usize,
        _interrupt: Arc<AtomicBool>,
    ) -> Result<Self> {
        todo!()
    }

    /// Context in tokens (per sequence).
    pub fn n_ctx(&self) -> usize {
        todo!()
    }

    /// Tokens in the cache.
    pub fn n_past(&self) -> usize {
        todo!()
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[Token] {
        todo!()
    }

    /// Logits `[n_vocab]` after the last token.
    pub fn logits(&self) -> &[f32] {
        todo!()
    }

    /// Makes the cache hold exactly `prompt`: keeps the common prefix, processes the rest (at least the last token,
    /// so that `logits` is valid). `progress` is told after each micro-batch how many tokens are done and of how many.
    /// Returns the number processed. `Kind::Malformed` if the prompt is longer than the context; `Kind::Interrupted`
    /// leaves the cache valid with what was done.
    pub fn sync(&mut self, _prompt: &[Token], _progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        todo!()
    }

    /// Appends one token and computes its logits.
    pub fn decode(&mut self, _token: Token) -> Result<()> {
        todo!()
    }

    /// Forgets all tokens from position `n_past` on.
    pub fn rewind(&mut self, _n_past: usize) {
        todo!()
    }

    /// Runs independent sequences of equal length (at most `n_seq_max`) side by side from an empty cache, and hands
    /// out `(sequence, position, logits)` for every position from `first` on.
    pub fn score(
        &mut self,
        _seqs: &[&[Token]],
        _first: usize,
        _each: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        todo!()
    }
}
