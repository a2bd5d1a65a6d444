//! Reduced columns: some columns of a matrix, made once and multiplied with single tokens often, with the file's own codes and scales
//! where the weight type has them.
//!
//! Blocks of 32 inputs lose the inputs that are not kept, and are filled up to whole fours. Two blocks of as many fours are a pair: so the
//! length of blocks is known without looking at each, and a byte holds two codes of 4 bits from the same place of both. The matrix is
//! tiles of `LANES` rows. A tile holds the pairs, those of one four first, and then a factor for each row (F32):
//!
//! ```text
//! pair:  for each four:  a vector with four codes of each row: of the first block in the lower nibbles, of the second in the upper ones
//!                        (codes of 8 bits: a vector for the first block, one for the second)
//!        scales (F16):   of the first block for each row, then of the second
//!        minima (F16):   the same, if the weight type has them
//! ```
//!
//! Scales and minima are to be multiplied with the row's factor.

use crate::RowFn;
use crate::acts;
use crate::formats::{BLOCK, Format, Row, Weight, excess, is_row, with_weight};
use crate::isa::{Kernel, Simd};

/// Which inputs of a matrix are kept.
#[derive(Debug, Clone)]
pub struct Columns {
    /// A bit for each input, 32 by 32
    masks: Vec<u32>,
    n: usize,
}

impl Columns {
    /// Of a matrix of `n_in` inputs, which are units of `width` inputs each, the units `kept`, ascending.
    ///
    /// # Panics
    /// If a unit is negative or beyond the matrix.
    pub fn new(kept: &[i32], width: usize, n_in: usize) -> Columns {
        let mut masks = vec![0u32; n_in.div_ceil(32)];
        for &unit in kept {
            let first = usize::try_from(unit).expect("units are counted from 0") * width;
            assert!(first + width <= n_in, "a unit of the matrix");
            (first..first + width).for_each(|i| masks[i / 32] |= 1 << (i % 32));
        }
        let n = masks.iter().map(|m| m.count_ones() as usize).sum();
        Columns { masks, n }
    }

    /// The number of kept inputs.
    pub fn len(&self) -> usize {
        self.n
    }

    /// A bit for each input of the matrix, 32 by 32.
    pub(crate) fn masks(&self) -> &[u32] {
        &self.masks
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// What is kept of a block.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// Number of the block
    block: usize,
    /// A bit for each input
    mask: u32,
    /// Number of its first kept input among all kept inputs
    first: usize,
    /// Its kept inputs
    n: usize,
}

/// How the kept columns of a matrix lie in memory; see [`crate::Isa::reduce_columns`].
#[derive(Debug)]
pub struct ColumnLayout {
    n_out: usize,
    /// How many pairs there are of one four, of two fours and so on
    n_pairs: [usize; BLOCK / 4],
    /// The blocks, pair by pair. The last of an odd number of blocks is paired with one of which nothing is kept
    blocks: Vec<[Kept; 2]>,
    /// Whether codes have 4 bits: see [`Weight::BITS`]
    nibbles: bool,
    /// See [`Weight::MINIMA`]
    minima: bool,
    /// See [`excess`]
    excess: i32,
    /// Rows of a tile: lanes of the instruction set
    lanes: usize,
    tile_bytes: usize,
}

impl ColumnLayout {
    /// Bytes of all tiles.
    pub fn n_bytes(&self) -> usize {
        self.n_out.div_ceil(self.lanes) * self.tile_bytes
    }

    /// Rows of the matrix.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Bytes of a row: a tile's share.
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
        fours * 4 * self.lanes * if self.nibbles { 1 } else { 2 }
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
    fn call<S: Simd>(self, _s: S) -> ColumnLayout {
        with_weight!(self.format, w => layout::<S, _>(w, self.n_out, self.columns))
    }
}

#[inline(always)]
fn layout<S: Simd, W: Weight>(_: W, n_out: usize, columns: &Columns) -> ColumnLayout {
    let mut by_fours: [Vec<Kept>; BLOCK / 4] = Default::default();
    let mut first = 0;
    for (block, &mask) in columns.masks().iter().enumerate() {
        let n = mask.count_ones() as usize;
        if n > 0 {
            by_fours[(n - 1) / 4].push(Kept { block, mask, first, n });
        }
        first += n;
    }
    let mut w = ColumnLayout {
        n_out,
        n_pairs: [0; BLOCK / 4],
        blocks: Vec::new(),
        nibbles: W::BITS == 4,
        minima: W::MINIMA,
        excess: excess::<S, W>(),
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

/// See [`crate::Isa::reduce_columns`].
pub(crate) struct Reduce<'a, 'r> {
    pub w: &'a ColumnLayout,
    pub row: RowFn<'a, 'r>,
    pub n_in: usize,
    pub tiles: &'a mut [u8],
}

/// What a tile is made of.
struct Buffers {
    /// Codes of each row, of pairs' first blocks and of their second ones: `[LANES][2][width]`
    codes: Vec<u8>,
    /// Fours of all pairs in bytes, and room for a block, which `compress_codes` may write behind
    width: usize,
    /// Scales, then minima: `[2][pairs][2][LANES]`
    scales: Vec<f32>,
    /// See [`Weight::prepare`]
    scratch: Vec<f32>,
    /// See [`Weight::block`]. It is on the heap, as of an array on the stack the compiler computes each byte by itself for AVX2
    room: Box<[u8; BLOCK]>,
    /// Where in a tile the codes of each four are
    places: Vec<usize>,
}

/// Writes one row's codes, and its scales and minima at lane `i`.
struct ReduceRow<'a, W> {
    weight: W,
    bytes: &'a [u8],
    w: &'a ColumnLayout,
    i: usize,
    buffers: &'a mut Buffers,
}

impl<W: Weight> Kernel for ReduceRow<'_, W> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        reduce_row(s, self)
    }
}

#[inline(always)]
fn reduce_row<S: Simd, W: Weight>(s: S, row: ReduceRow<W>) {
    let ReduceRow { weight, bytes, w, i, buffers } = row;
    let Buffers { codes, scales, scratch, room, width, .. } = buffers;
    let (a, b) = codes[2 * i * *width..2 * (i + 1) * *width].split_at_mut(*width);
    let mut codes = [a, b];
    weight.prepare(s, bytes, scratch);
    let (mut at, mut lane, minima) = (0, i, 2 * S::LANES * w.blocks.len());
    for (fours, pair) in w.pairs() {
        for (kept, to) in pair.iter().zip(&mut codes) {
            // A block of which nothing is kept keeps its scale of 0, as its own may be NaN.
            if kept.n > 0 {
                let (codes, scale, minimum) = weight.block(s, bytes, scratch, kept.block, room);
                s.compress_codes(codes, kept.mask, &mut to[at..]);
                scales[lane] = scale;
                scales[minima + lane] = minimum;
            }
            lane += S::LANES;
        }
        at += 4 * fours;
    }
}

/// Writes one tile: rows from `first` on.
#[inline(always)]
fn reduce_tile<S: Simd>(s: S, row: RowFn, w: &ColumnLayout, first: usize, buffers: &mut Buffers, tile: &mut [u8]) {
    let n_rows = S::LANES.min(w.n_out - first);
    if n_rows < S::LANES {
        buffers.codes.fill(0);
        buffers.scales.fill(0.0);
    }
    for i in 0..n_rows {
        let Row { bytes, format } = row(first + i);
        assert!(with_weight!(format, w => is_row(w, bytes, buffers.scratch.len())), "a row of the matrix");
        with_weight!(format, weight => s.run(ReduceRow { weight, bytes, w, i, buffers }));
    }
    let Buffers { codes, width, scales, places, .. } = buffers;
    let offset = s.splat_i(if w.nibbles { 0 } else { i32::from_le_bytes([S::OFFSET as u8; 4]) });
    let vector = 4 * S::LANES;
    let mut squares = [[s.splat_i(0); 16]; 2];
    for (n, places) in places.chunks(S::LANES).enumerate() {
        let [a, b] = &mut squares;
        let (a, b) = (&mut a[..S::LANES], &mut b[..S::LANES]);
        for i in 0..S::LANES {
            a[i] = s.load_i(&codes[2 * i * *width + n * vector..]);
            b[i] = s.load_i(&codes[(2 * i + 1) * *width + n * vector..]);
            if w.nibbles {
                // The second block's codes go to the upper nibbles.
                let mut times_16 = b[i];
                for _ in 0..4 {
                    times_16 = s.add_bytes(times_16, times_16);
                }
                a[i] = s.add_bytes(a[i], times_16);
            }
        }
        s.transpose(a);
        if !w.nibbles {
            s.transpose(b);
        }
        for (j, &place) in places.iter().enumerate() {
            s.store_i(s.add_bytes(a[j], offset), &mut tile[place..]);
            if !w.nibbles {
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
                s.store_f16(s.mul(s.load_f(x), inverse), &mut tile[at..]);
                at += 2 * S::LANES;
            }
        }
    }
    s.store_i(s.as_i(s.load_f(&factors)), &mut tile[at..]);
}

/// What a row's scales and minima, the largest of them `most`, are divided by before they become 16-bit floats: a power of two, so that
/// the division is exact, chosen so that none overflows and small ones keep their precision.
#[inline(always)]
fn factor(most: f32) -> f32 {
    if most > 1e-30 && most < 1e30 { 2f32.powi(most.log2().ceil() as i32 - 14) } else { 1.0 }
}

impl Kernel for Reduce<'_, '_> {
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
            scratch: vec![0.0; n_in],
            room: Box::new([0; BLOCK]),
            places,
        };
        for (i, tile) in tiles.chunks_exact_mut(w.tile_bytes).enumerate() {
            reduce_tile(s, row, w, i * S::LANES, &mut buffers, tile);
        }
    }
}

/// A token's activations, made ready for a layout by [`crate::Isa::column_acts`].
#[derive(Debug)]
pub struct ColumnActs {
    /// For each four of each pair four codes, bytes with sign, of the first block and four of the second, with zeros where blocks are
    /// filled up
    fours: Vec<[i32; 2]>,
    /// Pair by pair
    blocks: Vec<[BlockActs; 2]>,
}

/// What belongs to the activations of a block.
#[derive(Debug, Clone, Copy, Default)]
struct BlockActs {
    scale: f32,
    /// Sum of the activations
    sum: f32,
    /// What a dot product begins with: the sum of the codes, times what weights' codes have too much, negative
    start: i32,
}

/// See [`crate::Isa::column_acts`].
pub(crate) struct MakeColumnActs<'a> {
    pub w: &'a ColumnLayout,
    pub x: &'a [f32],
}

impl Kernel for MakeColumnActs<'_> {
    type Out = ColumnActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> ColumnActs {
        let MakeColumnActs { w, x } = self;
        let mut acts = ColumnActs { fours: Vec::new(), blocks: Vec::with_capacity(w.blocks.len()) };
        acts.fours.reserve(w.pairs().map(|p| p.0).sum());
        let ones = s.splat_i(0x0101_0101);
        for (fours, pair) in w.pairs() {
            let mut codes = [[0u8; 64]; 2];
            let mut blocks = [BlockActs::default(); 2];
            for ((b, codes), block) in pair.iter().zip(&mut codes).zip(&mut blocks) {
                let mut floats = [0.0f32; BLOCK];
                floats[..b.n].copy_from_slice(&x[b.first..b.first + b.n]);
                let mut most = s.splat(0.0);
                for x in floats.chunks_exact(S::LANES) {
                    most = s.max_abs(most, s.load_f(x));
                }
                let (scale, inverse) = acts::scales(s.reduce_max_or_nan(most));
                let inverse = s.splat(inverse);
                for (x, codes) in floats.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
                    s.store_bytes(s.round(s.mul(s.load_f(x), inverse)), codes);
                }
                let mut sum = s.splat(0.0);
                for x in codes.chunks_exact(4 * S::LANES) {
                    sum = s.add(sum, s.to_f(s.dot(s.splat_i(0), ones, s.load_i(x))));
                }
                let sum = s.reduce_sum(sum);
                *block = BlockActs { scale, sum: sum * scale, start: -w.excess * sum as i32 };
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

/// See [`crate::Isa::gemv_columns`].
pub(crate) struct GemvColumns<'a> {
    pub w: &'a ColumnLayout,
    pub tiles: &'a [u8],
    pub acts: &'a ColumnActs,
    pub first: usize,
    pub out: &'a mut [f32],
}

/// The pairs of a tile that are still to be multiplied.
struct Rest<'a> {
    bytes: &'a [u8],
    fours: &'a [[i32; 2]],
    blocks: &'a [[BlockActs; 2]],
}

/// Adds the products of a tile's next pairs, which are those of `N` fours, to the sums of first and of second blocks.
#[inline(always)]
fn add_pairs<S: Simd, const N: usize, const NIBBLES: bool>(
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
        // Codes of 4 bits in up to eight fours make a small sum.
        let is_small = NIBBLES && S::SMALL_SUMS;
        let starts = [s.splat_i(both[0].start), s.splat_i(both[1].start)];
        let mut dots = if is_small { [s.splat_i(0); 2] } else { starts };
        for (x, c) in x.iter().zip(codes.chunks_exact(if NIBBLES { vector } else { 2 * vector })) {
            let a = s.load_i(c);
            let (a, b) = if NIBBLES { (s.low_nibbles(a), s.high_nibbles(a)) } else { (a, s.load_i(&c[vector..])) };
            let x = [s.splat_i(x[0]), s.splat_i(x[1])];
            dots = match is_small {
                true => [s.add_products(dots[0], a, x[0]), s.add_products(dots[1], b, x[1])],
                false => [s.dot(dots[0], a, x[0]), s.dot(dots[1], b, x[1])],
            };
        }
        if is_small {
            dots = [s.add_i(starts[0], s.whole(dots[0])), s.add_i(starts[1], s.whole(dots[1]))];
        }
        let (d, m) = scales.split_at(vector);
        for (i, x) in both.iter().enumerate() {
            let d = s.mul(s.load_f16(&d[i * vector / 2..]), s.splat(x.scale));
            sums[i] = s.fma(s.to_f(dots[i]), d, sums[i]);
            if w.minima {
                sums[i] = s.fma(s.load_f16(&m[i * vector / 2..]), s.splat(x.sum), sums[i]);
            }
        }
    }
}

impl Kernel for GemvColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let GemvColumns { w, tiles, acts, first, out } = self;
        assert!(w.lanes == S::LANES && first.is_multiple_of(S::LANES), "tiles of this instruction set");
        let mut whole = [0.0f32; 16];
        for (i, out) in out.chunks_mut(S::LANES).enumerate() {
            let bytes = &tiles[(first / S::LANES + i) * w.tile_bytes..][..w.tile_bytes];
            let mut rest = Rest { bytes, fours: &acts.fours, blocks: &acts.blocks };
            let mut sums = [s.splat(0.0); 2];
            macro_rules! add {
                ($($n:literal)*) => {
                    $(if w.nibbles {
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
