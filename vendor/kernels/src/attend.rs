//! Attention: blocks of cells against all queries of a head, with a running softmax (as in FlashAttention).

use crate::math;
use crate::simd::{Kernel, Simd};

/// Cells of a block.
const BLOCK: usize = 64;

/// Queries that are multiplied at once.
const ROWS: usize = 6;

/// One query of a head.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Its floats
    pub q: &'a [f32],
    /// It looks at so many cells, the first ones; at least one
    pub visible: usize,
}

/// Keys or values of one head.
pub struct Cells<'a> {
    /// The bytes of all cells
    pub bytes: &'a [u8],
    /// How far it is from one to the next
    pub stride: usize,
    /// Bytes of each
    pub len: usize,
    /// Writes its values, unless they are 16-bit floats.
    pub values: Option<&'a dyn Fn(&[u8], &mut [f32])>,
}

impl<'a> Cells<'a> {
    #[inline(always)]
    fn cell(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..self.len]
    }
}

/// What is written in between; kept by each thread.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Queries, scaled, `[n][d]`
    q: Vec<f32>,
    /// Keys of a block, one after the other
    cells: Vec<f32>,
    /// The same, transposed: `[d][BLOCK]`
    keys: Vec<f32>,
    /// `[BLOCK][width]`
    values: Vec<f32>,
    /// Results so far, `[n][width]`
    out: Vec<f32>,
    /// Largest score and sum of weights of each query so far
    state: Vec<(f32, f32)>,
}

/// See [`crate::Isa::attend`].
pub(crate) struct Attend<'a, 'c> {
    pub queries: &'a [Query<'c>],
    pub keys: &'a Cells<'c>,
    pub values: &'a Cells<'c>,
    pub scale: f32,
    pub done: &'a mut dyn FnMut(usize, &[f32]),
    pub buffers: &'a mut Buffers,
}

/// Adds to `out` `[R][stride]`, columns `at..at + V * LANES`, the product of `a` `[R][k]` (rows `a_stride` apart) and `b`
/// `[k][stride]`.
#[inline(always)]
fn product<S: Simd, const V: usize>(
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
    // Rows beyond the last are computed from the last, and not written.
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

/// The whole width of [`product`].
#[inline(always)]
fn product_all<S: Simd>(
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
        if left >= 4 && S::WIDE >= 4 {
            product::<S, 4>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += 4 * S::LANES;
        } else if left >= 2 {
            product::<S, 2>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += 2 * S::LANES;
        } else {
            product::<S, 1>(s, a, a_stride, b, k, stride, at, n_rows, out);
            at += S::LANES;
        }
    }
}

/// Writes the floats of cells, `width` apart, with zeros behind and below them.
#[inline(always)]
fn read<S: Simd>(s: S, cells: &Cells, range: std::ops::Range<usize>, d: usize, width: usize, out: &mut [f32]) {
    let n = range.len();
    for (cell, out) in range.zip(out.chunks_exact_mut(width)) {
        let bytes = cells.cell(cell);
        match cells.values {
            Some(values) => values(bytes, &mut out[..d]),
            None => {
                let (whole, rest) = (d / S::LANES * S::LANES, d % S::LANES);
                for (x, out) in bytes.chunks_exact(2 * S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.load_half(x), out);
                }
                for (x, out) in bytes[2 * whole..].chunks_exact(2).zip(&mut out[whole..whole + rest]) {
                    *out = s.half(u16::from_le_bytes([x[0], x[1]]));
                }
            }
        }
        out[d..].fill(0.0);
    }
    out[n * width..].fill(0.0);
}

/// Queries so few that keys are better read where they are.
const FEW: usize = 4;

impl Attend<'_, '_> {
    /// `R` queries from the number `first_query` on, of equal sight, cell by cell. Their width is whole vectors.
    #[inline(always)]
    fn few<S: Simd, const R: usize>(&mut self, s: S, first_query: usize) {
        let Query { q, visible } = self.queries[first_query];
        let d = q.len();
        let Buffers { cells, out, q: scaled, .. } = &mut *self.buffers;
        cells.resize(S::LANES * d, 0.0);
        out.clear();
        out.resize(R * d, 0.0);
        scaled.clear();
        for query in &self.queries[first_query..first_query + R] {
            scaled.extend(query.q.iter().map(|x| x * self.scale));
        }
        let (mut largest, mut total) = ([f32::NEG_INFINITY; R], [0.0; R]);
        let mut scores = [[f32::NEG_INFINITY; BLOCK]; R];
        let mut squares = [[s.splat_i(0); 16]; R];
        for first in (0..visible).step_by(BLOCK) {
            let n = BLOCK.min(visible - first);
            for start in (0..n).step_by(S::LANES) {
                let range = first + start..first + n.min(start + S::LANES);
                if let Some(values) = self.keys.values {
                    for (cell, floats) in range.clone().zip(cells.chunks_exact_mut(d)) {
                        values(self.keys.cell(cell), floats);
                    }
                }
                let mut i = 0;
                while i < d {
                    match (d - i) / S::LANES {
                        4.. => i += compare::<S, R, 4>(s, self.keys, range.clone(), i, scaled, cells, d, &mut squares),
                        _ => i += compare::<S, R, 1>(s, self.keys, range.clone(), i, scaled, cells, d, &mut squares),
                    }
                }
                // A cell's sum of lanes is a lane of the sum of columns. Of cells beyond the last nothing is used.
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
                let (scores, out) = (&mut scores[r], &mut out[r * d..(r + 1) * d]);
                scores[n..].fill(f32::NEG_INFINITY);
                let mut most = s.splat(largest[r]);
                for x in scores.chunks_exact(S::LANES) {
                    most = s.max(s.load_f(x), most);
                }
                let most = s.max_of(most);
                if most > largest[r] {
                    let shrink = (largest[r] - most).exp();
                    total[r] *= shrink;
                    for o in out.chunks_exact_mut(S::LANES) {
                        s.store_f(s.mul(s.load_f(o), s.splat(shrink)), o);
                    }
                    largest[r] = most;
                }
                for x in scores.chunks_exact_mut(S::LANES) {
                    s.store_f(math::exp(s, s.sub(s.load_f(x), s.splat(largest[r]))), x);
                }
                // What `exp` makes of minus infinity is small, but not zero.
                scores[n..].fill(0.0);
                let mut sum = s.splat(0.0);
                for x in scores.chunks_exact(S::LANES) {
                    sum = s.add(sum, s.load_f(x));
                }
                total[r] += s.sum(sum);
            }
            if let Some(values) = self.values.values {
                for j in 0..n {
                    values(self.values.cell(first + j), &mut cells[..d]);
                    for i in (0..d).step_by(S::LANES) {
                        let v = s.load_f(&cells[i..]);
                        for (r, scores) in scores.iter().enumerate() {
                            let out = &mut out[r * d + i..];
                            s.store_f(s.fma(s.splat(scores[j]), v, s.load_f(out)), out);
                        }
                    }
                }
                continue;
            }
            // As many vectors of each result as stay in registers.
            let mut i = 0;
            while i < d {
                match (d - i) / S::LANES {
                    4.. => i += weigh::<S, R, 4>(s, self.values, first..first + n, i, &scores, d, out),
                    _ => i += weigh::<S, R, 1>(s, self.values, first..first + n, i, &scores, d, out),
                }
            }
        }
        for (r, out) in out.chunks_exact_mut(d).enumerate() {
            let inverse = 1.0 / total[r];
            out.iter_mut().for_each(|x| *x *= inverse);
            (self.done)(first_query + r, out);
        }
    }
}

/// Products of `V` vectors of a range of keys, from `i` on, with those of `R` queries `[R][d]`: lanes' sums, which are added to what
/// `squares` holds if `i` is not 0. `floats` are the keys `[LANES][d]`, unless these are of 16 bits. Returns the floats of these vectors.
#[inline(always)]
fn compare<S: Simd, const R: usize, const V: usize>(
    s: S,
    keys: &Cells,
    range: std::ops::Range<usize>,
    i: usize,
    queries: &[f32],
    floats: &[f32],
    d: usize,
    squares: &mut [[S::I; 16]; R],
) -> usize {
    let mut q = [[s.splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            q[r][v] = s.load_f(&queries[r * d + i + v * S::LANES..]);
        }
    }
    for (j, cell) in range.enumerate() {
        let mut k = [s.splat(0.0); V];
        match keys.values {
            None => {
                let bytes = &keys.cell(cell)[2 * i..][..2 * V * S::LANES];
                for v in 0..V {
                    k[v] = s.load_half(&bytes[2 * v * S::LANES..]);
                }
            }
            Some(_) => {
                let floats = &floats[j * d + i..][..V * S::LANES];
                for v in 0..V {
                    k[v] = s.load_f(&floats[v * S::LANES..]);
                }
            }
        }
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

/// Adds `V` vectors of 16-bit values, from `i` on, times their weights to `R` results `[R][d]`. Returns the floats of these vectors.
#[inline(always)]
fn weigh<S: Simd, const R: usize, const V: usize>(
    s: S,
    values: &Cells,
    range: std::ops::Range<usize>,
    i: usize,
    weights: &[[f32; BLOCK]; R],
    d: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [[s.splat(0.0); V]; R];
    for (j, cell) in range.enumerate() {
        let bytes = values.cell(cell);
        for v in 0..V {
            let x = s.load_half(&bytes[2 * (i + v * S::LANES)..]);
            for r in 0..R {
                acc[r][v] = s.fma(s.splat(weights[r][j]), x, acc[r][v]);
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
        if self.queries.len() <= FEW && d.is_multiple_of(S::LANES) {
            let mut i = 0;
            while i < self.queries.len() {
                let sight = self.queries[i].visible;
                let n = self.queries[i..].iter().take_while(|q| q.visible == sight).count();
                match n {
                    4.. => self.few::<S, 4>(s, i),
                    3 => self.few::<S, 3>(s, i),
                    2 => self.few::<S, 2>(s, i),
                    _ => self.few::<S, 1>(s, i),
                }
                i += n.min(4);
            }
            return;
        }
        let Attend { queries, keys, values, scale, done, buffers } = self;
        let width = d.next_multiple_of(S::LANES);
        let n = queries.len();
        buffers.q.resize(n * width, 0.0);
        for (query, q) in queries.iter().zip(buffers.q.chunks_exact_mut(width)) {
            q.iter_mut().zip(query.q).for_each(|(to, x)| *to = x * scale);
            q[d..].fill(0.0);
        }
        buffers.cells.resize(BLOCK * width, 0.0);
        buffers.keys.resize(width * BLOCK, 0.0);
        buffers.values.resize(BLOCK * width, 0.0);
        buffers.out.clear();
        buffers.out.resize(n * width, 0.0);
        buffers.state.clear();
        buffers.state.resize(n, (f32::NEG_INFINITY, 0.0));
        let most = queries.iter().map(|q| q.visible).max().unwrap_or(0);
        let mut square = [s.splat_i(0); 16];
        for first in (0..most).step_by(BLOCK) {
            let range = first..most.min(first + BLOCK);
            read(s, keys, range.clone(), d, width, &mut buffers.cells);
            read(s, values, range, d, width, &mut buffers.values);
            for c in (0..BLOCK).step_by(S::LANES) {
                for i in (0..width).step_by(S::LANES) {
                    let square = &mut square[..S::LANES];
                    for (j, x) in square.iter_mut().enumerate() {
                        *x = s.as_i(s.load_f(&buffers.cells[(c + j) * width + i..]));
                    }
                    s.transpose(square);
                    for (j, x) in square.iter().enumerate() {
                        s.store_f(s.as_f(*x), &mut buffers.keys[(i + j) * BLOCK + c..]);
                    }
                }
            }
            for start in (0..n).step_by(ROWS) {
                let end = n.min(start + ROWS);
                if queries[start..end].iter().all(|q| q.visible <= first) {
                    continue;
                }
                let mut weights = [0.0f32; ROWS * BLOCK];
                let q = &buffers.q[start * width..];
                product_all(s, q, width, &buffers.keys, d, BLOCK, end - start, &mut weights);
                for (i, w) in weights.chunks_exact_mut(BLOCK).enumerate().take(end - start) {
                    let visible = queries[start + i].visible.saturating_sub(first).min(BLOCK);
                    let state = &mut buffers.state[start + i];
                    if visible == 0 {
                        w.fill(0.0);
                        continue;
                    }
                    w[visible..].fill(f32::NEG_INFINITY);
                    let mut largest = s.splat(state.0);
                    for v in w.chunks_exact(S::LANES) {
                        largest = s.max(s.load_f(v), largest);
                    }
                    let largest = s.max_of(largest);
                    // The first block changes nothing: there is nothing yet.
                    if largest > state.0 {
                        let shrink = (state.0 - largest).exp();
                        state.1 *= shrink;
                        let shrink = s.splat(shrink);
                        for o in buffers.out[(start + i) * width..][..width].chunks_exact_mut(S::LANES) {
                            s.store_f(s.mul(s.load_f(o), shrink), o);
                        }
                        state.0 = largest;
                    }
                    let (mut sum, largest) = (s.splat(0.0), s.splat(state.0));
                    for v in w.chunks_exact_mut(S::LANES) {
                        let p = math::exp(s, s.sub(s.load_f(v), largest));
                        sum = s.add(sum, p);
                        s.store_f(p, v);
                    }
                    // What `exp` makes of minus infinity is small, but not zero.
                    w[visible..].fill(0.0);
                    state.1 += s.sum(sum);
                }
                let out = &mut buffers.out[start * width..];
                product_all(s, &weights, BLOCK, &buffers.values, BLOCK, width, end - start, out);
            }
        }
        for (i, (out, state)) in buffers.out.chunks_exact_mut(width).zip(&buffers.state).enumerate() {
            let inverse = 1.0 / state.1;
            out.iter_mut().for_each(|x| *x *= inverse);
            done(i, &out[..d]);
        }
    }
}
