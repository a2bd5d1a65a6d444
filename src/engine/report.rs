//! What pruning did to a prompt and the answer after it, in numbers and in words.

use std::time::Duration;

use crate::prune::Scale;
use crate::system::memory;

/// From how many tokens on pruning pays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BreakEven {
    /// For no number of them
    #[default]
    Never,
    /// For so many and more
    From(usize),
}

impl BreakEven {
    /// Whether it pays for `n` tokens.
    pub fn pays(self, n: usize) -> bool {
        matches!(self, BreakEven::From(least) if n >= least)
    }
}

/// What the guard found out about a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guarded {
    /// KL divergence of what came after the prompt's first piece, read pruned, from the same after it was read densely, in nats per token
    pub kl: f64,
    /// What the model's curve has for that share
    pub expected: f64,
    /// The share left out of the rest; 0 = it ran dense
    pub ratio: f64,
    /// Time that reading the piece once more and comparing took
    pub time: Duration,
}

/// What pruning did to the last prompt and the answer after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Rows that ran ahead
    pub probe_rows: usize,
    /// Tokens that ran on reduced tensors
    pub pruned_tokens: usize,
    /// Tokens that ran dense
    pub dense_tokens: usize,
    /// For which prompts pruning pays
    pub break_even: BreakEven,
    /// The prompt was long enough for pruning to pay, but hardly longer than what is read whole of any
    pub is_too_short: bool,
    /// Share of the blocks' weights that reduced tensors have
    pub kept: f64,
    /// KL divergence of what follows from what follows a dense reading, in nats per token, as it was measured for this share on other
    /// texts
    pub expected_kl: Option<f64>,
    /// By which that is put in words
    pub scale: Scale,
    /// What the guard found out, if there was one and the prompt was long enough
    pub guarded: Option<Guarded>,
    /// Masks are the same for all batches
    pub is_fixed: bool,
    /// Time that making reduced weights for answers took, and their bytes
    pub reduced: Option<(Duration, u64)>,
    /// The answer ran dense: it was to be shorter than this, from which on reduced weights pay
    pub answer_below: Option<BreakEven>,
}

impl Report {
    /// The same before the next prompt: what holds for all prompts stays.
    pub fn next(&self) -> Report {
        let &Report { break_even, kept, is_fixed, scale, .. } = self;
        Report { break_even, kept, is_fixed, scale, ..Default::default() }
    }

    /// How prompt and answer were run, as the statistics say it.
    pub fn line(&self) -> String {
        let n = self.pruned_tokens + self.dense_tokens;
        let kept = format!("kept {:.1}%{}", 100.0 * self.kept, self.expected_cost());
        let prompt = match (self.pruned_tokens, self.dense_tokens) {
            (0, _) if self.guarded.is_some() => "dense".into(),
            (0, _) if self.is_too_short => "dense: prompt too short for a probe".into(),
            (0, _) => match self.break_even {
                BreakEven::Never => "dense: pruning so little does not pay for prompts".into(),
                BreakEven::From(least) => format!("dense: prompt below break-even ({least} tokens)"),
            },
            _ if self.is_fixed => format!("fixed masks, {kept}"),
            _ if self.probe_rows == 0 => format!("given masks, {kept}"),
            (_, 0) => format!("probe {} of {n} tokens, {kept}", self.probe_rows),
            (p, d) => format!("probe {} of {p} tokens, {kept}; {d} tokens dense", self.probe_rows),
        };
        let prompt = match self.guarded {
            Some(g) => format!(
                "{prompt}; guard: KL {:.4} here, {:.4} expected, {:.0}% left out of the rest ({:.2} s)",
                g.kl,
                g.expected,
                100.0 * g.ratio,
                g.time.as_secs_f64()
            ),
            None => prompt,
        };
        match (self.answer_below, self.reduced) {
            (Some(BreakEven::Never), _) => format!("{prompt}; answer dense: pruning does not pay here"),
            (Some(BreakEven::From(least)), _) => {
                format!("{prompt}; answer dense: below break-even ({least} tokens)")
            }
            (None, Some((time, bytes))) if !self.is_fixed => format!(
                "{prompt}; answer on {} of reduced weights made in {:.2} s",
                memory::human(bytes),
                time.as_secs_f64()
            ),
            _ => prompt,
        }
    }

    /// What reading is expected to cost, in words.
    fn expected_cost(&self) -> String {
        let in_words = |kl| format!(" at an expected KL of {kl:.4}, {}", self.scale.in_words(kl));
        self.expected_kl.map_or(String::new(), in_words)
    }

    /// The same in a few words.
    pub fn in_short(&self) -> String {
        let kept = format!("kept {:.1}%", 100.0 * self.kept);
        match (self.pruned_tokens > 0, self.reduced.is_some() || self.is_fixed) {
            (true, _) => kept,
            (false, true) => format!("prompt dense, answer {kept}"),
            (false, false) => "all kept: too short to gain".to_owned(),
        }
    }
}
