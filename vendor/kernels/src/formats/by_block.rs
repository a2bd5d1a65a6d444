//! Products of few tokens with super-blocks, on instruction sets whose vectors have a lane for each of a super-block's sixteen blocks.
//!
//! A super-block's codes become four vectors: in the lane of a block vector `k` has its codes `4 k` to `4 k + 3`. So the four products with a token's
//! activations, which lie in the same order, are added as integers, and what differs from block to block, scales and minima, is multiplied with
//! once for all 256 inputs. Blocks of the two halves of a super-block take turns: what a token's activations are to be multiplied with, a scale
//! for each half, is then the same in each pair of lanes.

use super::super_blocks::{INPUTS, N_BLOCKS};
use super::{Weight, shares_scales};
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;

/// Vectors of a super-block's codes.
pub(crate) const VECTORS: usize = INPUTS / N_BLOCKS / 4;

/// Whether the instruction set multiplies rows of this type so.
pub(crate) const fn is_used<S: Simd, W: Weight>() -> bool {
    S::LANES == N_BLOCKS && shares_scales::<W>()
}

/// The lane of a block.
pub(crate) const fn lane(block: usize) -> usize {
    block % (N_BLOCKS / 2) * 2 + block / (N_BLOCKS / 2)
}

/// The first of the four inputs that lie in a vector's lane, by the number of the lane in all vectors.
pub(crate) fn first_input(i: usize) -> usize {
    let (vector, lane) = (i / N_BLOCKS, i % N_BLOCKS);
    let block = lane / 2 + lane % 2 * (N_BLOCKS / 2);
    block * (INPUTS / N_BLOCKS) + 4 * vector
}

/// A number for each lane, of such for each block.
pub(crate) const fn by_lane(of_blocks: [u32; N_BLOCKS]) -> [u32; N_BLOCKS] {
    let mut all = of_blocks;
    let mut block = 0;
    while block < N_BLOCKS {
        all[lane(block)] = of_blocks[block];
        block += 1;
    }
    all
}

/// The same as bytes: where the bytes of blocks are.
pub(crate) const fn places(of_blocks: [u32; N_BLOCKS]) -> [u8; N_BLOCKS] {
    let (by_lane, mut places) = (by_lane(of_blocks), [0; N_BLOCKS]);
    let mut i = 0;
    while i < N_BLOCKS {
        places[i] = by_lane[i] as u8;
        i += 1;
    }
    places
}

/// Where a byte of each block of 16 is.
pub(crate) const OF_16: [u8; N_BLOCKS] = places([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
/// Where a byte of each block of 32 is, which are two blocks here.
pub(crate) const OF_32: [u8; N_BLOCKS] = places([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]);

/// For each vector and each lane the number of a word, four bytes. Those of a block follow one another, from the one that is said of it on.
pub(crate) const fn words(first: [u32; N_BLOCKS]) -> [[u32; N_BLOCKS]; VECTORS] {
    let mut all = [by_lane(first); VECTORS];
    let mut i = 0;
    while i < VECTORS * N_BLOCKS {
        all[i / N_BLOCKS][i % N_BLOCKS] += (i / N_BLOCKS) as u32;
        i += 1;
    }
    all
}

/// By how many bits the words of each lane are to be rotated to the right, so that the bits of its block, which begin at these bits of a byte, come
/// to bit `to`.
pub(crate) const fn rotations(from: [u32; N_BLOCKS], to: u32) -> [u32; N_BLOCKS] {
    let mut all = by_lane(from);
    let mut i = 0;
    while i < N_BLOCKS {
        all[i] = (all[i] + 32 - to) % 32;
        i += 1;
    }
    all
}

/// Products of `R` rows with `T` tokens, as sums by lanes.
#[inline(always)]
pub(crate) fn dot<S: Simd, W: Weight, const T: usize, const R: usize>(
    s: S,
    weight: W,
    mut rows: Rows<R>,
    acts: &GemvActs,
) -> Sums<S, T, R> {
    let mut acc = [[s.splat(0.0); T]; R];
    for x in acts.by_lanes::<T>() {
        let blocks = rows.next(s, W::BLOCK.expect("super-blocks").bytes);
        let mut codes = [[s.splat_i(0); VECTORS]; R];
        let mut scales = [[s.splat(0.0); 2]; R];
        for r in 0..R {
            codes[r] = weight.codes_of_blocks(s, blocks[r]);
            scales[r] = weight.scales_of_blocks(s, blocks[r]);
        }
        for t in 0..T {
            let of_inputs = s.splat_two(&x.scales[t]);
            let sums = s.load_f16(&x.sums[t]);
            for r in 0..R {
                let mut products = s.splat_i(0);
                for k in 0..VECTORS {
                    products = s.dot(products, codes[r][k], s.load_i(&x.codes[t][k].0));
                }
                let [scale, minimum] = scales[r];
                let values = s.fma(minimum, sums, s.mul(s.to_f(products), scale));
                acc[r][t] = s.fma(values, of_inputs, acc[r][t]);
            }
        }
    }
    acc
}
