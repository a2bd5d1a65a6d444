//! Q4_K: super-blocks of 256 inputs in 144 bytes, which are eight blocks of 32.
//!
//! ```text
//! byte   0       2         4                       16              48              80               112             144
//!        scale   minimum   scales, minima          codes of        codes of        codes of         codes of
//!                          of the eight blocks     blocks 0, 1     blocks 2, 3     blocks 4, 5      blocks 6, 7
//! ```
//!
//! Scale and minimum are 16-bit floats, those of the blocks have 6 bits. Of the codes of two blocks a byte holds one of each, that of the
//! first block in its lower nibble. A weight is `scale * block's scale * code - minimum * block's minimum`.

use super::by_block;
use super::super_blocks;
use super::{BLOCK, Block, Weight, nibbles, q5_k};
use crate::acts::{Acts, SHARING};
use crate::gemv::{GemvActs, Rows, Sums, vector};
use crate::isa::{Simd, unroll};
use crate::panel::{Codes, PanelRow};

const INPUTS: usize = 256;
const BYTES: usize = 144;
/// Where codes begin.
const CODES: usize = 16;

#[derive(Clone, Copy)]
pub(crate) struct Q4K;

/// Scales and minima of a super-block's eight blocks, as its bytes have them.
#[inline(always)]
fn integers(b: &[u8]) -> [[u8; 8]; 2] {
    let b: &[u8; CODES] = b.first_chunk().expect("what comes before the codes");
    let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    // Of the twelve bytes, four hold the 6 bits of the first four scales, and above these the upper 2 bits of the other four; the next
    // four bytes hold the minima in the same way; the last four hold the lower 4 bits of the other four scales and, above, minima.
    let (scales, minima, others) = (word(4), word(8), word(12));
    let scales = [scales & 0x3f3f_3f3f, others & 0x0f0f_0f0f | (scales >> 2 & 0x3030_3030)];
    let minima = [minima & 0x3f3f_3f3f, others >> 4 & 0x0f0f_0f0f | (minima >> 2 & 0x3030_3030)];
    [scales, minima].map(|w| (u64::from(w[0]) | u64::from(w[1]) << 32).to_le_bytes())
}

/// Scales and minima of a super-block's eight blocks; the minima are to be added.
#[inline(always)]
pub(crate) fn scales<S: Simd>(s: S, b: &[u8]) -> ([f32; 8], [f32; 8]) {
    let [scales, minima] = integers(b);
    (s.scale_bytes(scales, s.f16_at(b)), s.scale_bytes(minima, -s.f16_at(&b[2..])))
}

/// Writes what panels of small codes have of super-block `i` beside them.
#[inline(always)]
pub(crate) fn small_scales<S: Simd>(s: S, b: &[u8], i: usize, out: &mut PanelRow) {
    let [scales, minima] = integers(b);
    let minima = s.scale_bytes(minima, -s.f16_at(&b[2..]));
    super_blocks::small_scales_of_32(s.f16_at(b), scales, minima, i, out);
}

impl Weight for Q4K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(INPUTS)) {
            let (d, m) = scales(s, b);
            for (j, (codes, out)) in b[CODES..].chunks_exact(BLOCK).zip(out.chunks_exact_mut(2 * BLOCK)).enumerate() {
                let (low, high) = out.split_at_mut(BLOCK);
                let (d, m) = ([d[2 * j], d[2 * j + 1]], [m[2 * j], m[2 * j + 1]]);
                s.decode_nibbles(codes, d, m, low, high);
                s.decode_nibbles(&codes[16..], d, m, &mut low[16..], &mut high[16..]);
            }
        }
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        let blocks = row.chunks_exact(BYTES);
        let codes = out.codes.chunks_exact_mut(INPUTS);
        for ((b, codes), to) in blocks.zip(codes).zip(out.scales.chunks_exact_mut(8)) {
            let (mut d, mut m) = ([0.0; 16], [0.0; 16]);
            let both = scales(s, b);
            d[..8].copy_from_slice(&both.0);
            m[..8].copy_from_slice(&both.1);
            to.copy_from_slice(&nibbles::panel_scales::<S, SHARING>(s, &mut d, &mut m)[..8]);
            for (i, codes) in codes.chunks_exact_mut(2 * BLOCK).enumerate() {
                let tables = nibbles::panel_codes(s, &d[2 * i..], &m[2 * i..]);
                s.look_up_interleaved(&b[CODES + BLOCK * i..], &tables, codes);
            }
        }
    }

    const SMALL_CODES: Codes = Codes::FourShared;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], mut out: PanelRow) {
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            small_scales(s, b, i, &mut out);
            for (codes, to) in b[CODES..].chunks_exact(BLOCK).zip(out.codes[INPUTS * i..].chunks_exact_mut(2 * BLOCK)) {
                s.look_up_interleaved(codes, &[nibbles::IDENTITY; 2], to);
            }
        }
    }

    const BITS: u32 = 4;
    const MINIMA: bool = true;

    /// `scratch` becomes the scales of all blocks, then their minima.
    #[inline(always)]
    fn prepare<S: Simd>(self, s: S, row: &[u8], scratch: &mut [f32]) {
        let (all_d, all_m) = scratch.split_at_mut(scratch.len() / BLOCK);
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            let (d, m) = scales(s, b);
            all_d[8 * i..8 * i + 8].copy_from_slice(&d);
            all_m[8 * i..8 * i + 8].copy_from_slice(&m);
        }
    }

    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        _s: S,
        row: &'a [u8],
        scratch: &[f32],
        i: usize,
        room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let pair = &row[BYTES * (i / 8) + CODES + BLOCK * (i % 8 / 2)..];
        let mut codes: [u8; BLOCK] = *pair.first_chunk().expect("the codes of two blocks");
        for c in &mut codes {
            *c = if i % 2 == 1 { *c >> 4 } else { *c & 15 };
        }
        *room = codes;
        (room, scratch[i], scratch[scratch.len() / BLOCK + i])
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        dot::<S, T, R, BYTES>(s, rows, acts)
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        codes_by_block(s, &b[CODES..])
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        scales_by_block(s, b)
    }
}

/// The numbers of the words of codes that a block's four vectors have, by its number: two blocks of 16 are one of 32.
const WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 0, 4, 8, 12, 8, 12, 16, 20, 16, 20, 24, 28, 24, 28]);
/// Where in a byte of these words a block's codes begin.
const NIBBLES: [u32; 16] = by_block::rotations([0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4], 0);

/// Codes of four bits, of 128 bytes.
#[inline(always)]
pub(crate) fn codes_by_block<S: Simd>(s: S, bytes: &[u8]) -> [S::I; 4] {
    let mut codes = [s.splat_i(0); 4];
    for (codes, words) in codes.iter_mut().zip(&WORDS) {
        *codes = s.low_nibbles(s.rotate(s.words(bytes, words), &NIBBLES));
    }
    codes
}

/// See [`Weight::scales_of_blocks`].
#[inline(always)]
pub(crate) fn scales_by_block<S: Simd>(s: S, b: &[u8]) -> [S::F; 2] {
    let [scales, minima] = integers(b);
    let (d, m) = (s.splat(s.f16_at(b)), s.splat(-s.f16_at(&b[2..])));
    let (scales, minima) = (s.load_places(&scales, &by_block::OF_32), s.load_places(&minima, &by_block::OF_32));
    [s.mul(scales, d), s.mul(minima, m)]
}

/// Vectors of the codes of either the even or the odd blocks of a super-block.
const fn vectors<S: Simd>() -> usize {
    INPUTS / 2 / (4 * S::LANES)
}

/// With vectors of 16 bytes.
const MAX_VECTORS: usize = INPUTS / 2 / 16;

/// Where the bytes of even and of odd blocks are, for each lane.
const PLACES: [[u8; 16]; 2] =
    [[0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6], [1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7]];

/// Activations for [`dot`], in the order of its vectors.
#[inline(always)]
pub(crate) fn gemv_acts<S: Simd>(acts: Acts) -> GemvActs {
    let mut made = GemvActs::by_fours(acts, INPUTS, |i| {
        let (vector, lane) = (i / S::LANES, i % S::LANES);
        let (is_odd, vector) = (vector / vectors::<S>(), vector % vectors::<S>());
        let four = vector % 4 + (vector / 4 * S::LANES / 4 + lane / 4) * 4;
        (2 * (lane % 4) + is_odd) * BLOCK + 4 * four
    });
    made.add_groups::<S>(acts);
    made
}

/// Products of rows of Q4_K or, with a fifth bit of each code, of [Q5_K](super::q5_k), in super-blocks of `N` bytes.
///
/// Of the bytes of codes, which blocks share two by two, fours are transposed, so that each lane has codes of one block: vectors of the lower nibbles
/// have those of blocks 0, 2, 4 and 6 in turn, vectors of the upper ones those of the others. Products of either are added as integers, and then
/// multiplied with the blocks' scales.
#[inline(always)]
pub(crate) fn dot<S: Simd, const T: usize, const R: usize, const N: usize>(
    s: S,
    mut rows: Rows<R>,
    acts: &GemvActs,
) -> Sums<S, T, R> {
    let mut acc = [[s.splat(0.0); T]; R];
    for (i, (x, x_scales)) in acts.fours::<S, T>().enumerate() {
        let blocks = rows.next_block::<S, N>(s);
        let mut codes = [[[s.splat_i(0); MAX_VECTORS]; 2]; R];
        let (mut scales, mut factors, mut minima) = ([s.splat(0.0); R], [[s.splat_i(0); 2]; R], [[0.0; 8]; R]);
        for r in 0..R {
            codes[r] = codes_of_turns::<S, N>(s, blocks[r]);
            let of_blocks = integers(blocks[r]);
            scales[r] = s.splat(s.f16_at(blocks[r]));
            for odd in [0, 1] {
                factors[r][odd] = s.factors_at(&of_blocks[0], &PLACES[odd]);
            }
            minima[r] = s.scale_bytes(of_blocks[1], -s.f16_at(&blocks[r][2..]));
        }
        for t in 0..T {
            let x_scale = s.load_f(&x_scales[t * S::LANES..]);
            for r in 0..R {
                let mut sums = [s.splat_i(0); 2];
                for odd in [0, 1] {
                    for v in 0..vectors::<S>() {
                        let x = vector(s, &x[t], (odd * vectors::<S>() + v) * 4 * S::LANES);
                        sums[odd] = s.add_products(sums[odd], codes[r][odd][v], x);
                    }
                }
                let values = s.scaled_sums(sums, factors[r]);
                let sum = s.fma_eight(acts.sums::<T, 8>(t, i), &minima[r], acc[r][t]);
                acc[r][t] = s.in_order_f(s.fma(values, s.mul(scales[r], x_scale), sum));
            }
        }
    }
    acc
}

/// Codes as [`dot`] multiplies them: of even and of odd blocks.
#[inline(always)]
fn codes_of_turns<S: Simd, const N: usize>(s: S, b: &[u8; N]) -> [[S::I; MAX_VECTORS]; 2] {
    let is_fifth = N == q5_k::BYTES;
    let mut codes = [[s.splat_i(0); MAX_VECTORS]; 2];
    for first in (0..vectors::<S>()).step_by(4) {
        let at = first * S::LANES;
        let mut pairs = [s.splat_i(0); 4];
        for (i, pair) in pairs.iter_mut().enumerate() {
            *pair = s.load_i(&b[if is_fifth { q5_k::CODES } else { CODES } + i * BLOCK + at..]);
        }
        s.transpose_fours(&mut pairs);
        unroll!(v in [0, 1, 2, 3] {
            let (mut low, mut high) = (s.low_nibbles(pairs[v]), s.high_nibbles(pairs[v]));
            if is_fifth {
                let bits = s.pairs_of_bits(s.load_i(&b[q5_k::UPPER + at..]), v);
                low = s.with_bits::<4, 0x10>(low, bits);
                high = s.with_bits::<3, 0x10>(high, bits);
            }
            (codes[0][first + v], codes[1][first + v]) = (low, high);
        });
    }
    codes
}
