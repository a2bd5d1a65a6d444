//! Architecture `llama`: LLaMA 2 and 3, SmolLM2, TinyLlama, Mistral.

use ggml::Tensor;

use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::{Hparams, Pairs};
use crate::weights::{Activation, Loader};

/// Pairs of neighbouring dimensions are rotated; matrices may have biases.
pub const LLAMA: Architecture = Architecture {
    name: "llama",
    has_experts: true,
    hparams: |keys, n_vocab, options| Hparams::common(keys, n_vocab, options, Pairs::Neighbours),
    tensors,
    graph,
};

/// Layers of attention and a gated MLP.
pub fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    let factors = loader.rope_freqs(h.layers[0].n_embd_head / 2)?;
    parts::tensors(loader, h, |loader, il| parts::layer(loader, h, il, Activation::Silu, &factors))
}

/// The layers, on the embeddings of the tokens.
pub fn graph(mut b: GraphBuilder, _: &Hparams, m: &Tensors) -> GraphSlots {
    let x = b.embed(m.tok_embd);
    layers(b, x, m)
}

/// Both blocks of a layer read the normalised residual stream `x` and add to it (llama.cpp: models/llama.cpp).
pub fn layers<'g>(mut b: GraphBuilder<'_, 'g>, mut x: Tensor<'g>, m: &Tensors) -> GraphSlots {
    for (il, l) in m.layers.iter().enumerate() {
        let attn_out = b.attention(x, &l.attn_norm, &l.attn, il);
        let ffn_inp = b.residual(attn_out, x, il);
        b.name(ffn_inp, "ffn_inp", il);
        let ffn_out = b.mlp(ffn_inp, &l.ffn_norm, &l.mlp, il);
        x = b.added(ffn_out, ffn_inp);
        b.name(x, "l_out", il);
    }
    b.head(x, &m.head)
}
