//! Architecture `qwen3`: the dense models of Qwen 3.

use super::llama;
use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::model::hparams::{Hparams, Pairs};
use crate::weights::{Activation, Factors, Loader};

/// As llama, with a norm of each head's queries and keys; RoPE rotates dimensions that lie half a head apart.
pub const QWEN3: Architecture = Architecture {
    name: "qwen3",
    has_experts: false,
    hparams: |keys, n_vocab, options| Hparams::common(keys, n_vocab, options, Pairs::Halves),
    tensors,
    graph: llama::graph,
};

/// As llama's, with the norms.
pub fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    parts::tensors(loader, h, |loader, il| {
        let mut layer = parts::layer(loader, h, il, Activation::Silu, &Factors::None)?;
        parts::add_head_norms(loader, h, il, &mut layer.attn)?;
        Ok(layer)
    })
}
