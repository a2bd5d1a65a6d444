//! Q2_K: super-blocks of 256 inputs in 84 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                           16                           80      82        84
//!        scales and minima of the    codes of each 128 inputs     scale   minimum
//!        sixteen blocks              in 32 bytes
//! ```
//!
//! Of a block's byte the lower four bits are its scale, the upper ones its minimum. Of 128 inputs, byte `i` of the codes holds those of
//! inputs `i`, `32 + i`, `64 + i` and `96 + i`, two bits each, the first in its lowest bits. Scale and minimum are 16-bit floats. A weight is
//! `scale * block's scale * code - minimum * block's minimum`.

use super::{Block, Codes, Unpack, Weight};
use crate::isa::Simd;

const CODES: usize = 16;
const SCALE: usize = 80;

#[derive(Clone, Copy)]
pub(crate) struct Q2K;

impl Weight for Q2K {
    const BLOCK: Option<Block> = Some(Block { inputs: 256, bytes: 84 });
    const CODES: Option<Codes> = Some(Codes { bits: 2, halves: true });
    // Measured slower than ggml's kernel for single tokens: its codes of 2 bits take too long to take apart.
    const GEMV: bool = false;

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        let (d, m) = (s.f16_at(&block[SCALE..]), s.f16_at(&block[SCALE + 2..]));
        for ((scale, minimum), b) in out.scales.iter_mut().zip(out.minima).zip(block) {
            *scale = d * f32::from(b & 15);
            *minimum = -m * f32::from(b >> 4);
        }
        unpack_twos(&block[CODES..SCALE], out.codes);
    }
}

/// Codes of two bits, of each 128 inputs in 32 bytes.
#[inline(always)]
pub(crate) fn unpack_twos(bytes: &[u8], out: &mut [u8]) {
    for (bytes, out) in bytes.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
        let bytes: &[u8; 32] = bytes.try_into().expect("32 bytes");
        let out: &mut [u8; 128] = out.try_into().expect("128 codes");
        for i in 0..32 {
            out[i] = bytes[i] & 3;
            out[32 + i] = bytes[i] >> 2 & 3;
            out[64 + i] = bytes[i] >> 4 & 3;
            out[96 + i] = bytes[i] >> 6;
        }
    }
}
