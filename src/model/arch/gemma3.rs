//! Architecture `gemma3`: the texts' part of Gemma 3.

use super::gemma2::{graph, share_scale};
use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{Activation, Factors, Loader};

/// As gemma2, with a norm of each head's queries and keys, five of six layers within a window, where frequencies are others, and no cap on
/// scores.
pub const GEMMA3: Architecture = Architecture { name: "gemma3", has_experts: false, hparams, tensors, graph };

/// Layers of the model of 27B, whose scores have another factor than those of the others.
const LAYERS_27B: usize = 62;

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Halves)?;
    h.logit_softcap = keys.positive("final_logit_softcapping")?;
    h.embedding_scale = Some((h.n_embd as f32).sqrt());
    if h.n_layer == LAYERS_27B {
        h.kq_scale = share_scale(&h);
    }
    let n = keys.u32("attention.sliding_window")?.unwrap_or(0);
    // Within a window positions are not stretched.
    h.window = parts::window(keys, &h, n, 6, |rope| ggml::Rope { freq_base: 10000.0, freq_scale: 1.0, ..rope })?;
    Ok(h)
}

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    parts::tensors(loader, h, |loader, il| {
        let mut layer = parts::layer(loader, h, il, Activation::Gelu, &Factors::None)?;
        parts::add_head_norms(loader, h, il, &mut layer.attn)?;
        parts::add_post_norms(loader, h, il, &mut layer)?;
        parts::scale_queries(&mut layer.attn);
        Ok(layer)
    })
}
