//! One micro-batch under construction: the graph, its inputs, and the way to every weight.
//!
//! All weight multiplications of a block pass through here.

use std::rc::Rc;

use ggml::{Builder, Slot, Store, Tensor, TensorId, Type};

use super::hparams::Hparams;
use super::kv_cache::KvCache;
use crate::blocks::{self, Linear};

/// Shape of a micro-batch: equal-length pieces of `n_seq` sequences, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences, the first of the cache's.
    pub n_seq: usize,
    /// Tokens of each sequence.
    pub n_each: usize,
    /// Cells of each sequence that attention looks at.
    pub n_kv: usize,
    /// Tokens whose logits are wanted.
    pub n_outputs: usize,
}

impl Shape {
    /// Tokens in all.
    pub fn n_tokens(&self) -> usize {
        self.n_seq * self.n_each
    }
}

/// Inputs and output of a micro-batch's graph.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// I32 `[n_tokens]`
    pub tokens: Slot,
    /// I32 `[n_tokens]`
    pub pos: Slot,
    /// I64 `[n_tokens]`: cells that keys are written to
    pub k_ids: Slot,
    /// I64: see [`KvCache::value_ids`]
    pub v_ids: Slot,
    /// F16 (flash attention) or F32 `[n_kv, n_each, 1, n_seq]`
    pub mask: Slot,
    /// I32 `[n_outputs]`: tokens whose logits are wanted
    pub out_ids: Slot,
    /// F32 Hadamard matrix for keys
    pub rot_k: Option<Slot>,
    /// F32 Hadamard matrix for values
    pub rot_v: Option<Slot>,
    /// F32 `[n_vocab, n_outputs]`
    pub logits: Slot,
}

/// Builds the graph of one micro-batch.
pub struct BatchBuilder<'a, 'g> {
    /// The graph.
    pub g: &'a Builder<'g>,
    /// The model's shape.
    pub hparams: &'a Hparams,
    store: &'a Rc<Store>,
    cache: &'a KvCache,
    shape: Shape,
    tokens: (Tensor<'g>, Slot),
    pos: (Tensor<'g>, Slot),
    k_ids: (Tensor<'g>, Slot),
    v_ids: (Tensor<'g>, Slot),
    mask: (Tensor<'g>, Slot),
    out_ids: (Tensor<'g>, Slot),
    rot_k: Option<(Tensor<'g>, Slot)>,
    rot_v: Option<(Tensor<'g>, Slot)>,
}

impl<'a, 'g> BatchBuilder<'a, 'g> {
    /// Makes the inputs.
    pub fn new(
        g: &'a Builder<'g>,
        hparams: &'a Hparams,
        store: &'a Rc<Store>,
        cache: &'a KvCache,
        shape: Shape,
    ) -> Self {
        let n = shape.n_tokens();
        let flash_attn = cache.params().flash_attn;
        let v_ids = if flash_attn { n } else { n * hparams.n_embd_gqa() };
        let mask_type = if flash_attn { Type::F16 } else { Type::F32 };
        let rot = |n: Option<usize>, name| n.map(|n| g.input(name, Type::F32, [n, n, 1, 1]));
        BatchBuilder {
            g,
            hparams,
            store,
            cache,
            shape,
            tokens: g.input("inp_tokens", Type::I32, [n, 1, 1, 1]),
            pos: g.input("inp_pos", Type::I32, [n, 1, 1, 1]),
            k_ids: g.input("attn_inp_k_idxs", Type::I64, [n, 1, 1, 1]),
            v_ids: g.input("attn_inp_v_idxs", Type::I64, [v_ids, 1, 1, 1]),
            mask: g.input("attn_inp_kq_mask", mask_type, [shape.n_kv, shape.n_each, 1, shape.n_seq]),
            out_ids: g.input("out_ids", Type::I32, [shape.n_outputs, 1, 1, 1]),
            rot_k: rot(cache.rot_k, "attn_inp_k_rot"),
            rot_v: rot(cache.rot_v, "attn_inp_v_rot"),
        }
    }

    /// A tensor of the weights.
    pub fn weight(&self, id: TensorId) -> Tensor<'g> {
        self.g.leaf(self.store, id)
    }

    /// A matrix of the weights with its bias.
    pub fn linear(&self, weight: TensorId, bias: Option<TensorId>) -> Linear<'g> {
        Linear { weight: self.weight(weight), bias: bias.map(|b| self.weight(b)) }
    }

    /// Names a node as llama.cpp does: `name-layer`.
    pub fn name(&self, t: Tensor<'g>, name: &str, il: usize) -> Tensor<'g> {
        self.g.name(t, &format!("{name}-{il}"));
        t
    }

    /// `[n_embd, n_tokens]`: embeddings of the tokens.
    pub fn embed(&self, tok_embd: TensorId) -> Tensor<'g> {
        self.g.get_rows(self.weight(tok_embd), self.tokens.0)
    }

    /// RMS norm with the gain `weight`.
    pub fn norm(&self, x: Tensor<'g>, weight: TensorId) -> Tensor<'g> {
        blocks::norm(self.g, x, self.weight(weight), self.hparams.norm_rms_eps)
    }

    /// `[n_embd, n_outputs]`: the tokens whose logits are wanted.
    pub fn outputs(&self, x: Tensor<'g>) -> Tensor<'g> {
        self.g.get_rows(x, self.out_ids.0)
    }

    /// Attention of layer `il` over the cache, this batch included: `[n_embd_q, n_tokens]`, before the output matrix.
    pub fn attention(
        &self,
        x: Tensor<'g>,
        w: &blocks::Attention<'g>,
        rope_freqs: Option<TensorId>,
        il: usize,
    ) -> Tensor<'g> {
        let g = self.g;
        let freqs = rope_freqs.map(|id| self.weight(id));
        let mut qkv = blocks::qkv(g, x, w, self.pos.0, freqs, &self.hparams.rope);
        self.name(qkv.q, "Qcur", il);
        self.name(qkv.k, "Kcur", il);
        self.name(qkv.v, "Vcur", il);
        if let Some((rot, _)) = self.rot_k {
            qkv.q = g.mul_mat_hadamard(qkv.q, rot);
            qkv.k = g.mul_mat_hadamard(qkv.k, rot);
        }
        if let Some((rot, _)) = self.rot_v {
            qkv.v = g.mul_mat_hadamard(qkv.v, rot);
        }
        // Together, so that the scheduler does not split the graph between them.
        g.expand(qkv.q);
        g.expand(qkv.v);
        g.expand(qkv.k);
        self.cache.write(g, il, qkv.k, qkv.v, self.k_ids.0, self.v_ids.0);
        let k = self.cache.k(g, il, self.shape.n_kv, self.shape.n_seq);
        let v = self.cache.v(g, il, self.shape.n_kv, self.shape.n_seq);
        let flash_attn = self.cache.params().flash_attn;
        let mut out = blocks::attention(g, qkv.q, k, v, self.mask.0, self.hparams.kq_scale, flash_attn);
        g.expand(out);
        self.name(out, "kqv_out", il);
        if let Some((rot, _)) = self.rot_v {
            out = g.mul_mat_hadamard(out, rot);
        }
        out
    }

    /// Ends the graph with its logits.
    pub fn finish(self, logits: Tensor<'g>) -> Slots {
        let logits = self.g.output(logits);
        Slots {
            tokens: self.tokens.1,
            pos: self.pos.1,
            k_ids: self.k_ids.1,
            v_ids: self.v_ids.1,
            mask: self.mask.1,
            out_ids: self.out_ids.1,
            rot_k: self.rot_k.map(|r| r.1),
            rot_v: self.rot_v.map(|r| r.1),
            logits,
        }
    }
}
