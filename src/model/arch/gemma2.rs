//! Architecture `gemma2`: Gemma 2.

use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{Activation, Factors, Loader};

/// Norms before and after each block, a GELU gate, every second layer within a window, scores and logits capped.
pub const GEMMA2: Architecture = Architecture { name: "gemma2", has_experts: false, hparams, tensors, graph };

/// Layers of the model of 27B, whose scores have another factor than those of the others.
const LAYERS_27B: usize = 46;

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Halves)?;
    h.attn_softcap = Some(keys.positive("attn_logit_softcapping")?.unwrap_or(50.0));
    h.logit_softcap = Some(keys.positive("final_logit_softcapping")?.unwrap_or(30.0));
    h.embedding_scale = Some((h.n_embd as f32).sqrt());
    if h.n_layer == LAYERS_27B {
        h.kq_scale = share_scale(&h);
    }
    let n = keys.u32("attention.sliding_window")?.unwrap_or(4096);
    h.window = parts::window(keys, &h, n, 2, |rope| rope)?;
    Ok(h)
}

/// Factor on scores by the share of the embedding that a head has.
pub fn share_scale(h: &Hparams) -> f32 {
    1.0 / ((h.n_embd / h.n_head) as f32).sqrt()
}

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    parts::tensors(loader, h, |loader, il| {
        let mut layer = parts::layer(loader, h, il, Activation::Gelu, &Factors::None)?;
        parts::add_post_norms(loader, h, il, &mut layer)?;
        parts::scale_queries(&mut layer.attn);
        Ok(layer)
    })
}

/// What a block adds is normalised once more (llama.cpp: models/gemma2.cpp, models/gemma3.cpp); in gemma4 a third block may follow
/// (models/gemma4.cpp).
pub fn graph(mut b: GraphBuilder, h: &Hparams, m: &Tensors) -> GraphSlots {
    let mut x = b.embed(m.tok_embd);
    x = b.scaled(x, h.embedding_scale);
    let embeddings = m.per_layer.as_ref().map(|w| b.embed_per_layer(x, w));
    for (il, l) in m.layers.iter().enumerate() {
        let attn_out = b.attention(x, &l.attn_norm, &l.attn, il);
        let attn_out = b.post_norm(attn_out, &l.attn_post_norm, "attn_post_norm", il);
        let sa_out = b.residual(attn_out, x, il);
        b.name(sa_out, "sa_out", il);
        let ffn_out = b.mlp(sa_out, &l.ffn_norm, &l.mlp, il);
        let ffn_out = b.post_norm(ffn_out, &l.ffn_post_norm, "ffn_post_norm", il);
        x = b.added(ffn_out, sa_out);
        if let (Some(w), Some(embeddings)) = (&l.per_layer, embeddings) {
            x = b.per_layer(x, w, embeddings, il);
        }
        x = b.times(x, &l.scale);
        b.name(x, "l_out", il);
    }
    b.head(x, &m.head)
}
