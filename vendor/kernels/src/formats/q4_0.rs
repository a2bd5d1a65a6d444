//! Q4_0: blocks of 32 inputs in 18 bytes.
//!
//! ```text
//! byte   0       2                                        18
//!        scale   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a 16-bit float. A byte holds two codes of 4 bits, the first in its lower nibble. A weight is `scale * (code - 8)`.

use super::nibbles::{self, Nibbles, Table};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 18;

#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl Weight for Q4_0 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let d = s.f16_at(b);
            let (low, high) = out.split_at_mut(BLOCK / 2);
            s.decode_nibbles(&b[2..], [d; 2], [-8.0 * d; 2], low, high);
        }
    }

    /// Codes and scales of panels are the file's own.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        nibbles::panel_row::<S, Q4_0>(s, row, out);
    }

    const SMALL_CODES: Codes = Codes::Four;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], out: PanelRow) {
        nibbles::small_row::<S, BYTES, false>(s, row, &nibbles::IDENTITY, |b| (s.f16_at(b), -8.0 * s.f16_at(b)), out);
    }

    const BITS: u32 = 4;
    const ZERO: i32 = 8;

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
        let b = &row[BYTES * i..];
        *room = nibbles::codes(&b[2..]);
        (room, s.f16_at(b), 0.0)
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Q4_0, T, R>(s, rows, acts)
    }
}

impl Nibbles for Q4_0 {
    const BYTES: usize = BYTES;
    const BITS: u32 = 4;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let scale = s.half_f16::<false>(s.load_words(blocks, BYTES));
        (scale, Some(s.mul(scale, s.splat(-(Self::ZERO as f32)))))
    }
}

impl Table for Q4_0 {
    const BYTES: usize = BYTES;
    const VALUES: [u8; 16] = [248, 249, 250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5, 6, 7];

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8]) -> f32 {
        s.f16_at(block)
    }
}
