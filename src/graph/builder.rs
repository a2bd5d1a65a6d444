//! The graph of one micro-batch under construction: what an architecture builds its layers with.
//!
//! An architecture says which block comes after which. How a weight is multiplied (`matmul.rs`), where attention looks (`attention.rs`)
//! and what the pass keeps of a block (`choice.rs`) it need not know.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use ggml::{Builder, Slot, Store, Tensor, TensorId, Type};

use super::batch::{Layout, Results};
use super::inputs::{Input, InputSlots, Inputs, Rows};
use super::kv_cache::KvCache;
use super::ops::{Clock, Quantize, words};
use super::states::States;
use crate::prune::{Notes, Pass};
use crate::weights::{Head, Norm, Vector};

/// What a graph is built for.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Where the model's tensors are
    pub store: &'a Rc<Store>,
    /// Layers of the model
    pub n_layer: usize,
    /// From this layer on blocks run on a GPU: the pass takes operations there that every backend has
    pub stock_from: usize,
    /// The cache that it reads and writes
    pub cache: &'a KvCache,
    /// The batch's layout
    pub layout: &'a Layout,
    /// What it does about pruning
    pub pass: Pass<'a>,
    /// Is told how long prompts take
    pub clock: &'a Arc<Clock>,
}

/// Inputs and outputs of a graph.
#[derive(Debug)]
pub struct GraphSlots {
    /// What is to be set
    pub inputs: InputSlots,
    /// What it notes about blocks
    pub notes: Vec<Notes>,
    /// The results that are wanted, see [`Results`]; `None` if none are
    pub result: Option<Slot>,
    /// Another number of threads divides sums of it otherwise, and rounds them so
    pub divides_by_threads: bool,
}

/// Builds the graph of one micro-batch.
#[derive(Debug)]
pub struct GraphBuilder<'a, 'g> {
    pub(super) g: &'a Builder<'g>,
    pub(super) task: Task<'a>,
    pub(super) inputs: Inputs<'a, 'g>,
    pub(super) notes: Vec<Notes>,
    /// What is built now is a probe's.
    pub(super) is_probing: bool,
    /// The last layer's MLP runs on the wanted rows only. If other rows of it are to be observed, this is their residual stream, F32
    /// `[n_embd, n_rows]`.
    pub(super) observed_rows: Option<Tensor<'g>>,
    /// See [`GraphSlots`]
    pub(super) divides_by_threads: Cell<bool>,
}

impl<'a, 'g> GraphBuilder<'a, 'g> {
    /// An empty graph.
    pub fn new(g: &'a Builder<'g>, task: Task<'a>) -> GraphBuilder<'a, 'g> {
        let inputs = Inputs::new(g, task.layout, task.cache);
        let divides_by_threads = Cell::new(false);
        GraphBuilder { g, task, inputs, notes: Vec::new(), is_probing: false, observed_rows: None, divides_by_threads }
    }

    /// Whether the pass takes stock operations in a layer.
    pub(super) fn is_stock(&self, il: usize) -> bool {
        il >= self.task.stock_from
    }

    /// A tensor of the model's weights, or of the reduced ones.
    pub(super) fn leaf(&self, id: TensorId) -> Tensor<'g> {
        match self.task.pass {
            Pass::Reduced(reduced) if reduced.store().owns(id) => self.g.leaf(reduced.store(), id),
            _ => self.g.leaf(self.task.store, id),
        }
    }

    pub(super) fn vector(&self, vector: &Vector) -> Tensor<'g> {
        self.leaf(vector.id)
    }

    /// Names a node as llama.cpp does: `name-layer`.
    pub fn name(&self, t: Tensor<'g>, name: &str, il: usize) -> Tensor<'g> {
        self.g.name(t, &format!("{name}-{il}"));
        t
    }

    /// `[n_embd, n_tokens]`: embeddings of the tokens.
    pub fn embed(&mut self, table: TensorId) -> Tensor<'g> {
        let tokens = self.inputs.get(Input::Tokens);
        let x = self.g.get_rows(self.leaf(table), tokens);
        self.text_only(x)
    }

    /// `[n_embd, n_tokens]`: embeddings of the tokens' positions.
    pub fn embed_positions(&mut self, table: TensorId) -> Tensor<'g> {
        let positions = self.inputs.get(Input::Positions);
        let x = self.g.get_rows(self.leaf(table), positions);
        self.text_only(x)
    }

    /// F32 `[1, n_tokens]`: 1 for rows that are text, 0 for those that fill up; `None` if all are text, or no probe is to be told.
    pub(super) fn text(&mut self) -> Option<Tensor<'g>> {
        let is_probed = matches!(self.task.pass, Pass::Probe { .. } | Pass::Given(_));
        (self.task.layout.is_padded && is_probed).then(|| self.inputs.get(Input::Text))
    }

    /// Rows of the batch, those that fill it up zeroed: without biases they stay zero in all layers, as in the paper's code.
    pub(super) fn text_only(&mut self, x: Tensor<'g>) -> Tensor<'g> {
        let text = self.text();
        text.map_or(x, |text| self.g.mul(x, text))
    }

    /// `x` normalised, row by row.
    pub fn norm(&self, x: Tensor<'g>, norm: &Norm) -> Tensor<'g> {
        let g = self.g;
        match norm {
            Norm::Rms { gain, eps } => g.mul(g.rms_norm(x, *eps), self.vector(gain)),
            Norm::Layer { gain, bias, eps } => {
                g.add(g.mul(g.layer_norm(x, *eps), self.vector(gain)), self.vector(bias))
            }
        }
    }

    /// What a block adds to the residual stream, if anything, normalised, if the model does so; the norm's node is named `name-layer`.
    pub fn post_norm(&self, out: Option<Tensor<'g>>, norm: &Option<Norm>, name: &str, il: usize) -> Option<Tensor<'g>> {
        let (Some(out), Some(norm)) = (out, norm) else { return out };
        Some(self.name(self.norm(out, norm), name, il))
    }

    /// `x`, times a factor if there is one.
    pub fn scaled(&self, x: Tensor<'g>, factor: Option<f32>) -> Tensor<'g> {
        factor.map_or(x, |factor| self.g.scale(x, factor))
    }

    /// The residual stream `x` `[n_embd, n_tokens]` after the attention block of layer `il`, if that adds anything; beyond the last one, of
    /// the wanted rows only: `[n_embd, n_wanted]`.
    pub fn residual(&mut self, attn_out: Option<Tensor<'g>>, x: Tensor<'g>, il: usize) -> Tensor<'g> {
        let g = self.g;
        if il + 1 < self.task.n_layer || self.task.layout.n_wanted == 0 {
            return self.added(attn_out, x);
        }
        let Some(attn_out) = attn_out else {
            let wanted = self.inputs.get(Input::Numbers(Rows::Wanted));
            return g.get_rows(x, wanted);
        };
        if self.only_wanted(il) {
            let wanted = self.inputs.get(Input::Numbers(Rows::Wanted));
            return g.add(attn_out, g.get_rows(x, wanted));
        }
        let rows_of = |rows| g.add(g.get_rows(attn_out, rows), g.get_rows(x, rows));
        if let Some(rows) = self.rows_to_observe() {
            self.observed_rows = Some(rows_of(rows));
        }
        let wanted = self.inputs.get(Input::Numbers(Rows::Wanted));
        rows_of(wanted)
    }

    /// `x` with what a block adds to it, if anything.
    pub fn added(&self, out: Option<Tensor<'g>>, x: Tensor<'g>) -> Tensor<'g> {
        out.map_or(x, |out| self.g.add(out, x))
    }

    /// Ends the graph with what is wanted of `x` `[n_embd, n_wanted]`: its norm, or the logits that the output matrix makes of that.
    pub fn head(mut self, x: Tensor<'g>, head: &Head) -> GraphSlots {
        if self.task.layout.results == Results::Cells {
            return self.finish(None);
        }
        let states = self.norm(x, &head.norm);
        self.g.name(states, "result_norm");
        let result = match self.task.layout.results {
            Results::Logits => self.logits(states, head),
            Results::States | Results::Cells => states,
        };
        self.finish(Some(result))
    }

    /// Logits `[n_vocab, n]` of normalised states `[n_embd, n]`.
    pub fn logits(&mut self, states: Tensor<'g>, head: &Head) -> Tensor<'g> {
        let g = self.g;
        let mut logits = self.matmul_weight(&mut States::new(states), &head.output);
        if let Some(cap) = head.softcap {
            logits = g.scale(g.tanh(g.scale(logits, 1.0 / cap)), cap);
        }
        if let Some(factor) = head.scale {
            logits = g.scale(logits, factor);
        }
        self.g.name(logits, "result_output");
        logits
    }

    /// Ends the graph with a result, if there is one.
    pub fn finish(self, result: Option<Tensor<'g>>) -> GraphSlots {
        let result = result.map(|t| self.g.output(t));
        let divides_by_threads = self.divides_by_threads.get();
        GraphSlots { inputs: self.inputs.finish(), notes: self.notes, result, divides_by_threads }
    }

    /// The states as floats `[k, n]`.
    pub(super) fn floats(&self, states: &mut States<'_, 'g>) -> Tensor<'g> {
        let (x, norm) = (states.x, states.norm);
        *states.floats.get_or_insert_with(|| norm.map_or(x, |norm| self.norm(x, norm)))
    }

    /// The states in 8 bits, I32 `[words(k), n]`; see [`Quantize`].
    pub(super) fn codes(&self, states: &mut States<'_, 'g>, shares_scales: bool) -> Tensor<'g> {
        let (x, norm) = (states.x, states.norm);
        let op = |eps| Quantize { eps, shares_scales };
        *states.codes[usize::from(shares_scales)].get_or_insert_with(|| {
            let [k, n, ..] = x.ne();
            let ne = [words(k), n, 1, 1];
            match norm {
                None => self.g.custom(Type::I32, ne, &[x], op(0.0)),
                Some(Norm::Rms { gain, eps }) => self.g.custom(Type::I32, ne, &[x, self.vector(gain)], op(*eps)),
                // Our kernels know the other norm only.
                Some(norm @ Norm::Layer { .. }) => {
                    let floats = states.floats.get_or_insert_with(|| self.norm(x, norm));
                    self.g.custom(Type::I32, ne, &[*floats], op(0.0))
                }
            }
        })
    }

    /// Some rows of the states.
    pub(super) fn rows<'n>(&self, states: &States<'n, 'g>, rows: Tensor<'g>) -> States<'n, 'g> {
        States { x: self.g.get_rows(states.x, rows), norm: states.norm, ..States::new(states.x) }
    }
}
