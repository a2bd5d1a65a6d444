//! MXFP4: blocks of 32 inputs in 17 bytes.
//!
//! ```text
//! byte   0       1                                        17
//!        scale   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! The scale is a power of two, of which the byte is the exponent (E8M0 of the OCP's Microscaling formats). A byte holds two codes of 4
//! bits, the first in its lower nibble: floats of a sign, two bits of an exponent and one of a fraction (E2M1). [`VALUES`] has their doubles,
//! so that they are integers, and [`scale`] is half of the block's.

use super::nibbles::{self, Nibbles, Table};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 17;

/// What codes stand for, bytes with sign.
const VALUES: [u8; 16] = nibbles::bytes([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

/// What is added to values, so that they are codes without sign, below 32.
const ZERO: i32 = 12;

/// The factor on a block's values by its exponent: `2^(exponent - 128)`, or NaN if the largest value times that is no float.
static SCALES: [f32; 256] = {
    let mut scales = [f32::NAN; 256];
    let mut exponent = 0;
    while exponent < 253 {
        // The first two have no normal float.
        let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent as u32 - 1) << 23 };
        scales[exponent] = f32::from_bits(bits);
        exponent += 1;
    }
    scales
};

#[inline(always)]
fn scale(exponent: u8) -> f32 {
    SCALES[usize::from(exponent)]
}

#[derive(Clone, Copy)]
pub(crate) struct Mxfp4;

impl Weight for Mxfp4 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, _s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let d = scale(b[0]);
            let codes = nibbles::codes(&b[1..]);
            out.iter_mut().zip(codes).for_each(|(x, c)| *x = d * f32::from(VALUES[usize::from(c)] as i8));
        }
    }

    /// Codes of panels are the values, and their scales the blocks'.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        nibbles::panel_row::<S, Mxfp4>(s, row, out);
    }

    const SMALL_CODES: Codes = Codes::Five;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], out: PanelRow) {
        let table = const { nibbles::with_offset(VALUES, ZERO) };
        nibbles::small_row::<S, BYTES, false>(s, row, &table, |b| (scale(b[0]), -ZERO as f32 * scale(b[0])), out);
    }

    #[inline(always)]
    fn prepare<S: Simd>(self, _s: S, _row: &[u8], _scratch: &mut [f32]) {}

    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        _s: S,
        row: &'a [u8],
        _scratch: &[f32],
        i: usize,
        room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let b = &row[BYTES * i..];
        *room = nibbles::codes(&b[1..]).map(|c| VALUES[usize::from(c)]);
        (room, scale(b[0]), 0.0)
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Mxfp4, T, R>(s, rows, acts)
    }
}

impl Nibbles for Mxfp4 {
    const BYTES: usize = BYTES;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let mut d = [0.0; 16];
        for (d, b) in d.iter_mut().zip(blocks.chunks_exact(BYTES)).take(S::LANES) {
            *d = scale(b[0]);
        }
        let scale = s.load_f(&d);
        (scale, Some(s.mul(scale, s.splat(-ZERO as f32))))
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, blocks: &[u8]) -> [S::I; nibbles::VECTORS] {
        let table = const { nibbles::with_offset(VALUES, ZERO) };
        nibbles::step_values(s, &table, &blocks[BYTES - 16..], BYTES)
    }
}

impl Table for Mxfp4 {
    const BYTES: usize = BYTES;
    const VALUES: [u8; 16] = VALUES;

    #[inline(always)]
    fn scale<S: Simd>(_s: S, block: &[u8]) -> f32 {
        scale(block[0])
    }
}
