//! What types with codes of 4 or 5 bits share.
//!
//! The functions for gemv are for blocks of 32 inputs whose codes are the last 16 bytes: the lower nibbles are the codes of the first 16
//! inputs, the upper ones those of the others. Codes of 5 bits have their fifth ones in the four bytes before, a bit for each input. [`Nibbles`]
//! says what else is there.

use super::BLOCK;
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Step, Sums, vector};
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

/// A type with such blocks. The methods read `S::LANES` of them, a lane for each.
pub(crate) trait Nibbles {
    /// Of a block
    const BYTES: usize;
    /// Bits of what [`Nibbles::codes`] gives: codes without sign of 4 or 5 bits, or bytes as [`Simd::dot`] takes them
    const BITS: u32;

    /// Scales, and what is added to a scale times what [`Nibbles::codes`] gives: a minimum, or what those have too much, or `None` if nothing is.
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>);

    /// The codes: of their block vector `i` has those from `4 * i` on.
    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; VECTORS] {
        step_codes::<S>(s, &blocks[Self::BYTES - 16..], Self::BYTES)
    }
}

/// Vectors of codes of as many blocks as there are lanes.
pub(crate) const VECTORS: usize = BLOCK / 4;

/// The largest block of any of these types.
const MAX_BYTES: usize = 24;

/// Codes of 4 bits, see [`Nibbles::codes`]: each block's are 16 bytes, and from those of one to those of the next it is `stride` bytes.
#[inline(always)]
pub(crate) fn step_codes<S: Simd>(s: S, bytes: &[u8], stride: usize) -> [S::I; VECTORS] {
    let mut pieces = [s.splat_i(0); 4];
    for (i, piece) in pieces.iter_mut().enumerate() {
        *piece = s.load_pieces(&bytes[i * stride..], 4 * stride);
    }
    s.transpose_fours(&mut pieces);
    let mut codes = [s.splat_i(0); VECTORS];
    for i in 0..4 {
        (codes[i], codes[4 + i]) = (s.low_nibbles(pieces[i]), s.high_nibbles(pieces[i]));
    }
    codes
}

/// The same looked up in a table.
#[inline(always)]
pub(crate) fn step_values<S: Simd>(s: S, table: &[u8; 16], bytes: &[u8], stride: usize) -> [S::I; VECTORS] {
    let mut codes = step_codes(s, bytes, stride);
    for code in &mut codes {
        *code = s.look_up_bytes(table, *code);
    }
    codes
}

/// What is added to scales times bytes that have the offset of [`Simd::dot`].
#[inline(always)]
pub(crate) fn offset<S: Simd>(s: S, scales: S::F) -> Option<S::F> {
    if S::OFFSET == 0 { None } else { Some(s.mul(scales, s.splat(-S::OFFSET as f32))) }
}

/// The codes of 5 bits of blocks of `BYTES` bytes.
#[inline(always)]
pub(crate) fn step_codes_of_five<S: Simd, const BYTES: usize>(s: S, blocks: &[u8]) -> [S::I; VECTORS] {
    let mut codes = step_codes(s, &blocks[BYTES - 16..], BYTES);
    let bits = s.load_words(&blocks[BYTES - 20..], BYTES);
    for (i, code) in codes.iter_mut().enumerate() {
        *code = s.add_bytes(*code, s.sixteens_of_four(bits, i));
    }
    codes
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

/// Activations for [`dot`]. A step is as many blocks as there are lanes.
///
/// If the last step is not full, it takes the row's last blocks, so that it can be read as a whole: the activations of blocks that the step before
/// it has had already are zeros, and those of blocks that a short row lacks.
#[inline(always)]
pub(crate) fn gemv_acts<S: Simd>(acts: Acts) -> GemvActs {
    let mut made = GemvActs::by_fours(acts, S::LANES * BLOCK, |i| i % S::LANES * BLOCK + i / S::LANES * 4);
    made.add_lanes::<S>(acts);
    made
}

/// Products of some rows.
#[inline(always)]
pub(crate) fn dot<S: Simd, W: Nibbles, const T: usize, const R: usize>(
    s: S,
    mut rows: Rows<R>,
    acts: &GemvActs,
) -> Sums<S, T, R> {
    let mut acc = [[s.splat(0.0); T]; R];
    let n = S::LANES * W::BYTES;
    for x in steps::<S, T>(acts) {
        if rows.len() >= n {
            let blocks = rows.next(s, n);
            add_step::<S, W, T, R>(s, blocks, x, &mut acc);
        } else {
            // See `gemv_acts`. A row that is shorter than a step is filled up with zeros.
            let mut filled = [[0u8; 16 * MAX_BYTES]; R];
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
    acts.steps::<T>(S::LANES * BLOCK / 64, S::LANES)
}

/// Adds the products with the rows' blocks of a step to their sums.
#[inline(always)]
fn add_step<S: Simd, W: Nibbles, const T: usize, const R: usize>(
    s: S,
    blocks: [&[u8]; R],
    x: Step,
    acc: &mut Sums<S, T, R>,
) {
    let mut codes = [[s.splat_i(0); VECTORS]; R];
    let mut scales = [(s.splat(0.0), None); R];
    for r in 0..R {
        codes[r] = W::codes(s, blocks[r]);
        scales[r] = W::scales(s, blocks[r]);
    }
    add_products::<S, T, R>(s, &codes, W::BITS, &scales, x, acc);
}

/// The same with the blocks' codes, of so many [`Nibbles::BITS`], and their scales.
#[inline(always)]
pub(crate) fn add_products<S: Simd, const T: usize, const R: usize>(
    s: S,
    codes: &[[S::I; VECTORS]; R],
    bits: u32,
    scales: &[(S::F, Option<S::F>); R],
    x: Step,
    acc: &mut Sums<S, T, R>,
) {
    let bytes = 4 * S::LANES;
    for t in 0..T {
        let (x_scale, x_sum) = (s.load_f(&x.scales[t * S::LANES..]), s.load_f(&x.sums[t * S::LANES..]));
        for r in 0..R {
            // A small sum has room for all products of codes of 4 bits, for half of those of 5 bits.
            let mut sums = [s.splat_i(0); 2];
            for i in 0..VECTORS {
                let (half, x) = (i * 2 / VECTORS, vector(s, x.codes, (t * VECTORS + i) * bytes));
                match (S::SMALL_SUMS, bits) {
                    (true, 4) => sums[0] = s.add_products(sums[0], codes[r][i], x),
                    (true, 5) => sums[half] = s.add_products(sums[half], codes[r][i], x),
                    _ => sums[0] = s.dot(sums[0], codes[r][i], x),
                }
            }
            let dots = match (S::SMALL_SUMS, bits) {
                (true, 4) => s.whole(sums[0]),
                (true, 5) => s.add_i(s.whole(sums[0]), s.whole(sums[1])),
                _ => sums[0],
            };
            let (scale, minimum) = scales[r];
            acc[r][t] = s.fma(s.to_f(dots), s.mul(scale, x_scale), acc[r][t]);
            if let Some(minimum) = minimum {
                acc[r][t] = s.fma(minimum, x_sum, acc[r][t]);
            }
            acc[r][t] = s.in_order_f(acc[r][t]);
        }
    }
}
