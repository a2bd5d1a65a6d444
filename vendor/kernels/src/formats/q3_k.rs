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

use super::q2_k::{self, N_BLOCKS, Quarters};
use super::{Block, Weight, nibbles};
use crate::acts::{Acts, GROUP};
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const INPUTS: usize = 256;
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
fn codes<const LESS: u8>(b: &[u8], out: &mut [u8; INPUTS]) {
    q2_k::codes(&b[LOWER..], out);
    let third: &[u8; 32] = b.first_chunk().expect("32 bytes");
    for (bit, codes) in out.chunks_exact_mut(32).enumerate() {
        for (c, third) in codes.iter_mut().zip(third) {
            *c = (*c | (third >> bit & 1) << 2).wrapping_sub(LESS);
        }
    }
}

impl Weight for Q3K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        let mut bytes = [0u8; INPUTS];
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(INPUTS)) {
            codes::<{ EXCESS as u8 }>(b, &mut bytes);
            let (d, _) = Q3K::factors(s, b);
            for ((codes, out), scale) in bytes.chunks_exact(16).zip(out.chunks_exact_mut(16)).zip(Q3K::scales(b).0) {
                let d = s.splat(d * f32::from(scale as i8));
                for (c, x) in codes.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.mul(s.load_i8(c), d), x);
                }
            }
        }
    }

    const SMALL_CODES: Codes = Codes::Three;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], mut out: PanelRow) {
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            nibbles::scales_of_halves(Q3K::factors(s, b).0, &Q3K::scales(b).0, i * INPUTS / GROUP, &mut out);
            codes::<0>(b, (&mut out.codes[INPUTS * i..][..INPUTS]).try_into().expect("a super-block"));
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
        let upper = |shift: u32| u64::from(upper >> shift & 0x0303_0303) << 4;
        let first = lower & 0x0f0f_0f0f_0f0f_0f0f | upper(0) | upper(2) << 32;
        let others = lower >> 4 & 0x0f0f_0f0f_0f0f_0f0f | upper(4) | upper(6) << 32;
        let mut scales = [0; N_BLOCKS];
        scales[..8].copy_from_slice(&first.to_le_bytes());
        scales[8..].copy_from_slice(&others.to_le_bytes());
        let scales = scales.map(|scale: u8| scale.wrapping_sub(32));
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
