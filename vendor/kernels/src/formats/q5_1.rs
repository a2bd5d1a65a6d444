//! Q5_1: blocks of 32 inputs in 24 bytes.
//!
//! ```text
//! byte   0       2         4                 8                                        24
//!        scale   minimum   bit i: fifth      lower bits of codes:
//!                          bit of code i     code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Scale and minimum are 16-bit floats. A weight is `scale * code + minimum`.

use super::nibbles::{self, Nibbles};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 24;

#[derive(Clone, Copy)]
pub(crate) struct Q5_1;

impl Weight for Q5_1 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        nibbles::decode_five::<S, BYTES>(s, row, |b| (s.f16_at(b), s.f16_at(&b[2..])), out);
    }

    const SMALL_CODES: Codes = Codes::Five;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], out: PanelRow) {
        nibbles::small_row::<S, BYTES, true>(s, row, &nibbles::IDENTITY, |b| (s.f16_at(b), s.f16_at(&b[2..])), out);
    }

    const MINIMA: bool = true;

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
        *room = nibbles::codes_of_five(b);
        (room, s.f16_at(b), s.f16_at(&b[2..]))
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Q5_1, T, R>(s, rows, acts)
    }
}

impl Nibbles for Q5_1 {
    const BYTES: usize = BYTES;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let both = s.load_words(blocks, BYTES);
        (s.half_f16::<false>(both), Some(s.half_f16::<true>(both)))
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; nibbles::VECTORS] {
        nibbles::step_codes_of_five::<S, BYTES>(s, blocks)
    }
}
