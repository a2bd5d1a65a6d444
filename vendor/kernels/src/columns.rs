//! Some columns of a matrix, made once and multiplied often: with the file's own codes and scales.
//!
//! Blocks of 32 inputs lose those that are not kept and are filled up to whole fours. Two blocks of as many fours are a pair: so a
//! kernel knows how long they are before it looks, and a byte holds two codes of 4 bits in the same place of both. A tile is `LANES`
//! rows, pair by pair: fours, row by row (a vector holds one of each block, the first block's in the lower halves of its bytes; codes of
//! 8 bits are in two vectors), then both blocks' scales and, if the format has them, minima, in 16-bit floats; at the end
//! each row's factor, to be multiplied with these.

use crate::acts;
use crate::pack::Columns;
use crate::rows::{Format, Row, half, q4_k_scales};
use crate::simd::{Kernel, Simd};

/// Inputs of a block of a file.
const BLOCK: usize = 32;

/// The kept inputs of a block.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// Number of the block
    block: usize,
    mask: u32,
    /// Number of the first among all kept inputs
    first: usize,
    n: usize,
}

/// How some columns of a matrix are laid out.
#[derive(Debug)]
pub struct ColumnLayout {
    n_out: usize,
    /// Pairs, by their number of fours less one
    n_pairs: [usize; BLOCK / 4],
    /// The blocks, pair by pair; one of which nothing is kept where a number of fours has an odd number of blocks
    blocks: Vec<[Kept; 2]>,
    /// Codes are of 4 bits
    short: bool,
    /// Blocks have minima
    minima: bool,
    /// What codes have too much
    excess: i32,
    lanes: usize,
    tile_bytes: usize,
}

impl ColumnLayout {
    /// Size of all tiles in bytes.
    pub fn n_bytes(&self) -> usize {
        self.n_out.div_ceil(self.lanes) * self.tile_bytes
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

    /// The pairs, each with its number of fours.
    fn pairs(&self) -> impl Iterator<Item = (usize, &[Kept; 2])> {
        let fours = self.n_pairs.iter().enumerate().flat_map(|(i, &n)| std::iter::repeat_n(i + 1, n));
        fours.zip(&self.blocks)
    }

    /// Bytes of the codes of a pair of `fours`.
    fn code_bytes(&self, fours: usize) -> usize {
        fours * 4 * self.lanes * if self.short { 1 } else { 2 }
    }

    /// Bytes of the scales and minima of a pair.
    fn scale_bytes(&self) -> usize {
        2 * 2 * self.lanes * if self.minima { 2 } else { 1 }
    }
}

/// See [`crate::Isa::column_layout`].
pub(crate) struct Layout<'a> {
    pub format: Format<'a>,
    pub n_out: usize,
    pub columns: &'a Columns,
}

impl Kernel for Layout<'_> {
    type Out = ColumnLayout;

    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> ColumnLayout {
        let Layout { format, n_out, columns } = self;
        let mut by_fours: [Vec<Kept>; BLOCK / 4] = Default::default();
        let mut first = 0;
        for (block, &mask) in columns.masks().iter().enumerate() {
            let n = mask.count_ones() as usize;
            if n > 0 {
                by_fours[(n - 1) / 4].push(Kept { block, mask, first, n });
            }
            first += n;
        }
        let short = matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q4K);
        let mut w = ColumnLayout {
            n_out,
            n_pairs: [0; BLOCK / 4],
            blocks: Vec::new(),
            short,
            minima: matches!(format, Format::Q4_1 | Format::Q4K),
            excess: match format {
                Format::Q4_0 => 8,
                _ if short => 0,
                _ => S::OFFSET,
            },
            lanes: S::LANES,
            tile_bytes: 0,
        };
        for (n_pairs, blocks) in w.n_pairs.iter_mut().zip(by_fours) {
            *n_pairs = blocks.len().div_ceil(2);
            w.blocks.extend(blocks.chunks(2).map(|p| [p[0], p.get(1).copied().unwrap_or_default()]));
        }
        w.tile_bytes = w.pairs().map(|(fours, _)| w.code_bytes(fours) + w.scale_bytes()).sum::<usize>() + 4 * S::LANES;
        w
    }
}

/// See [`crate::Isa::reduce_columns`].
pub(crate) struct Reduce<'a, R> {
    pub w: &'a ColumnLayout,
    pub row: R,
    pub n_in: usize,
    pub tiles: &'a mut [u8],
}

/// What a tile is made in.
struct Buffers {
    /// Codes of the rows, of pairs' first and of their second blocks: `[LANES][2][width]`, with room for what `compress_codes` writes
    /// behind
    codes: Vec<u8>,
    width: usize,
    /// Scales, then minima: `[2][pairs][2][LANES]`
    scales: Vec<f32>,
    floats: Vec<f32>,
    /// Where in a tile the vectors of codes are: each pair's four of both blocks
    places: Vec<usize>,
}

/// Writes one row's codes, and its scales and minima at lane `i`.
#[inline(always)]
fn reduce_row<S: Simd>(s: S, row: Row, w: &ColumnLayout, i: usize, buffers: &mut Buffers) {
    let Buffers { codes, scales, floats, width, .. } = buffers;
    let (a, b) = codes[2 * i * *width..2 * (i + 1) * *width].split_at_mut(*width);
    let mut codes = [a, b];
    // No closure: it would be without the instructions.
    macro_rules! blocks {
        ($block:ident => $all:expr, $d:expr, $m:expr) => {{
            let (mut at, mut lane, minima) = (0, i, 2 * S::LANES * w.blocks.len());
            for (fours, pair) in w.pairs() {
                for (kept, to) in pair.iter().zip(&mut codes) {
                    // Whatever the scale of a block is of which nothing is kept: nothing of it counts.
                    if kept.n > 0 {
                        let $block = kept.block;
                        s.compress_codes(&$all, kept.mask, &mut to[at..]);
                        scales[lane] = $d;
                        scales[minima + lane] = $m;
                    }
                    lane += S::LANES;
                }
                at += 4 * fours;
            }
        }};
    }
    let bytes = row.bytes;
    match row.format {
        Format::Q4_0 => blocks!(b => nibbles(&bytes[18 * b + 2..]), half(s, &bytes[18 * b..]), 0.0),
        Format::Q4_1 => {
            blocks!(b => nibbles(&bytes[20 * b + 4..]), half(s, &bytes[20 * b..]), half(s, &bytes[20 * b + 2..]))
        }
        Format::Q4K => {
            let n = floats.len() / BLOCK;
            let (all_d, all_m) = floats.split_at_mut(n);
            for (i, x) in bytes.chunks_exact(144).enumerate() {
                let (d, m) = q4_k_scales(s, x);
                all_d[8 * i..8 * i + 8].copy_from_slice(&d);
                all_m[8 * i..8 * i + 8].copy_from_slice(&m);
            }
            blocks!(b => half_of(&bytes[144 * (b / 8) + 16 + 32 * (b % 8 / 2)..], b % 2 == 1), all_d[b], all_m[b])
        }
        Format::Q8_0 => blocks!(b => *first(&bytes[34 * b + 2..]), half(s, &bytes[34 * b..]), 0.0),
        Format::Other(_) => {
            row.floats(s, floats);
            let mut all = Vec::with_capacity(floats.len().div_ceil(BLOCK));
            for x in floats.chunks(BLOCK) {
                let (d, inverse) = acts::scales(largest(x));
                let mut codes = [0u8; BLOCK];
                codes.iter_mut().zip(x).for_each(|(to, x)| *to = (x * inverse).round() as i8 as u8);
                all.push((codes, d));
            }
            blocks!(b => all[b].0, all[b].1, 0.0)
        }
    }
}

/// Largest magnitude; NaN if there is one.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, x| if x.abs() > a || x.is_nan() { x.abs() } else { a })
}

/// The first `N` bytes.
#[inline(always)]
fn first<const N: usize>(x: &[u8]) -> &[u8; N] {
    x.first_chunk().expect("a block's codes")
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
fn nibbles(x: &[u8]) -> [u8; BLOCK] {
    let mut all = [0u8; BLOCK];
    let (low, high) = all.split_at_mut(BLOCK / 2);
    for ((c, l), h) in first::<16>(x).iter().zip(low).zip(high) {
        *l = c & 15;
        *h = c >> 4;
    }
    all
}

/// The lower or the upper halves of 32 bytes.
#[inline(always)]
fn half_of(x: &[u8], upper: bool) -> [u8; BLOCK] {
    let mut all = *first::<BLOCK>(x);
    for c in &mut all {
        *c = if upper { *c >> 4 } else { *c & 15 };
    }
    all
}

/// Writes one tile: rows from `first` on.
#[inline(always)]
fn reduce_tile<'r, S: Simd>(
    s: S,
    row: &impl Fn(usize) -> Row<'r>,
    w: &ColumnLayout,
    first: usize,
    buffers: &mut Buffers,
    tile: &mut [u8],
) {
    let n_rows = S::LANES.min(w.n_out - first);
    if n_rows < S::LANES {
        buffers.codes.fill(0);
        buffers.scales.fill(0.0);
    }
    for i in 0..n_rows {
        reduce_row(s, row(first + i), w, i, buffers);
    }
    let Buffers { codes, width, scales, places, .. } = buffers;
    let offset = s.splat_i(if w.short { 0 } else { i32::from_le_bytes([S::OFFSET as u8; 4]) });
    let vector = 4 * S::LANES;
    let mut squares = [[s.splat_i(0); 16]; 2];
    for (n, places) in places.chunks(S::LANES).enumerate() {
        let [a, b] = &mut squares;
        let (a, b) = (&mut a[..S::LANES], &mut b[..S::LANES]);
        for i in 0..S::LANES {
            a[i] = s.load_i(&codes[2 * i * *width + n * vector..]);
            b[i] = s.load_i(&codes[(2 * i + 1) * *width + n * vector..]);
            if w.short {
                // Codes are less than 16.
                let mut sixteen = b[i];
                for _ in 0..4 {
                    sixteen = s.add_bytes(sixteen, sixteen);
                }
                a[i] = s.add_bytes(a[i], sixteen);
            }
        }
        s.transpose(a);
        if !w.short {
            s.transpose(b);
        }
        for (j, &place) in places.iter().enumerate() {
            s.store_i(s.add_bytes(a[j], offset), &mut tile[place..]);
            if !w.short {
                s.store_i(s.add_bytes(b[j], offset), &mut tile[place + vector..]);
            }
        }
    }
    let (d, m) = scales.split_at(2 * S::LANES * w.blocks.len());
    let mut most = [0.0f32; 16];
    let of_rows = [d, if w.minima { m } else { &[] }];
    for x in of_rows.iter().flat_map(|x| x.chunks_exact(S::LANES)) {
        for (most, x) in most.iter_mut().zip(x) {
            *most = if x.is_finite() { most.max(x.abs()) } else { *most };
        }
    }
    let (mut factors, mut inverses) = ([0.0f32; 16], [0.0f32; 16]);
    for ((to, inverse), most) in factors.iter_mut().zip(&mut inverses).zip(most) {
        *to = factor(most);
        *inverse = 1.0 / *to;
    }
    let inverse = s.load_f(&inverses);
    let mut at = 0;
    for ((fours, _), pair) in w.pairs().zip(0..) {
        at += w.code_bytes(fours);
        for x in of_rows.iter().filter(|x| !x.is_empty()) {
            for x in x[2 * S::LANES * pair..].chunks_exact(S::LANES).take(2) {
                s.store_half(s.mul(s.load_f(x), inverse), &mut tile[at..]);
                at += 2 * S::LANES;
            }
        }
    }
    s.store_i(s.as_i(s.load_f(&factors)), &mut tile[at..]);
}

/// What a row's scales and minima, the largest of them `most`, are divided by before they become 16-bit floats: a power of two, so
/// that nothing is lost, and so large that small ones keep their precision and none overflows.
#[inline(always)]
fn factor(most: f32) -> f32 {
    if most > 1e-30 && most < 1e30 { 2f32.powi(most.log2().ceil() as i32 - 14) } else { 1.0 }
}

impl<'r, R: Fn(usize) -> Row<'r>> Kernel for Reduce<'_, R> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Reduce { w, row, n_in, tiles } = self;
        assert!(w.lanes == S::LANES && tiles.len() == w.n_bytes(), "tiles of this instruction set");
        let (mut places, mut at) = (Vec::new(), 0);
        for (fours, _) in w.pairs() {
            places.extend((0..fours).map(|i| at + w.code_bytes(i)));
            at += w.code_bytes(fours) + w.scale_bytes();
        }
        let width = (4 * places.len()).next_multiple_of(4 * S::LANES) + BLOCK;
        let mut buffers = Buffers {
            codes: vec![0; 2 * S::LANES * width],
            width,
            scales: vec![0.0; 2 * 2 * w.blocks.len() * S::LANES],
            floats: vec![0.0; n_in],
            places,
        };
        for (i, tile) in tiles.chunks_exact_mut(w.tile_bytes).enumerate() {
            reduce_tile(s, &row, w, i * S::LANES, &mut buffers, tile);
        }
    }
}

/// A token's activations, ready for a matrix's kept columns.
#[derive(Debug)]
pub struct ColumnActs {
    /// Signed bytes, four by four of both blocks of each pair, with zeros where blocks are filled up
    fours: Vec<[i32; 2]>,
    /// Of each block of a pair: scale, sum of codes times scale, and what the codes' excess adds
    blocks: Vec<[(f32, f32, i32); 2]>,
}

/// See [`crate::Isa::column_acts`].
pub(crate) struct MakeActs<'a> {
    pub w: &'a ColumnLayout,
    pub x: &'a [f32],
}

impl Kernel for MakeActs<'_> {
    type Out = ColumnActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> ColumnActs {
        let MakeActs { w, x } = self;
        let mut acts = ColumnActs { fours: Vec::new(), blocks: Vec::with_capacity(w.blocks.len()) };
        acts.fours.reserve(w.pairs().map(|p| p.0).sum());
        let ones = s.splat_i(0x0101_0101);
        for (fours, pair) in w.pairs() {
            let mut codes = [[0u8; 64]; 2];
            let mut blocks = [(0.0, 0.0, 0); 2];
            for ((b, codes), block) in pair.iter().zip(&mut codes).zip(&mut blocks) {
                let mut floats = [0.0f32; BLOCK];
                floats[..b.n].copy_from_slice(&x[b.first..b.first + b.n]);
                let mut most = s.splat(0.0);
                for x in floats.chunks_exact(S::LANES) {
                    most = s.largest(most, s.load_f(x));
                }
                let (scale, inverse) = acts::scales(s.max_lane(most));
                let inverse = s.splat(inverse);
                for (x, codes) in floats.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
                    s.store_bytes(s.round(s.mul(s.load_f(x), inverse)), codes);
                }
                let mut sum = s.splat(0.0);
                for x in codes.chunks_exact(4 * S::LANES) {
                    sum = s.add(sum, s.to_f(s.dot(s.splat_i(0), ones, s.load_i(x))));
                }
                let sum = s.sum(sum);
                *block = (scale, sum * scale, -w.excess * sum as i32);
            }
            let [a, b] = &codes;
            for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(4)).take(fours) {
                let four = |c: &[u8]| i32::from_le_bytes([c[0], c[1], c[2], c[3]]);
                acts.fours.push([four(a), four(b)]);
            }
            acts.blocks.push(blocks);
        }
        acts
    }
}

/// See [`crate::Isa::multiply_columns`].
pub(crate) struct MultiplyColumns<'a> {
    pub w: &'a ColumnLayout,
    pub tiles: &'a [u8],
    pub acts: &'a ColumnActs,
    pub first: usize,
    pub out: &'a mut [f32],
}

/// What is left of a tile.
struct Rest<'a> {
    bytes: &'a [u8],
    fours: &'a [[i32; 2]],
    blocks: &'a [[(f32, f32, i32); 2]],
}

/// Adds the products of a tile's next pairs, those of `N` fours, to the sums of pairs' first and second blocks.
#[inline(always)]
fn add_pairs<S: Simd, const N: usize, const SHORT: bool>(
    s: S,
    w: &ColumnLayout,
    rest: &mut Rest,
    sums: &mut [S::F; 2],
) {
    let n = w.n_pairs[N - 1];
    let (vector, codes) = (4 * S::LANES, w.code_bytes(N));
    let size = codes + w.scale_bytes();
    let (bytes, later_bytes) = rest.bytes.split_at(n * size);
    let (fours, later_fours) = rest.fours.split_at(n * N);
    let (blocks, later_blocks) = rest.blocks.split_at(n);
    *rest = Rest { bytes: later_bytes, fours: later_fours, blocks: later_blocks };
    for ((pair, x), both) in bytes.chunks_exact(size).zip(fours.chunks_exact(N)).zip(blocks) {
        let (codes, scales) = pair.split_at(codes);
        let mut dots = [s.splat_i(both[0].2), s.splat_i(both[1].2)];
        for (x, c) in x.iter().zip(codes.chunks_exact(if SHORT { vector } else { 2 * vector })) {
            let a = s.load_i(c);
            let (a, b) = if SHORT { (s.low(a), s.high(a)) } else { (a, s.load_i(&c[vector..])) };
            dots[0] = s.dot(dots[0], a, s.splat_i(x[0]));
            dots[1] = s.dot(dots[1], b, s.splat_i(x[1]));
        }
        let (d, m) = scales.split_at(2 * vector / 2);
        for (i, &(scale, total, _)) in both.iter().enumerate() {
            let d = s.mul(s.load_half(&d[i * vector / 2..]), s.splat(scale));
            sums[i] = s.fma(s.to_f(dots[i]), d, sums[i]);
            if w.minima {
                sums[i] = s.fma(s.load_half(&m[i * vector / 2..]), s.splat(total), sums[i]);
            }
        }
    }
}

impl Kernel for MultiplyColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let MultiplyColumns { w, tiles, acts, first, out } = self;
        assert!(w.lanes == S::LANES && first.is_multiple_of(S::LANES), "tiles of this instruction set");
        let mut whole = [0.0f32; 16];
        for (i, out) in out.chunks_mut(S::LANES).enumerate() {
            let bytes = &tiles[(first / S::LANES + i) * w.tile_bytes..][..w.tile_bytes];
            let mut rest = Rest { bytes, fours: &acts.fours, blocks: &acts.blocks };
            let mut sums = [s.splat(0.0); 2];
            macro_rules! add {
                ($($n:literal)*) => {
                    $(if w.short {
                        add_pairs::<S, $n, true>(s, w, &mut rest, &mut sums);
                    } else {
                        add_pairs::<S, $n, false>(s, w, &mut rest, &mut sums);
                    })*
                };
            }
            add!(1 2 3 4 5 6 7 8);
            let factors = s.as_f(s.load_i(rest.bytes));
            s.store_f(s.mul(s.add(sums[0], sums[1]), factors), &mut whole);
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}
