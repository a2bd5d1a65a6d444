//! Q5_0: blocks of 32 inputs in 22 bytes.
//!
//! ```text
//! byte   0       2                 6                                        22
//!        scale   bit i: fifth      lower bits of codes:
//!                bit of code i     code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a 16-bit float. A weight is `scale * (code - 16)`.

use super::nibbles::{self, Nibbles};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 22;

#[derive(Clone, Copy)]
pub(crate) struct Q5_0;

impl Weight for Q5_0 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        nibbles::decode_five::<S, BYTES>(s, row, |b| (s.f16_at(b), -16.0 * s.f16_at(b)), out);
    }

    /// Codes of panels are the file's own, less 16, and scales the file's own.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        let PanelRow { codes, scales, minima } = out;
        let all = PanelRow { codes: &mut *codes, scales, minima };
        nibbles::small_row::<S, BYTES, true>(s, row, &nibbles::IDENTITY, |b| (s.f16_at(b), 0.0), all);
        let less = s.splat_i(i32::from_le_bytes([16u8.wrapping_neg(); 4]));
        for codes in codes.chunks_exact_mut(4 * S::LANES) {
            s.store_i(s.add_bytes(s.load_i(codes), less), codes);
        }
    }

    const SMALL_CODES: Codes = Codes::Five;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], out: PanelRow) {
        nibbles::small_row::<S, BYTES, true>(s, row, &nibbles::IDENTITY, |b| (s.f16_at(b), -16.0 * s.f16_at(b)), out);
    }

    const ZERO: i32 = 16;

    #[inline(always)]
    fn prepare<S: Simd>(self, _s: S, _row: &[u8], _scratch: &mut [f32]) {}

    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        s: S,
        row: &'a [u8],
        _scratch: &[f32],
        i: usize,
        room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let b = &row[BYTES * i..][..BYTES];
        *room = nibbles::codes_of_five(b).map(|c| c.wrapping_sub(16));
        (room, s.f16_at(b), 0.0)
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Q5_0, T, R>(s, rows, acts)
    }
}

impl Nibbles for Q5_0 {
    const BYTES: usize = BYTES;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let scale = s.half_f16::<false>(s.load_words(blocks, BYTES));
        (scale, Some(s.mul(scale, s.splat(-(Self::ZERO as f32)))))
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; nibbles::VECTORS] {
        nibbles::step_codes_of_five::<S, BYTES>(s, blocks)
    }
}
