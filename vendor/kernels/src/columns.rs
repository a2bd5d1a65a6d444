//! Some columns of a matrix, made once and multiplied often: with the file's own codes and scales.
//!
//! Blocks of 32 inputs lose those that are not kept and are filled up to whole fours. A tile is `LANES` rows: all fours of its blocks
//! one after the other, each `LANES * 4` codes (row by row; of 4 bits two fours in one vector, the earlier in the lower halves),
//! then for each block the rows' scales and, if the format has them, minima, in 16-bit floats, to be multiplied with
//! the row's factor.

use crate::acts::scales;
use crate::pack::Columns;
use crate::rows::{Format, Row, half, q4_k_scales};
use crate::simd::{Kernel, Simd};

/// Inputs of a block of a file.
const BLOCK: usize = 32;

/// The kept inputs of a block.
#[derive(Debug, Clone, Copy)]
struct Kept {
    mask: u32,
    /// Number of the first among all kept inputs
    first: usize,
    n: usize,
}

impl Kept {
    fn fours(&self) -> usize {
        self.n.div_ceil(4)
    }
}

/// Kept columns of a matrix.
pub struct ColumnWeights {
    n_out: usize,
    blocks: Vec<Kept>,
    /// Codes are of 4 bits
    short: bool,
    /// Blocks have minima
    minima: bool,
    /// What codes have too much
    excess: i32,
    /// What each row's scales and minima are to be multiplied with: powers of two
    factors: Vec<f32>,
    lanes: usize,
    tile_bytes: usize,
    tiles: Vec<u8>,
}

impl std::fmt::Debug for ColumnWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColumnWeights")
            .field("n_out", &self.n_out)
            .field("bytes", &self.tiles.len())
            .finish_non_exhaustive()
    }
}

impl ColumnWeights {
    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.tiles.len()
    }

    /// Rows of the matrix.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.tile_bytes / self.lanes
    }

    /// Rows of a tile.
    pub fn tile_rows(&self) -> usize {
        self.lanes
    }

    fn fours(&self) -> usize {
        self.blocks.iter().map(Kept::fours).sum()
    }

    /// Bytes of the codes of a tile.
    fn code_bytes(&self) -> usize {
        let vectors = if self.short { self.fours().div_ceil(2) } else { self.fours() };
        vectors * 4 * self.lanes
    }
}

/// See [`crate::Isa::reduce_columns`].
pub(crate) struct Reduce<'a, R> {
    pub row: R,
    pub n_out: usize,
    pub n_in: usize,
    pub columns: &'a Columns,
}

/// What a tile is made in.
struct Buffers {
    /// Codes of the rows, `[LANES][4 * fours]`, with room for what `compress_codes` writes behind
    codes: Vec<u8>,
    /// Scales and minima, `[2][blocks][LANES]`
    scales: Vec<f32>,
    floats: Vec<f32>,
    width: usize,
}

/// One row, at a lane of its tile, block by block.
struct Lane<'a> {
    w: &'a ColumnWeights,
    i: usize,
    codes: &'a mut [u8],
    /// Codes so far
    at: usize,
    scales: &'a mut [f32],
}

impl Lane<'_> {
    /// Writes the kept codes of block `b`, its scale and its minimum.
    #[inline(always)]
    fn block<S: Simd>(&mut self, s: S, b: usize, all: &[u8; 32], d: f32, m: f32) {
        if self.w.blocks[b].n == 0 {
            // Whatever its scale is: nothing of it counts.
            return;
        }
        let n_blocks = self.w.blocks.len();
        self.scales[b * S::LANES + self.i] = d;
        self.scales[(n_blocks + b) * S::LANES + self.i] = m;
        s.compress_codes(all, self.w.blocks[b].mask, &mut self.codes[self.at..]);
        self.at += 4 * self.w.blocks[b].fours();
    }
}

/// Writes one row's codes, and its scales and minima at lane `i`.
#[inline(always)]
fn reduce_row<S: Simd>(s: S, row: Row, w: &ColumnWeights, i: usize, buffers: &mut Buffers) {
    let Buffers { codes, scales: to, floats, width } = buffers;
    let mut lane = Lane { w, i, codes: &mut codes[i * *width..(i + 1) * *width], at: 0, scales: to };
    match row.format {
        Format::Q4_0 => {
            for (b, x) in row.bytes.chunks_exact(18).enumerate() {
                lane.block(s, b, &nibbles(x[2..].first_chunk().expect("16 bytes")), half(s, x), 0.0);
            }
        }
        Format::Q4_1 => {
            for (b, x) in row.bytes.chunks_exact(20).enumerate() {
                lane.block(s, b, &nibbles(x[4..].first_chunk().expect("16 bytes")), half(s, x), half(s, &x[2..]));
            }
        }
        Format::Q4K => {
            for (i, x) in row.bytes.chunks_exact(144).enumerate() {
                let (d, m) = q4_k_scales(s, x);
                for j in 0..8 {
                    let mut all = [0u8; 32];
                    for (to, c) in all.iter_mut().zip(&x[16 + 32 * (j / 2)..]) {
                        *to = if j % 2 == 0 { c & 15 } else { c >> 4 };
                    }
                    lane.block(s, 8 * i + j, &all, d[j], m[j]);
                }
            }
        }
        Format::Q8_0 => {
            for (b, x) in row.bytes.chunks_exact(34).enumerate() {
                lane.block(s, b, x[2..].first_chunk().expect("32 bytes"), half(s, x), 0.0);
            }
        }
        Format::Other(_) => {
            let n = floats.len();
            row.floats(s, floats);
            for b in 0..w.blocks.len() {
                let x = &floats[b * BLOCK..n.min((b + 1) * BLOCK)];
                let (d, inverse) = scales(largest(x));
                let mut all = [0u8; 32];
                all.iter_mut().zip(x).for_each(|(to, x)| *to = (x * inverse).round() as i8 as u8);
                lane.block(s, b, &all, d, 0.0);
            }
        }
    }
}

/// Largest magnitude; NaN if there is one.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, x| if x.abs() > a || x.is_nan() { x.abs() } else { a })
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
fn nibbles(x: &[u8; 16]) -> [u8; 32] {
    let mut all = [0u8; 32];
    let (low, high) = all.split_at_mut(16);
    for ((c, l), h) in x.iter().zip(low).zip(high) {
        *l = c & 15;
        *h = c >> 4;
    }
    all
}

/// Writes one tile: rows from `first` on.
#[inline(always)]
fn reduce_tile<'r, S: Simd>(
    s: S,
    row: &impl Fn(usize) -> Row<'r>,
    w: &ColumnWeights,
    first: usize,
    buffers: &mut Buffers,
    tile: &mut [u8],
    factors: &mut [f32],
) {
    buffers.codes.fill(0);
    buffers.scales.fill(0.0);
    for i in 0..S::LANES.min(w.n_out - first) {
        reduce_row(s, row(first + i), w, i, buffers);
    }
    let (codes, scales) = tile.split_at_mut(w.code_bytes());
    let offset = s.splat_i(if w.short { 0 } else { i32::from_le_bytes([S::OFFSET as u8; 4]) });
    let mut square = [s.splat_i(0); 16];
    let vector = 4 * S::LANES;
    for (n, start) in (0..4 * w.fours()).step_by(vector).enumerate() {
        let square = &mut square[..S::LANES];
        for (i, r) in square.iter_mut().enumerate() {
            *r = s.load_i(&buffers.codes[i * buffers.width + start..]);
        }
        s.transpose(square);
        let left = w.fours() - n * S::LANES;
        for (j, r) in square.iter().enumerate().take(left) {
            let four = n * S::LANES + j;
            if !w.short {
                s.store_i(s.add_bytes(*r, offset), &mut codes[four * vector..]);
            } else if four % 2 == 0 {
                s.store_i(*r, &mut codes[four / 2 * vector..]);
            } else {
                let to = &mut codes[four / 2 * vector..];
                // The lower halves are there; what is added is less than 16.
                let sixteen = s.add_bytes(*r, *r);
                let sixteen = s.add_bytes(sixteen, sixteen);
                let sixteen = s.add_bytes(sixteen, sixteen);
                let sixteen = s.add_bytes(sixteen, sixteen);
                s.store_i(s.add_bytes(s.load_i(to), sixteen), to);
            }
        }
    }
    let n_blocks = w.blocks.len() * (1 + usize::from(w.minima));
    let mut inverses = [0.0f32; 16];
    for (i, (to, inverse)) in factors.iter_mut().zip(&mut inverses).enumerate() {
        let mut most = 0.0f32;
        for b in 0..n_blocks {
            let x = buffers.scales[b * S::LANES + i].abs();
            if x.is_finite() {
                most = most.max(x);
            }
        }
        *to = factor(most);
        *inverse = 1.0 / *to;
    }
    let inverse = s.load_f(&inverses);
    for (from, to) in buffers.scales.chunks_exact(S::LANES).take(n_blocks).zip(scales.chunks_exact_mut(2 * S::LANES)) {
        s.store_half(s.mul(s.load_f(from), inverse), to);
    }
}

/// What a row's scales and minima, the largest of them `most`, are divided by before they become 16-bit floats: a power of two, so
/// that nothing is lost, and so large that small ones keep their precision and none overflows.
#[inline(always)]
fn factor(most: f32) -> f32 {
    if most > 1e-30 && most < 1e30 { 2f32.powi(most.log2().ceil() as i32 - 14) } else { 1.0 }
}

impl<'r, R: Fn(usize) -> Row<'r>> Kernel for Reduce<'_, R> {
    type Out = ColumnWeights;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> ColumnWeights {
        let Reduce { row, n_out, n_in, columns } = self;
        let mut first = 0;
        let blocks: Vec<Kept> = (columns.masks().iter())
            .map(|&mask| {
                let n = mask.count_ones() as usize;
                first += n;
                Kept { mask, first: first - n, n }
            })
            .collect();
        let format = row(0).format;
        let short = matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q4K);
        let minima = matches!(format, Format::Q4_1 | Format::Q4K);
        let excess = match format {
            Format::Q4_0 => 8,
            _ if short => 0,
            _ => S::OFFSET,
        };
        let mut w = ColumnWeights {
            n_out,
            blocks,
            short,
            minima,
            excess,
            factors: Vec::new(),
            lanes: S::LANES,
            tile_bytes: 0,
            tiles: Vec::new(),
        };
        w.tile_bytes = w.code_bytes() + w.blocks.len() * (1 + usize::from(minima)) * 2 * S::LANES;
        let n_tiles = n_out.div_ceil(S::LANES);
        let mut tiles = vec![0u8; n_tiles * w.tile_bytes];
        let width = (4 * w.fours()).next_multiple_of(4 * S::LANES) + BLOCK;
        let mut buffers = Buffers {
            codes: vec![0; S::LANES * width],
            scales: vec![0.0; 2 * w.blocks.len() * S::LANES],
            floats: vec![0.0; n_in],
            width,
        };
        let mut factors = vec![1.0; n_tiles * S::LANES];
        let parts = tiles.chunks_exact_mut(w.tile_bytes).zip(factors.chunks_exact_mut(S::LANES));
        for (i, (tile, factors)) in parts.enumerate() {
            reduce_tile(s, &row, &w, i * S::LANES, &mut buffers, tile, factors);
        }
        (w.tiles, w.factors) = (tiles, factors);
        w
    }
}

/// A token's activations, ready for a matrix's kept columns.
#[derive(Debug)]
pub struct ColumnActs {
    /// Signed bytes, four by four, with zeros where blocks are filled up
    fours: Vec<i32>,
    /// Of each block: scale, sum of codes times scale, and what the codes' excess adds
    blocks: Vec<(f32, f32, i32)>,
}

/// See [`crate::Isa::column_acts`].
pub(crate) struct MakeActs<'a> {
    pub w: &'a ColumnWeights,
    pub x: &'a [f32],
}

impl Kernel for MakeActs<'_> {
    type Out = ColumnActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> ColumnActs {
        let MakeActs { w, x } = self;
        let mut acts = ColumnActs { fours: Vec::with_capacity(w.fours()), blocks: Vec::with_capacity(w.blocks.len()) };
        let (mut floats, mut codes) = ([0.0f32; BLOCK], [0u8; BLOCK]);
        let ones = s.splat_i(0x0101_0101);
        for b in &w.blocks {
            floats[..b.n].copy_from_slice(&x[b.first..b.first + b.n]);
            floats[b.n..].fill(0.0);
            let mut most = s.splat(0.0);
            for x in floats.chunks_exact(S::LANES) {
                most = s.largest(most, s.load_f(x));
            }
            let (scale, inverse) = scales(s.max_lane(most));
            let inverse = s.splat(inverse);
            for (x, codes) in floats.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
                s.store_bytes(s.round(s.mul(s.load_f(x), inverse)), codes);
            }
            let mut padded = [0u8; 64];
            padded[..BLOCK].copy_from_slice(&codes);
            let mut sum = s.splat(0.0);
            for x in padded.chunks_exact(4 * S::LANES) {
                sum = s.add(sum, s.to_f(s.dot(s.splat_i(0), ones, s.load_i(x))));
            }
            let sum = s.sum(sum);
            let fours = codes.chunks_exact(4).take(b.fours());
            acts.fours.extend(fours.map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])));
            acts.blocks.push((scale, sum * scale, -w.excess * sum as i32));
        }
        acts
    }
}

/// See [`crate::Isa::multiply_columns`].
pub(crate) struct MultiplyColumns<'a> {
    pub w: &'a ColumnWeights,
    pub acts: &'a ColumnActs,
    pub first: usize,
    pub out: &'a mut [f32],
}

impl Kernel for MultiplyColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let MultiplyColumns { w, acts, first, out } = self;
        assert!(w.lanes == S::LANES && first.is_multiple_of(S::LANES), "tiles of this instruction set");
        let tiles = w.tiles[first / S::LANES * w.tile_bytes..].chunks_exact(w.tile_bytes);
        let (vector, n_blocks, code_bytes) = (4 * S::LANES, w.blocks.len(), w.code_bytes());
        let mut whole = [0.0f32; 16];
        let factors = w.factors[first..].chunks_exact(S::LANES);
        for ((tile, factors), out) in tiles.zip(factors).zip(out.chunks_mut(S::LANES)) {
            let (codes, scales) = tile.split_at(code_bytes);
            let (d, m) = scales.split_at(n_blocks * 2 * S::LANES);
            let mut sum = s.splat(0.0);
            let mut four = 0;
            for (b, (kept, &(scale, total, start))) in w.blocks.iter().zip(&acts.blocks).enumerate() {
                let mut dots = s.splat_i(start);
                for &x in &acts.fours[four..four + kept.fours()] {
                    let c = if !w.short {
                        s.load_i(&codes[four * vector..])
                    } else {
                        let c = s.load_i(&codes[four / 2 * vector..]);
                        if four % 2 == 0 { s.low(c) } else { s.high(c) }
                    };
                    dots = s.dot(dots, c, s.splat_i(x));
                    four += 1;
                }
                let d = s.load_half(&d[b * 2 * S::LANES..]);
                sum = s.fma(s.to_f(dots), s.mul(d, s.splat(scale)), sum);
                if w.minima {
                    sum = s.fma(s.load_half(&m[b * 2 * S::LANES..]), s.splat(total), sum);
                }
            }
            s.store_f(s.mul(sum, s.load_f(factors)), &mut whole);
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}
