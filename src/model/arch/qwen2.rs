//! Architecture `qwen2`: Qwen 2 and 2.5, and what was distilled into them.

use super::llama;
use super::parts::Architecture;
use crate::model::hparams::{Hparams, Pairs};

/// As llama, with biases of queries, keys and values; RoPE rotates dimensions that lie half a head apart.
pub const QWEN2: Architecture = Architecture {
    name: "qwen2",
    has_experts: false,
    hparams: |keys, n_vocab, options| Hparams::common(keys, n_vocab, options, Pairs::Halves),
    tensors: llama::tensors,
    graph: llama::graph,
};
