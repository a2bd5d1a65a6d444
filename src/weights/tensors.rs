//! What the parts of a transformer are made of: plain data, without a word on how it is computed.

use ggml::{Rope, TensorId};

use super::kernel::Kernel;
use super::matrix::Matrix;
use super::packed::Panels;
use crate::error::Result;

/// A matrix `[n_in, n_out]` of the weights.
#[derive(Debug, Clone)]
pub struct Weight {
    /// The tensor that ggml's kernels multiply
    pub id: TensorId,
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
}

/// An attention block.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[n_embd, n_embd_head * n_head]`
    pub q: Linear,
    /// `[n_embd, n_embd_head * n_head_kv]`
    pub k: Linear,
    /// `[n_embd, n_embd_head * n_head_kv]`
    pub v: Linear,
    /// `[n_embd_head * n_head, n_embd]`
    pub output: Linear,
    /// Norm of each head's queries, `[n_embd_head]`, before positions are embedded
    pub q_norm: Option<Norm>,
    /// The same of keys
    pub k_norm: Option<Norm>,
    /// How positions are embedded into queries and keys
    pub rope: Rope,
    /// Factors on the frequencies of the embedding, `[n_embd_head / 2]`
    pub rope_freqs: Option<Vector>,
    /// Factor on scores before the softmax
    pub scale: f32,
    /// Query heads
    pub n_head: usize,
    /// Key and value heads; divides `n_head`
    pub n_head_kv: usize,
    /// Width of a head; queries, keys and values alike
    pub n_embd_head: usize,
}

impl Attention {
    /// Query heads that share a key and value head.
    pub fn n_rep(&self) -> usize {
        self.n_head / self.n_head_kv
    }
}

/// What an MLP does to what its first matrices give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
}

/// An MLP block. Its channels are the inputs of its last matrix.
#[derive(Debug, Clone)]
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
}

impl Mlp {
    /// The matrix whose input channels can be left out.
    pub fn last(&self) -> &Linear {
        match self {
            Mlp::Gated { down, .. } => down,
        }
    }

    /// Number of its matrices, all of which have as many weights.
    pub fn n_matrices(&self) -> usize {
        match self {
            Mlp::Gated { .. } => 3,
        }
    }
}

/// A layer: attention, then an MLP, each on the normalised residual stream, to which its result is added.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Before attention
    pub attn_norm: Norm,
    /// Attention
    pub attn: Attention,
    /// Before the MLP
    pub ffn_norm: Norm,
    /// The MLP
    pub mlp: Mlp,
}

impl Layer {
    /// The matrices of both blocks.
    pub fn weights(&self) -> Vec<&Weight> {
        let Attention { q, k, v, output, .. } = &self.attn;
        let Mlp::Gated { gate, up, down, .. } = &self.mlp;
        [q, k, v, output, gate, up, down].into_iter().map(|l| &l.weight).collect()
    }

    /// The same, to be changed.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let Attention { q, k, v, output, .. } = &mut self.attn;
        let Mlp::Gated { gate, up, down, .. } = &mut self.mlp;
        [q, k, v, output, gate, up, down].into_iter().map(|l| &mut l.weight).collect()
    }
}

/// The numbers that say how large the parts of a model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Layers
    pub n_layer: usize,
    /// Width of the residual stream
    pub n_embd: usize,
    /// Query heads
    pub n_head: usize,
    /// Key and value heads
    pub n_head_kv: usize,
    /// Width of a head
    pub n_embd_head: usize,
    /// Channels of an MLP
    pub n_ff: usize,
    /// Matrices of an MLP, `n_embd * n_ff` weights each: see [`Mlp::n_matrices`]
    pub n_ff_matrices: usize,
}

impl Dims {
    /// Width of all keys (or values) of one token.
    pub fn n_embd_gqa(&self) -> usize {
        self.n_embd_head * self.n_head_kv
    }
}

/// Packs those of the weights that our kernels multiply, on `n_threads` threads. [`crate::error::Kind::Memory`] if they do not fit.
pub fn pack_all(weights: Vec<&mut Weight>, n_threads: usize) -> Result<()> {
    let mut weights: Vec<&mut Weight> = weights.into_iter().filter(|w| w.kernel != Kernel::Ggml).collect();
    let matrices: Vec<Matrix> = weights.iter().map(|w| w.rows.clone()).collect();
    for (weight, panels) in weights.iter_mut().zip(Panels::of_all(&matrices, n_threads)?) {
        weight.packed = Some(panels);
    }
    Ok(())
}
