//! Attention of the queries of some heads to the cells of one key and value head, block of cells by block, with a running softmax (as in
//! FlashAttention).
//!
//! There are two ways. A few queries read keys and values where they are, cell by cell, up to four at once. More queries are worth copying a block of cells
//! to floats: keys are transposed, and both steps become products of matrices.

use std::ops::Range;

use crate::isa::{Kernel, Simd};
use crate::math;

/// Cells of a block.
const BLOCK: usize = 64;

/// Bytes of a block of [`Elements::Q8_0`].
const Q8_0_BYTES: usize = 34;

/// Queries, or weights of queries, that [`add_product`] multiplies at once.
const ROWS: usize = 6;

/// One query of a head.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// `[d]`
    pub q: &'a [f32],
    /// The cells that it sees; at least one
    pub visible: Range<usize>,
    /// A score more, which takes a part of the weights and has no value
    pub sink: Option<f32>,
}

/// From the product of a query and a key to the score that the softmax is taken of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor on the product
    pub scale: f32,
    /// What scores stay below: `c * tanh(score / c)`
    pub softcap: Option<f32>,
}

impl Scores {
    /// The rest of the way, for products of queries that were multiplied with [`Scores::scale`].
    #[inline(always)]
    fn cap<S: Simd>(self, s: S, scores: &mut [f32]) {
        let Some(cap) = self.softcap else { return };
        let (inverse, cap) = (s.splat(1.0 / cap), s.splat(cap));
        for x in scores.chunks_exact_mut(S::LANES) {
            s.store_f(s.mul(cap, math::tanh(s, s.mul(s.load_f(x), inverse))), x);
        }
    }
}

/// Keys or values of one head.
pub struct Cells<'a> {
    /// All cells
    pub bytes: &'a [u8],
    /// Bytes from one cell to the next
    pub stride: usize,
    /// Bytes of a cell: `d` elements
    pub len: usize,
    pub elements: Elements<'a>,
}

/// What the elements of a cell are.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    /// 16-bit floats
    F16,
    /// Blocks of 32: a 16-bit float as the scale, then 32 bytes with sign
    Q8_0,
    /// What a function writes as floats
    Other(&'a dyn Fn(&[u8], &mut [f32])),
}

impl<'a> Cells<'a> {
    #[inline(always)]
    fn cell(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..self.len]
    }
}

/// What attention writes in between. Each thread keeps it.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Queries times scale `[n][width]`, where `width` is `d` filled up to whole vectors
    q: Vec<f32>,
    /// Keys of a block `[BLOCK][width]`, or keys or values of as many cells as a vector has lanes
    cells: Vec<f32>,
    /// The same, transposed: `[width][BLOCK]`
    keys: Vec<f32>,
    /// Values of a block `[BLOCK][width]`
    values: Vec<f32>,
    /// Results so far `[n][width]`, not yet divided by the sums of weights
    out: Vec<f32>,
    /// Of each query
    softmax: Vec<Softmax>,
}

/// A running softmax.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    /// The largest score so far
    largest: f32,
    /// The sum of weights so far: a weight is `e^(score - largest)`
    total: f32,
}

impl Softmax {
    /// Before the first cell: of nothing, or of a sink.
    fn new(sink: Option<f32>) -> Softmax {
        match sink {
            None => Softmax { largest: f32::NEG_INFINITY, total: 0.0 },
            Some(score) => Softmax { largest: score, total: 1.0 },
        }
    }

    /// The logarithm of the sum of `e^score`.
    fn log_sum_exp(self) -> f32 {
        self.largest + self.total.ln()
    }

    /// Takes note of a block's largest score. If it is the largest of all, weights and the result `out` so far shrink.
    #[inline(always)]
    fn raise<S: Simd>(&mut self, s: S, largest: f32, out: &mut [f32]) {
        if largest > self.largest {
            let shrink = (self.largest - largest).exp();
            self.total *= shrink;
            let shrink = s.splat(shrink);
            for o in out.chunks_exact_mut(S::LANES) {
                s.store_f(s.mul(s.load_f(o), shrink), o);
            }
            self.largest = largest;
        }
    }
}

/// See [`crate::Isa::attend`].
pub(crate) struct Attend<'a, 'c> {
    pub queries: &'a [Query<'c>],
    pub keys: &'a Cells<'c>,
    pub values: &'a Cells<'c>,
    pub scores: Scores,
    pub is_part: bool,
    pub done: &'a mut dyn FnMut(usize, &[f32], f32),
    pub buffers: &'a mut Buffers,
}

/// Adds to `out` `[n_rows][stride]`, in the columns `at..at + V * LANES`, the product of `a` `[n_rows][k]`, whose rows are `a_stride` apart,
/// and `b` `[k][stride]`; there are up to [`ROWS`] rows.
#[inline(always)]
fn add_product<S: Simd, const V: usize>(
    s: S,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    k: usize,
    stride: usize,
    at: usize,
    n_rows: usize,
    out: &mut [f32],
) {
    // Rows behind the last are computed from the last, and not written.
    let a: [&[f32]; ROWS] = std::array::from_fn(|r| &a[r.min(n_rows - 1) * a_stride..][..k]);
    let mut acc = [[s.splat(0.0); V]; ROWS];
    for (i, b) in b.chunks_exact(stride).enumerate().take(k) {
        let mut vectors = [s.splat(0.0); V];
        for (v, x) in vectors.iter_mut().enumerate() {
            *x = s.load_f(&b[at + v * S::LANES..]);
        }
        for r in 0..ROWS {
            let x = s.splat(a[r][i]);
            for v in 0..V {
                acc[r][v] = s.fma(x, vectors[v], acc[r][v]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate().take(n_rows) {
        for (v, acc) in acc.iter().enumerate() {
            let out = &mut out[r * stride + at + v * S::LANES..];
            s.store_f(s.add(s.load_f(out), *acc), out);
        }
    }
}

/// [`add_product`] for all columns.
#[inline(always)]
fn add_product_all<S: Simd>(
    s: S,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    k: usize,
    stride: usize,
    n_rows: usize,
    out: &mut [f32],
) {
    let mut at = 0;
    while at < stride {
        let left = (stride - at) / S::LANES;
        if left >= 4 && S::ATTEND_VECS >= 4 {
            add_product::<S, 4>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += 4 * S::LANES;
        } else if left >= 2 {
            add_product::<S, 2>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += 2 * S::LANES;
        } else {
            add_product::<S, 1>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += S::LANES;
        }
    }
}

/// Writes the `d` floats of each cell of a range to `out` `[BLOCK][width]`, and zeros elsewhere.
#[inline(always)]
fn read<S: Simd>(s: S, cells: &Cells, range: Range<usize>, d: usize, width: usize, out: &mut [f32]) {
    let n = range.len();
    for (cell, out) in range.zip(out.chunks_exact_mut(width)) {
        let bytes = cells.cell(cell);
        match cells.elements {
            Elements::Other(decode) => decode(bytes, &mut out[..d]),
            Elements::F16 => {
                let (whole, rest) = (d / S::LANES * S::LANES, d % S::LANES);
                for (x, out) in bytes.chunks_exact(2 * S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.load_f16(x), out);
                }
                for (x, out) in bytes[2 * whole..].chunks_exact(2).zip(&mut out[whole..whole + rest]) {
                    *out = s.f16_at(x);
                }
            }
            Elements::Q8_0 => {
                for (block, out) in bytes.chunks_exact(Q8_0_BYTES).zip(out.chunks_exact_mut(32)) {
                    let scale = s.splat(s.f16_at(block));
                    for (codes, out) in block[2..].chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                        s.store_f(s.mul(scale, s.load_i8(codes)), out);
                    }
                }
            }
        }
        out[d..].fill(0.0);
    }
    out[n * width..].fill(0.0);
}

/// The most queries that read keys and values where they are.
const MAX_IN_PLACE_QUERIES: usize = 8;

impl Attend<'_, '_> {
    /// `R` queries from number `first_query` on, which see the same cells. Their `d` elements are whole vectors.
    #[inline(always)]
    fn in_place<S: Simd, const R: usize>(&mut self, s: S, first_query: usize) {
        let Query { q, visible, .. } = &self.queries[first_query];
        let d = q.len();
        let Buffers { cells, out, q: scaled, .. } = &mut *self.buffers;
        cells.resize(S::LANES * d, 0.0);
        out.clear();
        out.resize(R * d, 0.0);
        scaled.clear();
        for query in &self.queries[first_query..first_query + R] {
            scaled.extend(query.q.iter().map(|x| x * self.scores.scale));
        }
        let mut softmax: [Softmax; R] = std::array::from_fn(|r| Softmax::new(self.queries[first_query + r].sink));
        let mut scores = [[f32::NEG_INFINITY; BLOCK]; R];
        let mut squares = [[s.splat_i(0); 16]; R];
        for first in visible.clone().step_by(BLOCK) {
            let n = BLOCK.min(visible.end - first);
            for start in (0..n).step_by(S::LANES) {
                let range = first + start..first + n.min(start + S::LANES);
                let floats = floats(s, self.keys, range.clone(), d, cells);
                let mut i = 0;
                while i < d {
                    match (d - i) / S::LANES {
                        4.. => i += compare::<S, R, 4>(s, self.keys, range.clone(), i, scaled, floats, &mut squares),
                        _ => i += compare::<S, R, 1>(s, self.keys, range.clone(), i, scaled, floats, &mut squares),
                    }
                }
                // A key's score is the sum of a row of the square: after transposing, the sum of a lane. What belongs to no key is not
                // used.
                for (square, scores) in squares.iter_mut().zip(&mut scores) {
                    let square = &mut square[..S::LANES];
                    s.transpose(square);
                    let mut sum = s.as_f(square[0]);
                    for x in &square[1..] {
                        sum = s.add(sum, s.as_f(*x));
                    }
                    s.store_f(sum, &mut scores[start..]);
                }
            }
            for r in 0..R {
                self.scores.cap(s, &mut scores[r]);
                weights_in_place(s, n, &mut softmax[r], &mut scores[r], &mut out[r * d..(r + 1) * d]);
            }
            // 16-bit floats are read all at once, others as many as there is room for as floats.
            let step = if matches!(self.values.elements, Elements::F16) { BLOCK } else { S::LANES };
            for start in (0..n).step_by(step) {
                let range = first + start..first + n.min(start + step);
                let floats = floats(s, self.values, range.clone(), d, cells);
                // As many vectors of each result as stay in registers.
                let mut i = 0;
                while i < d {
                    match (d - i) / S::LANES {
                        4.. => i += weigh::<S, R, 4>(s, self.values, range.clone(), i, &scores, start, floats, out),
                        _ => i += weigh::<S, R, 1>(s, self.values, range.clone(), i, &scores, start, floats, out),
                    }
                }
            }
        }
        for (r, out) in out.chunks_exact_mut(d).enumerate() {
            let inverse = 1.0 / softmax[r].total;
            out.iter_mut().for_each(|x| *x *= inverse);
            (self.done)(first_query + r, out, softmax[r].log_sum_exp());
        }
    }

    /// Any number of queries, each with cells of its own that it sees.
    #[inline(always)]
    fn by_blocks<S: Simd>(self, s: S) {
        let Attend { queries, keys, values, scores, done, buffers, .. } = self;
        let (d, n) = (queries[0].q.len(), queries.len());
        let width = d.next_multiple_of(S::LANES);
        buffers.q.resize(n * width, 0.0);
        for (query, q) in queries.iter().zip(buffers.q.chunks_exact_mut(width)) {
            q.iter_mut().zip(query.q).for_each(|(to, x)| *to = x * scores.scale);
            q[d..].fill(0.0);
        }
        buffers.cells.resize(BLOCK * width, 0.0);
        buffers.keys.resize(width * BLOCK, 0.0);
        buffers.values.resize(BLOCK * width, 0.0);
        buffers.out.clear();
        buffers.out.resize(n * width, 0.0);
        buffers.softmax.clear();
        buffers.softmax.extend(queries.iter().map(|q| Softmax::new(q.sink)));
        let start = queries.iter().map(|q| q.visible.start).min().unwrap_or(0);
        let end = queries.iter().map(|q| q.visible.end).max().unwrap_or(0);
        // Blocks begin at multiples of their size, so that a query's result does not depend on which others are computed with it.
        for first in (start / BLOCK * BLOCK..end).step_by(BLOCK) {
            let range = first..end.min(first + BLOCK);
            read(s, keys, range.clone(), d, width, &mut buffers.cells);
            read(s, values, range, d, width, &mut buffers.values);
            transpose(s, &buffers.cells, width, &mut buffers.keys);
            for start in (0..n).step_by(ROWS) {
                let end = n.min(start + ROWS);
                let sees_none = |q: &Query| q.visible.end <= first || q.visible.start >= first + BLOCK;
                if queries[start..end].iter().all(sees_none) {
                    continue;
                }
                let mut weights = [0.0f32; ROWS * BLOCK];
                let q = &buffers.q[start * width..];
                add_product_all(s, q, width, &buffers.keys, d, BLOCK, end - start, &mut weights);
                for (i, w) in weights.chunks_exact_mut(BLOCK).enumerate().take(end - start) {
                    let Range { start: from, end: to } = queries[start + i].visible;
                    let visible = from.saturating_sub(first).min(BLOCK)..to.saturating_sub(first).min(BLOCK);
                    let out = &mut buffers.out[(start + i) * width..][..width];
                    scores.cap(s, w);
                    weights_of_block(s, visible, &mut buffers.softmax[start + i], w, out);
                }
                let out = &mut buffers.out[start * width..];
                add_product_all(s, &weights, BLOCK, &buffers.values, BLOCK, width, end - start, out);
            }
        }
        for (i, (out, softmax)) in buffers.out.chunks_exact_mut(width).zip(&buffers.softmax).enumerate() {
            let inverse = 1.0 / softmax.total;
            out.iter_mut().for_each(|x| *x *= inverse);
            done(i, &out[..d], softmax.log_sum_exp());
        }
    }
}

/// Changes a block's first `n` scores to weights, and the others to zeros; `out` is the query's result so far.
#[inline(always)]
fn weights_in_place<S: Simd>(s: S, n: usize, softmax: &mut Softmax, scores: &mut [f32; BLOCK], out: &mut [f32]) {
    scores[n..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(softmax.largest);
    for x in scores.chunks_exact(S::LANES) {
        largest = s.max(s.load_f(x), largest);
    }
    softmax.raise(s, s.reduce_max(largest), out);
    for x in scores.chunks_exact_mut(S::LANES) {
        s.store_f(math::exp(s, s.sub(s.load_f(x), s.splat(softmax.largest))), x);
    }
    // What `exp` makes of minus infinity is small, but not zero.
    scores[n..].fill(0.0);
    let mut sum = s.splat(0.0);
    for x in scores.chunks_exact(S::LANES) {
        sum = s.add(sum, s.load_f(x));
    }
    softmax.total += s.reduce_sum(sum);
}

/// Changes the scores of a block's visible cells to weights, and the others to zeros; `out` is the query's result so far. Unlike
/// [`weights_in_place`] it sums weights up as it computes them.
#[inline(always)]
fn weights_of_block<S: Simd>(s: S, visible: Range<usize>, softmax: &mut Softmax, scores: &mut [f32], out: &mut [f32]) {
    if visible.is_empty() {
        scores.fill(0.0);
        return;
    }
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(softmax.largest);
    for v in scores.chunks_exact(S::LANES) {
        largest = s.max(s.load_f(v), largest);
    }
    softmax.raise(s, s.reduce_max(largest), out);
    let (mut sum, largest) = (s.splat(0.0), s.splat(softmax.largest));
    for v in scores.chunks_exact_mut(S::LANES) {
        let p = math::exp(s, s.sub(s.load_f(v), largest));
        sum = s.add(sum, p);
        s.store_f(p, v);
    }
    // What `exp` makes of minus infinity is small, but not zero.
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    softmax.total += s.reduce_sum(sum);
}

/// Writes the transpose `[width][BLOCK]` of `cells` `[BLOCK][width]`.
#[inline(always)]
fn transpose<S: Simd>(s: S, cells: &[f32], width: usize, out: &mut [f32]) {
    let mut square = [s.splat_i(0); 16];
    for c in (0..BLOCK).step_by(S::LANES) {
        for i in (0..width).step_by(S::LANES) {
            let square = &mut square[..S::LANES];
            for (j, x) in square.iter_mut().enumerate() {
                *x = s.as_i(s.load_f(&cells[(c + j) * width + i..]));
            }
            s.transpose(square);
            for (j, x) in square.iter().enumerate() {
                s.store_f(s.as_f(*x), &mut out[(i + j) * BLOCK + c..]);
            }
        }
    }
}

/// Cells of a range as floats `[LANES][d]`, unless they are 16-bit floats, which are read where they are.
#[inline(always)]
fn floats<'a, S: Simd>(s: S, cells: &Cells, range: Range<usize>, d: usize, out: &'a mut [f32]) -> Option<&'a [f32]> {
    if matches!(cells.elements, Elements::F16) {
        return None;
    }
    read(s, cells, range, d, d, out);
    Some(out)
}

/// Reads `V` vectors of a cell from element `i` on: of the cell `[d]` as floats, or of its 16-bit floats.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(s: S, floats: Option<&[f32]>, bytes: &[u8], i: usize) -> [S::F; V] {
    let mut out = [s.splat(0.0); V];
    match floats {
        None => {
            let bytes = &bytes[2 * i..][..2 * V * S::LANES];
            for v in 0..V {
                out[v] = s.load_f16(&bytes[2 * v * S::LANES..]);
            }
        }
        Some(floats) => {
            let floats = &floats[i..][..V * S::LANES];
            for v in 0..V {
                out[v] = s.load_f(&floats[v * S::LANES..]);
            }
        }
    }
    out
}

/// Multiplies, for up to `LANES` keys and `R` queries `[R][d]`, the elements of `V` vectors from number `i` on. Row `j` of a query's square
/// gets the sums by lanes for key `j`, which are added to what is there if `i` is not 0. `floats` are the keys as floats, see [`floats`].
/// Returns the number of elements.
#[inline(always)]
fn compare<S: Simd, const R: usize, const V: usize>(
    s: S,
    keys: &Cells,
    range: Range<usize>,
    i: usize,
    queries: &[f32],
    floats: Option<&[f32]>,
    squares: &mut [[S::I; 16]; R],
) -> usize {
    let d = queries.len() / R;
    let mut q = [[s.splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            q[r][v] = s.load_f(&queries[r * d + i + v * S::LANES..]);
        }
    }
    for (j, cell) in range.enumerate() {
        let k: [S::F; V] = vectors(s, floats.map(|floats| &floats[j * d..]), keys.cell(cell), i);
        for r in 0..R {
            let mut sum = s.mul(q[r][0], k[0]);
            for v in 1..V {
                sum = s.fma(q[r][v], k[v], sum);
            }
            if i > 0 {
                sum = s.add(sum, s.as_f(squares[r][j]));
            }
            squares[r][j] = s.as_i(sum);
        }
    }
    V * S::LANES
}

/// Adds, for a range of values, the elements of `V` vectors from number `i` on, times the values' weights, which are those from number
/// `first` on, to `R` results `[R][d]`. `floats` are the values as floats, see [`floats`]. Returns the number of elements.
#[inline(always)]
fn weigh<S: Simd, const R: usize, const V: usize>(
    s: S,
    values: &Cells,
    range: Range<usize>,
    i: usize,
    weights: &[[f32; BLOCK]; R],
    first: usize,
    floats: Option<&[f32]>,
    out: &mut [f32],
) -> usize {
    let d = out.len() / R;
    let mut acc = [[s.splat(0.0); V]; R];
    for (j, cell) in range.enumerate() {
        let x: [S::F; V] = vectors(s, floats.map(|floats| &floats[j * d..]), values.cell(cell), i);
        for r in 0..R {
            let weight = s.splat(weights[r][first + j]);
            for v in 0..V {
                acc[r][v] = s.fma(weight, x[v], acc[r][v]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            let out = &mut out[r * d + i + v * S::LANES..];
            s.store_f(s.add(s.load_f(out), *acc), out);
        }
    }
    V * S::LANES
}

impl Kernel for Attend<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, s: S) {
        let d = self.queries[0].q.len();
        if self.is_part || self.queries.len() > MAX_IN_PLACE_QUERIES || !d.is_multiple_of(S::LANES) {
            return self.by_blocks(s);
        }
        let mut i = 0;
        while i < self.queries.len() {
            let visible = self.queries[i].visible.clone();
            let n = self.queries[i..].iter().take_while(|q| q.visible == visible).count();
            match n {
                4.. => self.in_place::<S, 4>(s, i),
                3 => self.in_place::<S, 3>(s, i),
                2 => self.in_place::<S, 2>(s, i),
                _ => self.in_place::<S, 1>(s, i),
            }
            i += n.min(4);
        }
    }
}
