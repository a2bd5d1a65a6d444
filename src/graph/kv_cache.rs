//! The KV cache: keys and values of the tokens so far. For each head the cells of a sequence lie one after the other, as attention of a
//! token reads a head's cells from first to last, and a processor is fast where it can foresee what is read next.
//!
//! Number of a cell = position of its token: a sequence occupies its cells from 0 on, and to forget tokens is to count fewer.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;

use ggml::{AllocError, BufferType, Builder, Device, Place, Specs, Store, Tensor, TensorId, TensorSpec, Type};

use super::cache_type::CacheType;
use crate::weights::{Dims, LayerDims};

/// Cells that a graph looks at are counted in steps, so that a graph serves many tokens (as in llama.cpp).
pub const KV_STEP: usize = 256;

/// Type, size and layout of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheParams {
    /// Cells of a sequence.
    pub n_cells: usize,
    /// Number of sequences.
    pub n_seq: usize,
    /// Element type of keys.
    pub type_k: CacheType,
    /// Element type of values.
    pub type_v: CacheType,
    /// Values lie as flash attention reads them; without it they are transposed.
    pub flash_attn: bool,
    /// Flash attention reads 32-bit floats as they are. Else ggml's reads them in 16 bits, as in llama.cpp.
    pub exact: bool,
}

/// Keys and values of all layers.
#[derive(Debug)]
pub struct KvCache {
    params: CacheParams,
    store: Rc<Store>,
    layers: Vec<LayerCache>,
    /// By their rows: matrices F32 `[n, n]` that spread outliers before keys or values are quantised
    rotations: BTreeMap<usize, TensorId>,
    /// Cells of each sequence that are known to hold numbers.
    n_clean: usize,
}

/// Keys and values of a layer.
#[derive(Debug, Clone, Copy)]
struct LayerCache {
    k: TensorId,
    v: TensorId,
    n_embd_head: usize,
    n_head_kv: usize,
    /// They are those of a layer before
    is_shared: bool,
    /// Rows of the matrices that rotate them; 0 for none
    rotations: [usize; 2],
}

impl CacheParams {
    /// Bytes of the cache of each layer of a model.
    pub fn bytes(&self, dims: &Dims) -> Vec<u64> {
        let row = |ty: CacheType, n: usize| ty.tensor_type().row_bytes(n).unwrap_or(0) as u64;
        let of_layer = |l: &LayerDims| match l.shares_kv_of {
            Some(_) => 0,
            None => {
                let cell = row(self.type_k, l.n_embd_gqa()) + row(self.type_v, l.n_embd_gqa());
                // What does not fit in 64 bits is refused as too large like anything else that does not fit in memory.
                cell.saturating_mul(self.n_cells as u64).saturating_mul(self.n_seq as u64)
            }
        };
        dims.layers.iter().map(of_layer).collect()
    }

    /// Why a model cannot have this cache, if so.
    pub fn refusal(&self, dims: &Dims) -> Option<String> {
        if self.type_v.is_quantized() && !self.flash_attn {
            let name = self.type_v.name();
            return Some(format!("a quantised cache of values (-ctv {name}) needs flash attention (-fa on)"));
        }
        let quantised = [self.type_k, self.type_v].into_iter().find(|ty| ty.is_quantized())?.name();
        let head = dims.layers.iter().map(|l| l.n_embd_head).find(|n| !n.is_multiple_of(32))?;
        Some(format!("a {quantised} cache needs heads of a multiple of 32 in width; this model's have {head}: use f16"))
    }
}

impl KvCache {
    /// An empty cache; `buffer_types` names the memory of each layer.
    pub fn new(dims: &Dims, params: CacheParams, buffer_types: &[BufferType]) -> Result<KvCache, AllocError> {
        let cache = KvCache::made_by(dims, params, buffer_types, |specs| Store::new(specs, Vec::new()))?;
        for (&n, &matrix) in &cache.rotations {
            let bytes: Vec<u8> = hadamard(n).into_iter().flat_map(f32::to_le_bytes).collect();
            cache.store.write(matrix, 0, &bytes);
        }
        Ok(cache)
    }

    /// The same without memory: graphs with it can only be measured.
    pub fn sketch(dims: &Dims, params: CacheParams, buffer_types: &[BufferType]) -> KvCache {
        let made = KvCache::made_by(dims, params, buffer_types, |specs| Ok::<_, Infallible>(Store::sketch(specs)));
        made.unwrap_or_else(|never| match never {})
    }

    fn made_by<E>(
        dims: &Dims,
        params: CacheParams,
        buffer_types: &[BufferType],
        store: impl FnOnce(Specs) -> Result<Store, E>,
    ) -> Result<KvCache, E> {
        let mut specs = Specs::new();
        let mut layers: Vec<LayerCache> = Vec::new();
        for (il, (layer, memory)) in dims.layers.iter().zip(buffer_types).enumerate() {
            if let Some(of) = layer.shares_kv_of {
                layers.push(LayerCache { is_shared: true, ..layers[of] });
                continue;
            }
            let &LayerDims { n_embd_head, n_head_kv, .. } = layer;
            let ne = [n_embd_head, params.n_cells * params.n_seq, n_head_kv, 1].map(|n| n as u64);
            let mut cells = |name: &str, ty: CacheType| {
                let name = format!("cache_{name}_l{il}");
                specs.push(TensorSpec { name, ty: ty.tensor_type(), ne, place: Place::Buffer(*memory) })
            };
            let (k, v) = (cells("k", params.type_k), cells("v", params.type_v));
            let width = |ty, largest| rotation_width(ty, n_embd_head, largest).unwrap_or(0);
            let rotations = [width(params.type_k, true), width(params.type_v, false)];
            layers.push(LayerCache { k, v, n_embd_head, n_head_kv, is_shared: false, rotations });
        }
        let widths: BTreeSet<usize> = layers.iter().flat_map(|l| l.rotations).filter(|&n| n > 0).collect();
        let mut matrix = |n: usize| {
            let place = Place::Buffer(Device::cpu().buffer_type());
            let ne = [n as u64, n as u64, 1, 1];
            (n, specs.push(TensorSpec { name: format!("attn_inp_rot_{n}"), ty: Type::F32, ne, place }))
        };
        let rotations: BTreeMap<usize, TensorId> = widths.into_iter().map(&mut matrix).collect();
        Ok(KvCache { params, store: Rc::new(store(specs)?), layers, rotations, n_clean: 0 })
    }

    /// Size and layout.
    pub fn params(&self) -> CacheParams {
        self.params
    }

    /// Widths of the rotations of keys and of values, the largest of any layer; 0 for none.
    pub fn rotations(&self) -> [usize; 2] {
        [0, 1].map(|i| self.layers.iter().map(|l| l.rotations[i]).max().unwrap_or(0))
    }

    /// The matrices that rotate keys and values of layer `il`, F32.
    pub fn rotation_matrices<'g>(&self, g: &Builder<'g>, il: usize) -> [Option<Tensor<'g>>; 2] {
        self.layers[il].rotations.map(|n| self.rotations.get(&n).map(|&matrix| g.leaf(&self.store, matrix)))
    }

    /// Whether another layer reads the keys and values of layer `il`.
    pub fn is_read_by_others(&self, il: usize) -> bool {
        self.layers.iter().any(|l| l.is_shared && l.k == self.layers[il].k)
    }

    /// The last layer that has keys and values of its own.
    pub fn last_own(&self) -> usize {
        self.layers.iter().rposition(|l| !l.is_shared).expect("the first layer has its own")
    }

    /// Bytes of a token's keys and of its values in each layer that has its own.
    pub fn cell_bytes(&self) -> Vec<[usize; 2]> {
        let cells = self.params.n_cells * self.params.n_seq;
        self.own().map(|l| [l.k, l.v].map(|id| self.store.n_bytes(id) / cells)).collect()
    }

    /// The layers that have keys and values of their own.
    fn own(&self) -> impl Iterator<Item = &LayerCache> {
        self.layers.iter().filter(|l| !l.is_shared)
    }

    /// Makes the first `n_kv` cells readable. A cell that holds nothing yet is masked, but 0 times an old NaN is NaN; so
    /// cells are zeroed before they are first looked at, and memory that a short text never needs is never touched.
    pub fn prepare(&mut self, n_kv: usize) {
        let clean = self.n_clean;
        if n_kv <= clean {
            return;
        }
        let CacheParams { n_cells, n_seq, flash_attn, .. } = self.params;
        for layer in self.own() {
            for (id, by_cell) in [(layer.k, true), (layer.v, flash_attn)] {
                let n_bytes = self.store.n_bytes(id);
                if !by_cell {
                    // Transposed values of a cell are all over the tensor.
                    if clean == 0 {
                        self.store.zero(id, 0, n_bytes);
                    }
                    continue;
                }
                let n_rows = n_seq * layer.n_head_kv;
                let cell = n_bytes / (n_cells * n_rows);
                for i in 0..n_rows {
                    self.store.zero(id, (i * n_cells + clean) * cell, (n_kv - clean) * cell);
                }
            }
        }
        self.n_clean = n_kv;
    }

    /// Makes the first `n` cells of sequence `to` those of the first sequence.
    pub fn copy(&mut self, to: usize, n: usize) {
        assert!(n <= self.params.n_cells && to < self.params.n_seq, "cells of the cache");
        let mut bytes = Vec::new();
        for ((id, from, length), (_, to, _)) in self.spans(0, n).zip(self.spans(to, n)) {
            bytes.resize(length, 0);
            self.store.read(id, from, &mut bytes);
            self.store.write(id, to, &bytes);
        }
    }

    /// Bytes of the first `n` cells of the first sequence.
    pub fn n_bytes(&self, n: usize) -> usize {
        self.spans(0, n).map(|(_, _, length)| length).sum()
    }

    /// Writes the first `n` cells of the first sequence to `out`, in an order that does not depend on the cache's size: layer by layer
    /// the keys, then the values; of each the cells of head after head, or of channel after channel where values are transposed.
    pub fn save(&self, n: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (id, offset, length) in self.spans(0, n) {
            bytes.resize(length, 0);
            self.store.read(id, offset, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Makes the first `n` cells of the first sequence those of the `n_saved` that [`KvCache::save`] wrote.
    ///
    /// # Panics
    /// If `bytes` are not as many as `n_saved` cells have, or if there are fewer than `n` cells here or there.
    pub fn restore(&mut self, n: usize, n_saved: usize, bytes: &[u8]) {
        assert!(n <= self.params.n_cells && n <= n_saved, "cells of the cache, and of the bytes");
        // What lies beside them must hold numbers too, and is zeroed only once.
        self.prepare(n);
        let mut rest = bytes;
        for ((id, offset, length), (_, _, saved)) in self.spans(0, n).zip(self.spans(0, n_saved)) {
            let (span, after) = rest.split_at(saved);
            self.store.write(id, offset, &span[..length]);
            rest = after;
        }
        assert!(rest.is_empty(), "as many bytes as the cells have");
    }

    /// Where the first `n` cells of a sequence lie: tensor, offset, bytes.
    fn spans(&self, seq: usize, n: usize) -> impl Iterator<Item = (TensorId, usize, usize)> {
        let CacheParams { n_cells, n_seq, flash_attn, .. } = self.params;
        let span = move |layer: &LayerCache, id: TensorId, by_cell: bool| {
            let &LayerCache { n_head_kv, n_embd_head, .. } = layer;
            // A row holds a head of all sequences, or a channel of one.
            let cell = self.store.n_bytes(id) / (n_head_kv * n_cells * n_seq);
            let (n_rows, cells, first, cell) = match by_cell {
                true => (n_head_kv, n_cells * n_seq, seq * n_cells, cell),
                false => {
                    (n_head_kv * n_embd_head, n_cells, seq * n_cells * n_head_kv * n_embd_head, cell / n_embd_head)
                }
            };
            (0..n_rows).map(move |row| (id, (first + row * cells) * cell, n * cell))
        };
        self.own().flat_map(move |l| span(l, l.k, true).chain(span(l, l.v, flash_attn)))
    }

    /// Writes keys and values `[n_embd_head, n_head_kv, n_tokens]` of layer `il` into the cells `k_ids` and `v_ids`
    /// (see [`KvCache::value_ids`]).
    pub fn write<'g>(
        &self,
        g: &Builder<'g>,
        il: usize,
        k: Tensor<'g>,
        v: Tensor<'g>,
        k_ids: Tensor<'g>,
        v_ids: Tensor<'g>,
    ) {
        let layer = &self.layers[il];
        let cells = |id: TensorId| g.leaf(&self.store, id);
        let by_head = |t: Tensor<'g>| g.permute(t, [0, 2, 1, 3]);
        g.expand(g.set_rows(cells(layer.k), by_head(k), k_ids));
        if self.params.flash_attn {
            g.expand(g.set_rows(cells(layer.v), by_head(v), v_ids));
        } else {
            let (n_embd, n_tokens) = (layer.n_embd_head * layer.n_head_kv, k.ne()[2]);
            let cells = self.params.n_cells * self.params.n_seq;
            let elements = g.reshape(g.leaf(&self.store, layer.v), [1, n_embd * cells, 1, 1]);
            // Values that were computed together with queries and keys lie among these.
            let apart = v.nb()[2] == v.ty().row_bytes(n_embd).expect("plain types have no blocks");
            let ne = [1, n_embd * n_tokens, 1, 1];
            g.expand(g.set_rows(elements, if apart { g.reshape(v, ne) } else { g.cont(v, ne) }, v_ids));
        }
    }

    /// Rows that the values of a token are written to in layer `il`: its cell, or one for each element if the values are transposed.
    pub fn value_rows(&self, il: usize) -> usize {
        let layer = &self.layers[il];
        if self.params.flash_attn { 1 } else { layer.n_embd_head * layer.n_head_kv }
    }

    /// Numbers of the rows that the values of tokens at `cells` are written to, [`KvCache::value_rows`] of each. A cell counts through all
    /// sequences: `seq * n_cells + position`.
    pub fn value_ids(&self, cells: &[i64], n_rows: usize) -> Vec<i64> {
        let (n_rows, n_cells) = (n_rows as i64, self.params.n_cells as i64);
        let of_cell = |cell: &i64| {
            let (seq, pos) = (cell / n_cells, cell % n_cells);
            (0..n_rows).map(move |i| seq * n_cells * n_rows + i * n_cells + pos)
        };
        cells.iter().flat_map(of_cell).collect()
    }

    /// Keys of the first `n_kv` cells of some sequences: `[n_embd_head, n_head_kv, n_kv, n_seq]`.
    pub fn k<'g>(&self, g: &Builder<'g>, il: usize, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        self.by_cell(g, g.leaf(&self.store, self.layers[il].k), n_kv, seqs)
    }

    /// Values of the same cells: as the keys, or `[n_kv, n_head_kv, n_embd_head, n_seq]` if transposed.
    pub fn v<'g>(&self, g: &Builder<'g>, il: usize, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        let &LayerCache { v, n_embd_head, n_head_kv, .. } = &self.layers[il];
        let v = g.leaf(&self.store, v);
        if self.params.flash_attn {
            return self.by_cell(g, v, n_kv, seqs);
        }
        let column = v.ty().row_bytes(self.params.n_cells).expect("plain types have no blocks");
        let seq = column * n_embd_head * n_head_kv;
        let nb = [column * n_embd_head, column, seq];
        g.view(v, [n_kv, n_head_kv, n_embd_head, seqs.len()], nb, seqs.start * seq)
    }

    fn by_cell<'g>(&self, g: &Builder<'g>, t: Tensor<'g>, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        let ([n_embd_head, _, n_head_kv, _], [_, cell, head, _]) = (t.ne(), t.nb());
        let seq = cell * self.params.n_cells;
        let ne = [n_embd_head, n_head_kv, n_kv, seqs.len()];
        g.view(t, ne, [head, cell, seq], seqs.start * seq)
    }
}

/// Width of the Hadamard rotation of quantised keys and values: as llama.cpp, the largest power of two that divides a
/// head for keys, 64 for values, and none for heads that are not a multiple of 64.
fn rotation_width(ty: CacheType, n_embd_head: usize, largest: bool) -> Option<usize> {
    if !ty.is_quantized() || !n_embd_head.is_multiple_of(64) {
        return None;
    }
    Some(if largest { 1 << n_embd_head.trailing_zeros() } else { 64 })
}

/// The orthonormal, symmetric Hadamard matrix of `n` (a power of two) by Sylvester's construction, row by row.
fn hadamard(n: usize) -> Vec<f32> {
    let scale = 1.0 / (n as f32).sqrt();
    (0..n * n).map(|i| if ((i / n) & (i % n)).count_ones().is_multiple_of(2) { scale } else { -scale }).collect()
}
