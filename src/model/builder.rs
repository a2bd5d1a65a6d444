//! One micro-batch under construction: the graph, its inputs, and the way to every weight.
//!
//! All weight multiplications of a block pass through here: here a block asks the pruning pass what it keeps.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use ggml::{Builder, Slot, Store, Tensor, TensorId, Type};
use kernels::FEW;

use super::compact::{Compact, CompactBlock, Made};
use super::hparams::Hparams;
use super::kv_cache::KvCache;
use super::native::{Attend, ColumnProduct, Factor, Mark, Native, Product, Quantize, is_direct, words};
use crate::blocks::{self, Linear, Qkv};
use crate::prune::plan::{Block, Kind};
use crate::prune::reduce::{GatherColumns, GatherHeads, GatherRows, Matrix, SpreadHeads};
use crate::prune::{self, BlockSlots, Mode, Pruning, probe, score};

/// A matrix with its bias.
pub type Pair<T> = (T, Option<T>);

/// Weights of an attention block.
#[derive(Debug, Clone, Copy)]
pub struct AttentionTensors<T> {
    /// `[n_embd, n_embd_head * n_head]`
    pub q: Pair<T>,
    /// `[n_embd, n_embd_head * n_head_kv]`
    pub k: Pair<T>,
    /// `[n_embd, n_embd_head * n_head_kv]`
    pub v: Pair<T>,
    /// `[n_embd_head * n_head, n_embd]`
    pub output: Pair<T>,
}

/// Weights of a gated MLP.
#[derive(Debug, Clone, Copy)]
pub struct FfnTensors<T> {
    /// `[n_embd, n_ff]`
    pub gate: Pair<T>,
    /// `[n_embd, n_ff]`
    pub up: Pair<T>,
    /// `[n_ff, n_embd]`
    pub down: Pair<T>,
}

/// Shape of a micro-batch: equal-length pieces of `n_seq` sequences, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences, the first of the cache's.
    pub n_seq: usize,
    /// Tokens of each sequence.
    pub n_each: usize,
    /// Cells of each sequence that attention looks at.
    pub n_kv: usize,
    /// Tokens whose results are wanted.
    pub n_outputs: usize,
    /// The results are logits, not the states before the output matrix.
    pub logits: bool,
    /// The pieces are whole texts, of which nothing is needed again: the cache may stay untouched.
    pub whole: bool,
}

impl Shape {
    /// Tokens in all.
    pub fn n_tokens(&self) -> usize {
        self.n_seq * self.n_each
    }
}

/// Inputs and output of a micro-batch's graph.
#[derive(Debug, Clone)]
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
    /// I32 `[n_outputs]`: tokens whose results are wanted
    pub out_ids: Slot,
    /// F32 Hadamard matrix for keys
    pub rot_k: Option<Slot>,
    /// F32 Hadamard matrix for values
    pub rot_v: Option<Slot>,
    /// I32 `[n_rows]`: the probe's rows, if they are not chosen in the graph
    pub probe_rows: Option<Slot>,
    /// Causal mask among `n` tokens, F16 or F32 `[n, n]`
    pub probe_mask: Option<(Slot, usize)>,
    /// What the graph notes about pruned blocks
    pub blocks: Vec<BlockSlots>,
    /// F32 `[n_vocab, n_outputs]`, or `[n_embd, n_outputs]` for the states before the output matrix
    pub result: Slot,
}

/// What a graph does about pruning, and with what.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// What it does
    pub mode: Mode,
    /// The state; absent for a calibration
    pub pruning: Option<&'a Pruning>,
    /// The reduced weights of [`Mode::Fixed`]
    pub compact: Option<&'a Compact>,
    /// Note what decoding is frozen by
    pub observe: bool,
    /// A calibration notes energies by position
    pub positions: bool,
}

/// Kept units of a block in the graph.
struct Kept<'a, 'g> {
    /// I32 `[n]`
    ids: Tensor<'g>,
    n: usize,
    compact: Option<&'a CompactBlock>,
    /// What the probe's rows have of the block's first product already
    ahead: Option<Ahead<'g>>,
}

/// A product that some rows of the batch ran ahead through.
#[derive(Debug, Clone, Copy)]
struct Ahead<'g> {
    /// F32 `[n_out, n_rows]`, of all units
    product: Tensor<'g>,
    /// I32 `[n_rows]`
    rows: Tensor<'g>,
}

/// States that matrices multiply, in the forms that are asked for.
struct Input<'g> {
    /// F32 `[k, n]`
    x: Tensor<'g>,
    /// Gain of the norm that comes first
    norm: Option<TensorId>,
    floats: OnceCell<Tensor<'g>>,
    acts: OnceCell<Tensor<'g>>,
}

impl<'g> Input<'g> {
    fn new(x: Tensor<'g>, norm: Option<TensorId>) -> Input<'g> {
        Input { x, norm, floats: OnceCell::new(), acts: OnceCell::new() }
    }
}

/// Builds the graph of one micro-batch.
pub struct BatchBuilder<'a, 'g> {
    /// The graph.
    pub g: &'a Builder<'g>,
    /// The model's shape.
    pub hparams: &'a Hparams,
    store: &'a Rc<Store>,
    matrices: &'a HashMap<TensorId, Matrix>,
    native: &'a Native,
    cache: &'a KvCache,
    shape: Shape,
    pass: Option<Pass<'a>>,
    tokens: (Tensor<'g>, Slot),
    pos: (Tensor<'g>, Slot),
    k_ids: (Tensor<'g>, Slot),
    v_ids: (Tensor<'g>, Slot),
    mask: (Tensor<'g>, Slot),
    out_ids: (Tensor<'g>, Slot),
    rot_k: Option<(Tensor<'g>, Slot)>,
    rot_v: Option<(Tensor<'g>, Slot)>,
    probe_rows: Option<(Tensor<'g>, Slot)>,
    probe_mask: Option<(Tensor<'g>, Slot)>,
    blocks: RefCell<Vec<BlockSlots>>,
    /// What is built now is a probe's
    probing: Cell<bool>,
    /// Residual stream of the probe's rows at the last layer's MLP, which else runs on the wanted tokens only.
    last_probe: RefCell<Option<Tensor<'g>>>,
}

impl<'a, 'g> BatchBuilder<'a, 'g> {
    /// Makes the inputs.
    #[allow(clippy::too_many_arguments, reason = "what a model and a session have, each by itself")]
    pub fn new(
        g: &'a Builder<'g>,
        hparams: &'a Hparams,
        store: &'a Rc<Store>,
        matrices: &'a HashMap<TensorId, Matrix>,
        native: &'a Native,
        cache: &'a KvCache,
        shape: Shape,
        pass: Option<Pass<'a>>,
    ) -> Self {
        let n = shape.n_tokens();
        let flash_attn = cache.params().flash_attn;
        let v_ids = if flash_attn { n } else { n * hparams.n_embd_gqa() };
        let mask_type = if flash_attn { Type::F16 } else { Type::F32 };
        let rot = |n: Option<usize>, name| n.map(|n| g.input(name, Type::F32, [n, n, 1, 1]));
        // The rows that a dense run is observed by are those of an even probe.
        let probe = pass.and_then(|p| Some((p, p.pruning?.probe(shape.n_seq, shape.n_each))));
        let probe = probe.filter(|(p, _)| matches!(p.mode, Mode::Probe | Mode::Observe));
        let probe_rows = probe
            .filter(|(p, _)| {
                p.mode == Mode::Observe || p.pruning.is_some_and(|s| !s.picks_by_residual() && !s.probes_all())
            })
            .map(|(_, rows)| g.input("prune_probe_rows", Type::I32, [rows.n_rows(), 1, 1, 1]));
        let probe_mask = probe
            .filter(|(p, _)| p.mode == Mode::Probe)
            .map(|(_, rows)| g.input("prune_probe_mask", mask_type, [rows.n_each, rows.n_each, 1, 1]));
        BatchBuilder {
            g,
            hparams,
            store,
            matrices,
            native,
            cache,
            shape,
            pass,
            tokens: g.input("inp_tokens", Type::I32, [n, 1, 1, 1]),
            pos: g.input("inp_pos", Type::I32, [n, 1, 1, 1]),
            k_ids: g.input("attn_inp_k_idxs", Type::I64, [n, 1, 1, 1]),
            v_ids: g.input("attn_inp_v_idxs", Type::I64, [v_ids, 1, 1, 1]),
            mask: g.input("attn_inp_kq_mask", mask_type, [shape.n_kv, shape.n_each, 1, shape.n_seq]),
            out_ids: g.input("out_ids", Type::I32, [shape.n_outputs, 1, 1, 1]),
            rot_k: rot(cache.rot_k, "attn_inp_k_rot"),
            rot_v: rot(cache.rot_v, "attn_inp_v_rot"),
            probe_rows,
            probe_mask,
            blocks: RefCell::default(),
            probing: Cell::new(false),
            last_probe: RefCell::default(),
        }
    }

    /// A tensor of the weights.
    fn weight(&self, id: TensorId) -> Tensor<'g> {
        self.g.leaf(self.store, id)
    }

    /// `y + b`
    fn biased(&self, y: Tensor<'g>, bias: Option<Tensor<'g>>) -> Tensor<'g> {
        bias.map_or(y, |b| self.g.add(y, b))
    }

    /// The states as floats.
    fn floats(&self, input: &Input<'g>) -> Tensor<'g> {
        *input.floats.get_or_init(|| input.norm.map_or(input.x, |w| self.norm(input.x, w)))
    }

    /// The states in 8 bits.
    fn acts(&self, input: &Input<'g>) -> Tensor<'g> {
        *input.acts.get_or_init(|| {
            let [k, n, ..] = input.x.ne();
            let mut sources = vec![input.x];
            sources.extend(input.norm.map(|w| self.weight(w)));
            self.g.custom(Type::I32, [words(k), n, 1, 1], &sources, Quantize { eps: self.hparams.norm_rms_eps })
        })
    }

    /// Some rows of the states.
    fn rows(&self, input: &Input<'g>, rows: Tensor<'g>) -> Input<'g> {
        Input::new(self.g.get_rows(input.x, rows), input.norm)
    }

    /// `[n_out, n]` for each of the weights: the states times its rows, or those of the units kept of it, of `width` rows each. The
    /// first weights are those of a block that may be made in advance, from the number `first` on.
    fn multiply<const N: usize>(
        &self,
        input: &Input<'g>,
        weights: [Pair<TensorId>; N],
        kept: [Option<&Kept<'a, 'g>>; N],
        first: usize,
        width: usize,
    ) -> [Tensor<'g>; N] {
        let g = self.g;
        let n = input.x.ne()[1];
        // Ours multiply all that they can in one product.
        let native: [bool; N] = std::array::from_fn(|i| self.native.multiplies(&weights[i].0, n));
        let factors: Vec<Factor> =
            (0..N).filter(|&i| native[i]).map(|i| self.factor(weights[i].0, kept[i], first + i, width)).collect();
        let units = kept.iter().flatten().next().copied();
        let n_out: Vec<usize> = factors.iter().map(|f| f.n_out(units.map_or(0, |k| k.n))).collect();
        let all = (!factors.is_empty()).then(|| self.product(input, factors, false, units, None, n_out.iter().sum()));
        let (mut offset, mut n_out) = (0, n_out.into_iter());
        std::array::from_fn(|i| {
            let Some(all) = all.filter(|_| native[i]) else {
                let x = self.floats(input);
                return match kept[i] {
                    Some(kept) => self.reduced_rows(weights[i], kept, first + i, width).apply(g, x),
                    None => self.linear(weights[i]).apply(g, x),
                };
            };
            let (row, n_out) = (all.nb()[1], n_out.next().expect("one of each"));
            let whole = n_out == all.ne()[0];
            let part = if whole { all } else { g.view(all, [n_out, n, 1, 1], [row, row * n, row * n], offset) };
            offset += 4 * n_out;
            self.biased(part, self.rows_of_bias(weights[i].1, kept[i], width))
        })
    }

    /// What our kernels multiply of a weight: all of it, its kept units' rows where the file has them, or these as they were made in
    /// advance; `number` is the weight's among those of its block that are.
    fn factor(&self, weight: TensorId, kept: Option<&Kept<'a, 'g>>, number: usize, width: usize) -> Factor {
        if let Some(Made::Rows(matrix)) = kept.and_then(|k| k.compact).map(|b| &b.matrices[number].0) {
            return Factor { matrix: matrix.clone(), kept: None, resident: None };
        }
        let resident = self.native.resident.get(&weight).filter(|_| kept.is_none()).cloned();
        Factor { matrix: self.matrices[&weight].clone(), kept: kept.map(|_| width), resident }
    }

    /// A [`Product`] of the states: `n_out` results for each. `columns` is the width of a kept unit of which only the columns count.
    fn product(
        &self,
        input: &Input<'g>,
        factors: Vec<Factor>,
        gated: bool,
        kept: Option<&Kept<'a, 'g>>,
        columns: Option<usize>,
        n_out: usize,
    ) -> Tensor<'g> {
        let n = input.x.ne()[1];
        // Columns are always packed; and what is no row to be multiplied where it is.
        let direct = columns.is_none() && factors.iter().all(|f| is_direct(f.matrix.ty()));
        let panels = n > FEW || !direct;
        let mut sources = if panels {
            vec![self.acts(input)]
        } else {
            std::iter::once(input.x).chain(input.norm.map(|w| self.weight(w))).collect()
        };
        let reduced = factors.iter().any(|f| f.kept.is_some());
        let ids = kept.filter(|_| columns.is_some() || reduced).map(|k| k.ids);
        sources.extend(ids);
        let ahead = kept.and_then(|k| k.ahead).filter(|_| panels && reduced && columns.is_none());
        sources.extend(ahead.iter().flat_map(|a| [a.product, a.rows]));
        let (has_ids, ahead, eps) = (ids.is_some(), ahead.is_some(), self.hparams.norm_rms_eps);
        let clock = (!self.probing.get()).then(|| self.native.clock.clone());
        let op = Product { factors, panels, gated, columns, has_ids, ahead, eps, clock };
        self.g.custom(Type::F32, [n_out, n, 1, 1], &sources, op)
    }

    /// `[n_out, n]`: the states, of kept units if these are given, times the weight's columns of these, of `width` columns each.
    fn multiply_last(
        &self,
        input: &Input<'g>,
        weight: Pair<TensorId>,
        kept: Option<&Kept<'a, 'g>>,
        number: usize,
        width: usize,
    ) -> Tensor<'g> {
        let g = self.g;
        let n = input.x.ne()[1];
        let made = kept.and_then(|k| k.compact).map(|b| &b.matrices[number]);
        let bias = match made {
            // What stands in for the others may be in it.
            Some((_, bias)) => bias.map(|b| g.leaf(self.compact_store(), b)),
            None => weight.1.map(|b| self.weight(b)),
        };
        let product = match made.map(|m| &m.0) {
            Some(&Made::Tensor(w)) => g.mul_mat(g.leaf(self.compact_store(), w), self.floats(input)),
            Some(Made::Columns(columns)) if n <= FEW => {
                let op = ColumnProduct { columns: columns.clone() };
                g.custom(Type::F32, [columns.layout.n_out(), n, 1, 1], &[input.x], op)
            }
            _ if self.native.multiplies(&weight.0, n) => {
                let factor = self.factor(weight.0, None, number, width);
                let (n_out, columns) = (factor.matrix.n_out(), kept.map(|_| width));
                self.product(input, vec![factor], false, kept, columns, n_out)
            }
            _ => {
                let w = kept.map_or_else(|| self.weight(weight.0), |kept| self.reduced_columns(weight.0, kept, width));
                g.mul_mat(w, self.floats(input))
            }
        };
        self.biased(product, bias)
    }

    /// The inside of a gated MLP, `[n_ff, n]`, or of its kept channels.
    fn ffn_mid(&self, input: &Input<'g>, w: &FfnTensors<TensorId>, kept: Option<&Kept<'a, 'g>>) -> Tensor<'g> {
        let weights = [w.gate, w.up];
        let n = input.x.ne()[1];
        if weights.iter().all(|w| self.native.multiplies(&w.0, n) && w.1.is_none()) {
            let factors = vec![self.factor(w.gate.0, kept, 0, 1), self.factor(w.up.0, kept, 1, 1)];
            let n_out = factors[0].n_out(kept.map_or(0, |k| k.n));
            return self.product(input, factors, true, kept, None, n_out);
        }
        // What ran ahead is the inside, not the two products.
        let kept = kept.map(|kept| Kept { ahead: None, ..*kept });
        let [gate, up] = self.multiply(input, weights, [kept.as_ref(); 2], 0, 1);
        self.g.swiglu(gate, up)
    }

    /// A matrix of the weights with its bias.
    fn linear(&self, (weight, bias): Pair<TensorId>) -> Linear<'g> {
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

    /// The residual stream `x` `[n_embd, n_tokens]` after an attention block; beyond the last one, of the wanted tokens only:
    /// `[n_embd, n_outputs]`.
    pub fn residual(&self, attn_out: Tensor<'g>, x: Tensor<'g>, il: usize) -> Tensor<'g> {
        let g = self.g;
        if il + 1 < self.hparams.n_layer {
            return g.add(attn_out, x);
        }
        if let (Some((rows, _)), true) = (self.probe_rows, self.pass.is_some_and(|p| p.observe)) {
            *self.last_probe.borrow_mut() = Some(g.add(g.get_rows(attn_out, rows), g.get_rows(x, rows)));
        }
        g.add(g.get_rows(attn_out, self.out_ids.0), g.get_rows(x, self.out_ids.0))
    }

    /// Attention block of layer `il` over the cache, this batch included, on the residual stream `x`: `[n_embd, n_tokens]`.
    pub fn attention(
        &self,
        x: Tensor<'g>,
        norm: TensorId,
        w: &AttentionTensors<TensorId>,
        rope_freqs: Option<TensorId>,
        il: usize,
    ) -> Tensor<'g> {
        let g = self.g;
        let input = Input::new(x, Some(norm));
        let n_embd_head = self.hparams.n_embd_head;
        let freqs = rope_freqs.map(|id| self.weight(id));
        let qkv = |products, pos| blocks::qkv(g, products, n_embd_head, pos, freqs, &self.hparams.rope);
        let mut slots = BlockSlots::new(Block { il, kind: Kind::Attn });
        // Whole texts of a multi-head model need the keys and values of kept heads only.
        let fresh = self.shape.whole && self.hparams.n_head == self.hparams.n_head_kv;
        // Else the probe's keys and values are those that its rows have anyway.
        let (all_kv, ahead) = (OnceCell::new(), Cell::new(None));
        if !fresh && self.probes(slots.block) {
            let kv = self.multiply(&input, [w.k, w.v], [None; 2], 1, n_embd_head);
            kv.iter().for_each(|&t| g.expand(t));
            all_kv.set(kv).expect("not set before");
        }
        let kept = self.kept(x, &mut slots, &|rows, mask| {
            let of_rows = rows.map(|rows| self.rows(&input, rows));
            let pos = rows.map_or(self.pos.0, |rows| self.positions(rows));
            let states = of_rows.as_ref().unwrap_or(&input);
            let products = if let Some(&kv) = all_kv.get() {
                let [q] = self.multiply(states, [w.q], [None], 0, n_embd_head);
                let [k, v] = kv.map(|t| rows.map_or(t, |rows| g.get_rows(t, rows)));
                // With a bias in it, it is not the product.
                ahead.set(rows.filter(|_| w.q.1.is_none()).map(|rows| Ahead { product: q, rows }));
                [q, k, v]
            } else {
                self.multiply(states, [w.q, w.k, w.v], [None; 3], 0, n_embd_head)
            };
            let n_seq = products[0].ne()[1] / mask.ne()[0];
            self.attend_among(qkv(products, pos), mask, n_seq)
        });
        let kept = kept.map(|kept| Kept { ahead: ahead.get(), ..kept });
        let fresh = fresh && kept.is_some();
        let products = if let Some(&[k, v]) = all_kv.get() {
            let [q] = self.multiply(&input, [w.q], [kept.as_ref()], 0, n_embd_head);
            [q, k, v]
        } else {
            // Keys and values are never made in advance: a mask that is fixed serves generation too.
            let of_kv = kept.as_ref().filter(|_| fresh).map(|kept| Kept { compact: None, ..*kept });
            let units = [kept.as_ref(), of_kv.as_ref(), of_kv.as_ref()];
            self.multiply(&input, [w.q, w.k, w.v], units, 0, n_embd_head)
        };
        let qkv = qkv(products, self.pos.0);
        self.name(qkv.q, "Qcur", il);
        self.name(qkv.k, "Kcur", il);
        self.name(qkv.v, "Vcur", il);
        let kqv = if fresh {
            let n = self.shape.n_each;
            let nb = self.mask.0.nb();
            let mask = g.view(self.mask.0, [n, n, 1, self.shape.n_seq], [nb[1], nb[2], nb[3]], 0);
            self.attend_among(qkv, g.cont(mask, [n, n, 1, self.shape.n_seq]), self.shape.n_seq)
        } else {
            self.attend_cache(qkv, kept.as_ref(), self.native.attends(&w.q.0), il)
        };
        self.note(kqv, kept.as_ref(), slots);
        let out = self.multiply_last(&Input::new(kqv, None), w.output, kept.as_ref(), 1, n_embd_head);
        self.name(out, "attn_out", il)
    }

    /// Attention of `qkv` over the cache, which takes in its keys and values; of kept heads, if these are given; by our
    /// own kernels, if `native`.
    fn attend_cache(&self, mut qkv: Qkv<'g>, kept: Option<&Kept<'a, 'g>>, native: bool, il: usize) -> Tensor<'g> {
        let g = self.g;
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
        let mut k = self.cache.k(g, il, self.shape.n_kv, self.shape.n_seq);
        let mut v = self.cache.v(g, il, self.shape.n_kv, self.shape.n_seq);
        if native && self.cache.params().flash_attn {
            let [d, n_head, n, _] = qkv.q.ne();
            let mut sources = vec![qkv.q, k, v, self.pos.0];
            sources.extend(kept.map(|kept| kept.ids));
            let n_rep = self.hparams.n_head / self.hparams.n_head_kv;
            let op = Attend { scale: self.hparams.kq_scale, n_rep, d };
            let mut out = g.custom(Type::F32, [d * n_head, n, 1, 1], &sources, op);
            self.name(out, "kqv_out", il);
            if let Some((rot, _)) = self.rot_v {
                out = g.mul_mat_hadamard(out, rot);
            }
            return out;
        }
        // A kept head has its keys and values copied together, unless the tokens are so few that attention of all heads is
        // less work than the copies.
        let n_head = self.hparams.n_head;
        let spread = kept.filter(|kept| self.shape.n_each * (n_head - kept.n) <= 2 * kept.n);
        if let Some(kept) = spread {
            let [d, _, n, _] = qkv.q.ne();
            qkv.q = g.custom(Type::F32, [d, n_head, n, 1], &[qkv.q, kept.ids], SpreadHeads { n_head });
        } else if let Some(kept) = kept {
            let n_rep = n_head / self.hparams.n_head_kv;
            [k, v] = [k, v].map(|t| {
                let [n, _, m, n_seq] = t.ne();
                g.custom(t.ty(), [n, kept.n, m, n_seq], &[t, kept.ids], GatherHeads { n_rep })
            });
        }
        let flash_attn = self.cache.params().flash_attn;
        if flash_attn && self.shape.logits {
            // As llama.cpp, for equal answers; scores of texts stay exact.
            [k, v] = [k, v].map(|t| if t.ty() == Type::F32 { g.cast(t, Type::F16) } else { t });
        }
        let mut out = blocks::attention(g, qkv.q, k, v, self.mask.0, self.hparams.kq_scale, flash_attn);
        g.expand(out);
        self.name(out, "kqv_out", il);
        if let Some(kept) = spread {
            let (d, n) = (self.hparams.n_embd_head, out.ne()[1]);
            let heads = g.reshape(out, [d, n_head, n, 1]);
            let heads = g.custom(Type::F32, [d, kept.n, n, 1], &[heads, kept.ids], GatherHeads { n_rep: 1 });
            out = g.reshape(heads, [d * kept.n, n, 1, 1]);
        }
        if let Some((rot, _)) = self.rot_v {
            out = g.mul_mat_hadamard(out, rot);
        }
        out
    }

    /// Attention of the tokens of `n_seq` sequences among themselves, in floats, without the cache: `[n_embd_head * heads,
    /// n_tokens]`.
    fn attend_among(&self, qkv: Qkv<'g>, mask: Tensor<'g>, n_seq: usize) -> Tensor<'g> {
        let g = self.g;
        let params = self.cache.params();
        let by_seq = |t: Tensor<'g>| {
            let ([d, n_head, n_tokens, _], nb) = (t.ne(), t.nb());
            let n_each = n_tokens / n_seq;
            g.view(t, [d, n_head, n_each, n_seq], [nb[1], nb[2], nb[2] * n_each], 0)
        };
        let (k, mut v) = (by_seq(qkv.k), by_seq(qkv.v));
        if !params.flash_attn {
            let [d, n_head, n_each, _] = v.ne();
            v = g.cont(g.permute(v, [2, 1, 0, 3]), [n_each, n_head, d, n_seq]);
        }
        blocks::attention(g, qkv.q, k, v, mask, self.hparams.kq_scale, params.flash_attn)
    }

    /// MLP block of layer `il` on the residual stream `x`: `[n_embd, n]` for as many tokens as `x` has.
    pub fn ffn(&self, x: Tensor<'g>, norm: TensorId, w: &FfnTensors<TensorId>, il: usize) -> Tensor<'g> {
        let input = Input::new(x, Some(norm));
        let mut slots = BlockSlots::new(Block { il, kind: Kind::Mlp });
        let ahead = Cell::new(None);
        let kept = self.kept(x, &mut slots, &|rows, _| match rows {
            Some(rows) => {
                let product = self.ffn_mid(&self.rows(&input, rows), w, None);
                ahead.set(Some(Ahead { product, rows }));
                product
            }
            None => self.ffn_mid(&input, w, None),
        });
        let kept = kept.map(|kept| Kept { ahead: ahead.get(), ..kept });
        let mid = self.ffn_mid(&input, w, kept.as_ref());
        match self.last_probe.take() {
            // The last layer of a prompt: the wanted tokens are not the batch.
            Some(rows) => self.note(self.ffn_mid(&Input::new(rows, Some(norm)), w, None), None, slots),
            None => self.note(mid, kept.as_ref(), slots),
        }
        let out = self.multiply_last(&Input::new(mid, None), w.down, kept.as_ref(), 2, 1);
        self.name(out, "ffn_out", il)
    }

    /// Whether a block has a probe of its own.
    fn probes(&self, block: Block) -> bool {
        self.pass.is_some_and(|p| p.mode == Mode::Probe && p.pruning.is_some_and(|s| s.plan.kept(block).is_some()))
    }

    /// What a block that gets `x` keeps; `None` if it runs whole. `states` gives the inputs of the block's last matrix for some
    /// rows of the batch (or all), attention among these under the mask.
    fn kept(
        &self,
        x: Tensor<'g>,
        slots: &mut BlockSlots,
        states: &dyn Fn(Option<Tensor<'g>>, Tensor<'g>) -> Tensor<'g>,
    ) -> Option<Kept<'a, 'g>> {
        let g = self.g;
        let pass = self.pass?;
        let pruning = pass.pruning?;
        let n = pruning.plan.kept(slots.block)?;
        let kept = |ids| Some(Kept { ids, n, compact: None, ahead: None });
        let partial = x.ne()[1] < self.shape.n_tokens();
        match pass.mode {
            Mode::Observe | Mode::Calibrate => None,
            Mode::Fixed => {
                let compact = pass.compact.expect("reduced weights of fixed masks");
                let block = compact.block(slots.block)?;
                Some(Kept { ids: g.leaf(compact.store(), block.ids), n, compact: Some(block), ahead: None })
            }
            Mode::Probe | Mode::Given if partial => None,
            Mode::Given => {
                let (ids, slot) = g.input("prune_kept", Type::I32, [n, 1, 1, 1]);
                slots.kept = Some(slot);
                kept(ids)
            }
            Mode::Probe => {
                let (n_seq, n_each) = (self.shape.n_seq, self.shape.n_each);
                let shape = pruning.probe(n_seq, n_each);
                let rows = if pruning.probes_all() {
                    None
                } else if pruning.picks_by_residual() {
                    let squares = g.custom(Type::F32, [1, n_seq * n_each, 1, 1], &[x], probe::SquaredNorms);
                    let pick = probe::PickByResidual { probe: shape, n_seq, n_each };
                    Some(g.custom(Type::I32, [shape.n_rows(), 1, 1, 1], &[squares], pick))
                } else {
                    self.probe_rows.map(|r| r.0)
                };
                let (mask, _) = self.probe_mask.expect("made for every probe");
                let pos = rows.map_or(self.pos.0, |rows| self.positions(rows));
                self.mark(x, true);
                self.probing.set(true);
                let ids = pruning.choose(g, states(rows, mask), pos, shape, pass.observe, slots);
                self.probing.set(false);
                self.mark(ids, false);
                kept(ids)
            }
        }
    }

    /// Starts or ends the time of a probe, once `after` is computed.
    fn mark(&self, after: Tensor<'g>, start: bool) {
        let op = Mark { clock: self.native.clock.clone(), start };
        self.g.expand(self.g.custom(Type::F32, [1, 1, 1, 1], &[after], op));
    }

    /// Positions of rows of the batch: I32 `[n_rows]`.
    fn positions(&self, rows: Tensor<'g>) -> Tensor<'g> {
        let g = self.g;
        let column = g.reshape(self.pos.0, [1, self.shape.n_tokens(), 1, 1]);
        g.reshape(g.get_rows(column, rows), [rows.ne()[0], 1, 1, 1])
    }

    /// The kept units' rows of a matrix; `number` is the matrix's among those of its block that are made in advance.
    fn reduced_rows(
        &self,
        (weight, bias): Pair<TensorId>,
        kept: &Kept<'a, 'g>,
        number: usize,
        width: usize,
    ) -> Linear<'g> {
        let g = self.g;
        if let Some((Made::Tensor(weight), bias)) = kept.compact.map(|b| &b.matrices[number]) {
            let store = self.compact_store();
            return Linear { weight: g.leaf(store, *weight), bias: bias.map(|b| g.leaf(store, b)) };
        }
        let matrix = self.matrices[&weight].clone();
        let ne = [matrix.n_in(), kept.n * width, 1, 1];
        let bias = self.rows_of_bias(bias, Some(kept), width);
        Linear { weight: g.custom(matrix.ty(), ne, &[kept.ids], GatherRows { matrix, width }), bias }
    }

    /// A bias, or the kept units' part of it.
    fn rows_of_bias(&self, bias: Option<TensorId>, kept: Option<&Kept<'a, 'g>>, width: usize) -> Option<Tensor<'g>> {
        let g = self.g;
        let b = self.weight(bias?);
        let Some(kept) = kept else { return Some(b) };
        let units = g.reshape(b, [width, b.ne()[0] / width, 1, 1]);
        Some(g.reshape(g.get_rows(units, kept.ids), [kept.n * width, 1, 1, 1]))
    }

    /// The kept units' columns of a matrix.
    fn reduced_columns(&self, weight: TensorId, kept: &Kept<'a, 'g>, width: usize) -> Tensor<'g> {
        let matrix = self.matrices[&weight].clone();
        let n = kept.n * width;
        let op = GatherColumns { matrix: matrix.clone(), width };
        self.g.custom(matrix.column_type(n), [n, matrix.n_out(), 1, 1], &[kept.ids], op)
    }

    /// Where what was made in advance is.
    fn compact_store(&self) -> &'a Rc<Store> {
        self.pass.and_then(|p| p.compact).expect("blocks that were made in advance").store()
    }

    /// Notes what the pass wants to know of the inputs `states` of a block's last matrix.
    fn note(&self, states: Tensor<'g>, kept: Option<&Kept<'a, 'g>>, mut slots: BlockSlots) {
        let g = self.g;
        let Some(pass) = self.pass else { return };
        let [n_channels, n_rows, ..] = states.ne();
        let n_seq = self.shape.n_seq;
        let by_position = || {
            let op = score::EnergyByPosition { n_seq };
            g.output(g.custom(Type::F32, [n_channels, n_rows / n_seq, 1, 1], &[states], op))
        };
        match (pass.mode, pass.pruning) {
            (Mode::Calibrate, _) => {
                slots.moments = Some(g.output(g.custom(Type::F32, [2, n_channels, 1, 1], &[states], score::Moments)));
                slots.energy = pass.positions.then(by_position);
            }
            (Mode::Probe, Some(pruning)) if kept.is_some() => {
                slots.energy = pruning.keeps_history().map(|positions| match positions {
                    true => by_position(),
                    false => prune::energy(g, states).0,
                });
            }
            (Mode::Probe | Mode::Observe, Some(pruning))
                if pass.observe && pruning.plan.kept(slots.block).is_some() =>
            {
                slots.observed = Some(prune::energy(g, prune::normalise(g, states)));
            }
            (Mode::Given, _) => {}
            _ => return,
        }
        self.blocks.borrow_mut().push(slots);
    }

    /// Ends the graph with the wanted tokens' states before the output matrix, or with their logits.
    pub fn finish(self, result: Tensor<'g>, output: TensorId) -> Slots {
        let g = self.g;
        let mut result = result;
        if self.shape.logits {
            [result] = self.multiply(&Input::new(result, None), [(output, None)], [None], 0, 1);
            g.name(result, "result_output");
        }
        Slots {
            tokens: self.tokens.1,
            pos: self.pos.1,
            k_ids: self.k_ids.1,
            v_ids: self.v_ids.1,
            mask: self.mask.1,
            out_ids: self.out_ids.1,
            rot_k: self.rot_k.map(|r| r.1),
            rot_v: self.rot_v.map(|r| r.1),
            probe_rows: self.probe_rows.map(|r| r.1),
            probe_mask: self.probe_mask.map(|(t, slot)| (slot, t.ne()[0])),
            blocks: self.blocks.into_inner(),
            result: g.output(result),
        }
    }
}
