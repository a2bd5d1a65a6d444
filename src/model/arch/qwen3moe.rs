//! Architecture `qwen3moe`: the models of Qwen 3 with experts.

use super::parts::Architecture;
use super::{llama, qwen3};
use crate::error::{Error, Result};
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;

/// As qwen3, with experts.
pub const QWEN3MOE: Architecture =
    Architecture { name: "qwen3moe", has_experts: true, hparams, tensors: qwen3::tensors, graph: llama::graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Halves)?;
    let Some(counts) = h.experts else {
        return Err(Error::malformed(format!("{}.expert_count is missing or 0, expected more", keys.arch)));
    };
    h.n_ff = match keys.u32("expert_feed_forward_length")? {
        Some(0) | None => h.n_ff / counts.n_used,
        Some(n) => n as usize,
    };
    Ok(h)
}
