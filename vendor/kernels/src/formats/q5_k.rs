//! Q5_K: super-blocks of 256 inputs in 176 bytes, which are eight blocks of 32.
//!
//! ```text
//! byte   0       2         4                       16                          48             80             112            144            176
//!        scale   minimum   scales, minima          upper bits of codes:        codes of       codes of       codes of       codes of
//!                          of the eight blocks     bit b of byte i is of       blocks 0, 1    blocks 2, 3    blocks 4, 5    blocks 6, 7
//!                                                  input i of block b
//! ```
//!
//! It is [Q4_K](super::q4_k) with a fifth bit for each code. A weight is `scale * block's scale * code - minimum * block's minimum`.

use super::{BLOCK, Block, Codes, Unpack, Weight, q4_k};
use crate::isa::Simd;

const UPPER: usize = 16;
const CODES: usize = 48;

#[derive(Clone, Copy)]
pub(crate) struct Q5K;

impl Weight for Q5K {
    const BLOCK: Option<Block> = Some(Block { inputs: 256, bytes: 176 });
    const CODES: Option<Codes> = Some(Codes { bits: 5, halves: false });

    #[inline(always)]
    fn unpack<S: Simd>(self, s: S, block: &[u8], out: Unpack) {
        q4_k::unpack_scales(s, block, out.scales, out.minima);
        let upper: &[u8; BLOCK] = block[UPPER..].first_chunk().expect("a byte for each input of a block");
        for (j, (codes, out)) in
            block[CODES..].chunks_exact(BLOCK).zip(out.codes.chunks_exact_mut(2 * BLOCK)).enumerate()
        {
            let (first, second) = out.split_at_mut(BLOCK);
            for (i, upper) in upper.iter().enumerate() {
                first[i] = codes[i] & 15 | (upper >> (2 * j) & 1) << 4;
                second[i] = codes[i] >> 4 | (upper >> (2 * j + 1) & 1) << 4;
            }
        }
    }
}
