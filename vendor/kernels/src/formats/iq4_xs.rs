//! IQ4_XS: super-blocks of 256 inputs in 136 bytes, which are eight blocks of 32.
//!
//! ```text
//! byte   0       2                    4                    8                                        136
//!        scale   upper 2 bits of      lower 4 bits of      codes of each block in 16 bytes:
//!                the eight scales     the eight scales     code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Codes are those of [IQ4_NL](super::iq4_nl). The scale is a 16-bit float, those of blocks have 6 bits, the first in the lowest. A weight is
//! `scale * (block's scale - 32) * value`.

use super::iq4_nl::VALUES;
use super::{BLOCK, Block, Codes, Unpack, Weight};
use crate::isa::Simd;

const CODES: usize = 8;

#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs;

impl Weight for Iq4Xs {
    const BLOCK: Option<Block> = Some(Block { inputs: 256, bytes: 136 });
    const CODES: Option<Codes> = Some(Codes { bits: 8, halves: false });

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        let d = s.f16_at(block);
        let upper = u16::from_le_bytes([block[2], block[3]]);
        for (k, (scales, minima)) in out.scales.chunks_exact_mut(2).zip(out.minima.chunks_exact_mut(2)).enumerate() {
            let lower = block[4 + k / 2] >> (k % 2 * 4) & 15;
            let scale = lower | ((upper >> (2 * k) & 3) as u8) << 4;
            scales.fill(d * (f32::from(scale) - 32.0));
            // An infinite scale makes its block NaN, as a value may be zero times it.
            minima.fill(0.0);
        }
        // A vector of bytes has the codes of several blocks.
        let vector = 4 * S::LANES;
        let mut low = [0u8; 64];
        let mut high = [0u8; 64];
        for (bytes, out) in block[CODES..].chunks_exact(vector).zip(out.codes.chunks_exact_mut(2 * vector)) {
            let c = s.load_i(bytes);
            s.store_i(s.look_up_bytes(&VALUES, s.low_nibbles(c)), &mut low);
            s.store_i(s.look_up_bytes(&VALUES, s.high_nibbles(c)), &mut high);
            let halves = low.chunks_exact(BLOCK / 2).zip(high.chunks_exact(BLOCK / 2));
            for (out, (low, high)) in out.chunks_exact_mut(BLOCK).zip(halves) {
                out[..BLOCK / 2].copy_from_slice(low);
                out[BLOCK / 2..].copy_from_slice(high);
            }
        }
    }
}
