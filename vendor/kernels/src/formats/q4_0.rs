//! Q4_0: blocks of 32 inputs in 18 bytes.
//!
//! ```text
//! byte   0       2                                        18
//!        scale   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a 16-bit float. A byte holds two codes of 4 bits, the first in its lower nibble. A weight is `scale * (code - 8)`.

use super::nibbles::{self, Nibbles};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Sums};
use crate::isa::Simd;
use crate::panel::PanelRow;

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
        const LESS_8: [u8; 16] = [248, 249, 250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5, 6, 7];
        // A row of an odd number of blocks is filled up with a block of zeros.
        let none = [0u8; BYTES];
        let codes = out.codes.chunks_exact_mut(2 * BLOCK);
        for ((pair, codes), to) in row.chunks(2 * BYTES).zip(codes).zip(out.scales.chunks_exact_mut(2)) {
            let (a, b) = pair.split_at(BYTES);
            let b = if b.is_empty() { &none[..] } else { b };
            s.look_up([&a[2..], &b[2..]], &[LESS_8; 2], codes);
            // An infinite scale makes its block NaN, as in the other types.
            let (a, b) = (s.f16_at(a), s.f16_at(b));
            to.copy_from_slice(&[a + a * 0.0, b + b * 0.0]);
        }
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
        nibbles::gemv_acts::<S, Q4_0>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize>(self, s: S, row: &[u8], acts: &GemvActs) -> Sums<S, T> {
        nibbles::dot::<S, Q4_0, T>(s, row, acts)
    }
}

impl Nibbles for Q4_0 {
    const BYTES: usize = BYTES;
    const MINIMA: bool = false;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> [S::F; 2] {
        s.spread::<BYTES, false>(blocks)
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; 2] {
        let c = s.load_pieces::<BYTES>(&blocks[BYTES - 16..]);
        [s.low_nibbles(c), s.high_nibbles(c)]
    }
}
