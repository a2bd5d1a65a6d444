//! Architecture `llama`: LLaMA 2 and 3, SmolLM2, TinyLlama, Mistral. Its tensors and its graph.

use ggml::{TensorId, Usage};

use super::builder::{AttentionTensors, BatchBuilder, FfnTensors, Pair, Slots};
use super::hparams::Hparams;
use super::weights::{Loader, Wanted};
use crate::error::Result;

/// Weights of a block.
#[derive(Debug)]
struct Layer<T> {
    attn_norm: T,
    attn: AttentionTensors<T>,
    ffn_norm: T,
    ffn: FfnTensors<T>,
}

/// Weights of the model: wanted of a file, then found in a store.
#[derive(Debug)]
pub struct Tensors<T = TensorId> {
    tok_embd: T,
    rope_freqs: Option<T>,
    layers: Vec<Layer<T>>,
    output_norm: T,
    output: T,
}

impl Tensors<Wanted> {
    /// Asks the loader for the tensors, with their shapes.
    pub fn want(loader: &mut Loader, h: &Hparams) -> Result<Tensors<Wanted>> {
        let (n_embd, n_ff, n_vocab) = (h.n_embd, h.n_ff, h.n_vocab);
        let (n_q, n_kv) = (h.n_embd_q(), h.n_embd_gqa());
        let tok_embd = loader.require("token_embd.weight", &[n_embd, n_vocab], Usage::GetRows, Loader::INPUT)?;
        let output_norm = loader.require("output_norm.weight", &[n_embd], Usage::Mul, h.n_layer)?;
        let output = match loader.optional("output.weight", &[n_embd, n_vocab], Usage::MulMat, h.n_layer)? {
            Some(output) => output,
            // Tied: the embeddings once more, in the layout that multiplies fastest.
            None => loader.require("token_embd.weight", &[n_embd, n_vocab], Usage::MulMat, h.n_layer)?,
        };
        let rope_freqs = loader.optional("rope_freqs.weight", &[h.n_embd_head / 2], Usage::Rope, Loader::INPUT)?;
        let mut layers = Vec::with_capacity(h.n_layer);
        for il in 0..h.n_layer {
            let mut linear = |name: &str, n_in: usize, n_out: usize| -> Result<Pair<Wanted>> {
                let weight = loader.require(&format!("blk.{il}.{name}.weight"), &[n_in, n_out], Usage::MulMat, il)?;
                let bias = loader.optional(&format!("blk.{il}.{name}.bias"), &[n_out], Usage::Add, il)?;
                Ok((weight, bias))
            };
            let attn = AttentionTensors {
                q: linear("attn_q", n_embd, n_q)?,
                k: linear("attn_k", n_embd, n_kv)?,
                v: linear("attn_v", n_embd, n_kv)?,
                output: linear("attn_output", n_q, n_embd)?,
            };
            let ffn = FfnTensors {
                gate: linear("ffn_gate", n_embd, n_ff)?,
                up: linear("ffn_up", n_embd, n_ff)?,
                down: linear("ffn_down", n_ff, n_embd)?,
            };
            let mut gain = |name: &str| loader.require(&format!("blk.{il}.{name}.weight"), &[n_embd], Usage::Mul, il);
            let (attn_norm, ffn_norm) = (gain("attn_norm")?, gain("ffn_norm")?);
            layers.push(Layer { attn_norm, attn, ffn_norm, ffn });
        }
        Ok(Tensors { tok_embd, rope_freqs, layers, output_norm, output })
    }

    /// The same tensors in the store.
    pub fn resolve(self, ids: &[TensorId]) -> Tensors {
        let one = |w: Wanted| w.id(ids);
        let pair = |(w, b): Pair<Wanted>| (one(w), b.map(one));
        let layer = |l: Layer<Wanted>| Layer {
            attn_norm: one(l.attn_norm),
            attn: AttentionTensors {
                q: pair(l.attn.q),
                k: pair(l.attn.k),
                v: pair(l.attn.v),
                output: pair(l.attn.output),
            },
            ffn_norm: one(l.ffn_norm),
            ffn: FfnTensors { gate: pair(l.ffn.gate), up: pair(l.ffn.up), down: pair(l.ffn.down) },
        };
        Tensors {
            tok_embd: one(self.tok_embd),
            rope_freqs: self.rope_freqs.map(one),
            layers: self.layers.into_iter().map(layer).collect(),
            output_norm: one(self.output_norm),
            output: one(self.output),
        }
    }
}

impl Tensors {
    /// Weights of a layer's blocks.
    pub fn blocks(&self, il: usize) -> (&AttentionTensors<TensorId>, &FfnTensors<TensorId>) {
        (&self.layers[il].attn, &self.layers[il].ffn)
    }

    /// The matrix that turns states into logits.
    pub fn output(&self) -> TensorId {
        self.output
    }

    /// Builds the graph of one layer's MLP on the residual stream `x`.
    pub fn ffn_graph<'g>(&self, b: BatchBuilder<'_, 'g>, x: ggml::Tensor<'g>, il: usize) -> Slots {
        let l = &self.layers[il];
        let out = b.ffn(x, l.ffn_norm, &l.ffn, il);
        b.finish(out, self.output)
    }

    /// Builds the graph of a micro-batch, node by node as llama.cpp (models/llama.cpp), so that results agree bit by bit.
    pub fn graph(&self, b: BatchBuilder) -> Slots {
        let g = b.g;
        let mut x = b.embed(self.tok_embd);
        for (il, l) in self.layers.iter().enumerate() {
            let attn_out = b.attention(x, l.attn_norm, &l.attn, self.rope_freqs, il);
            let ffn_inp = b.name(b.residual(attn_out, x, il), "ffn_inp", il);
            let ffn_out = b.ffn(ffn_inp, l.ffn_norm, &l.ffn, il);
            x = b.name(g.add(ffn_out, ffn_inp), "l_out", il);
        }
        let result = b.norm(x, self.output_norm);
        g.name(result, "result_norm");
        b.finish(result, self.output)
    }
}
