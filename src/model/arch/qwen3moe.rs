//! Architecture `qwen3moe`: the models of Qwen 3 with experts.

use super::parts::{self, Architecture};
use super::{llama, qwen3};
use crate::error::Result;
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;

/// As qwen3, with experts.
pub const QWEN3MOE: Architecture =
    Architecture { name: "qwen3moe", has_experts: true, hparams, tensors: qwen3::tensors, graph: llama::graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Halves)?;
    parts::set_expert_width(keys, &mut h)?;
    Ok(h)
}
