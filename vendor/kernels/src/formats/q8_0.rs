//! Q8_0: blocks of 32 inputs in 34 bytes.
//!
//! ```text
//! byte   0       2                               34
//!        scale   code 0 | code 1 | ... | code 31
//! ```
//!
//! The scale is a 16-bit float, codes are bytes with sign. A weight is `scale * code`. Panels do not use the codes as they are, since -128
//! is among them: they quantise the decoded values.

use super::{BLOCK, Block, Weight, excess};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Lanes, PIECE, Rows, Step, Sums, vector};
use crate::isa::Simd;

const BYTES: usize = 34;

#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl Weight for Q8_0 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let d = s.splat(s.f16_at(b));
            for (q, x) in b[2..].chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                s.store_f(s.mul(s.load_i8(q), d), x);
            }
        }
    }

    #[inline(always)]
    fn prepare<S: Simd>(self, _s: S, _row: &[u8], _scratch: &mut [f32]) {}

    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        s: S,
        row: &'a [u8],
        _scratch: &[f32],
        i: usize,
        _room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let b = &row[BYTES * i..];
        (b[2..].first_chunk().expect("a block's codes"), s.f16_at(b), 0.0)
    }

    const GEMV: bool = true;

    /// A step is two blocks, in the order of inputs.
    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        let lanes = Lanes { fours: 4, per_block: 8, excess: excess::<S, Q8_0>() };
        GemvActs::arrange(acts, 2 * BLOCK, Some(lanes), |step, i| Some(step * 2 * BLOCK + i * PIECE))
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, mut rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        let mut acc = [[s.splat(0.0); T]; R];
        for x in acts.steps::<T>(1, 4) {
            if rows.len() >= 2 * BYTES {
                let pairs = rows.next(s, 2 * BYTES);
                add_pairs(s, pairs, x, &mut acc);
            } else {
                // The second block of the last pair is missing: it is filled up with zeros.
                let mut filled = [[0u8; 2 * BYTES]; R];
                let mut pairs = rows.next(s, BYTES);
                for (filled, pair) in filled.iter_mut().zip(&mut pairs) {
                    filled[..BYTES].copy_from_slice(pair);
                    *pair = &filled[..];
                }
                add_pairs(s, pairs, x, &mut acc);
            }
        }
        acc
    }
}

/// Adds the products with two blocks of each row to the rows' sums.
#[inline(always)]
fn add_pairs<S: Simd, const T: usize, const R: usize>(s: S, pairs: [&[u8]; R], x: Step, acc: &mut Sums<S, T, R>) {
    let mut codes = [[s.splat_i(0); 4]; R];
    for r in 0..R {
        codes[r] = s.unpack_bytes([&pairs[r][2..], &pairs[r][BYTES + 2..]]);
    }
    for v in 0..16 / S::LANES {
        let mut d = [s.splat(0.0); R];
        for r in 0..R {
            d[r] = s.pair_f16(pairs[r], &pairs[r][BYTES..], v);
        }
        for t in 0..T {
            let four = 4 * t + v * S::LANES / 4;
            let codes_of_token = vector(s, x.codes, t * 64 + v * 4 * S::LANES);
            let (scale, start) = (s.each_four(&x.scales[four..]), s.round(s.each_four(&x.sums[four..])));
            for r in 0..R {
                let dots = s.dot(start, codes[r][v], codes_of_token);
                acc[r][t] = s.fma(s.to_f(dots), s.mul(d[r], scale), acc[r][t]);
            }
        }
    }
}
