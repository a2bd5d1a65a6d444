//! Hyper-parameters: what a file's metadata says about the shape of a model, checked.

use super::keys::Keys;
use super::options::RopeOptions;
use super::rope::rope;
use crate::error::{Error, Result};
use crate::weights::Temperature;

/// Shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// Context length of the training.
    pub n_ctx_train: u32,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Query heads.
    pub n_head: usize,
    /// Sizes of each layer.
    pub layers: Vec<LayerSizes>,
    /// Rows of the embedding table.
    pub n_vocab: usize,
    /// Epsilon of norms.
    pub norm_eps: f32,
    /// Factor on attention scores before the softmax.
    pub kq_scale: f32,
    /// Rotary position embedding, overrides applied, if there is any.
    pub rope: Option<ggml::Rope>,
    /// Layers that attend within a window, if there are any.
    pub window: Option<Window>,
    /// What attention scores stay below, if they are capped.
    pub attn_softcap: Option<f32>,
    /// Factor on queries by position, if there is one.
    pub temperature: Option<Temperature>,
    /// What logits stay below, if they are capped.
    pub logit_softcap: Option<f32>,
    /// Factor on logits, if there is one.
    pub logit_scale: Option<f32>,
    /// Factor on embeddings of tokens, if there is one.
    pub embedding_scale: Option<f32>,
    /// Factor on what a block adds to the residual stream, if there is one.
    pub residual_scale: Option<f32>,
    /// Experts of each MLP, if it has any: then a layer's `n_ff` is the hidden width of one.
    pub experts: Option<ExpertCounts>,
    /// Width of the embeddings that each layer has of its own; 0 for none.
    pub n_embd_per_layer: usize,
}

/// Sizes of a layer, which most models have alike in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSizes {
    /// Key and value heads; divides the number of query heads.
    pub n_head_kv: usize,
    /// Width of a head; queries, keys and values alike.
    pub n_embd_head: usize,
    /// Hidden width of the MLP.
    pub n_ff: usize,
    /// The layer before it whose keys and values it reads, if it makes none.
    pub shares_kv_of: Option<usize>,
}

/// How many experts there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertCounts {
    /// In a layer.
    pub n: usize,
    /// That a token is given to.
    pub n_used: usize,
}

/// Attention within a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Positions that a query looks back, its own included.
    pub n: usize,
    /// Layer by layer, whether it has the window.
    pub layers: Vec<bool>,
    /// Rotary position embedding of the layers that have it.
    pub rope: ggml::Rope,
}

/// Limits that no model comes near: they keep products of sizes far from overflow and ggml's own limits.
const MAX_LAYERS: u32 = 1024;
pub const MAX_WIDTH: u32 = 1 << 24;
const MAX_EXPERTS: u32 = 1024;
const MAX_CTX_TRAIN: u32 = 1 << 30;

/// Which dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Neighbours
    Neighbours,
    /// Those that lie half a head apart
    Halves,
    /// The same, of the first dimensions: there may be others, which are not rotated
    PartOfHalves,
}

impl Hparams {
    /// The hyper-parameters that most architectures have: [`Hparams::sizes`], rotary position embedding, RMS norms.
    pub fn common(keys: &Keys, n_vocab: usize, options: &RopeOptions, pairs: Pairs) -> Result<Hparams> {
        let mut h = Hparams::sizes(keys, n_vocab, keys.epsilon("attention.layer_norm_rms_epsilon"))?;
        let n_embd_head = h.layers[0].n_embd_head;
        let n_rot = keys.u32("rope.dimension_count")?.unwrap_or(n_embd_head as u32);
        let fits = match pairs {
            Pairs::Neighbours | Pairs::Halves => n_rot as usize == n_embd_head,
            Pairs::PartOfHalves => n_rot > 0 && n_rot as usize <= n_embd_head && n_rot.is_multiple_of(2),
        };
        if !fits {
            let message = format!("{}.rope.dimension_count is {n_rot}, expected {n_embd_head}", keys.arch);
            return Err(Error::malformed(message));
        }
        h.rope = Some(rope(keys, options, pairs != Pairs::Neighbours, n_rot, h.n_ctx_train)?);
        Ok(h)
    }

    /// The sizes of a model with grouped heads of one width and an MLP in every layer; nothing is rotated, scaled or capped.
    /// [`crate::error::Kind::Malformed`] for missing or impossible values, [`crate::error::Kind::Unsupported`] for variants that pp-run does
    /// not know.
    pub fn sizes(keys: &Keys, n_vocab: usize, norm_eps: Result<f32>) -> Result<Hparams> {
        let arch = keys.arch;
        let n_layer = keys.count("block_count", 1, MAX_LAYERS)?;
        let n_embd = keys.count("embedding_length", 1, MAX_WIDTH)?;
        let n_head = keys.count_of_all("attention.head_count", n_layer, 1, MAX_WIDTH)?;
        let n_head_kv = match keys.has("attention.head_count_kv") {
            true => keys.counts("attention.head_count_kv", n_layer, 1, MAX_WIDTH)?,
            false => vec![n_head; n_layer],
        };
        let n_ff = keys.counts("feed_forward_length", n_layer, 1, MAX_WIDTH)?;
        let n_ctx_train = u32::try_from(keys.count("context_length", 1, MAX_CTX_TRAIN)?).expect("checked above");
        if let Some(n) = n_head_kv.iter().find(|&n| n_head % n != 0) {
            return Err(Error::malformed(format!(
                "{arch}.attention.head_count is {n_head}, which is not a multiple of head_count_kv = {n}"
            )));
        }
        let n_embd_head = head_width(keys, n_embd, n_head)?;
        let layer = |(n_head_kv, n_ff)| LayerSizes { n_head_kv, n_embd_head, n_ff, shares_kv_of: None };
        let layers = n_head_kv.into_iter().zip(n_ff).map(layer).collect();
        Ok(Hparams {
            n_ctx_train,
            n_embd,
            n_layer,
            n_head,
            layers,
            n_vocab,
            norm_eps: norm_eps?,
            kq_scale: 1.0 / (n_embd_head as f32).sqrt(),
            rope: None,
            window: None,
            attn_softcap: None,
            temperature: None,
            logit_softcap: None,
            logit_scale: None,
            embedding_scale: None,
            residual_scale: None,
            experts: experts(keys)?,
            n_embd_per_layer: 0,
        })
    }

    /// The window of layer `il`, if it has one.
    pub fn window(&self, il: usize) -> Option<&Window> {
        self.window.as_ref().filter(|w| w.layers[il])
    }

    /// Width of all keys (or values) of one token in layer `il`.
    pub fn n_embd_gqa(&self, il: usize) -> usize {
        self.layers[il].n_embd_head * self.layers[il].n_head_kv
    }

    /// Width of all queries of one token in layer `il`.
    pub fn n_embd_q(&self, il: usize) -> usize {
        self.layers[il].n_embd_head * self.n_head
    }
}

/// The numbers of experts, if there are any.
fn experts(keys: &Keys) -> Result<Option<ExpertCounts>> {
    if keys.u32("expert_count")?.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let n = keys.count("expert_count", 1, MAX_EXPERTS)?;
    let n_used = keys.count("expert_used_count", 1, n as u32)?;
    Ok(Some(ExpertCounts { n, n_used }))
}

/// Width of a head.
fn head_width(keys: &Keys, n_embd: usize, n_head: usize) -> Result<usize> {
    let arch = keys.arch;
    let default_head = u32::try_from(n_embd / n_head).expect("a quotient of u32");
    let n_embd_head = keys.u32("attention.key_length")?.unwrap_or(default_head);
    let n_embd_head_v = keys.u32("attention.value_length")?.unwrap_or(default_head);
    if n_embd_head == 0 || n_embd_head > MAX_WIDTH || !n_embd_head.is_multiple_of(2) {
        return Err(Error::malformed(format!(
            "the width of a head must be an even number from 2 to {MAX_WIDTH}, got {n_embd_head} (embedding_length \
             {n_embd}, head_count {n_head})"
        )));
    }
    if n_embd_head_v != n_embd_head {
        return Err(Error::unsupported(format!(
            "keys of width {n_embd_head} with values of width {n_embd_head_v}: pp-run knows {arch} models with equal \
             widths only"
        )));
    }
    Ok(n_embd_head as usize)
}
