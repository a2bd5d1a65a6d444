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
//! of blocks are bytes with sign. A weight is `scale * block's scale * (code - 32)`.

use super::{Block, Codes, Unpack, Weight};
use crate::isa::Simd;

const UPPER: usize = 128;
const SCALES: usize = 192;
const SCALE: usize = 208;

#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Weight for Q6K {
    const BLOCK: Option<Block> = Some(Block { inputs: 256, bytes: 210 });
    const CODES: Option<Codes> = Some(Codes { bits: 6, halves: true });

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        let d = s.f16_at(&block[SCALE..]);
        for ((scale, minimum), b) in out.scales.iter_mut().zip(out.minima).zip(&block[SCALES..SCALE]) {
            *scale = d * f32::from(*b as i8);
            *minimum = -32.0 * *scale;
        }
        let bits = block[..UPPER].chunks_exact(64).zip(block[UPPER..SCALES].chunks_exact(32));
        for ((lower, upper), out) in bits.zip(out.codes.chunks_exact_mut(128)) {
            let (lower, upper): (&[u8; 64], &[u8; 32]) =
                (lower.try_into().expect("64 bytes"), upper.try_into().expect("32 bytes"));
            let out: &mut [u8; 128] = out.try_into().expect("128 codes");
            for i in 0..32 {
                out[i] = lower[i] & 15 | (upper[i] & 3) << 4;
                out[32 + i] = lower[32 + i] & 15 | (upper[i] & 12) << 2;
                out[64 + i] = lower[i] >> 4 | upper[i] & 48;
                out[96 + i] = lower[32 + i] >> 4 | (upper[i] & 192) >> 2;
            }
        }
    }
}
