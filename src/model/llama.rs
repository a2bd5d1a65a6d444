//! Architecture `llama`: LLaMA 2 and 3, SmolLM2, TinyLlama, Mistral. Its tensors and its graph.

use ggml::{TensorId, Usage};

use super::builder::{BatchBuilder, Slots};
use super::hparams::Hparams;
use super::weights::{Loader, Wanted};
use crate::blocks::{self, Attention, Ffn};
use crate::error::Result;

/// Weights of a block.
#[derive(Debug)]
struct Layer<T> {
    attn_norm: T,
    attn_q: Pair<T>,
    attn_k: Pair<T>,
    attn_v: Pair<T>,
    attn_output: Pair<T>,
    ffn_norm: T,
    ffn_gate: Pair<T>,
    ffn_up: Pair<T>,
    ffn_down: Pair<T>,
}

/// A matrix with its bias.
type Pair<T> = (T, Option<T>);

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
            let attn_q = linear("attn_q", n_embd, n_q)?;
            let attn_k = linear("attn_k", n_embd, n_kv)?;
            let attn_v = linear("attn_v", n_embd, n_kv)?;
            let attn_output = linear("attn_output", n_q, n_embd)?;
            let ffn_gate = linear("ffn_gate", n_embd, n_ff)?;
            let ffn_up = linear("ffn_up", n_embd, n_ff)?;
            let ffn_down = linear("ffn_down", n_ff, n_embd)?;
            let mut gain = |name: &str| loader.require(&format!("blk.{il}.{name}.weight"), &[n_embd], Usage::Mul, il);
            let (attn_norm, ffn_norm) = (gain("attn_norm")?, gain("ffn_norm")?);
            layers.push(Layer { attn_norm, attn_q, attn_k, attn_v, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down });
        }
        Ok(Tensors { tok_embd, rope_freqs, layers, output_norm, output })
    }

    /// The same tensors in the store.
    pub fn resolve(self, ids: &[TensorId]) -> Tensors {
        let one = |w: Wanted| w.id(ids);
        let pair = |(w, b): Pair<Wanted>| (one(w), b.map(one));
        let layer = |l: Layer<Wanted>| Layer {
            attn_norm: one(l.attn_norm),
            attn_q: pair(l.attn_q),
            attn_k: pair(l.attn_k),
            attn_v: pair(l.attn_v),
            attn_output: pair(l.attn_output),
            ffn_norm: one(l.ffn_norm),
            ffn_gate: pair(l.ffn_gate),
            ffn_up: pair(l.ffn_up),
            ffn_down: pair(l.ffn_down),
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
    /// Builds the graph of a micro-batch, node by node as llama.cpp (models/llama.cpp), so that results agree bit by bit.
    pub fn graph(&self, b: BatchBuilder) -> Slots {
        let g = b.g;
        let linear = |(weight, bias): Pair<TensorId>| b.linear(weight, bias);
        let last = self.layers.len() - 1;
        let mut x = b.embed(self.tok_embd);
        for (il, l) in self.layers.iter().enumerate() {
            let normed = b.name(b.norm(x, l.attn_norm), "attn_norm", il);
            let attn = Attention {
                q: linear(l.attn_q),
                k: linear(l.attn_k),
                v: linear(l.attn_v),
                n_embd_head: b.hparams.n_embd_head,
            };
            let kqv = b.attention(normed, &attn, self.rope_freqs, il);
            let mut attn_out = b.name(linear(l.attn_output).apply(g, kqv), "attn_out", il);
            if il == last {
                attn_out = b.outputs(attn_out);
                x = b.outputs(x);
            }
            let ffn_inp = b.name(g.add(attn_out, x), "ffn_inp", il);
            let normed = b.name(b.norm(ffn_inp, l.ffn_norm), "ffn_norm", il);
            let ffn = Ffn { gate: linear(l.ffn_gate), up: linear(l.ffn_up), down: linear(l.ffn_down) };
            let ffn_out = b.name(blocks::ffn(g, normed, &ffn), "ffn_out", il);
            x = b.name(g.add(ffn_out, ffn_inp), "l_out", il);
        }
        let result = b.norm(x, self.output_norm);
        g.name(result, "result_norm");
        let logits = g.mul_mat(b.weight(self.output), result);
        g.name(logits, "result_output");
        b.finish(logits)
    }
}
