//! Architecture `granite`: the dense models of Granite 3 and 4.

use super::llama;
use super::parts::{Architecture, Tensors};
use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;

/// As llama, with factors on embeddings, on what blocks add, on attention scores and on logits.
pub const GRANITE: Architecture =
    Architecture { name: "granite", has_experts: false, hparams, tensors: llama::tensors, graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Neighbours)?;
    let divisor = keys.positive("logit_scale")?.ok_or_else(|| keys.missing("logit_scale"))?;
    h.logit_scale = Some(1.0 / divisor);
    h.residual_scale = keys.positive("residual_scale")?;
    h.embedding_scale = keys.positive("embedding_scale")?;
    h.kq_scale = keys.positive("attention.scale")?.unwrap_or(h.kq_scale);
    // Here the key says whether positions are embedded at all.
    if keys.bool("rope.scaling.finetuned")? == Some(false) {
        h.rope = None;
    }
    Ok(h)
}

/// As llama's, with the factors (llama.cpp: models/granite.cpp).
fn graph(mut b: GraphBuilder, h: &Hparams, m: &Tensors) -> GraphSlots {
    let mut x = b.embed(m.tok_embd);
    x = b.scaled(x, h.embedding_scale);
    for (il, l) in m.layers.iter().enumerate() {
        let attn_out = b.attention(x, &l.attn_norm, &l.attn, il).map(|out| b.scaled(out, h.residual_scale));
        let ffn_inp = b.residual(attn_out, x, il);
        b.name(ffn_inp, "ffn_inp", il);
        let ffn_out = b.mlp(ffn_inp, &l.ffn_norm, &l.mlp, il).map(|out| b.scaled(out, h.residual_scale));
        x = b.added(ffn_out, ffn_inp);
        b.name(x, "l_out", il);
    }
    b.head(x, &m.head)
}
