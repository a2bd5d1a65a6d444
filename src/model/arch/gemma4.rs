//! Architecture `gemma4`: the texts' part of Gemma 4, without experts.

use super::gemma2::graph;
use super::parts::{self, Architecture, Tensors};
use crate::error::{Error, Result};
use crate::model::hparams::{Hparams, LayerSizes, MAX_WIDTH, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{Activation, Factors, KeysValues, Loader, PerLayer, PerLayerEmbeddings};

/// As gemma3, with heads of another width in a window, normalised values, which may be made by the keys' matrix, layers that read the keys
/// and values of others, and a third block in each layer, which reads embeddings of the layer's own.
pub const GEMMA4: Architecture = Architecture { name: "gemma4", has_experts: false, hparams, tensors, graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let mut h = Hparams::common(keys, n_vocab, options, Pairs::PartOfHalves)?;
    h.logit_softcap = keys.positive("final_logit_softcapping")?;
    h.embedding_scale = Some((h.n_embd as f32).sqrt());
    h.kq_scale = 1.0;
    h.n_embd_per_layer = keys.count("embedding_length_per_layer_input", 0, MAX_WIDTH)?;

    let n = keys.count("attention.sliding_window", 1, u32::MAX)? as u32;
    if !keys.has("attention.sliding_window_pattern") {
        return Err(keys.missing("attention.sliding_window_pattern"));
    }
    let full = h.layers[0].n_embd_head;
    let width = |key: &str| match keys.has(key) {
        true => keys.count(key, 2, MAX_WIDTH),
        false => Ok(full),
    };
    let n_embd_head = width("attention.key_length_swa")?;
    if !n_embd_head.is_multiple_of(2) || width("attention.value_length_swa")? != n_embd_head {
        let message = "the width of a head within a window is odd, or another for keys than for values";
        return Err(Error::malformed(message));
    }
    let n_rot = keys.u32("rope.dimension_count_swa")?.unwrap_or(h.rope.expect("Gemma rotates").n_dims);
    if n_rot == 0 || n_rot as usize > n_embd_head || !n_rot.is_multiple_of(2) {
        return Err(Error::malformed(format!(
            "{}.rope.dimension_count_swa is {n_rot}, expected an even number up to {n_embd_head}",
            keys.arch
        )));
    }
    // Within a window positions are not stretched.
    let rope = |rope| ggml::Rope { freq_base: 10000.0, freq_scale: 1.0, n_dims: n_rot, ..rope };
    h.window = parts::window(keys, &h, n, 1, rope)?;
    for il in 0..h.n_layer {
        if h.window(il).is_some() {
            h.layers[il].n_embd_head = n_embd_head;
        }
    }
    share_kv(&mut h, keys.u32("attention.shared_kv_layers")?.unwrap_or(0) as usize)?;
    Ok(h)
}

/// The last `n` layers read the keys and values of one of the two layers before them: of the one of their own kind, with a window or without.
fn share_kv(h: &mut Hparams, n: usize) -> Result<()> {
    let first = h.n_layer.saturating_sub(n);
    for il in first..h.n_layer {
        let of = first.checked_sub(if h.window(il).is_some() { 2 } else { 1 });
        let LayerSizes { n_head_kv, n_embd_head, .. } = h.layers[il];
        let fits = |of: usize| {
            let other = h.layers[of];
            h.window(of).is_some() == h.window(il).is_some()
                && (other.n_head_kv, other.n_embd_head) == (n_head_kv, n_embd_head)
        };
        let Some(of) = of.filter(|&of| fits(of)) else {
            let message =
                format!("{n} layers share keys and values, but none before them has such as layer {il} needs");
            return Err(Error::malformed(message));
        };
        h.layers[il].shares_kv_of = Some(of);
    }
    Ok(())
}

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    // Of layers without a window.
    let full = (0..h.n_layer).find(|&il| h.window(il).is_none());
    let factors = match full {
        None => Factors::None,
        Some(il) => match loader.rope_freqs(h.layers[il].n_embd_head / 2)? {
            Factors::None => return Err(Error::malformed("tensor 'rope_freqs.weight' is missing")),
            factors => factors,
        },
    };
    let mut per_layer = None;
    let (n, width) = (h.n_embd_per_layer, h.n_embd_per_layer * h.n_layer);
    if n > 0 {
        per_layer = Some(PerLayerEmbeddings {
            table: loader.embeddings("per_layer_token_embd.weight", [width, h.n_vocab])?,
            projection: loader.matrix("per_layer_model_proj.weight", [h.n_embd, width], 0)?,
            norm: loader.rms_norm("per_layer_proj_norm", n, h.norm_eps, 0)?,
            n,
        });
    }
    let tensors = parts::tensors(loader, h, |loader, il| {
        let block = |name: &str| format!("blk.{il}.{name}");
        let shared = h.layers[il].shares_kv_of;
        if shared.is_some() {
            // Files may have them for all layers.
            ["attn_k", "attn_v", "attn_k_norm"].iter().for_each(|name| loader.leave(&block(name)));
        }
        let (q, kv) = if let Some(of) = shared {
            (loader.linear(&block("attn_q"), h.n_embd, h.n_embd_q(il), il)?, KeysValues::OfLayer(of))
        } else if loader.has(&block("attn_qkv")) || loader.has(&block("attn_v")) {
            let [q, k, v] = loader.qkv(h.n_embd, h.n_embd_q(il), h.n_embd_gqa(il), il)?;
            (q, KeysValues::Made { k, v })
        } else {
            // Values are made by the keys' matrix; the product is made twice.
            let q = loader.linear(&block("attn_q"), h.n_embd, h.n_embd_q(il), il)?;
            let k = loader.linear(&block("attn_k"), h.n_embd, h.n_embd_gqa(il), il)?;
            (q, KeysValues::Made { v: k.clone(), k })
        };
        let factors = if h.window(il).is_some() { &Factors::None } else { &factors };
        let mut attn = parts::attention_of(loader, h, il, factors, q, kv)?;
        let mut norm = |name: &str, n: usize| loader.rms_norm(&block(name), n, h.norm_eps, il);
        attn.q_norm = Some(norm("attn_q_norm", attn.n_embd_head)?);
        if shared.is_none() {
            attn.k_norm = Some(norm("attn_k_norm", attn.n_embd_head)?);
            attn.v_eps = Some(h.norm_eps);
        }
        let mut layer = parts::layer_around(loader, h, il, Activation::Gelu, attn)?;
        parts::add_post_norms(loader, h, il, &mut layer)?;
        if n > 0 {
            layer.per_layer = Some(PerLayer {
                gate: loader.linear(&block("inp_gate"), h.n_embd, n, il)?,
                output: loader.linear(&block("proj"), n, h.n_embd, il)?,
                norm: loader.rms_norm(&block("post_norm"), h.n_embd, h.norm_eps, il)?,
            });
        }
        layer.scale = loader.factor_if_any(&block("layer_output_scale"), il)?;
        Ok(layer)
    })?;
    Ok(Tensors { per_layer, ..tensors })
}
