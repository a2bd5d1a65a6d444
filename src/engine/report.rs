//! What pruning did to a prompt and the answer after it, in numbers and in words.

use std::time::Duration;

use crate::system::memory;

/// What pruning did to the last prompt and the answer after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Rows that ran ahead
    pub probe_rows: usize,
    /// Tokens that ran on reduced tensors
    pub pruned_tokens: usize,
    /// Tokens that ran whole
    pub dense_tokens: usize,
    /// Tokens from which on pruning pays; `usize::MAX` if it never does
    pub break_even: usize,
    /// Share of the blocks' weights that reduced tensors have
    pub kept: f64,
    /// Masks are the same for all batches
    pub is_fixed: bool,
    /// Time that making reduced weights for answers took, and their bytes
    pub reduced: Option<(Duration, u64)>,
    /// The answer ran whole: it was to be shorter than this, from which on reduced weights pay
    pub answer_below: Option<usize>,
}

impl Report {
    /// The same before the next prompt: what holds for all prompts stays.
    pub fn next(&self) -> Report {
        let &Report { break_even, kept, is_fixed, .. } = self;
        Report { break_even, kept, is_fixed, ..Default::default() }
    }

    /// How prompt and answer were run, as the statistics say it.
    pub fn line(&self) -> String {
        let n = self.pruned_tokens + self.dense_tokens;
        let kept = format!("kept {:.1}%", 100.0 * self.kept);
        let prompt = match (self.pruned_tokens, self.dense_tokens) {
            (0, _) if self.break_even == usize::MAX => {
                "dense: pruning does not pay for prompts of this model here".into()
            }
            (0, _) => format!("dense: prompt below break-even ({} tokens)", self.break_even),
            _ if self.is_fixed => format!("fixed masks, {kept}"),
            _ if self.probe_rows == 0 => format!("given masks, {kept}"),
            (_, 0) => format!("probe {} of {n} tokens, {kept}", self.probe_rows),
            (p, d) => format!("probe {} of {p} tokens, {kept}; {d} tokens dense", self.probe_rows),
        };
        match self.reduced {
            _ if self.answer_below == Some(usize::MAX) => format!("{prompt}; answer dense: pruning does not pay here"),
            _ if let Some(n) = self.answer_below => format!("{prompt}; answer dense: below break-even ({n} tokens)"),
            Some((time, bytes)) if !self.is_fixed => format!(
                "{prompt}; answer on {} of reduced weights made in {:.2} s",
                memory::human(bytes),
                time.as_secs_f64()
            ),
            _ => prompt,
        }
    }

    /// The same in a few words.
    pub fn in_short(&self) -> String {
        let kept = format!("kept {:.1}%", 100.0 * self.kept);
        match (self.pruned_tokens > 0, self.reduced.is_some() || self.is_fixed) {
            (true, _) => kept,
            (false, true) => format!("prompt whole, answer {kept}"),
            (false, false) => "all kept: too short to gain".to_owned(),
        }
    }
}
