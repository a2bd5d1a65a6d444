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
use crate::gemv::{Codes, GemvActs, Lanes, PIECE, Sums};
use crate::isa::Simd;

const BYTES: usize = 34;
/// What a token has in a step: 64 codes, and two numbers for each of 16 lanes.
const STEP_UNITS: usize = 3;

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
        let lanes = Lanes { fours: 4, per_block: 8, excess: Some(excess::<S, Q8_0>()) };
        GemvActs::arrange(acts, 2 * BLOCK, Some(lanes), |step, i| Some(step * 2 * BLOCK + i * PIECE))
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize>(self, s: S, row: &[u8], acts: &GemvActs) -> Sums<S, T> {
        let mut acc = [[s.splat(0.0); 3]; T];
        let pairs = row.chunks_exact(2 * BYTES);
        let rest = pairs.remainder();
        let mut steps = acts.codes.chunks_exact(STEP_UNITS * T);
        for (i, (pair, x)) in pairs.zip(&mut steps).enumerate() {
            add_pair(s, pair, x, i % 2, &mut acc);
        }
        if let (Some(x), false) = (steps.next(), rest.is_empty()) {
            // The second block of the last pair is missing: it is filled up with zeros.
            let mut pair = [0u8; 2 * BYTES];
            pair[..rest.len()].copy_from_slice(rest);
            add_pair(s, &pair, x, 0, &mut acc);
        }
        acc
    }
}

/// Adds the products with two blocks to the sums number `to`.
#[inline(always)]
fn add_pair<S: Simd, const T: usize>(s: S, pair: &[u8], x: &[Codes], to: usize, acc: &mut Sums<S, T>) {
    let (a, b) = pair.split_at(BYTES);
    let codes = s.unpack_bytes([&a[2..], &b[2..]]);
    for (v, codes) in codes.iter().enumerate().take(16 / S::LANES) {
        let d = s.pair_f16(a, b, v);
        for (acc, x) in acc.iter_mut().zip(x.chunks_exact(STEP_UNITS)) {
            let [x, scales, start] =
                [0, 64, 128].map(|first| first + 4 * v * S::LANES).map(|at| &x[at / 64].0[at % 64..]);
            let dots = s.dot(s.load_i(start), *codes, s.load_i(x));
            acc[to] = s.fma(s.to_f(dots), s.mul(d, s.as_f(s.load_i(scales))), acc[to]);
        }
    }
}
