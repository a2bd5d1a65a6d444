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

use super::by_block;
use super::super_blocks::{self, INPUTS, N_BLOCKS, SuperBlocks};
use super::{BLOCK, Block, Weight, q4_k};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

pub(crate) const BYTES: usize = 176;
/// Where upper bits begin.
pub(crate) const UPPER: usize = 16;
/// Where the lower four bits begin.
pub(crate) const CODES: usize = 48;

#[derive(Clone, Copy)]
pub(crate) struct Q5K;

/// Writes the codes.
#[inline(always)]
fn codes(b: &[u8], out: &mut [u8; INPUTS]) {
    let upper: &[u8; BLOCK] = b[UPPER..].first_chunk().expect("a byte for each input of a block");
    for (j, (lower, out)) in b[CODES..].chunks_exact(BLOCK).zip(out.chunks_exact_mut(2 * BLOCK)).enumerate() {
        // The compiler makes vector instructions of a loop over arrays of known lengths.
        let lower: &[u8; BLOCK] = lower.try_into().expect("a byte for two codes");
        let out: &mut [u8; 2 * BLOCK] = out.try_into().expect("two blocks");
        for i in 0..BLOCK {
            let bits = upper[i] >> (2 * j);
            out[i] = lower[i] & 15 | (bits & 1) << 4;
            out[BLOCK + i] = lower[i] >> 4 | (bits & 2) << 3;
        }
    }
}

impl SuperBlocks for Q5K {
    const BYTES: usize = BYTES;
    const RANGE: [f32; 2] = [0.0, 31.0];

    #[inline(always)]
    fn unpack<S: Simd>(s: S, b: &[u8], to: &mut [u8; INPUTS]) -> [[f32; N_BLOCKS]; 2] {
        codes(b, to);
        let (d, m) = q4_k::scales(s, b);
        [std::array::from_fn(|i| d[i / 2]), std::array::from_fn(|i| m[i / 2])]
    }
}

/// The numbers of the words of upper bits, and where in their bytes those of a block are.
const UPPER_WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4]);
const UPPER_BITS: [u32; 16] = by_block::rotations([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7], 4);

impl Weight for Q5K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        super_blocks::decode::<S, Q5K>(s, row, out);
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        super_blocks::panel_row::<S, Q5K>(s, row, out);
    }

    const SMALL_CODES: Codes = Codes::FiveShared;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], mut out: PanelRow) {
        for (i, b) in row.chunks_exact(BYTES).enumerate() {
            q4_k::small_scales(s, b, i, &mut out);
            codes(b, (&mut out.codes[INPUTS * i..][..INPUTS]).try_into().expect("a super-block"));
        }
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        q4_k::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        q4_k::dot::<S, T, R, BYTES>(s, rows, acts)
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        let mut codes = q4_k::codes_by_block(s, &b[CODES..]);
        for (codes, words) in codes.iter_mut().zip(&UPPER_WORDS) {
            let bits = s.rotate(s.words(&b[UPPER..UPPER + 64], words), &UPPER_BITS);
            *codes = s.with_bits::<0, 0x10>(*codes, bits);
        }
        codes
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        q4_k::scales_by_block(s, b)
    }
}
