//! Q3_K: super-blocks of 256 inputs in 110 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                        32                              96                     108     110
//!        third bits of codes:     lower 2 bits of codes of each   scales of the          scale
//!        bit b of byte i is of    128 inputs in 32 bytes          sixteen blocks
//!        input 32 b + i
//! ```
//!
//! It is [Q2_K](super::q2_k) with a third bit for each code, and without minima. The scale is a 16-bit float. Those of blocks have 6 bits: the
//! first eight bytes hold the lower four of the first eight scales, and above them those of the others; byte `i` of the last four the upper
//! two of scales `i`, `4 + i`, `8 + i` and `12 + i`, the first in its lowest bits. A weight is
//! `scale * (block's scale - 32) * (code - 4)`.

use super::by_block;
use super::q2_k::{self, Quarters};
use super::super_blocks::{self, INPUTS, N_BLOCKS, SuperBlocks};
use super::{Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 110;
const LOWER: usize = 32;
const SCALES: usize = 96;
const SCALE: usize = 108;
/// What codes have too much.
const EXCESS: i32 = 4;

#[derive(Clone, Copy)]
pub(crate) struct Q3K;

/// Writes the codes less `LESS`, bytes with sign.
#[inline(always)]
fn codes<S: Simd, const LESS: u8>(s: S, b: &[u8], out: &mut [u8; INPUTS]) {
    let less = s.splat_i(i32::from_le_bytes([LESS.wrapping_neg(); 4]));
    let mut bytes = [0u8; 64];
    for at in (0..INPUTS / 4).step_by(4 * S::LANES) {
        let quarters = <Q3K as Quarters>::codes(s, b, at);
        for (i, quarter) in quarters.iter().enumerate() {
            s.store_i(s.add_bytes(*quarter, less), &mut bytes);
            for (part, bytes) in bytes[..4 * S::LANES].chunks(32).enumerate() {
                let byte = at + part * 32;
                out[byte / 32 * 128 + i * 32 + byte % 32..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// The numbers of the words of third bits, and where in their bytes those of a block are.
const THIRD_WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4]);
const THIRD_BITS: [u32; 16] = by_block::rotations([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7], 2);

impl Weight for Q3K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        super_blocks::decode::<S, Q3K>(s, row, out);
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        super_blocks::panel_row::<S, Q3K>(s, row, out);
    }

    const SMALL_CODES: Codes = Codes::ThreeShared;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], mut out: PanelRow) {
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            super_blocks::small_scales_of_16(Q3K::factors(s, b).0, &Q3K::scales(b).0, i, &mut out);
            codes::<S, 0>(s, b, (&mut out.codes[INPUTS * i..][..INPUTS]).try_into().expect("a super-block"));
        }
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        q2_k::gemv_acts::<S>(acts, -EXCESS)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        q2_k::dot::<S, Q3K, T, R, BYTES>(s, rows, acts)
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        let mut codes = q2_k::codes_by_block(s, &b[LOWER..]);
        for (codes, words) in codes.iter_mut().zip(&THIRD_WORDS) {
            let bits = s.rotate(s.words(&b[..64], words), &THIRD_BITS);
            *codes = s.with_bits::<0, 4>(*codes, bits);
        }
        codes
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        let (d, _) = Q3K::factors(s, b);
        let scales = s.mul(s.load_places(&Q3K::scales(b).0, &by_block::OF_16), s.splat(d));
        [scales, s.mul(scales, s.splat(-EXCESS as f32))]
    }
}

impl SuperBlocks for Q3K {
    const BYTES: usize = BYTES;
    const RANGE: [f32; 2] = [-4.0, 3.0];

    #[inline(always)]
    fn unpack<S: Simd>(s: S, b: &[u8], to: &mut [u8; INPUTS]) -> [[f32; N_BLOCKS]; 2] {
        codes::<S, { EXCESS as u8 }>(s, b, to);
        let (d, _) = Q3K::factors(s, b);
        [Q3K::scales(b).0.map(|scale| d * f32::from(scale as i8)), [0.0; N_BLOCKS]]
    }
}

impl Quarters for Q3K {
    #[inline(always)]
    fn factors<S: Simd>(s: S, b: &[u8]) -> (f32, f32) {
        let d = s.f16_at(&b[SCALE..]);
        (d, d)
    }

    /// The codes' excess is a block's minimum, times its scale.
    #[inline(always)]
    fn scales(b: &[u8]) -> ([u8; N_BLOCKS], [u8; N_BLOCKS]) {
        let lower = u64::from_le_bytes(*b[SCALES..].first_chunk().expect("8 bytes"));
        let upper = u32::from_le_bytes(*b[SCALES + 8..].first_chunk().expect("4 bytes"));
        // Of the upper bits those of four scales to the lower half, and those of the next four to the upper one.
        let upper = u64::from(upper);
        let bits = |both: u64| (both & 0x0303_0303_0303_0303) << 4;
        let first = lower & 0x0f0f_0f0f_0f0f_0f0f | bits(upper | upper << 30);
        let others = lower >> 4 & 0x0f0f_0f0f_0f0f_0f0f | bits(upper >> 4 | upper << 26);
        // Without this the compiler orders these bytes by an instruction that has a second operand, for which it takes whatever register comes: the
        // one of the sums, so that each block waited for the one before and single tokens took twice as long with AVX-512.
        let (first, others) = std::hint::black_box((first, others));
        let all = (u128::from(first) | u128::from(others) << 64).to_le_bytes();
        let scales = all.map(|scale| scale.wrapping_sub(32));
        (scales, scales)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, b: &[u8], at: usize) -> [S::I; 4] {
        let [c0, c1, c2, c3] = q2_k::quarters(s, &b[LOWER + at..]);
        let third = s.upper_bits::<4>(b, at);
        [
            s.with_bits::<2, 4>(c0, third),
            s.with_bits::<1, 4>(c1, third),
            s.with_bits::<0, 4>(c2, third),
            s.with_bits::<0, 4>(c3, s.bits::<1, 4>(third)),
        ]
    }
}
