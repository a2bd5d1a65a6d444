//! Architecture `gpt-oss`: OpenAI's open models.

use super::llama::graph;
use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{Experts, Factors, Gating, Loader, Mlp};

/// Experts with biases and a gate of their own, every second layer within a window, sinks of attention.
pub const GPT_OSS: Architecture = Architecture { name: "gpt-oss", has_experts: true, hparams, tensors, graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::Halves)?;
    parts::set_expert_width(keys, &mut h)?;
    let n = keys.u32("attention.sliding_window")?.ok_or_else(|| keys.missing("attention.sliding_window"))?;
    h.window = parts::window(keys, &h, n, 2, |rope| rope)?;
    Ok(h)
}

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    parts::tensors(loader, h, |loader, il| {
        let mut attn = parts::attention(loader, h, il, &Factors::None)?;
        attn.sinks = Some(loader.sinks(&format!("blk.{il}.attn_sinks"), h.n_head, il)?);
        let counts = h.experts.expect("their width was read");
        let experts = parts::experts(loader, h, il, Gating::ClampedSwish, counts)?;
        let mlp = Mlp::Experts(Experts { softmax_of_chosen: true, ..experts });
        let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), h.n_embd, h.norm_eps, il);
        // The norm before the MLP has the name that others give to the one after attention.
        let (attn_norm, ffn_norm) = (norm("attn_norm")?, norm("post_attention_norm")?);
        Ok(parts::plain_layer(attn_norm, attn, ffn_norm, mlp))
    })
}
