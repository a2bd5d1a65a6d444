//! Architecture `qwen2`: Qwen 2 and 2.5, and what was distilled into them.

use super::llama;
use super::parts::Architecture;
use crate::model::hparams::Hparams;

/// As llama, with biases of queries, keys and values; RoPE rotates dimensions that lie half a head apart.
pub const QWEN2: Architecture = Architecture {
    name: "qwen2",
    hparams: |keys, n_vocab, rope| Hparams::common(keys, n_vocab, rope, true),
    tensors: llama::tensors,
    graph: llama::graph,
};
