//! The KV cache: keys and values of the tokens so far. For each head the cells of a sequence lie one after the other, as attention of a
//! token reads a head's cells from first to last, and a processor is fast where it can foresee what is read next.
//!
//! Number of a cell = position of its token: a sequence occupies its cells from 0 on, and to forget tokens is to count fewer.

use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;

use ggml::{AllocError, BufferType, Builder, Device, Place, Specs, Store, Tensor, TensorId, TensorSpec, Type};

use super::cache_type::CacheType;
use crate::weights::Dims;

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
    k: Vec<TensorId>,
    v: Vec<TensorId>,
    rot_k: Option<Rotation>,
    rot_v: Option<Rotation>,
    n_embd_head: usize,
    n_head_kv: usize,
    /// Cells of each sequence that are known to hold numbers.
    n_clean: usize,
}

/// A rotation that spreads outliers before keys or values are quantised.
#[derive(Debug, Clone, Copy)]
struct Rotation {
    /// Rows of its matrix
    n: usize,
    /// F32 `[n, n]`: a Hadamard matrix
    matrix: TensorId,
}

impl CacheParams {
    /// Bytes of the cache of a model.
    pub fn bytes(&self, dims: &Dims) -> u64 {
        let row = |ty: CacheType| ty.tensor_type().row_bytes(dims.n_embd_gqa()).unwrap_or(0) as u64;
        // What does not fit in 64 bits is refused as too large like anything else that does not fit in memory.
        [self.n_cells, self.n_seq, dims.n_layer]
            .iter()
            .fold(row(self.type_k) + row(self.type_v), |bytes, &n| bytes.saturating_mul(n as u64))
    }

    /// Why a model cannot have this cache, if so.
    pub fn refusal(&self, dims: &Dims) -> Option<String> {
        if self.type_v == CacheType::Q8_0 && !self.flash_attn {
            return Some("a quantised cache of values (-ctv q8_0) needs flash attention (-fa on)".into());
        }
        let head = dims.n_embd_head;
        if (self.type_k == CacheType::Q8_0 || self.type_v == CacheType::Q8_0) && !head.is_multiple_of(32) {
            return Some(format!(
                "a q8_0 cache needs heads of a multiple of 32 in width; this model's have {head}: use f16"
            ));
        }
        None
    }
}

impl KvCache {
    /// An empty cache; `buffer_types` names the memory of each layer.
    pub fn new(dims: &Dims, params: CacheParams, buffer_types: &[BufferType]) -> Result<KvCache, AllocError> {
        let cells = params.n_cells * params.n_seq;
        let ne = [dims.n_embd_head as u64, cells as u64, dims.n_head_kv as u64, 1];
        let mut specs = Specs::new();
        let mut cells = |name: &str, ty: CacheType| -> Vec<TensorId> {
            let spec = |(il, memory): (usize, &BufferType)| {
                let name = format!("cache_{name}_l{il}");
                specs.push(TensorSpec { name, ty: ty.tensor_type(), ne, place: Place::Buffer(*memory) })
            };
            buffer_types.iter().enumerate().map(spec).collect()
        };
        let (k, v) = (cells("k", params.type_k), cells("v", params.type_v));
        let mut rotation = |name: &str, n: Option<usize>| {
            let n = n?;
            let place = Place::Buffer(Device::cpu().buffer_type());
            let spec = TensorSpec { name: name.into(), ty: Type::F32, ne: [n as u64, n as u64, 1, 1], place };
            Some(Rotation { n, matrix: specs.push(spec) })
        };
        let rot_k = rotation("attn_inp_k_rot", rotation_width(params.type_k, dims.n_embd_head, true));
        let rot_v = rotation("attn_inp_v_rot", rotation_width(params.type_v, dims.n_embd_head, false));
        let store = Store::new(specs, Vec::new())?;
        for Rotation { n, matrix } in [rot_k, rot_v].into_iter().flatten() {
            let bytes: Vec<u8> = hadamard(n).into_iter().flat_map(f32::to_le_bytes).collect();
            store.write(matrix, 0, &bytes);
        }
        let (store, n_clean) = (Rc::new(store), 0);
        let (n_embd_head, n_head_kv) = (dims.n_embd_head, dims.n_head_kv);
        Ok(KvCache { params, store, k, v, rot_k, rot_v, n_embd_head, n_head_kv, n_clean })
    }

    /// Size and layout.
    pub fn params(&self) -> CacheParams {
        self.params
    }

    /// Widths of the rotations of keys and of values; 0 for none.
    pub fn rotations(&self) -> [usize; 2] {
        [self.rot_k, self.rot_v].map(|r| r.map_or(0, |r| r.n))
    }

    /// The matrices of the rotations, F32.
    pub fn rotation_matrices<'g>(&self, g: &Builder<'g>) -> [Option<Tensor<'g>>; 2] {
        [self.rot_k, self.rot_v].map(|r| r.map(|r| g.leaf(&self.store, r.matrix)))
    }

    /// Makes the first `n_kv` cells readable. A cell that holds nothing yet is masked, but 0 times an old NaN is NaN; so
    /// cells are zeroed before they are first looked at, and memory that a short text never needs is never touched.
    pub fn prepare(&mut self, n_kv: usize) {
        let clean = self.n_clean;
        if n_kv <= clean {
            return;
        }
        let CacheParams { n_cells, n_seq, flash_attn, .. } = self.params;
        for (ids, by_cell) in [(&self.k, true), (&self.v, flash_attn)] {
            for &id in ids {
                let n_bytes = self.store.n_bytes(id);
                if !by_cell {
                    // Transposed values of a cell are all over the tensor.
                    if clean == 0 {
                        self.store.zero(id, 0, n_bytes);
                    }
                    continue;
                }
                let n_rows = n_seq * self.n_head_kv;
                let cell = n_bytes / (n_cells * n_rows);
                for i in 0..n_rows {
                    self.store.zero(id, (i * n_cells + clean) * cell, (n_kv - clean) * cell);
                }
            }
        }
        self.n_clean = n_kv;
    }

    /// Bytes of the first `n` cells of the first sequence.
    pub fn n_bytes(&self, n: usize) -> usize {
        self.spans(n).map(|(_, _, length)| length).sum()
    }

    /// Writes the first `n` cells of the first sequence to `out`, in an order that does not depend on the cache's size: layer by layer
    /// the keys, then the values; of each the cells of head after head, or of channel after channel where values are transposed.
    pub fn save(&self, n: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (id, offset, length) in self.spans(n) {
            bytes.resize(length, 0);
            self.store.read(id, offset, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Makes the first `n` cells of the first sequence what [`KvCache::save`] wrote.
    ///
    /// # Panics
    /// If `bytes` are not as many as `n` cells have, or if there are fewer cells.
    pub fn restore(&mut self, n: usize, bytes: &[u8]) {
        assert!(n <= self.params.n_cells, "cells of the cache");
        // What lies beside them must hold numbers too, and is zeroed only once.
        self.prepare(n);
        let mut rest = bytes;
        for (id, offset, length) in self.spans(n) {
            let (span, after) = rest.split_at(length);
            self.store.write(id, offset, span);
            rest = after;
        }
        assert!(rest.is_empty(), "as many bytes as the cells have");
    }

    /// Where the first `n` cells of the first sequence lie: tensor, offset, bytes.
    fn spans(&self, n: usize) -> impl Iterator<Item = (TensorId, usize, usize)> {
        let CacheParams { n_cells, n_seq, flash_attn, .. } = self.params;
        let span = move |id: TensorId, by_cell: bool| {
            // A row holds a head of all sequences, or a channel of one.
            let (n_rows, cells) =
                if by_cell { (self.n_head_kv, n_cells * n_seq) } else { (self.n_head_kv * self.n_embd_head, n_cells) };
            let cell = self.store.n_bytes(id) / (self.n_head_kv * n_cells * n_seq);
            let cell = if by_cell { cell } else { cell / self.n_embd_head };
            (0..n_rows).map(move |row| (id, row * cells * cell, n * cell))
        };
        self.k.iter().zip(&self.v).flat_map(move |(&k, &v)| span(k, true).chain(span(v, flash_attn)))
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
        let cells = |id: TensorId| g.leaf(&self.store, id);
        let by_head = |t: Tensor<'g>| g.permute(t, [0, 2, 1, 3]);
        g.expand(g.set_rows(cells(self.k[il]), by_head(k), k_ids));
        if self.params.flash_attn {
            g.expand(g.set_rows(cells(self.v[il]), by_head(v), v_ids));
        } else {
            let (n_embd, n_tokens) = (self.n_embd_head * self.n_head_kv, k.ne()[2]);
            let cells = self.params.n_cells * self.params.n_seq;
            let elements = g.reshape(g.leaf(&self.store, self.v[il]), [1, n_embd * cells, 1, 1]);
            // Values that were computed together with queries and keys lie among these.
            let apart = v.nb()[2] == v.ty().row_bytes(n_embd).expect("plain types have no blocks");
            let ne = [1, n_embd * n_tokens, 1, 1];
            g.expand(g.set_rows(elements, if apart { g.reshape(v, ne) } else { g.cont(v, ne) }, v_ids));
        }
    }

    /// Rows that the values of tokens at `cells` are written to: the cells themselves, or one per element if the values
    /// are transposed. A cell counts through all sequences: `seq * n_cells + position`.
    pub fn value_ids(&self, cells: &[i64]) -> Vec<i64> {
        if self.params.flash_attn {
            return cells.to_vec();
        }
        let n_embd = (self.n_embd_head * self.n_head_kv) as i64;
        let n_cells = self.params.n_cells as i64;
        cells
            .iter()
            .flat_map(|cell| {
                let (seq, pos) = (cell / n_cells, cell % n_cells);
                (0..n_embd).map(move |i| seq * n_cells * n_embd + i * n_cells + pos)
            })
            .collect()
    }

    /// Rows of [`KvCache::value_ids`] for each token.
    pub fn value_rows(&self) -> usize {
        if self.params.flash_attn { 1 } else { self.n_embd_head * self.n_head_kv }
    }

    /// Keys of the first `n_kv` cells of some sequences: `[n_embd_head, n_head_kv, n_kv, n_seq]`.
    pub fn k<'g>(&self, g: &Builder<'g>, il: usize, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        self.by_cell(g, g.leaf(&self.store, self.k[il]), n_kv, seqs)
    }

    /// Values of the same cells: as the keys, or `[n_kv, n_head_kv, n_embd_head, n_seq]` if transposed.
    pub fn v<'g>(&self, g: &Builder<'g>, il: usize, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        let v = g.leaf(&self.store, self.v[il]);
        if self.params.flash_attn {
            return self.by_cell(g, v, n_kv, seqs);
        }
        let column = v.ty().row_bytes(self.params.n_cells).expect("plain types have no blocks");
        let seq = column * self.n_embd_head * self.n_head_kv;
        let nb = [column * self.n_embd_head, column, seq];
        g.view(v, [n_kv, self.n_head_kv, self.n_embd_head, seqs.len()], nb, seqs.start * seq)
    }

    fn by_cell<'g>(&self, g: &Builder<'g>, t: Tensor<'g>, n_kv: usize, seqs: Range<usize>) -> Tensor<'g> {
        let [_, cell, head, _] = t.nb();
        let seq = cell * self.params.n_cells;
        let ne = [self.n_embd_head, self.n_head_kv, n_kv, seqs.len()];
        g.view(t, ne, [head, cell, seq], seqs.start * seq)
    }
}

/// Width of the Hadamard rotation of quantised keys and values: as llama.cpp, the largest power of two that divides a
/// head for keys, 64 for values, and none for heads that are not a multiple of 64.
fn rotation_width(ty: CacheType, n_embd_head: usize, largest: bool) -> Option<usize> {
    if ty != CacheType::Q8_0 || !n_embd_head.is_multiple_of(64) {
        return None;
    }
    Some(if largest { 1 << n_embd_head.trailing_zeros() } else { 64 })
}

/// The orthonormal, symmetric Hadamard matrix of `n` (a power of two) by Sylvester's construction, row by row.
fn hadamard(n: usize) -> Vec<f32> {
    let scale = 1.0 / (n as f32).sqrt();
    (0..n * n).map(|i| if ((i / n) & (i % n)).count_ones().is_multiple_of(2) { scale } else { -scale }).collect()
}
