//! IQ4_NL: blocks of 32 inputs in 18 bytes.
//!
//! ```text
//! byte   0       2                                        18
//!        scale   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a 16-bit float. A byte holds two codes of 4 bits, the first in its lower nibble, which are numbers in a table of bytes with
//! sign, [`VALUES`], that lie closer together near zero. A weight is `scale * value`.

use super::nibbles::{self, Nibbles, Table};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::PanelRow;

const BYTES: usize = 18;

/// What codes stand for, bytes with sign: those of ggml's type of this name.
pub(crate) const VALUES: [u8; 16] =
    nibbles::bytes([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

#[derive(Clone, Copy)]
pub(crate) struct Iq4Nl;

impl Weight for Iq4Nl {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let d = s.f16_at(b);
            let codes = nibbles::codes(&b[2..]);
            out.iter_mut().zip(codes).for_each(|(x, c)| *x = d * f32::from(VALUES[usize::from(c)] as i8));
        }
    }

    /// Codes of panels are the values, and their scales the file's own.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        nibbles::panel_row::<S, Iq4Nl>(s, row, out);
    }

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
        *room = nibbles::codes(&b[2..]).map(|c| VALUES[usize::from(c)]);
        (room, s.f16_at(b), 0.0)
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Iq4Nl, T, R>(s, rows, acts)
    }
}

impl Nibbles for Iq4Nl {
    const BYTES: usize = BYTES;
    const BITS: u32 = 8;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let scale = s.half_f16::<false>(s.load_words(blocks, BYTES));
        (scale, nibbles::offset(s, scale))
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; nibbles::VECTORS] {
        let table = const { nibbles::with_offset(VALUES, S::OFFSET) };
        nibbles::step_values(s, &table, &blocks[BYTES - 16..], BYTES)
    }
}

impl Table for Iq4Nl {
    const BYTES: usize = BYTES;
    const VALUES: [u8; 16] = VALUES;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8]) -> f32 {
        s.f16_at(block)
    }
}
