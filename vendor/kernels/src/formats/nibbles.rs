//! What types with codes of 4 or 5 bits share.
//!
//! The functions for gemv are for blocks of 32 inputs whose codes are the last 16 bytes: the lower nibbles are the codes of the first 16
//! inputs, the upper ones those of the others. Codes of 5 bits have their fifth ones in the four bytes before, a bit for each input. [`Nibbles`]
//! says what else is there.

use super::BLOCK;
use crate::acts::Acts;
use crate::gemv::{GemvActs, Lanes, PIECE, Rows, Step, Sums, vector};
use crate::isa::Simd;
use crate::panel::{PanelRow, scales_of, share};

/// The codes of a block of 32: the lower nibbles of 16 bytes, then the upper ones.
#[inline(always)]
pub(crate) fn codes(bytes: &[u8]) -> [u8; BLOCK] {
    let mut all = [0u8; BLOCK];
    let (low, high) = all.split_at_mut(BLOCK / 2);
    for ((c, l), h) in bytes[..BLOCK / 2].iter().zip(low).zip(high) {
        *l = c & 15;
        *h = c >> 4;
    }
    all
}

/// For 16 blocks of weights `d * code + m`: the scales of their 8-bit codes, of which `SHARE` blocks each have the same. A code becomes
/// `d * code + m` of what `d` and `m` are changed to, rounded; see [`panel_codes`].
#[inline(always)]
pub(crate) fn panel_scales<S: Simd, const SHARE: usize>(s: S, d: &mut [f32; 16], m: &mut [f32; 16]) -> [f32; 16] {
    let mut scales = [0.0; 16];
    for i in (0..16).step_by(S::LANES) {
        let (first, least) = (s.load_f(&d[i..]), s.load_f(&m[i..]));
        let last = s.fma(first, s.splat(15.0), least);
        s.store_f(s.max_abs(s.max_abs(s.splat(0.0), least), last), &mut scales[i..]);
    }
    share(&mut scales, SHARE);
    for i in (0..16).step_by(S::LANES) {
        let (scale, inverse) = scales_of(s, s.load_f(&scales[i..]));
        s.store_f(scale, &mut scales[i..]);
        for x in [&mut *d, &mut *m] {
            s.store_f(s.mul(s.load_f(&x[i..]), inverse), &mut x[i..]);
        }
    }
    scales
}

/// The 8-bit codes that the 16 codes of 4 bits become, of two blocks; `d` and `m` are what [`panel_scales`] made of them.
#[inline(always)]
pub(crate) fn panel_codes<S: Simd>(s: S, d: &[f32], m: &[f32]) -> [[u8; 16]; 2] {
    const IOTA: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    let mut tables = [[0u8; 16]; 2];
    for i in 0..2 {
        for j in (0..16).step_by(S::LANES) {
            let code = s.fma(s.load_f(&IOTA[j..]), s.splat(d[i]), s.splat(m[i]));
            s.store_bytes(s.round(code), &mut tables[i][j..]);
        }
    }
    tables
}

/// Looked up, codes stay what they are.
pub(crate) const IDENTITY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// See [`super::Weight::small_row`]: of blocks of `BYTES` bytes, whose scale and minimum `scales` reads. Codes of 4 bits become those of a table;
/// with `FIFTH` codes have 5 bits, and the table is [`IDENTITY`].
#[inline(always)]
pub(crate) fn small_row<S: Simd, const BYTES: usize, const FIFTH: bool>(
    s: S,
    row: &[u8],
    table: &[u8; 16],
    scales: impl Fn(&[u8]) -> (f32, f32),
    out: PanelRow,
) {
    // A row of an odd number of blocks is filled up with a block of zeros.
    let none = [0u8; BYTES];
    for (i, (pair, codes)) in row.chunks(2 * BYTES).zip(out.codes.chunks_exact_mut(2 * BLOCK)).enumerate() {
        let (a, b) = pair.split_at(BYTES);
        let b = if b.is_empty() { &none[..] } else { b };
        s.look_up([&a[BYTES - 16..], &b[BYTES - 16..]], &[*table; 2], codes);
        if FIFTH {
            add_fifth(s, [a, b], codes);
        }
        let ((a, m), (b, n)) = (scales(a), scales(b));
        small_scales(&[a, b], &[m, n], 2 * i, out.scales, out.minima);
    }
}

/// Adds their fifth bits to the codes of two blocks.
#[inline(always)]
fn add_fifth<S: Simd>(s: S, [a, b]: [&[u8]; 2], codes: &mut [u8]) {
    let bits = u64::from(fifth_bits(a)) | u64::from(fifth_bits(b)) << 32;
    for (i, codes) in codes.chunks_exact_mut(4 * S::LANES).enumerate() {
        s.store_i(s.add_bytes(s.load_i(codes), s.sixteens(bits >> (4 * S::LANES * i))), codes);
    }
}

/// Writes scales and minima of some blocks, from block `first` on. As in the other types, an infinite one makes its block NaN.
#[inline(always)]
pub(crate) fn small_scales(d: &[f32], m: &[f32], first: usize, scales: &mut [f32], minima: &mut [f32]) {
    for (i, (d, m)) in d.iter().zip(m).enumerate() {
        scales[first + i] = d + d * 0.0;
        minima[first + i] = m + m * 0.0;
    }
}

/// A type with such blocks whose codes stand for bytes with sign, times the block's scale.
pub(crate) trait Table {
    /// Of a block
    const BYTES: usize;
    /// What the codes stand for
    const VALUES: [u8; 16];

    /// The scale of a block.
    fn scale<S: Simd>(s: S, block: &[u8]) -> f32;
}

/// Integers as bytes with sign.
pub(crate) const fn bytes(values: [i8; 16]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = values[i] as u8;
        i += 1;
    }
    bytes
}

/// Bytes, with something added to each: what [`Simd::dot`] takes as weights.
pub(crate) const fn with_offset(mut bytes: [u8; 16], offset: i32) -> [u8; 16] {
    let mut i = 0;
    while i < 16 {
        bytes[i] = bytes[i].wrapping_add(offset as u8);
        i += 1;
    }
    bytes
}

/// See [`super::Weight::panel_row`]: codes of panels are the values, and their scales the blocks'.
#[inline(always)]
pub(crate) fn panel_row<S: Simd, W: Table>(s: S, row: &[u8], out: PanelRow) {
    // A row of an odd number of blocks is filled up with a block of zeros.
    let none = [0u8; MAX_BYTES];
    let codes = out.codes.chunks_exact_mut(2 * BLOCK);
    for ((pair, codes), to) in row.chunks(2 * W::BYTES).zip(codes).zip(out.scales.chunks_exact_mut(2)) {
        let (a, b) = pair.split_at(W::BYTES);
        let b = if b.is_empty() { &none[..W::BYTES] } else { b };
        s.look_up([&a[W::BYTES - 16..], &b[W::BYTES - 16..]], &[W::VALUES; 2], codes);
        // An infinite scale makes its block NaN, as in the other types.
        let (a, b) = (W::scale(s, a), W::scale(s, b));
        to.copy_from_slice(&[a + a * 0.0, b + b * 0.0]);
    }
}

/// A type with such blocks. The first methods read `S::LANES / 4` of them, each into four lanes.
pub(crate) trait Nibbles {
    /// Of a block
    const BYTES: usize;
    /// Blocks have a minimum, which is added to each weight
    const MINIMA: bool;
    /// What [`Nibbles::codes`] gives are the codes themselves, of 4 or 5 bits
    const ARE_CODES: bool;

    /// Scales and, with [`Nibbles::MINIMA`], minima.
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> [S::F; 2];

    /// What [`Simd::dot`] takes as weights, for the lower and for the upper nibbles.
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; 2];
}

/// The largest block of any of these types.
const MAX_BYTES: usize = 24;

/// The codes of 5 bits of blocks of `BYTES` bytes, for the lower and for the upper nibbles.
#[inline(always)]
pub(crate) fn step_codes_of_five<S: Simd, const BYTES: usize>(s: S, blocks: &[u8]) -> [S::I; 2] {
    let c = s.load_pieces::<BYTES>(&blocks[BYTES - 16..]);
    let (mut low, mut high) = (0, 0);
    for (i, b) in blocks.chunks_exact(BYTES).enumerate().take(step_blocks::<S>()) {
        let bits = fifth_bits(b);
        low |= u64::from(bits & 0xffff) << (16 * i);
        high |= u64::from(bits >> 16) << (16 * i);
    }
    [s.add_bytes(s.low_nibbles(c), s.sixteens(low)), s.add_bytes(s.high_nibbles(c), s.sixteens(high))]
}

/// The fifth bits of a block's codes.
#[inline(always)]
fn fifth_bits(block: &[u8]) -> u32 {
    let at = block.len() - 20;
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Writes the values of a row of blocks of `BYTES` bytes with codes of 5 bits, whose scale and minimum `scales` reads.
#[inline(always)]
pub(crate) fn decode_five<S: Simd, const BYTES: usize>(
    s: S,
    row: &[u8],
    scales: impl Fn(&[u8]) -> (f32, f32),
    out: &mut [f32],
) {
    // A row of an odd number of blocks is filled up with a block of zeros.
    let none = [0u8; BYTES];
    let mut codes = [0u8; 2 * BLOCK];
    for (pair, out) in row.chunks(2 * BYTES).zip(out.chunks_mut(2 * BLOCK)) {
        let (a, b) = pair.split_at(BYTES);
        let b = if b.is_empty() { &none[..] } else { b };
        s.look_up([&a[BYTES - 16..], &b[BYTES - 16..]], &[IDENTITY; 2], &mut codes);
        add_fifth(s, [a, b], &mut codes);
        let blocks = pair.chunks_exact(BYTES).zip(codes.chunks_exact(BLOCK)).zip(out.chunks_exact_mut(BLOCK));
        for ((b, codes), out) in blocks {
            let (d, m) = scales(b);
            let (d, m) = (s.splat(d), s.splat(m));
            for (c, x) in codes.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                s.store_f(s.fma(s.load_i8(c), d, m), x);
            }
        }
    }
}

/// The codes of 5 bits of a block.
#[inline(always)]
pub(crate) fn codes_of_five(block: &[u8]) -> [u8; BLOCK] {
    let (mut all, bits) = (codes(&block[block.len() - 16..]), fifth_bits(block));
    for (i, c) in all.iter_mut().enumerate() {
        *c |= ((bits >> i & 1) << 4) as u8;
    }
    all
}

/// Blocks of a step of [`dot`]: as many as a vector has fours of lanes.
pub(crate) const fn step_blocks<S: Simd>() -> usize {
    S::LANES / 4
}

/// Activations for [`dot`]. In each step come those of the blocks' lower nibbles, block by block, then those of the upper ones.
///
/// If the last step is not full, it takes the row's last blocks, so that a whole vector can be read: the activations of blocks that the
/// step before it has had already are zeros. Codes have `excess` too much, or blocks a minimum.
#[inline(always)]
pub(crate) fn gemv_acts<S: Simd>(acts: Acts, excess: Option<i32>) -> GemvActs {
    let (n_blocks, n_inputs) = (step_blocks::<S>(), step_blocks::<S>() * BLOCK);
    let lanes = Lanes { fours: n_blocks, per_block: 4, excess };
    GemvActs::arrange(acts, n_inputs, Some(lanes), |step, i| {
        let (first, end) = (step * n_inputs, (step + 1) * n_inputs);
        let (upper, block) = (i / n_blocks, i % n_blocks);
        let at = first + block * BLOCK + upper * PIECE;
        let back = if acts.k() >= n_inputs { end.saturating_sub(acts.k()) } else { 0 };
        (at >= first + back).then(|| at - back)
    })
}

/// Products of some rows.
#[inline(always)]
pub(crate) fn dot<S: Simd, W: Nibbles, const T: usize, const R: usize>(
    s: S,
    mut rows: Rows<R>,
    acts: &GemvActs,
) -> Sums<S, T, R> {
    let mut acc = [[s.splat(0.0); T]; R];
    let n = step_blocks::<S>() * W::BYTES;
    for x in steps::<S, T>(acts) {
        if rows.len() >= n {
            let blocks = rows.next(s, n);
            add_step::<S, W, T, R>(s, blocks, x, &mut acc);
        } else {
            // See `gemv_acts`. A row that is shorter than a step is filled up with zeros; a step is at most four blocks.
            let mut filled = [[0u8; 4 * MAX_BYTES]; R];
            let mut blocks = rows.whole;
            for (blocks, filled) in blocks.iter_mut().zip(&mut filled) {
                *blocks = match blocks.len().checked_sub(n) {
                    Some(first) => &blocks[first..],
                    None => {
                        filled[..blocks.len()].copy_from_slice(blocks);
                        &filled[..n]
                    }
                };
            }
            add_step::<S, W, T, R>(s, blocks, x, &mut acc);
        }
    }
    acc
}

/// The steps of [`gemv_acts`], in order.
#[inline(always)]
pub(crate) fn steps<S: Simd, const T: usize>(acts: &GemvActs) -> impl Iterator<Item = Step<'_>> {
    acts.steps::<T>(step_units::<S>(), step_blocks::<S>())
}

/// Units of a token's codes in a step.
const fn step_units<S: Simd>() -> usize {
    (step_blocks::<S>() * BLOCK).div_ceil(64)
}

/// Adds the products with the rows' blocks of a step to their sums.
#[inline(always)]
fn add_step<S: Simd, W: Nibbles, const T: usize, const R: usize>(
    s: S,
    blocks: [&[u8]; R],
    x: Step,
    acc: &mut Sums<S, T, R>,
) {
    let mut codes = [[s.splat_i(0); 2]; R];
    let mut scales = [[s.splat(0.0); 2]; R];
    for r in 0..R {
        codes[r] = W::codes(s, blocks[r]);
        scales[r] = W::scales(s, blocks[r]);
    }
    add_products::<S, T, R>(s, &codes, W::ARE_CODES, &scales, W::MINIMA, x, acc);
}

/// The same with codes of the blocks' lower and upper nibbles, that are [codes](Nibbles::ARE_CODES) or not, and their scales and, if they have
/// some, minima, each in four lanes.
#[inline(always)]
pub(crate) fn add_products<S: Simd, const T: usize, const R: usize>(
    s: S,
    codes: &[[S::I; 2]; R],
    are_codes: bool,
    scales: &[[S::F; 2]; R],
    minima: bool,
    x: Step,
    acc: &mut Sums<S, T, R>,
) {
    let n_blocks = step_blocks::<S>();
    for t in 0..T {
        let scale = s.each_four(&x.scales[t * n_blocks..]);
        let sum = s.each_four(&x.sums[t * n_blocks..]);
        // With minima, codes have no excess.
        let start = if minima { s.splat_i(0) } else { s.round(sum) };
        let at = t * step_units::<S>() * 64;
        let (lower, upper) = (vector(s, x.codes, at), vector(s, x.codes, at + 4 * S::LANES));
        for r in 0..R {
            let [low, high] = codes[r];
            let dots = match S::SMALL_SUMS && are_codes {
                true => {
                    let small = s.add_products(s.add_products(s.splat_i(0), low, lower), high, upper);
                    s.add_i(start, s.whole(small))
                }
                false => s.dot(s.dot(start, low, lower), high, upper),
            };
            acc[r][t] = s.fma(s.to_f(dots), s.mul(scales[r][0], scale), acc[r][t]);
            if minima {
                acc[r][t] = s.fma(sum, scales[r][1], acc[r][t]);
            }
        }
    }
}
