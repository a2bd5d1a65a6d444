//! What the parts of a transformer are made of: plain data, without a word on how it is computed.

use std::ops::Range;
use std::sync::Arc;

use ggml::{Rope, TensorId};
use kernels::Activation;

use super::kernel::Kernel;
use super::matrix::Matrix;
use super::packed::Panels;
use crate::error::Result;

/// A matrix `[n_in, n_out]` of the weights.
#[derive(Debug, Clone)]
pub struct Weight {
    /// The tensor that ggml's kernels multiply
    pub id: TensorId,
    /// Which of its rows the matrix is, if the tensor has others, too
    pub among: Option<Range<usize>>,
    /// The same as the file has it, for our own kernels and for what is gathered out of it
    pub rows: Matrix,
    /// Whose kernel multiplies it
    pub kernel: Kernel,
    /// All rows in panels, if they stay packed (`--pack resident`)
    pub packed: Option<Panels>,
}

/// A vector of floats of the weights: a gain, a bias, or frequency factors.
#[derive(Debug, Clone)]
pub struct Vector {
    /// The tensor, F32 `[n]`
    pub id: TensorId,
    /// The same as the file has it
    pub rows: Matrix,
}

impl Vector {
    /// Its values.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows.n_in()];
        ggml::dequantize_row(self.rows.ty(), self.rows.row(0), &mut values);
        values
    }
}

/// `y = W x + b`
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[n_in, n_out]`
    pub weight: Weight,
    /// `[n_out]`
    pub bias: Option<Vector>,
}

/// How states are normalised before a block.
#[derive(Debug, Clone)]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + eps) * gain`
    Rms {
        /// `[n]`
        gain: Vector,
        /// Added to the mean of squares
        eps: f32,
    },
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * gain + bias`
    Layer {
        /// `[n]`
        gain: Vector,
        /// `[n]`
        bias: Vector,
        /// Added to the variance
        eps: f32,
    },
}

/// How positions are embedded into queries and keys, by rotation.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Which dimensions are rotated how far
    pub rope: Rope,
    /// Divisors of the frequencies
    pub factors: Factors,
}

/// Divisors of a rotation's frequencies, one for each pair of rotated dimensions.
#[derive(Debug, Clone)]
pub enum Factors {
    /// None
    None,
    /// The same for texts of any length
    Same(Vector),
    /// Others where the context is long
    ByContext {
        /// The longest context that is short
        n_ctx: usize,
        /// For short contexts
        short: Vector,
        /// For longer ones
        long: Vector,
    },
}

impl Factors {
    /// Those of a context of `n_ctx` tokens.
    pub fn of_context(&self, n_ctx: usize) -> Option<&Vector> {
        match self {
            Factors::None => None,
            Factors::Same(factors) => Some(factors),
            Factors::ByContext { n_ctx: longest, short, long } => Some(if n_ctx > *longest { long } else { short }),
        }
    }
}

/// A factor on queries that grows with their position: `1 + scale * ln(1 + floor(position / length))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// How fast it grows
    pub scale: f32,
    /// Positions that have the same factor
    pub length: u32,
}

/// An attention block.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[n_embd, n_embd_head * n_head]`
    pub q: Linear,
    /// Where its keys and values come from
    pub kv: KeysValues,
    /// `[n_embd_head * n_head, n_embd]`
    pub output: Linear,
    /// Norm of each head's queries, `[n_embd_head]`, before positions are embedded
    pub q_norm: Option<Norm>,
    /// The same of keys
    pub k_norm: Option<Norm>,
    /// Epsilon of the RMS norm of each head's values, which has no gain, if there is one
    pub v_eps: Option<f32>,
    /// How positions are embedded into queries and keys, if they are
    pub rotary: Option<Rotary>,
    /// Factor on queries, if there is one beside that on scores: it counts before they are rounded for products with keys
    pub q_scale: Option<f32>,
    /// Factor on queries by their position, if there is one
    pub temperature: Option<Temperature>,
    /// How many positions a query looks back, its own included; without a window, to the first
    pub window: Option<usize>,
    /// `[n_head]`: a score more for each query head, which takes a part of the softmax and has no value
    pub sinks: Option<Vector>,
    /// Factor on scores before the softmax
    pub scale: f32,
    /// What scores stay below: then a score becomes `c * tanh(score / c)`
    pub softcap: Option<f32>,
    /// Query heads
    pub n_head: usize,
    /// Key and value heads; divides `n_head`
    pub n_head_kv: usize,
    /// Width of a head; queries, keys and values alike
    pub n_embd_head: usize,
}

/// Where the keys and values of an attention block come from.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one in a layer")]
pub enum KeysValues {
    /// It makes them
    Made {
        /// `[n_embd, n_embd_head * n_head_kv]`
        k: Linear,
        /// `[n_embd, n_embd_head * n_head_kv]`
        v: Linear,
    },
    /// They are those of a layer before it
    OfLayer(usize),
}

impl Attention {
    /// Query heads that share a key and value head.
    pub fn n_rep(&self) -> usize {
        self.n_head / self.n_head_kv
    }
}

/// An MLP block. Its channels are the inputs of its last matrix.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one in a layer")]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`
    Gated {
        /// `[n_embd, n_ff]`
        gate: Linear,
        /// `[n_embd, n_ff]`
        up: Linear,
        /// `[n_ff, n_embd]`
        down: Linear,
        /// Of the gate
        act: Activation,
    },
    /// `down(max(up(x), 0))`
    Plain {
        /// `[n_embd, n_ff]`
        up: Linear,
        /// `[n_ff, n_embd]`
        down: Linear,
    },
    /// Several, of which each token is given to a few
    Experts(Experts),
}

/// Gated MLPs of which each token is given to a few.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[n_embd, n_expert]`: makes the scores that experts are chosen by
    pub router: Linear,
    /// `[n_embd, n_ff]` each
    pub gate: Stack,
    /// `[n_embd, n_ff]` each
    pub up: Stack,
    /// `[n_ff, n_embd]` each
    pub down: Stack,
    /// How many a token is given to
    pub n_used: usize,
    /// Their weights are the softmax of the chosen ones' scores; else of all scores, divided by the sum of the chosen ones' parts
    pub softmax_of_chosen: bool,
    /// What becomes of the products with gate and up
    pub gating: Gating,
}

/// What the last matrix of an expert is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gating {
    /// `act(gate) * up`
    Activation(Activation),
    /// `g / (1 + e^(-1.702 g)) * (u + 1)`, where `g` is gate, 7 at most, and `u` is up, from -7 to 7
    ClampedSwish,
}

/// Matrices `[n_in, n_out]` of all experts.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The tensor that ggml's kernels multiply, `[n_in, n_out, n_expert]`
    pub id: TensorId,
    /// The same as the file has it: the rows of one expert below those of another
    pub rows: Matrix,
    /// F32 `[n_out, n_expert]`: added to the products, if there are biases
    pub bias: Option<TensorId>,
    /// How many experts there are
    pub n_expert: usize,
    /// Whose kernel multiplies them
    pub kernel: Kernel,
}

impl Stack {
    /// Rows of an expert's matrix.
    pub fn n_out(&self) -> usize {
        self.rows.n_out() / self.n_expert
    }
}

impl Mlp {
    /// The matrix whose input channels can be left out.
    ///
    /// # Panics
    /// If there are several: nothing is left out of experts.
    pub fn last(&self) -> &Linear {
        match self {
            Mlp::Gated { down, .. } | Mlp::Plain { down, .. } => down,
            Mlp::Experts(_) => panic!("experts have a last matrix each"),
        }
    }
}

/// What comes after the layers.
#[derive(Debug, Clone)]
pub struct Head {
    /// Of the last layer's states
    pub norm: Norm,
    /// `[n_embd, n_vocab]`: makes logits of states
    pub output: Weight,
    /// What logits stay below: then a logit becomes `c * tanh(logit / c)`
    pub softcap: Option<f32>,
    /// Factor on logits, if there is one
    pub scale: Option<f32>,
}

/// A layer: attention, then an MLP, each on the normalised residual stream, to which its result is added; or the norm of its result.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Before attention
    pub attn_norm: Norm,
    /// Attention
    pub attn: Attention,
    /// Of what attention adds, if that is normalised
    pub attn_post_norm: Option<Norm>,
    /// Before the MLP
    pub ffn_norm: Norm,
    /// The MLP
    pub mlp: Mlp,
    /// Of what the MLP adds, if that is normalised
    pub ffn_post_norm: Option<Norm>,
    /// A third block, which reads embeddings of the layer's own, if there is one
    pub per_layer: Option<PerLayer>,
    /// F32 `[1]`: a factor on the layer's result, if there is one
    pub scale: Option<Vector>,
}

/// A block that adds `norm(output(gelu(gate(x)) * e))` to the residual stream `x`, where `e` is what the layer has of a token's
/// [`PerLayerEmbeddings`].
#[derive(Debug, Clone)]
pub struct PerLayer {
    /// `[n_embd, n_embd_per_layer]`
    pub gate: Linear,
    /// `[n_embd_per_layer, n_embd]`
    pub output: Linear,
    /// `[n_embd]`
    pub norm: Norm,
}

/// Embeddings that each layer has of its own: a token's row of the table, and what a matrix makes of its embedding.
#[derive(Debug)]
pub struct PerLayerEmbeddings {
    /// `[n_embd_per_layer * n_layer, n_vocab]`
    pub table: TensorId,
    /// `[n_embd, n_embd_per_layer * n_layer]`
    pub projection: Weight,
    /// `[n_embd_per_layer]`: of each layer's part of the projection
    pub norm: Norm,
    /// Width of a layer's part
    pub n: usize,
}

impl Layer {
    /// Its sizes, in a residual stream of width `n_embd`.
    pub fn dims(&self, n_embd: usize) -> LayerDims {
        let Attention { n_head, n_head_kv, n_embd_head, .. } = self.attn;
        let shares_kv_of = match self.attn.kv {
            KeysValues::Made { .. } => None,
            KeysValues::OfLayer(of) => Some(of),
        };
        let (n_ff, n_ff_matrices, n_expert_weights) = match &self.mlp {
            Mlp::Gated { down, .. } => (down.weight.rows.n_in(), 3, 0),
            Mlp::Plain { down, .. } => (down.weight.rows.n_in(), 2, 0),
            Mlp::Experts(experts) => (0, 0, experts.n_used * 3 * n_embd * experts.gate.n_out()),
        };
        LayerDims { n_head, n_head_kv, n_embd_head, n_ff, n_ff_matrices, n_expert_weights, shares_kv_of }
    }

    /// The matrices of its blocks, but for those of experts.
    pub fn weights(&self) -> Vec<&Weight> {
        let Attention { q, kv, output, .. } = &self.attn;
        let of_kv = match kv {
            KeysValues::Made { k, v } => vec![k, v],
            KeysValues::OfLayer(_) => vec![],
        };
        let of_per_layer = self.per_layer.iter().flat_map(|p| [&p.gate, &p.output]);
        let of_mlp = match &self.mlp {
            Mlp::Gated { gate, up, down, .. } => vec![gate, up, down],
            Mlp::Plain { up, down } => vec![up, down],
            Mlp::Experts(_) => vec![],
        };
        [q, output].into_iter().chain(of_kv).chain(of_mlp).chain(of_per_layer).map(|l| &l.weight).collect()
    }

    /// The same, to be changed.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let Attention { q, kv, output, .. } = &mut self.attn;
        let of_kv = match kv {
            KeysValues::Made { k, v } => vec![k, v],
            KeysValues::OfLayer(_) => vec![],
        };
        let of_per_layer = self.per_layer.iter_mut().flat_map(|p| [&mut p.gate, &mut p.output]);
        let of_mlp = match &mut self.mlp {
            Mlp::Gated { gate, up, down, .. } => vec![gate, up, down],
            Mlp::Plain { up, down } => vec![up, down],
            Mlp::Experts(_) => vec![],
        };
        [q, output].into_iter().chain(of_kv).chain(of_mlp).chain(of_per_layer).map(|l| &mut l.weight).collect()
    }
}

/// The numbers that say how large the parts of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dims {
    /// Width of the residual stream
    pub n_embd: usize,
    /// Of each layer
    pub layers: Arc<[LayerDims]>,
}

/// The sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDims {
    /// Query heads
    pub n_head: usize,
    /// Key and value heads
    pub n_head_kv: usize,
    /// Width of a head
    pub n_embd_head: usize,
    /// Channels of the MLP; 0 if it is one of experts, of which nothing is left out
    pub n_ff: usize,
    /// Matrices of the MLP, `n_embd * n_ff` weights each
    pub n_ff_matrices: usize,
    /// Weights of the experts that a token is given to
    pub n_expert_weights: usize,
    /// The layer before it whose keys and values it reads; `None` if it makes its own
    pub shares_kv_of: Option<usize>,
}

impl Dims {
    /// Of a model whose layers are alike.
    pub fn alike(n_layer: usize, n_embd: usize, layer: LayerDims) -> Dims {
        Dims { n_embd, layers: vec![layer; n_layer].into() }
    }

    /// Number of layers.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// Layers that tokens go through that are read only for what comes after them: up to the last one that makes keys and values.
    pub fn n_read(&self) -> usize {
        self.layers.iter().rposition(|l| l.shares_kv_of.is_none()).map_or(0, |il| il + 1)
    }
}

impl LayerDims {
    /// A layer with so many heads, so many of keys and values, of this width, and a gated MLP of `n_ff` channels.
    pub fn gated([n_head, n_head_kv, n_embd_head]: [usize; 3], n_ff: usize) -> LayerDims {
        LayerDims { n_head, n_head_kv, n_embd_head, n_ff, n_ff_matrices: 3, n_expert_weights: 0, shares_kv_of: None }
    }

    /// Width of all keys (or values) of one token.
    pub fn n_embd_gqa(&self) -> usize {
        self.n_embd_head * self.n_head_kv
    }
}

/// Packs those of the weights that our kernels multiply, on `n_threads` threads. [`crate::error::Kind::Memory`] if they do not fit.
pub fn pack_all(weights: Vec<&mut Weight>, n_threads: usize) -> Result<()> {
    let mut weights: Vec<&mut Weight> = weights.into_iter().filter(|w| w.kernel.is_ever_own()).collect();
    let matrices: Vec<Matrix> = weights.iter().map(|w| w.rows.clone()).collect();
    for (weight, panels) in weights.iter_mut().zip(Panels::of_all(&matrices, n_threads)?) {
        weight.packed = Some(panels);
    }
    Ok(())
}
