//! Architecture `smollm3`: SmolLM3.

use super::llama;
use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::model::hparams::{Hparams, Pairs};
use crate::weights::{Activation, Factors, Loader};

/// As llama, without an embedding of positions in every fourth layer.
pub const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    has_experts: false,
    hparams: |keys, n_vocab, options| Hparams::common(keys, n_vocab, options, Pairs::Neighbours),
    tensors,
    graph: llama::graph,
};

/// Each layer of such a number, counted from 1, has no embedding of positions.
const NO_ROPE_STEP: usize = 4;

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    parts::tensors(loader, h, |loader, il| {
        let mut layer = parts::layer(loader, h, il, Activation::Silu, &Factors::None)?;
        if (il + 1).is_multiple_of(NO_ROPE_STEP) {
            layer.attn.rotary = None;
        }
        Ok(layer)
    })
}
