//! What an architecture consists of, and the parts that most of them share.

use ggml::TensorId;

use crate::error::{Error, Result};
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::{ExpertCounts, Hparams, Window};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{
    Activation, Attention, Experts, Factors, Gating, Head, KeysValues, Layer, Linear, Loader, Mlp, Norm,
    PerLayerEmbeddings, Rotary,
};

/// An architecture: from metadata to hyper-parameters, from these to tensors, from these to a graph.
pub struct Architecture {
    /// As `general.architecture` names it
    pub name: &'static str,
    /// Its MLPs may be ones of experts
    pub has_experts: bool,
    /// Reads and checks the hyper-parameters; the number of tokens in the vocabulary is known
    pub hparams: fn(&Keys, usize, &RopeOptions) -> Result<Hparams>,
    /// Asks the loader for the tensors, with their shapes
    pub tensors: fn(&mut Loader, &Hparams) -> Result<Tensors>,
    /// Builds the graph of a micro-batch, node by node as llama.cpp, so that results agree bit by bit
    pub graph: fn(GraphBuilder, &Hparams, &Tensors) -> GraphSlots,
}

/// Weights of a model.
#[derive(Debug)]
pub struct Tensors {
    /// `[n_embd, n_vocab]`
    pub tok_embd: TensorId,
    /// `[n_embd, n_ctx_train]`: embeddings of positions, if these are learned
    pub pos_embd: Option<TensorId>,
    /// Embeddings that each layer has of its own, if there are any
    pub per_layer: Option<PerLayerEmbeddings>,
    /// The layers, from the first to the last
    pub layers: Vec<Layer>,
    /// What comes after them
    pub head: Head,
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The tensors of a model whose layer `il` is loaded by `layer`: embeddings of tokens, the layers, and an output matrix, which may be the
/// embeddings once more.
pub fn tensors(
    loader: &mut Loader,
    h: &Hparams,
    mut layer: impl FnMut(&mut Loader, usize) -> Result<Layer>,
) -> Result<Tensors> {
    let tok_embd = loader.embeddings("token_embd.weight", [h.n_embd, h.n_vocab])?;
    let norm = loader.rms_norm("output_norm", h.n_embd, h.norm_eps, h.n_layer)?;
    let head = head(loader, h, norm)?;
    let layers = (0..h.n_layer).map(|il| layer(loader, il)).collect::<Result<_>>()?;
    Ok(Tensors { tok_embd, pos_embd: None, per_layer: None, layers, head })
}

/// What comes after the layers, behind this norm.
pub fn head(loader: &mut Loader, h: &Hparams, norm: Norm) -> Result<Head> {
    let ne = [h.n_embd, h.n_vocab];
    let output = match loader.matrix_if_any("output.weight", ne, h.n_layer)? {
        Some(output) => output,
        // Tied: the embeddings once more, in the layout that multiplies fastest.
        None => loader.matrix("token_embd.weight", ne, h.n_layer)?,
    };
    Ok(Head { norm, output, softcap: h.logit_softcap, scale: h.logit_scale })
}

/// A layer of attention and a gated MLP, or experts, each behind an RMS norm. Frequencies of the rotation are divided by `factors`.
pub fn layer(loader: &mut Loader, h: &Hparams, il: usize, act: Activation, factors: &Factors) -> Result<Layer> {
    let attn = attention(loader, h, il, factors)?;
    layer_around(loader, h, il, act, attn)
}

/// A layer of two blocks, each behind a norm, and nothing else.
pub fn plain_layer(attn_norm: Norm, attn: Attention, ffn_norm: Norm, mlp: Mlp) -> Layer {
    Layer { attn_norm, attn, attn_post_norm: None, ffn_norm, mlp, ffn_post_norm: None, per_layer: None, scale: None }
}

/// [`layer`] with this attention.
pub fn layer_around(loader: &mut Loader, h: &Hparams, il: usize, act: Activation, attn: Attention) -> Result<Layer> {
    let (n_embd, n_ff) = (h.n_embd, h.layers[il].n_ff);
    let mut linear =
        |name: &str, n_in: usize, n_out: usize| loader.linear(&format!("blk.{il}.{name}"), n_in, n_out, il);
    let mlp = match h.experts {
        None => Mlp::Gated {
            gate: linear("ffn_gate", n_embd, n_ff)?,
            up: linear("ffn_up", n_embd, n_ff)?,
            down: linear("ffn_down", n_ff, n_embd)?,
            act,
        },
        Some(counts) => Mlp::Experts(experts(loader, h, il, Gating::Activation(act), counts)?),
    };
    let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), n_embd, h.norm_eps, il);
    let (attn_norm, ffn_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
    Ok(plain_layer(attn_norm, attn, ffn_norm, mlp))
}

/// The experts of a layer.
pub fn experts(
    loader: &mut Loader,
    h: &Hparams,
    il: usize,
    gating: Gating,
    ExpertCounts { n, n_used }: ExpertCounts,
) -> Result<Experts> {
    let router = loader.linear(&format!("blk.{il}.ffn_gate_inp"), h.n_embd, n, il)?;
    let n_ff = h.layers[il].n_ff;
    let mut stack = |name: &str, ne: [usize; 2]| loader.stack(&format!("blk.{il}.{name}"), ne, n, il);
    Ok(Experts {
        router,
        gate: stack("ffn_gate_exps", [h.n_embd, n_ff])?,
        up: stack("ffn_up_exps", [h.n_embd, n_ff])?,
        down: stack("ffn_down_exps", [n_ff, h.n_embd])?,
        n_used,
        softmax_of_chosen: false,
        gating,
    })
}

/// An attention block with grouped heads. Frequencies of the rotation are divided by `factors`.
pub fn attention(loader: &mut Loader, h: &Hparams, il: usize, factors: &Factors) -> Result<Attention> {
    let [q, k, v] = loader.qkv(h.n_embd, h.n_embd_q(il), h.n_embd_gqa(il), il)?;
    attention_of(loader, h, il, factors, q, KeysValues::Made { k, v })
}

/// [`attention`] with these queries, keys and values.
pub fn attention_of(
    loader: &mut Loader,
    h: &Hparams,
    il: usize,
    factors: &Factors,
    q: Linear,
    kv: KeysValues,
) -> Result<Attention> {
    let window = h.window(il);
    let rope = window.map_or(h.rope, |w| Some(w.rope));
    Ok(Attention {
        q,
        kv,
        output: loader.linear(&format!("blk.{il}.attn_output"), h.n_embd_q(il), h.n_embd, il)?,
        q_norm: None,
        k_norm: None,
        v_eps: None,
        rotary: rope.map(|rope| Rotary { rope, factors: factors.clone() }),
        q_scale: None,
        temperature: h.temperature,
        window: window.map(|w| w.n),
        sinks: None,
        scale: h.kq_scale,
        softcap: h.attn_softcap,
        n_head: h.n_head,
        n_head_kv: h.layers[il].n_head_kv,
        n_embd_head: h.layers[il].n_embd_head,
    })
}

/// The window of `n` positions of all layers but each of number `period`, with a rotation of its own. 0 positions are none.
pub fn window(
    keys: &Keys,
    h: &Hparams,
    n: u32,
    period: u32,
    rope: impl FnOnce(ggml::Rope) -> ggml::Rope,
) -> Result<Option<Window>> {
    let layers = keys.windowed_layers(h.n_layer, period)?;
    let mut rope = rope(h.rope.expect("models with windows rotate"));
    if let Some(base) = keys.positive("rope.freq_base_swa")? {
        rope.freq_base = base;
    }
    Ok((n > 0).then_some(Window { n: n as usize, layers, rope }))
}

/// Sets the width of an expert, of models that have nothing else. [`crate::error::Kind::Malformed`] without experts.
pub fn set_expert_width(keys: &Keys, h: &mut Hparams) -> Result<()> {
    let Some(counts) = h.experts else {
        return Err(Error::malformed(format!("{}.expert_count is missing or 0, expected more", keys.arch)));
    };
    let width = keys.u32("expert_feed_forward_length")?.filter(|&n| n > 0).map(|n| n as usize);
    h.layers.iter_mut().for_each(|l| l.n_ff = width.unwrap_or(l.n_ff / counts.n_used));
    Ok(())
}

/// Puts the factor on scores where llama.cpp has it in some architectures: on queries.
pub fn scale_queries(attn: &mut Attention) {
    attn.q_scale = Some(attn.scale);
    attn.scale = 1.0;
}

/// Adds the norms of each head's queries and keys.
pub fn add_head_norms(loader: &mut Loader, h: &Hparams, il: usize, attn: &mut Attention) -> Result<()> {
    let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), h.layers[il].n_embd_head, h.norm_eps, il);
    attn.q_norm = Some(norm("attn_q_norm")?);
    attn.k_norm = Some(norm("attn_k_norm")?);
    Ok(())
}

/// Adds the norms of what the blocks add to the residual stream.
pub fn add_post_norms(loader: &mut Loader, h: &Hparams, il: usize, layer: &mut Layer) -> Result<()> {
    let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), h.n_embd, h.norm_eps, il);
    layer.attn_post_norm = Some(norm("post_attention_norm")?);
    layer.ffn_post_norm = Some(norm("post_ffw_norm")?);
    Ok(())
}
