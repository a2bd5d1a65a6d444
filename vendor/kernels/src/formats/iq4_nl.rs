//! IQ4_NL: blocks of 32 inputs in 18 bytes.
//!
//! ```text
//! byte   0       2                                        18
//!        scale   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a 16-bit float. A byte holds two codes of 4 bits, the first in its lower nibble, which are numbers in a table of bytes with
//! sign, [`VALUES`], that lie closer together near zero. A weight is `scale * value`. Few tokens are left to ggml, which is as fast or faster.

use super::nibbles::{self, Table};
use super::{BLOCK, Block, Weight};
use crate::isa::Simd;
use crate::panel::PanelRow;

const BYTES: usize = 18;

/// What codes stand for, bytes with sign: those of ggml's type of this name.
pub(crate) const VALUES: [u8; 16] = {
    let values: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = values[i] as u8;
        i += 1;
    }
    table
};

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
}

impl Table for Iq4Nl {
    const BYTES: usize = BYTES;
    const VALUES: [u8; 16] = VALUES;

    #[inline(always)]
    fn scale<S: Simd>(s: S, block: &[u8]) -> f32 {
        s.f16_at(block)
    }
}
