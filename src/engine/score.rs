//! Texts side by side: states, logits and moments of whole texts, for scores and calibrations.

use std::collections::BTreeMap;

use super::session::Session;
use crate::error::{Error, Result};
use crate::graph::{Batch, Results, Row};
use crate::prune::{Block, Notes, Pass};
use crate::tokenizer::Token;

/// Moments of the inputs of a block's last matrix over a batch.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Mean of each channel
    pub mean: Vec<f32>,
    /// Mean of squares of each channel
    pub energy: Vec<f32>,
    /// Mean of squares of states that are divided by their root mean square, token by token
    pub normalised: Vec<f32>,
    /// The same as `energy` by position, `[n_each, n_channels]`; empty unless asked for
    pub positions: Vec<f32>,
}

/// The next token of one of several texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Its number in the vocabulary
    pub token: Token,
    /// Its position in its text
    pub pos: usize,
    /// The text's sequence
    pub seq: usize,
}

impl Session<'_> {
    /// Runs independent sequences side by side from an empty cache: the states before the output matrix of the positions `first..`, sequence
    /// by sequence, `[n_embd]` each. Sequences that are shorter than the longest are filled up, by tokens that a probe takes no notice of. `prune` says whether [`Session::set_pruning`] applies. The
    /// session's own tokens are forgotten.
    pub fn states(&mut self, seqs: &[&[Token]], first: usize, prune: bool) -> Result<Vec<f32>> {
        let length = seqs.iter().map(|s| s.len()).max().unwrap_or(0);
        let filled: Vec<Vec<Token>> =
            seqs.iter().map(|s| s.iter().copied().chain(std::iter::repeat_n(0, length - s.len())).collect()).collect();
        let is_padded = seqs.iter().any(|s| s.len() < length);
        let lengths: Vec<usize> = seqs.iter().map(|s| s.len()).collect();
        let seqs: Vec<&[Token]> = filled.iter().map(Vec::as_slice).collect();
        self.begin(&seqs)?;
        let n_seq = seqs.len();
        let n_embd = self.engine.model.hparams().n_embd;
        let step = (self.engine.n_ubatch / n_seq).max(1);
        let mut states = vec![0.0f32; n_seq * (length - first) * n_embd];
        let mut rows = Vec::new();
        for start in (0..length).step_by(step) {
            let end = length.min(start + step);
            let pieces: Vec<&[Token]> = seqs.iter().map(|s| &s[start..end]).collect();
            let way = if prune { self.way_of_texts(n_seq, end - start)? } else { None };
            let is_whole = end - start == length;
            if let Some(pruned) = &mut self.pruned {
                pruned.policy.set_kept_share(pruned.pruning.plan.kept_share(!is_whole));
            }
            // A graph has at least one result; and a batch that is pruned is pruned as a whole, the last layer included.
            let wanted = first.clamp(start, end);
            let from = if way.is_some() { start } else { wanted.min(end - 1) };
            let batch = Batch::of_pieces(&pieces, start, from - start..end - start, Results::States);
            let n_text = lengths.iter().filter(|_| is_padded).map(|n| n.clamp(&start, &end) - start).collect();
            let batch = Batch { is_whole, n_text, ..batch };
            self.run(&batch, way.as_ref(), false)?;
            if let Some(way) = &way {
                self.collect(&batch, way, false);
            }
            if wanted == end {
                continue;
            }
            let n = end - from;
            rows.resize(n_seq * n * n_embd, 0.0);
            self.engine.results(&mut rows);
            for (seq, rows) in rows.chunks_exact(n * n_embd).enumerate() {
                let at = (seq * (length - first) + wanted - first) * n_embd;
                let new = &rows[(wanted - from) * n_embd..];
                states[at..at + new.len()].copy_from_slice(new);
            }
        }
        Ok(states)
    }

    /// Appends tokens, dense, and returns the state before the output matrix of each: `[n_embd, n]`. There are no logits after them.
    pub fn states_after(&mut self, tokens: &[Token]) -> Result<Vec<f32>> {
        let n_embd = self.engine.model.hparams().n_embd;
        let mut states = vec![0.0f32; tokens.len() * n_embd];
        let n_ubatch = self.engine.n_ubatch;
        for (piece, states) in tokens.chunks(n_ubatch).zip(states.chunks_mut(n_ubatch * n_embd)) {
            let batch = Batch::of_pieces(&[piece], self.tokens.len(), 0..piece.len(), Results::States);
            self.engine.run(&batch, Pass::Dense, None, false)?;
            self.engine.results(states);
            self.tokens.extend_from_slice(piece);
        }
        Ok(states)
    }

    /// Logits `[n_vocab, n]` of states `[n_embd, n]`; of some [`super::OUTPUT_ROWS`] at a time, as they are large.
    pub fn outputs(&mut self, states: &[f32]) -> Result<Vec<f32>> {
        self.engine.logits(states)
    }

    /// Runs sequences side by side, whole, and returns the moments of each block over the batch.
    pub fn moments(&mut self, seqs: &[&[Token]], positions: bool) -> Result<BTreeMap<Block, Moments>> {
        let length = self.begin(seqs)?;
        assert!(seqs.len() * length <= self.engine.n_ubatch, "one micro-batch");
        let batch = Batch::of_pieces(seqs, 0, 0..length, Results::States);
        self.engine.run(&batch, Pass::Calibrate { positions }, None, false)?;
        let dims = self.engine.model.dims();
        let moments = |notes: &Notes| {
            let n = notes.block.channels(&dims);
            let mut both = vec![0.0f32; 2 * n];
            self.engine.noted(notes.moments.expect("noted of every block"), &mut both);
            let mut normalised = vec![0.0f32; n];
            self.engine.noted(notes.observed.expect("noted of every block").0, &mut normalised);
            let mut by_position = vec![0.0f32; if positions { n * length } else { 0 }];
            if let Some(slot) = notes.energy {
                self.engine.noted(slot, &mut by_position);
            }
            let [mean, energy] = [0, 1].map(|i| both.iter().skip(i).step_by(2).copied().collect());
            (notes.block, Moments { mean, energy, normalised, positions: by_position })
        };
        Ok(self.engine.notes().iter().map(moments).collect())
    }

    /// Appends one token to each of several texts that grow side by side, on all weights: logits `[n_vocab, n]`. If the first sequence is among
    /// them the session's own tokens are forgotten.
    pub fn step(&mut self, next: &[Next]) -> Result<Vec<f32>> {
        if next.iter().any(|n| n.seq == 0) {
            self.rewind(0);
        }
        let rows = next.iter().map(|&Next { token, pos, seq }| Row { token, pos, seq, wanted: true }).collect();
        let batch = Batch { rows, ..Batch::of_pieces(&[], 0, 0..0, Results::Logits) };
        self.engine.run(&batch, Pass::Dense, None, false)?;
        let mut logits = vec![0.0f32; next.len() * self.engine.model.n_vocab()];
        self.engine.results(&mut logits);
        Ok(logits)
    }

    /// Lets a text go on in sequence `seq` from the session's own tokens, which stay.
    pub fn fork(&mut self, seq: usize) {
        self.engine.cache.copy(seq, self.tokens.len());
    }

    /// Checks sequences that are to run side by side from the start; their length.
    fn begin(&mut self, seqs: &[&[Token]]) -> Result<usize> {
        let length = seqs.first().map_or(0, |s| s.len());
        assert!(
            length > 0 && seqs.len() <= self.engine.cache.params().n_seq && seqs.iter().all(|s| s.len() == length),
            "equal sequences that fit"
        );
        if length > self.n_ctx() {
            return Err(Error::malformed(format!("{length} tokens do not fit in a context of {}", self.n_ctx())));
        }
        self.rewind(0);
        Ok(length)
    }
}
