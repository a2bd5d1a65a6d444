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

use super::super_blocks::{self, INPUTS, N_BLOCKS, SuperBlocks};
use super::{Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, PIECE, Rows, Sums, step_begin, vector, with_step};
use crate::isa::Simd;
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

    /// A step is a vector of bytes of lower bits: the activations of their lower nibbles, then those of their upper ones. Scales are those of
    /// blocks, and sums what the codes' excess adds to them, as a super-block's sixteen are multiplied at once.
    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        let bytes = 4 * S::LANES;
        let mut made = GemvActs::arrange(acts, 2 * bytes, None, |step, i| {
            let (upper, byte) = (i * PIECE / bytes, step * bytes + i * PIECE % bytes);
            Some(byte / 64 * 128 + upper * 64 + byte % 64)
        });
        made.add_halves(acts, -EXCESS);
        made
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, mut rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        let mut acc = [[s.splat(0.0); T]; R];
        let bytes = 4 * S::LANES;
        let units = (2 * bytes).div_ceil(64);
        for (i, x) in acts.super_blocks::<T>(UPPER / bytes * units).enumerate() {
            let blocks = rows.next_block::<S, BYTES>(s);
            let mut factors = [[[0.0f32; N_BLOCKS]; T]; R];
            for r in 0..R {
                let d = s.splat(s.f16_at(&blocks[r][SCALE..]));
                for first in (0..N_BLOCKS).step_by(S::LANES) {
                    let d = s.mul(s.load_i8(&blocks[r][SCALES + first..]), d);
                    for t in 0..T {
                        let (x_scales, sums) = acts.numbers::<T, N_BLOCKS>(t, i);
                        s.store_f(s.mul(d, s.load_f(&x_scales[first..])), &mut factors[r][t][first..]);
                        acc[r][t] = s.fma(d, s.load_f(&sums[first..]), acc[r][t]);
                    }
                }
            }
            for (step, x) in x.chunks_exact(units * T).enumerate() {
                let (group, byte) = (step * bytes / 64, step * bytes % 64);
                let mut codes = [[s.splat_i(0); 2]; R];
                for r in 0..R {
                    let c = s.load_i(&blocks[r][step * bytes..]);
                    let bits = s.upper_bits::<2>(&blocks[r][UPPER + 32 * group..], byte);
                    let (low, high) = (s.low_nibbles(c), s.high_nibbles(c));
                    codes[r] = [s.with_bits::<4, 0x30>(low, bits), s.with_bits::<0, 0x30>(high, bits)];
                }
                let block = (128 * group + byte) / 16;
                for t in 0..T {
                    let at = t * units * 64;
                    let (lower, upper) = (vector(s, x, at), vector(s, x, at + bytes));
                    for r in 0..R {
                        let [low, high] = codes[r];
                        let low = s.to_f(s.whole(s.add_products(s.splat_i(0), low, lower)));
                        let high = s.to_f(s.whole(s.add_products(s.splat_i(0), high, upper)));
                        let sum = step_begin(s, acc[r][t]);
                        let sum = s.fma(low, s.each_four(&factors[r][t][block..]), sum);
                        let sum = s.fma(high, s.each_four(&factors[r][t][block + 4..]), sum);
                        acc[r][t] = with_step(s, acc[r][t], sum);
                    }
                }
            }
        }
        acc
    }
}
