//! Architecture `llama`: LLaMA 2 and 3, SmolLM2, TinyLlama, Mistral.

use super::parts::{Architecture, Tensors};
use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::Hparams;
use crate::weights::{Activation, Attention, Layer, Loader, Mlp};

/// Pairs of neighbouring dimensions are rotated; matrices may have biases.
pub const LLAMA: Architecture = Architecture {
    name: "llama",
    hparams: |keys, n_vocab, rope| Hparams::common(keys, n_vocab, rope, false),
    tensors,
    graph,
};

/// Token embeddings, layers of attention and a gated MLP, and the output matrix, which may be the embeddings once more.
pub fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    let (n_embd, n_ff, n_vocab, eps) = (h.n_embd, h.n_ff, h.n_vocab, h.norm_rms_eps);
    let (n_q, n_kv) = (h.n_embd_q(), h.n_embd_gqa());
    let tok_embd = loader.embeddings("token_embd.weight", [n_embd, n_vocab])?;
    let output_norm = loader.rms_norm("output_norm", n_embd, eps, h.n_layer)?;
    let output = match loader.matrix_if_any("output.weight", [n_embd, n_vocab], h.n_layer)? {
        Some(output) => output,
        // Tied: the embeddings once more, in the layout that multiplies fastest.
        None => loader.matrix("token_embd.weight", [n_embd, n_vocab], h.n_layer)?,
    };
    let rope_freqs = loader.rope_freqs("rope_freqs.weight", h.n_embd_head / 2)?;
    let mut layers = Vec::with_capacity(h.n_layer);
    for il in 0..h.n_layer {
        let mut linear =
            |name: &str, n_in: usize, n_out: usize| loader.linear(&format!("blk.{il}.{name}"), n_in, n_out, il);
        let attn = Attention {
            q: linear("attn_q", n_embd, n_q)?,
            k: linear("attn_k", n_embd, n_kv)?,
            v: linear("attn_v", n_embd, n_kv)?,
            output: linear("attn_output", n_q, n_embd)?,
            q_norm: None,
            k_norm: None,
            rope: h.rope,
            rope_freqs: rope_freqs.clone(),
            scale: h.kq_scale,
            n_head: h.n_head,
            n_head_kv: h.n_head_kv,
            n_embd_head: h.n_embd_head,
        };
        let mlp = Mlp::Gated {
            gate: linear("ffn_gate", n_embd, n_ff)?,
            up: linear("ffn_up", n_embd, n_ff)?,
            down: linear("ffn_down", n_ff, n_embd)?,
            act: Activation::Silu,
        };
        let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), n_embd, eps, il);
        let (attn_norm, ffn_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        layers.push(Layer { attn_norm, attn, ffn_norm, mlp });
    }
    Ok(Tensors { tok_embd, layers, output_norm, output })
}

/// Both blocks of a layer read the normalised residual stream and add to it (llama.cpp: models/llama.cpp).
pub fn graph(mut b: GraphBuilder, m: &Tensors) -> GraphSlots {
    let mut x = b.embed(m.tok_embd);
    for (il, l) in m.layers.iter().enumerate() {
        let attn_out = b.attention(x, &l.attn_norm, &l.attn, il);
        let ffn_inp = b.residual(attn_out, x, il);
        b.name(ffn_inp, "ffn_inp", il);
        let ffn_out = b.mlp(ffn_inp, &l.ffn_norm, &l.mlp, il);
        x = b.added(ffn_out, ffn_inp);
        b.name(x, "l_out", il);
    }
    b.head(x, &m.output_norm, &m.output)
}
