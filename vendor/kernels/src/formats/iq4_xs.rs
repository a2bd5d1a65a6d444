//! IQ4_XS: super-blocks of 256 inputs in 136 bytes, which are eight blocks of 32.
//!
//! ```text
//! byte   0       2                    4                    8                                        136
//!        scale   upper 2 bits of      lower 4 bits of      codes of each block in 16 bytes:
//!                the eight scales     the eight scales     code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Codes are those of [IQ4_NL](super::iq4_nl). The scale is a 16-bit float, those of blocks have 6 bits, the first in the lowest. A weight is
//! `scale * (block's scale - 32) * value`. Few tokens are left to ggml, which is as fast or faster.

use super::iq4_nl::VALUES;
use super::{BLOCK, Block, Weight};
use crate::isa::Simd;
use crate::panel::PanelRow;

const INPUTS: usize = 256;
const BYTES: usize = 136;
const CODES: usize = 8;

#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs;

/// The factors on the values of the eight blocks.
#[inline(always)]
fn scales<S: Simd>(s: S, b: &[u8]) -> [f32; 8] {
    let (d, upper) = (s.f16_at(b), u16::from_le_bytes([b[2], b[3]]));
    let mut scales = [0.0; 8];
    for (k, scale) in scales.iter_mut().enumerate() {
        let lower = b[4 + k / 2] >> (k % 2 * 4) & 15;
        *scale = d * (f32::from(lower | ((upper >> (2 * k) & 3) as u8) << 4) - 32.0);
    }
    scales
}

/// Writes the values that the codes stand for, bytes with sign.
#[inline(always)]
fn values<S: Simd>(s: S, b: &[u8], out: &mut [u8]) {
    for (pair, out) in b[CODES..].chunks_exact(BLOCK).zip(out.chunks_exact_mut(2 * BLOCK)) {
        let (first, second) = pair.split_at(BLOCK / 2);
        s.look_up([first, second], &[VALUES; 2], out);
    }
}

impl Weight for Iq4Xs {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        let mut bytes = [0u8; INPUTS];
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(INPUTS)) {
            values(s, b, &mut bytes);
            let blocks = bytes.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK));
            for ((values, out), d) in blocks.zip(scales(s, b)) {
                let d = s.splat(d);
                for (v, x) in values.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.mul(s.load_i8(v), d), x);
                }
            }
        }
    }

    /// Codes of panels are the values, and their scales the blocks'.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        let to = out.codes.chunks_exact_mut(INPUTS).zip(out.scales.chunks_exact_mut(8));
        for (b, (codes, to)) in row.chunks_exact(BYTES).zip(to) {
            values(s, b, codes);
            // An infinite scale makes its block NaN, as in the other types.
            to.iter_mut().zip(scales(s, b)).for_each(|(to, d)| *to = d + d * 0.0);
        }
    }
}
