//! Operations of a graph that multiply weights with our own kernels: straight from the file's rows, in 8 bits.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ggml::{Division, Op, Part, Source, TensorId, Type, dequantize_row};
use kernels::{Acts, Cells, Columns, FEW, Format, Isa, Out, Query, Row, token_bytes};

use crate::prune::reduce::Matrix;

/// What our kernels multiply, and when.
#[derive(Debug, Default)]
pub struct Native {
    /// The weights that they can multiply
    pub weights: HashSet<TensorId>,
    /// Fewest tokens
    pub min_tokens: usize,
    /// Time of packing
    pub pack_clock: Clock,
}

impl Native {
    /// Whether they compute attention of `n` tokens.
    pub fn attends(&self, n: usize) -> bool {
        n >= self.min_tokens && !self.weights.is_empty()
    }

    /// Whether they multiply a weight with `n` tokens.
    pub fn multiplies(&self, weight: &TensorId, n: usize) -> bool {
        (n >= self.min_tokens || n <= FEW) && self.weights.contains(weight)
    }
}

/// A matrix of a product: all its rows, or those of the units that the product's ids name.
#[derive(Debug, Clone)]
pub struct Factor {
    /// The weights
    pub matrix: Matrix,
    /// Rows of a unit, if kept units are multiplied only
    pub kept: Option<usize>,
}

/// Words of a token's activations: what [`Quantize`] makes is I32 `[words(k), n_tokens]`.
pub fn words(k: usize) -> usize {
    token_bytes(k) / 4
}

/// `x` F32 `[k, n_tokens]` -> I32 `[words(k), n_tokens]`: its activations in 8 bits; with a gain F32 `[k]` as second source, of the
/// RMS norm of `x` times the gain.
#[derive(Debug)]
pub struct Quantize {
    /// Of the norm
    pub eps: f32,
}

impl Op for Quantize {
    fn compute(&self, sources: &[Source], out: &mut Part) {
        let isa = Isa::best();
        let k = sources[0].ne()[0];
        let rows = out.rows();
        for (i, out) in rows.zip(out.bytes().chunks_exact_mut(token_bytes(k))) {
            let x = sources[0].row::<f32>(i);
            match sources.get(1) {
                Some(gain) => isa.norm_quantize(x, gain.row::<f32>(0), self.eps, out),
                None => isa.quantize(x, out),
            }
        }
    }
}

/// Time that threads spent on a part of the work, in nanoseconds.
pub type Clock = Arc<AtomicU64>;

/// Activations I32 `[words(k), n_tokens]` (and ids I32 `[n_kept]`, if rows or columns of units are kept) -> F32 `[n_out, n_tokens]`:
/// products with all factors, one below the other. Or, if `gated`, `silu(first) * second` of two factors of equal shape.
#[derive(Debug)]
pub struct Product {
    /// The weights
    pub factors: Vec<Factor>,
    /// `silu(first) * second`
    pub gated: bool,
    /// Columns of a unit, if kept units are multiplied only
    pub columns: Option<usize>,
    /// Time of packing
    pub clock: Clock,
}

impl Factor {
    /// Rows of the product; `n_kept` is the number of ids.
    pub fn n_out(&self, n_kept: usize) -> usize {
        self.kept.map_or(self.matrix.n_out(), |width| n_kept * width)
    }

    /// Row `i` of the product.
    fn row<'a>(&'a self, i: usize, ids: &[i32], other: &'a (dyn Fn(&[u8], &mut [f32]) + Sync)) -> Row<'a> {
        let j = match self.kept {
            Some(width) => ids[i / width] as usize * width + i % width,
            None => i,
        };
        let ty = self.matrix.ty();
        let format = match ty {
            Type::Q4_0 => Format::Q4_0,
            Type::Q4_1 => Format::Q4_1,
            Type::Q4_K => Format::Q4K,
            Type::Q8_0 => Format::Q8_0,
            _ => Format::Other(other),
        };
        Row { bytes: self.matrix.row(j), format }
    }
}

/// The part's rows as the kernels write them.
struct Tokens<'a, 'b> {
    part: &'a mut Part<'b>,
}

impl Out for Tokens<'_, '_> {
    fn token(&mut self, t: usize) -> &mut [f32] {
        self.part.row(t)
    }
}

impl Op for Product {
    fn division(&self, ne: [usize; 4]) -> Division {
        // A few tokens are little work: fewer parts.
        let share = if ne[1] <= FEW { ne[0].div_ceil(8) } else { 1 };
        Division { rows: ne[1], columns: share.next_multiple_of(Isa::best().panel_rows()) }
    }

    fn compute(&self, sources: &[Source], out: &mut Part) {
        let ids: &[i32] = sources.get(1).map_or(&[], |s| s.row(0));
        let n_in = self.factors[0].matrix.n_in();
        let columns = self.columns.map(|width| Columns::new(ids, width, n_in));
        let k = columns.as_ref().map_or(n_in, Columns::len);
        let acts = Acts::new(sources[0].all_bytes(), k);
        let n = acts.n_tokens();
        let range = out.columns();
        let others: Vec<_> = (self.factors.iter())
            .map(|f| {
                let ty = f.matrix.ty();
                move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out)
            })
            .collect();
        // Factor and row of the factor's product of row `i`.
        let find = |mut i: usize| {
            let mut number = 0;
            while i >= self.factors[number].n_out(ids.len()) {
                i -= self.factors[number].n_out(ids.len());
                number += 1;
            }
            (number, i)
        };
        let row = |which: usize, i: usize| {
            let (number, i) = if self.gated { (which, range.start + i) } else { find(range.start + i) };
            self.factors[number].row(i, ids, &others[number])
        };
        if n <= FEW && columns.is_none() {
            let mut first = vec![0.0f32; if self.gated { range.len() * n } else { 0 }];
            Isa::best().multiply_few(|i| row(0, i), range.len(), acts, |i, x| match self.gated {
                true => first[i * n..(i + 1) * n].copy_from_slice(x),
                false => x.iter().enumerate().for_each(|(t, x)| out.row::<f32>(t)[i] = *x),
            });
            if self.gated {
                Isa::best().multiply_few(|i| row(1, i), range.len(), acts, |i, x| {
                    let silu = |x: f32| x / (1.0 + (-x).exp());
                    x.iter().zip(&first[i * n..]).enumerate().for_each(|(t, (u, g))| out.row::<f32>(t)[i] = silu(*g) * u);
                });
            }
            return;
        }
        let tokens: Vec<usize> = (0..n).collect();
        let time = Isa::best().multiply(
            row,
            self.gated,
            range.len(),
            n_in,
            columns.as_ref(),
            acts,
            &tokens,
            &mut Tokens { part: out },
        );
        self.clock.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Tokens whose attention is computed together: enough that each key is read for many queries, few enough for all threads.
const ATTEND_ROWS: usize = 96;

/// Queries F32 `[d, n_head, n_tokens]`, keys and values `[d, n_head_kv, n_kv, n_seq]` of a cache, positions I32 `[n_tokens]` (and the
/// kept heads I32 `[n_head]`) -> F32 `[d * n_head, n_tokens]`: attention of each token to the cells up to its position.
#[derive(Debug)]
pub struct Attend {
    /// Factor on scores
    pub scale: f32,
    /// Query heads to a key and value head
    pub n_rep: usize,
}

impl Op for Attend {
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { rows: (ATTEND_ROWS / self.n_rep).max(1), columns: ne[0] }
    }

    fn compute(&self, sources: &[Source], out: &mut Part) {
        let [q, k, v, pos] = [0, 1, 2, 3].map(|i| sources[i]);
        let [d, n_head, n_tokens, _] = q.ne();
        let n_each = n_tokens / k.ne()[3];
        let pos = pos.row::<i32>(0);
        let ids: Option<&[i32]> = sources.get(4).map(|s| s.row(0));
        let kv_head = |head: usize| ids.map_or(head, |ids| ids[head] as usize) / self.n_rep;
        let tokens = out.rows();
        let mut first = tokens.start;
        while first < tokens.end {
            // Tokens of one sequence, heads that read the same keys.
            let seq = first / n_each;
            let last = tokens.end.min((seq + 1) * n_each);
            for heads in (0..n_head).collect::<Vec<_>>().chunk_by(|&a, &b| kv_head(a) == kv_head(b)) {
                let head = kv_head(heads[0]);
                let rows: Vec<(usize, usize)> = (first..last).flat_map(|t| heads.iter().map(move |&h| (t, h))).collect();
                let query = |&(t, h): &(usize, usize)| {
                    Query { q: q.elements([h, t, 0]), visible: pos[t] as usize + 1 }
                };
                let queries: Vec<Query> = rows.iter().map(query).collect();
                let key = move |cell: usize| k.bytes([head, cell, seq]);
                let value = move |cell: usize| v.bytes([head, cell, seq]);
                let (kt, vt) = (k.ty(), v.ty());
                let k_values = move |b: &[u8], o: &mut [f32]| dequantize_row(kt, b, o);
                let v_values = move |b: &[u8], o: &mut [f32]| dequantize_row(vt, b, o);
                let keys = Cells { cell: &key, values: (kt != Type::F16).then_some(&k_values) };
                let values = Cells { cell: &value, values: (vt != Type::F16).then_some(&v_values) };
                Isa::best().attend(&queries, &keys, &values, self.scale, &mut |i, x| {
                    let (t, h) = rows[i];
                    out.row::<f32>(t)[h * d..(h + 1) * d].copy_from_slice(x);
                });
            }
            first = last;
        }
    }
}
