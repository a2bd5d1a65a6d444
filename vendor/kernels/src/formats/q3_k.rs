//! Q3_K: super-blocks of 256 inputs in 110 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                         32                          96                 108     110
//!        upper bits of codes:      lower 2 bits of codes, of   scales of the      scale
//!        bit b of byte i is of     each 128 inputs in 32       sixteen blocks
//!        input 32 b + i            bytes
//! ```
//!
//! Lower bits lie as the codes of [Q2_K](super::q2_k). The sixteen scales have 6 bits: of scale `k` the lower four are in byte `k % 8`, in its
//! lower nibble for the first eight, and the upper two in byte `8 + k % 4`, from bit `k / 4 * 2` on. The scale is a 16-bit float. A weight is
//! `scale * (block's scale - 32) * (code - 4)`.

use super::{Block, Codes, Unpack, Weight, q2_k};
use crate::isa::Simd;

const LOWER: usize = 32;
const SCALES: usize = 96;
const SCALE: usize = 108;

#[derive(Clone, Copy)]
pub(crate) struct Q3K;

impl Weight for Q3K {
    const BLOCK: Option<Block> = Some(Block { inputs: 256, bytes: 110 });
    const CODES: Option<Codes> = Some(Codes { bits: 3, halves: true });
    // Measured slower than ggml's kernel for single tokens: its third bits take too long to take apart.
    const GEMV: bool = false;

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        let (d, b) = (s.f16_at(&block[SCALE..]), &block[SCALES..SCALE]);
        for (k, (scale, minimum)) in out.scales.iter_mut().zip(out.minima).enumerate() {
            let lower = if k < 8 { b[k] & 15 } else { b[k - 8] >> 4 };
            let upper = b[8 + k % 4] >> (k / 4 * 2) & 3;
            *scale = d * (f32::from(lower | upper << 4) - 32.0);
            *minimum = -4.0 * *scale;
        }
        q2_k::unpack_twos(&block[LOWER..SCALES], out.codes);
        let upper: &[u8; 32] = block.first_chunk().expect("upper bits");
        for (bit, codes) in out.codes.chunks_exact_mut(32).enumerate() {
            for (code, upper) in codes.iter_mut().zip(upper) {
                *code |= (upper >> bit & 1) << 2;
            }
        }
    }
}
