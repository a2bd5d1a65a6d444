//! Q6_K: super-blocks of 256 inputs in 210 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                         128                         192              208     210
//!        lower 4 bits of codes     upper 2 bits of codes       scales of the    scale
//!        of each 128 inputs in     of each 128 inputs in       sixteen blocks
//!        64 bytes                  32 bytes
//! ```
//!
//! Of 128 inputs, byte `i` of the lower bits holds those of input `i`, and in its upper nibble those of input `64 + i`; byte `i` of the
//! upper bits holds those of inputs `i`, `32 + i`, `64 + i` and `96 + i`, the first in its lowest bits. The scale is a 16-bit float, those
//! of blocks are bytes with sign. A weight is `scale * block's scale * (code - 32)`. Few tokens are left to ggml.

use super::{Block, Weight};
use crate::isa::Simd;

const INPUTS: usize = 256;
const BYTES: usize = 210;
const UPPER: usize = 128;
const SCALES: usize = 192;
const SCALE: usize = 208;

#[derive(Clone, Copy)]
pub(crate) struct Q6K;

/// Writes the codes less 32, bytes with sign.
#[inline(always)]
fn codes(b: &[u8], out: &mut [u8; INPUTS]) {
    let bits = b[..UPPER].chunks_exact(64).zip(b[UPPER..SCALES].chunks_exact(32));
    for ((lower, upper), out) in bits.zip(out.chunks_exact_mut(128)) {
        // The compiler makes vector instructions of a loop over arrays of known lengths.
        let lower: &[u8; 64] = lower.try_into().expect("64 bytes");
        let upper: &[u8; 32] = upper.try_into().expect("32 bytes");
        let out: &mut [u8; 128] = out.try_into().expect("128 codes");
        for i in 0..32 {
            out[i] = (lower[i] & 15 | (upper[i] & 3) << 4).wrapping_sub(32);
            out[32 + i] = (lower[32 + i] & 15 | (upper[i] & 12) << 2).wrapping_sub(32);
            out[64 + i] = (lower[i] >> 4 | upper[i] & 48).wrapping_sub(32);
            out[96 + i] = (lower[32 + i] >> 4 | (upper[i] & 192) >> 2).wrapping_sub(32);
        }
    }
}

impl Weight for Q6K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        let mut bytes = [0u8; INPUTS];
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(INPUTS)) {
            codes(b, &mut bytes);
            let d = s.f16_at(&b[SCALE..]);
            let blocks = bytes.chunks_exact(16).zip(out.chunks_exact_mut(16));
            for ((codes, out), scale) in blocks.zip(&b[SCALES..SCALE]) {
                let d = s.splat(d * f32::from(*scale as i8));
                for (c, x) in codes.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.mul(s.load_i8(c), d), x);
                }
            }
        }
    }
}
