//! Q6_K: super-blocks of 256 inputs in 210 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                         128                         192              208     210
//!        lower 4 bits of codes     upper 2 bits of codes       scales of the    scale
//!        of each 128 inputs in     of each 128 inputs in       sixteen blocks
//!        64 bytes                  32 bytes
//! ```
//!
//! Of 128 inputs, byte `i` of the lower bits holds those of input `i`, and in its upper nibble those of input `64 + i`; byte `i` of the
//! upper bits holds those of inputs `i`, `32 + i`, `64 + i` and `96 + i`, the first in its lowest bits. The scale is a 16-bit float, those
//! of blocks are bytes with sign. A weight is `scale * block's scale * (code - 32)`.

use super::by_block;
use super::super_blocks::{self, HALF, INPUTS, N_BLOCKS, SuperBlocks, Vectors};
use super::{Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, MAX_GEMV_TOKENS, PIECE, Rows, Sums};
use crate::isa::{Simd, unroll};
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 210;
const UPPER: usize = 128;
const SCALES: usize = 192;
const SCALE: usize = 208;
/// What codes have too much.
const EXCESS: i32 = 32;

#[derive(Clone, Copy)]
pub(crate) struct Q6K;

/// Writes the codes less `LESS`, bytes with sign.
#[inline(always)]
fn codes<const LESS: u8>(b: &[u8], out: &mut [u8; INPUTS]) {
    let bits = b[..UPPER].chunks_exact(64).zip(b[UPPER..SCALES].chunks_exact(32));
    for ((lower, upper), out) in bits.zip(out.chunks_exact_mut(128)) {
        // The compiler makes vector instructions of a loop over arrays of known lengths.
        let lower: &[u8; 64] = lower.try_into().expect("64 bytes");
        let upper: &[u8; 32] = upper.try_into().expect("32 bytes");
        let out: &mut [u8; 128] = out.try_into().expect("128 codes");
        for i in 0..32 {
            out[i] = (lower[i] & 15 | (upper[i] & 3) << 4).wrapping_sub(LESS);
            out[32 + i] = (lower[32 + i] & 15 | (upper[i] & 12) << 2).wrapping_sub(LESS);
            out[64 + i] = (lower[i] >> 4 | upper[i] & 48).wrapping_sub(LESS);
            out[96 + i] = (lower[32 + i] >> 4 | (upper[i] & 192) >> 2).wrapping_sub(LESS);
        }
    }
}

impl SuperBlocks for Q6K {
    const BYTES: usize = BYTES;
    const RANGE: [f32; 2] = [-32.0, 31.0];

    #[inline(always)]
    fn unpack<S: Simd>(s: S, b: &[u8], to: &mut [u8; INPUTS]) -> [[f32; N_BLOCKS]; 2] {
        codes::<{ EXCESS as u8 }>(b, to);
        let (d, mut scales) = (s.splat(s.f16_at(&b[SCALE..])), [0.0; N_BLOCKS]);
        for i in (0..N_BLOCKS).step_by(S::LANES) {
            s.store_f(s.mul(s.load_i8(&b[SCALES + i..]), d), &mut scales[i..]);
        }
        [scales, [0.0; N_BLOCKS]]
    }
}

/// The numbers of the words of lower bits, of upper ones, and where in their bytes those of a block are.
const LOWER_WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 8, 12, 0, 4, 8, 12, 16, 20, 24, 28, 16, 20, 24, 28]);
const LOWER_BITS: [u32; 16] = by_block::rotations([0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4], 0);
const UPPER_WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 0, 4, 0, 4, 0, 4, 8, 12, 8, 12, 8, 12, 8, 12]);
const UPPER_BITS: [u32; 16] = by_block::rotations([0, 0, 2, 2, 4, 4, 6, 6, 0, 0, 2, 2, 4, 4, 6, 6], 4);

impl Weight for Q6K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        super_blocks::decode::<S, Q6K>(s, row, out);
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        super_blocks::panel_row::<S, Q6K>(s, row, out);
    }

    const SMALL_CODES: Codes = Codes::SixShared;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], mut out: PanelRow) {
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            let scales = b[SCALES..].first_chunk().expect("a scale for each block");
            super_blocks::small_scales_of_16(s.f16_at(&b[SCALE..]), scales, i, &mut out);
            codes::<0>(b, (&mut out.codes[INPUTS * i..][..INPUTS]).try_into().expect("a super-block"));
        }
    }

    const GEMV: bool = true;

    /// A step is a half of a super-block, vector by vector of its bytes of lower bits: of each the activations of the lower nibbles, then those of the
    /// upper ones. Sums are what the codes' excess adds to each block, as they are multiplied with the scales of a super-block's sixteen at once.
    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        let bytes = 4 * S::LANES;
        let mut made = GemvActs::arrange(acts, HALF, None, |step, i| {
            let (v, byte) = (i * PIECE / bytes, i * PIECE % bytes);
            Some(step * HALF + v % 2 * HALF / 2 + v / 2 * bytes + byte)
        });
        made.add_halves(acts, -EXCESS);
        made
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, mut rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        let mut acc = [[s.splat(0.0); T]; R];
        let bytes = 4 * S::LANES;
        for (i, x) in acts.super_blocks::<T>(INPUTS / 64).enumerate() {
            let blocks = rows.next_block::<S, BYTES>(s);
            let mut scales = [[0.0; 2 * MAX_GEMV_TOKENS]; R];
            for r in 0..R {
                let scale = s.f16_at(&blocks[r][SCALE..]);
                scales[r] = super_blocks::scaled(s, scale, acts.half_scales(i));
                for first in (0..N_BLOCKS).step_by(S::LANES) {
                    let of_blocks = s.mul(s.load_i8(&blocks[r][SCALES + first..]), s.splat(scale));
                    for t in 0..T {
                        let sums = acts.sums::<T, N_BLOCKS>(t, i);
                        acc[r][t] = s.fma(of_blocks, s.load_f(&sums[first..]), acc[r][t]);
                    }
                }
            }
            super_blocks::keep_in_memory::<T, R>(&scales);
            unroll!(half in [0, 1] {
                let x = &x[half * HALF / 64 * T..][..HALF / 64 * T];
                let mut vectors = Vectors::new(s);
                for step in 0..HALF / 2 / bytes {
                    let byte = step * bytes;
                    let block = (HALF * half + byte) / 16;
                    for r in 0..R {
                        let c = s.load_i(&blocks[r][HALF / 2 * half + byte..]);
                        let bits = s.upper_bits::<2>(&blocks[r][UPPER + 32 * half..], byte);
                        let (low, high) = (s.low_nibbles(c), s.high_nibbles(c));
                        let of_blocks = blocks[r][SCALES..].first_chunk().expect("a scale for each block");
                        let low = s.with_bits::<4, 0x30>(low, bits);
                        let high = s.with_bits::<0, 0x30>(high, bits);
                        vectors.set(r, 2 * step, low, s.factors_of_fours(of_blocks, block));
                        vectors.set(r, 2 * step + 1, high, s.factors_of_fours(of_blocks, block + 4));
                    }
                }
                vectors.add_products(s, HALF / bytes, x, &scales, half, &mut acc);
            });
        }
        acc
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        let mut codes = [s.splat_i(0); 4];
        for k in 0..4 {
            let lower = s.rotate(s.words(b, &LOWER_WORDS[k]), &LOWER_BITS);
            let upper = s.rotate(s.words(&b[UPPER..SCALES], &UPPER_WORDS[k]), &UPPER_BITS);
            codes[k] = s.with_bits::<0, 0x30>(s.low_nibbles(lower), upper);
        }
        codes
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        let of_blocks: &[u8; N_BLOCKS] = b[SCALES..].first_chunk().expect("a scale for each block");
        let scales = s.mul(s.load_places(of_blocks, &by_block::OF_16), s.splat(s.f16_at(&b[SCALE..])));
        [scales, s.mul(scales, s.splat(-EXCESS as f32))]
    }
}
