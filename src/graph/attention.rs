//! Attention blocks: queries, keys and values with positions embedded, over the cache or among the rows of a batch.

use ggml::{Tensor, Type};
use kernels::Scores;

use super::batch::Pieces;
use super::builder::GraphBuilder;
use super::choice::{Choice, Probe};
use super::inputs::{Input, Rows};
use super::matmul::{Ahead, Kept, Part};
use super::ops::attend;
use super::states::States;
use crate::prune::{self, Block, BlockKind, GatherHeads, Notes, Pruning, Role, SpreadHeads};
use crate::weights::{Attention, KeysValues, Linear, Norm, Rotary};

/// From so many cells on ggml's flash attention of a single query gives each thread some of them (ops.cpp), if they are F16 or F32.
const DIVIDED_CELLS: usize = 512;

/// Queries `[n_embd_head, n_head, n_tokens]`, keys and values `[n_embd_head, n_head_kv, n_tokens]`, positions embedded.
#[derive(Debug, Clone, Copy)]
struct Qkv<'g> {
    q: Tensor<'g>,
    k: Tensor<'g>,
    v: Tensor<'g>,
}

impl<'a, 'g> GraphBuilder<'a, 'g> {
    /// The attention block of layer `il` over the cache, this batch included, on the residual stream `x`: `[n_embd, n_tokens]`, or of the
    /// wanted rows only, if it is the last layer. `None` if it adds nothing: then it has made keys and values.
    pub fn attention(&mut self, x: Tensor<'g>, norm: &Norm, w: &Attention, il: usize) -> Option<Tensor<'g>> {
        let block = Block { il, kind: BlockKind::Attn };
        let out = self.pruned_attention(x, norm, w, block);
        let out = match self.dense_rows(x, block) {
            None => out?,
            Some(rows) => {
                let of_rows = self.attention_of(&mut States::normalised(x, norm), w, None, Rows::Dense, il);
                self.with_rows(out, of_rows, rows, x.ne()[1], il)
            }
        };
        Some(self.name(out, "attn_out", il))
    }

    /// The block, pruned for all rows if it is pruned.
    fn pruned_attention(&mut self, x: Tensor<'g>, norm: &Norm, w: &Attention, block: Block) -> Option<Tensor<'g>> {
        let il = block.il;
        let mut notes = Notes::new(block);
        let mut states = States::normalised(x, norm);
        let KeysValues::Made { k, v } = &w.kv else { return self.attention_by_others_keys(x, &mut states, w, notes) };
        // Whole texts of a multi-head model need the keys and values of kept heads only, and no cache, unless another layer reads them.
        let kv_shrink = self.task.layout.is_whole && w.n_head == w.n_head_kv && !self.task.cache.is_read_by_others(il);
        let choice = self.choice(x, block, w.n_embd_head);
        if self.only_wanted(il) || matches!(choice, Choice::Dropped) {
            return self.attention_of_wanted(&mut states, w, [k, v], &choice, il);
        }
        let (kept, kv) = match choice {
            Choice::Dense | Choice::Dropped => (None, None),
            Choice::Kept(kept) => (Some(kept), None),
            Choice::Probe(pruning, probe) => {
                // The probe's keys and values are those that its rows have anyway, unless they shrink.
                let kv = (!kv_shrink).then(|| self.keys_and_values(&mut states, [k, v]));
                (Some(self.probe_attention(x, &mut states, w, pruning, probe, [k, v], kv, &mut notes)), kv)
            }
        };
        let products = match (kv, &kept) {
            (Some([k, v]), Some(kept)) => [self.matmul(&mut states, &w.q, Part::Rows(kept, Role::Q)), k, v],
            (_, Some(kept)) if kv_shrink => {
                let part = |role| Part::Rows(kept, role);
                let linears = [(&w.q, part(Role::Q)), (k, part(Role::K)), (v, part(Role::V))];
                self.matmul_stacked(&mut states, linears)
            }
            (_, kept) => {
                let q = kept.as_ref().map_or(Part::All, |kept| Part::Rows(kept, Role::Q));
                self.matmul_stacked(&mut states, [(&w.q, q), (k, Part::All), (v, Part::All)])
            }
        };
        let pos = self.inputs.get(Input::Positions);
        let qkv = self.qkv(products, w, pos, None);
        self.name(qkv.q, "Qcur", il);
        self.name(qkv.k, "Kcur", il);
        self.name(qkv.v, "Vcur", il);
        let kqv = match kv_shrink && kept.is_some() {
            true => self.attend_batch(qkv, kept.as_ref(), w),
            false => {
                // Together, so that the scheduler does not split the graph between them.
                [qkv.q, qkv.v, qkv.k].iter().for_each(|&t| self.g.expand(t));
                self.write_cache(qkv.k, qkv.v, il);
                self.attend_cache(qkv.q, kept.as_ref(), w, il, Rows::All)
            }
        };
        let kqv = self.text_only(kqv);
        self.note(kqv, kept.as_ref(), notes);
        let part = kept.as_ref().map_or(Part::All, |kept| Part::Columns(kept, Role::Output));
        Some(self.matmul(&mut States::new(kqv), &w.output, part))
    }

    /// [`GraphBuilder::pruned_attention`] of a block that reads the keys and values of a layer before it. All of it is left out, or nothing.
    fn attention_by_others_keys(
        &mut self,
        x: Tensor<'g>,
        states: &mut States<'_, 'g>,
        w: &Attention,
        notes: Notes,
    ) -> Option<Tensor<'g>> {
        let il = notes.block.il;
        match self.choice(x, notes.block, w.n_embd_head) {
            Choice::Dense => {}
            Choice::Dropped => return None,
            Choice::Kept(_) | Choice::Probe(..) => {
                unreachable!("plans and records keep all heads of such a block, or none")
            }
        }
        if !self.only_wanted(il) {
            let kqv = self.attended(states, w, None, Rows::All, il);
            self.note(kqv, None, notes);
            return Some(self.matmul(&mut States::new(kqv), &w.output, Part::All));
        }
        (self.task.layout.n_wanted > 0).then(|| self.attention_of(states, w, None, Rows::Wanted, il))
    }

    /// [`GraphBuilder::pruned_attention`] where only keys and values are made of all rows: the rest of it of the wanted ones, or of none if the
    /// block is dropped.
    fn attention_of_wanted(
        &mut self,
        states: &mut States<'_, 'g>,
        w: &Attention,
        kv: [&Linear; 2],
        choice: &Choice<'_, 'g>,
        il: usize,
    ) -> Option<Tensor<'g>> {
        let pos = self.inputs.get(Input::Positions);
        let [k, v] = self.keys_and_values(states, kv);
        let (k, v) = (self.embedded(self.by_head(k, w), &w.k_norm, w, pos), self.values(v, w));
        self.name(k, "Kcur", il);
        self.name(v, "Vcur", il);
        self.write_cache(k, v, il);
        if self.task.layout.n_wanted == 0 || matches!(choice, Choice::Dropped) {
            return None;
        }
        let kept = match choice {
            Choice::Kept(kept) => Some(kept),
            _ => None,
        };
        Some(self.attention_of(states, w, kept, Rows::Wanted, il))
    }

    /// Attention of some rows over the cache, which has the batch's keys and values: `[n_embd, n]`.
    fn attention_of(
        &mut self,
        states: &mut States<'_, 'g>,
        w: &Attention,
        kept: Option<&Kept<'_, 'g>>,
        rows: Rows,
        il: usize,
    ) -> Tensor<'g> {
        let kqv = self.attended(states, w, kept, rows, il);
        if rows == Rows::Dense {
            self.note_dense_rows(kqv, Block { il, kind: BlockKind::Attn });
        }
        let part = kept.map_or(Part::All, |kept| Part::Columns(kept, Role::Output));
        self.matmul(&mut States::new(kqv), &w.output, part)
    }

    /// What some rows attend to: the inputs of the block's last matrix, `[n_embd_head * heads, n]`.
    fn attended(
        &mut self,
        states: &mut States<'_, 'g>,
        w: &Attention,
        kept: Option<&Kept<'_, 'g>>,
        rows: Rows,
        il: usize,
    ) -> Tensor<'g> {
        let mut pos = self.inputs.get(Input::Positions);
        let is_own = self.attends(&w.q.weight);
        let numbers = (rows != Rows::All).then(|| self.inputs.get(Input::Numbers(rows)));
        let (mut of_rows, mut attending) = (None, Rows::All);
        let chosen = numbers.filter(|_| is_own);
        if let Some(numbers) = chosen {
            of_rows = Some(self.rows(states, numbers));
            (pos, attending) = (self.positions_of(pos, numbers), rows);
        }
        let part = kept.map_or(Part::All, |kept| Part::Rows(kept, Role::Q));
        let q = self.matmul(of_rows.as_mut().unwrap_or(states), &w.q, part);
        let q = self.queries(q, w, pos, chosen);
        self.name(q, "Qcur", il);
        let mut kqv = self.attend_cache(q, kept, w, il, attending);
        if let Some(numbers) = numbers.filter(|_| !is_own) {
            // ggml attends for one query otherwise than for many, with other rounding: all queries make results those of libllama.
            kqv = self.g.get_rows(kqv, numbers);
        }
        kqv
    }

    /// Products `[n_embd_head * n_head_kv, n_tokens]` of keys and values, all heads.
    fn keys_and_values(&mut self, states: &mut States<'_, 'g>, kv: [&Linear; 2]) -> [Tensor<'g>; 2] {
        let kv = self.matmul_stacked(states, kv.map(|linear| (linear, Part::All)));
        kv.iter().for_each(|&t| self.g.expand(t));
        kv
    }

    /// The probe of an attention block that makes keys and values by `own`: attention among its rows, and the heads to keep. `kv` are products
    /// of keys and values of the whole batch, if there are any.
    #[allow(clippy::too_many_arguments, reason = "all of one block")]
    fn probe_attention(
        &mut self,
        x: Tensor<'g>,
        states: &mut States<'_, 'g>,
        w: &Attention,
        pruning: &Pruning,
        probe: Probe<'g>,
        own: [&Linear; 2],
        kv: Option<[Tensor<'g>; 2]>,
        notes: &mut Notes,
    ) -> Kept<'a, 'g> {
        let g = self.g;
        self.begin_probe(x, notes.block.il);
        let mut of_rows = probe.rows.map(|rows| self.rows(states, rows));
        let states = of_rows.as_mut().unwrap_or(states);
        let mut ahead = None;
        let products = match kv {
            Some(kv) => {
                let q = self.matmul(states, &w.q, Part::All);
                let [k, v] = kv.map(|t| probe.rows.map_or(t, |rows| g.get_rows(t, rows)));
                // The probe's queries serve the batch only if no bias was added to them: the batch's product is made without one.
                ahead = probe.rows.filter(|_| w.q.bias.is_none()).map(|rows| Ahead { product: q, rows });
                [q, k, v]
            }
            None => self.matmul_stacked(states, [&w.q, own[0], own[1]].map(|linear| (linear, Part::All))),
        };
        // A window is ignored here: the rows are few of many, and stand for more than themselves.
        let mask = self.inputs.get(Input::ProbeMask(probe.shape.n_each));
        let qkv = self.qkv(products, w, probe.pos, probe.rows);
        let kqv = self.attend_among(qkv, mask, probe.shape.n_seq, None, w);
        let kqv = self.probes_text(probe).map_or(kqv, |text| g.mul(kqv, text));
        Kept { ahead, ..self.end_probe(pruning, probe, kqv, w.n_embd_head, notes) }
    }

    /// Queries, keys and values by head, of products `[n_embd_head * heads, n_tokens]` whose rows are contiguous: each head's queries and
    /// keys normalised, if the model does so, and positions embedded. They are of all rows of the batch, or of these numbers.
    fn qkv(&mut self, products: [Tensor<'g>; 3], w: &Attention, pos: Tensor<'g>, rows: Option<Tensor<'g>>) -> Qkv<'g> {
        let [q, k, v] = products;
        let k = self.embedded(self.by_head(k, w), &w.k_norm, w, pos);
        Qkv { q: self.queries(q, w, pos, rows), k, v: self.values(v, w) }
    }

    /// A product by head: `[n_embd_head, n_head, n_tokens]`.
    fn by_head(&self, product: Tensor<'g>, w: &Attention) -> Tensor<'g> {
        let [n, n_tokens, ..] = product.ne();
        let (head, token) = (w.n_embd_head * 4, product.nb()[1]);
        let ne = [w.n_embd_head, n / w.n_embd_head, n_tokens, 1];
        self.g.view(product, ne, [head, token, token * n_tokens], 0)
    }

    /// Values by head, of their product: normalised, if the model does so.
    fn values(&self, product: Tensor<'g>, w: &Attention) -> Tensor<'g> {
        let v = self.by_head(product, w);
        w.v_eps.map_or(v, |eps| self.g.rms_norm(v, eps))
    }

    /// Queries or keys by head, each normalised, if the model does so, and with their positions embedded.
    fn embedded(&self, t: Tensor<'g>, norm: &Option<Norm>, w: &Attention, pos: Tensor<'g>) -> Tensor<'g> {
        let t = norm.as_ref().map_or(t, |norm| self.norm(t, norm));
        let Some(Rotary { rope, factors }) = &w.rotary else { return t };
        let g = self.g;
        let factors = factors.of_context(self.task.cache.params().n_cells).map(|f| self.vector(f));
        let ([d, n_head, n, _], [_, head, token, _], n_rot) = (t.ne(), t.nb(), rope.n_dims as usize);
        if factors.is_none() || n_rot == d {
            return g.rope(t, pos, factors, rope);
        }
        // ggml reads a factor for each pair of a head, rotated or not: what is not rotated comes from beside it.
        let part = |from: usize, to: usize| g.view(t, [to - from, n_head, n, 1], [head, token, token * n], 4 * from);
        g.concat(g.rope(part(0, n_rot), pos, factors, rope), part(n_rot, d), 0)
    }

    /// Queries by head, of their product: normalised, with positions embedded, and with the temperature of these. They are of all rows of the
    /// batch, or of these numbers.
    fn queries(&mut self, product: Tensor<'g>, w: &Attention, pos: Tensor<'g>, rows: Option<Tensor<'g>>) -> Tensor<'g> {
        let q = self.embedded(self.by_head(product, w), &w.q_norm, w, pos);
        let q = self.scaled(q, w.q_scale);
        let Some(temperature) = w.temperature else { return q };
        let all = self.inputs.get(Input::Temperatures(temperature));
        let factors = rows.map_or(all, |rows| self.g.get_rows(all, rows));
        self.g.mul(q, self.g.reshape(factors, [1, 1, factors.ne()[1], 1]))
    }

    /// The cache takes in the batch's keys and values.
    fn write_cache(&mut self, mut k: Tensor<'g>, mut v: Tensor<'g>, il: usize) {
        let (g, cache) = (self.g, self.task.cache);
        let [rot_k, rot_v] = cache.rotation_matrices(g, il);
        if let Some(rot) = rot_k {
            k = g.mul_mat_hadamard(k, rot);
        }
        if let Some(rot) = rot_v {
            v = g.mul_mat_hadamard(v, rot);
        }
        let k_cells = self.inputs.get(Input::KeyCells);
        let v_cells = self.inputs.get(Input::ValueCells(cache.value_rows(il)));
        cache.write(g, il, k, v, k_cells, v_cells);
    }

    /// Attention of queries over the cache, which has the batch's keys and values; of kept heads, if these are given.
    fn attend_cache(
        &mut self,
        mut q: Tensor<'g>,
        kept: Option<&Kept<'_, 'g>>,
        w: &Attention,
        il: usize,
        rows: Rows,
    ) -> Tensor<'g> {
        let g = self.g;
        let [rot_k, rot_v] = self.task.cache.rotation_matrices(g, il);
        if let Some(rot) = rot_k {
            q = g.mul_mat_hadamard(q, rot);
        }
        let out = match self.attends(&w.q.weight) {
            true => self.attend_by_own(q, kept, w, il, rows),
            false => self.attend_by_ggml(q, kept, w, il),
        };
        match rot_v {
            Some(rot) => g.mul_mat_hadamard(out, rot),
            None => out,
        }
    }

    /// Attention of queries over the cache by our own kernels: `[n_embd_head * heads, n_tokens]`.
    fn attend_by_own(
        &mut self,
        q: Tensor<'g>,
        kept: Option<&Kept<'_, 'g>>,
        w: &Attention,
        il: usize,
        rows: Rows,
    ) -> Tensor<'g> {
        let (g, cache, n_kv) = (self.g, self.task.cache, self.task.layout.n_kv);
        let seqs = 0..cache.params().n_seq;
        let (k, v) = (cache.k(g, il, n_kv, seqs.clone()), cache.v(g, il, n_kv, seqs));
        let mut sources = vec![q, k, v, self.inputs.get(Input::Sights(rows, w.window))];
        sources.extend(w.sinks.as_ref().map(|sinks| self.vector(sinks)));
        sources.extend(kept.map(|kept| kept.ids));
        let scores = Scores { scale: w.scale, softcap: w.softcap };
        let out = attend(g, &sources, scores, w.n_rep(), w.sinks.is_some());
        self.name(out, "kqv_out", il)
    }

    /// Attention of queries over the cache by ggml's kernels: `[n_embd_head * heads, n_tokens]`.
    fn attend_by_ggml(&mut self, q: Tensor<'g>, kept: Option<&Kept<'_, 'g>>, w: &Attention, il: usize) -> Tensor<'g> {
        let g = self.g;
        let layout = self.task.layout;
        match &layout.pieces {
            &Pieces::Equal { n_seq, n_each } => {
                let mask = self.inputs.get(Input::Mask(w.window));
                self.attend_piece(q, kept, w, il, 0..n_seq, n_each, mask)
            }
            Pieces::Any(pieces) => {
                let [d, n_head, ..] = q.ne();
                let nb = q.nb();
                let mut first = 0;
                let mut of_piece = |(i, &(seq, n)): (usize, &(usize, usize))| {
                    let q = g.view(q, [d, n_head, n, 1], [nb[1], nb[2], nb[2] * n], nb[2] * first);
                    first += n;
                    let mask = self.inputs.get(Input::PieceMask(i, w.window));
                    self.attend_piece(q, kept, w, il, seq..seq + 1, n, mask)
                };
                let outs: Vec<Tensor<'g>> = pieces.iter().enumerate().map(&mut of_piece).collect();
                outs.into_iter().reduce(|a, b| g.concat(a, b, 1)).expect("a batch has rows")
            }
        }
    }

    /// Attention of the queries of some sequences, `n_each` of each, side by side.
    #[allow(clippy::too_many_arguments, reason = "all of one block")]
    fn attend_piece(
        &self,
        mut q: Tensor<'g>,
        kept: Option<&Kept<'_, 'g>>,
        w: &Attention,
        il: usize,
        seqs: std::ops::Range<usize>,
        n_each: usize,
        mask: Tensor<'g>,
    ) -> Tensor<'g> {
        let (g, cache, n_kv) = (self.g, self.task.cache, self.task.layout.n_kv);
        let (mut k, mut v) = (cache.k(g, il, n_kv, seqs.clone()), cache.v(g, il, n_kv, seqs));
        // A kept head has its keys and values copied together, unless the tokens are so few that attention of all heads is
        // less work than the copies, or a GPU attends, which makes little of both.
        let n_head = w.n_head;
        let is_stock = self.is_stock(il);
        let spread = kept.filter(|kept| is_stock || n_each * (n_head - kept.n) <= 2 * kept.n);
        if let Some(kept) = spread {
            let [d, _, n, _] = q.ne();
            q = match is_stock {
                true => prune::stock_spread(g, q, kept.ids, n_head),
                false => g.custom(Type::F32, [d, n_head, n, 1], &[q, kept.ids], SpreadHeads { n_head }),
            };
        } else if let Some(kept) = kept {
            [k, v] = [k, v].map(|t| {
                let [n, _, m, n_seq] = t.ne();
                g.custom(t.ty(), [n, kept.n, m, n_seq], &[t, kept.ids], GatherHeads { n_rep: w.n_rep() })
            });
        }
        let params = cache.params();
        if params.flash_attn && !params.exact {
            [k, v] = [k, v].map(|t| if t.ty() == Type::F32 { g.cast(t, Type::F16) } else { t });
        }
        if is_stock && !params.flash_attn && k.ty().is_quantized() {
            // ggml's Vulkan backend takes the quantised matrices of several heads as lying one right after the other. In a cache there is room
            // between them, for the cells that are not used yet.
            k = g.cast(k, Type::F32);
        }
        let out = self.softmax_attention(q, k, v, mask, kept.filter(|_| spread.is_none()), w);
        g.expand(out);
        self.name(out, "kqv_out", il);
        let Some(kept) = spread else { return out };
        let (d, n) = (w.n_embd_head, out.ne()[1]);
        let heads = g.reshape(out, [d, n_head, n, 1]);
        let heads = match is_stock {
            true => prune::stock_heads(g, heads, kept.ids),
            false => g.custom(Type::F32, [d, kept.n, n, 1], &[heads, kept.ids], GatherHeads { n_rep: 1 }),
        };
        g.reshape(heads, [d * kept.n, n, 1, 1])
    }

    /// Attention of the batch's rows among themselves, without the cache: of whole texts.
    fn attend_batch(&mut self, qkv: Qkv<'g>, kept: Option<&Kept<'_, 'g>>, w: &Attention) -> Tensor<'g> {
        let g = self.g;
        let (n_seq, n) = self.task.layout.samples();
        let mask = self.inputs.get(Input::Mask(w.window));
        let nb = mask.nb();
        let mask = g.view(mask, [n, n, 1, n_seq], [nb[1], nb[2], nb[3]], 0);
        self.attend_among(qkv, g.cont(mask, [n, n, 1, n_seq]), n_seq, kept, w)
    }

    /// Attention of the rows of `n_seq` sequences among themselves, in floats: `[n_embd_head * heads, n_tokens]`. The heads are the kept ones,
    /// if these are given.
    fn attend_among(
        &self,
        qkv: Qkv<'g>,
        mask: Tensor<'g>,
        n_seq: usize,
        kept: Option<&Kept<'_, 'g>>,
        w: &Attention,
    ) -> Tensor<'g> {
        let g = self.g;
        let by_seq = |t: Tensor<'g>| {
            let ([d, n_head, n_tokens, _], nb) = (t.ne(), t.nb());
            let n_each = n_tokens / n_seq;
            g.view(t, [d, n_head, n_each, n_seq], [nb[1], nb[2], nb[2] * n_each], 0)
        };
        let (k, mut v) = (by_seq(qkv.k), by_seq(qkv.v));
        if !self.task.cache.params().flash_attn {
            let [d, n_head, n_each, _] = v.ne();
            v = g.cont(g.permute(v, [2, 1, 0, 3]), [n_each, n_head, d, n_seq]);
        }
        self.softmax_attention(qkv.q, k, v, mask, kept, w)
    }

    /// Scaled dot-product attention: `softmax(q k^T * scale + mask) v`, as `[n_embd_head * n_head, n_tokens]`; with a softcap on scores, if
    /// the model has one.
    ///
    /// `q` is `[n_embd_head, n_head, n_tokens]` over all sequences; `k` is `[n_embd_head, n_head_kv, n_kv, n_seq]`; `v` is the
    /// same (with flash attention) or `[n_kv, n_head_kv, n_embd_head, n_seq]` (without); `mask` is
    /// `[n_kv, n_tokens / n_seq, 1, n_seq]`, F16 with flash attention and F32 without. The heads are all of the model's, or the kept ones.
    fn softmax_attention(
        &self,
        q: Tensor<'g>,
        k: Tensor<'g>,
        v: Tensor<'g>,
        mask: Tensor<'g>,
        kept: Option<&Kept<'_, 'g>>,
        w: &Attention,
    ) -> Tensor<'g> {
        let g = self.g;
        let n_seq = k.ne()[3];
        let [n_embd_head, n_head, n_tokens, _] = q.ne();
        let nb = q.nb();
        let n_each = n_tokens / n_seq;
        let q = g.view(q, [n_embd_head, n_head, n_each, n_seq], [nb[1], nb[2], nb[2] * n_each], 0);
        let [q, k, v] = [q, k, v].map(|t| g.permute(t, [0, 2, 1, 3]));
        let add_sinks = |t: Tensor<'g>| {
            let Some(sinks) = &w.sinks else { return };
            let all = self.vector(sinks);
            let of_kept = |kept: &Kept<'_, 'g>| g.get_rows(g.reshape(all, [1, w.n_head, 1, 1]), kept.ids);
            g.add_sinks(t, kept.map_or(all, |kept| g.reshape(of_kept(kept), [n_head, 1, 1, 1])));
        };
        if self.task.cache.params().flash_attn {
            let is_plain = [Type::F16, Type::F32].contains(&k.ty());
            if n_tokens == 1 && k.ne()[1] >= DIVIDED_CELLS && is_plain {
                self.divides_by_threads.set(true);
            }
            let out = g.flash_attn(q, k, v, mask, w.scale, w.softcap.unwrap_or(0.0));
            add_sinks(out);
            return g.reshape(out, [n_embd_head * n_head, n_tokens, 1, 1]);
        }
        let kq = g.mul_mat(k, q);
        g.accumulate_in_f32(kq);
        let kq = match w.softcap {
            None => g.soft_max(kq, Some(mask), w.scale),
            Some(cap) => g.soft_max(g.tanh(g.scale(kq, w.scale / cap)), Some(mask), cap),
        };
        add_sinks(kq);
        let kqv = g.mul_mat(v, kq);
        g.cont(g.permute(kqv, [0, 2, 1, 3]), [n_embd_head * n_head, n_tokens, 1, 1])
    }
}
