//! Q5_1: blocks of 32 inputs in 24 bytes.
//!
//! ```text
//! byte   0       2         4                    8                                        24
//!        scale   minimum   upper bits of codes   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Scale and minimum are 16-bit floats. A code has 5 bits: four of them in a byte with those of another, the first in its lower nibble, the
//! fifth among the upper bits, in the order of inputs. A weight is `scale * code + minimum`.

use super::{BLOCK, Block, Codes, Unpack, Weight, nibbles, unpacked};
use crate::isa::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Q5_1;

impl Weight for Q5_1 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: 24 });
    const CODES: Option<Codes> = Some(Codes { bits: 5, halves: false });
    // Measured slower than ggml's kernel for single tokens: its fifth bits take too long to take apart.
    const GEMV: bool = false;

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        let d = s.f16_at(block);
        out.scales.fill(d);
        out.minima.fill(s.f16_at(&block[2..]));
        let lower = nibbles::codes(&block[8..]);
        let upper = unpacked::spread_bits(&block[4..], 16);
        for ((code, l), u) in out.codes.iter_mut().zip(lower).zip(upper) {
            *code = l | u;
        }
    }
}
