//! How fast a processor computes dot products at best.

use std::time::Instant;

use crate::formats::Format;
use crate::isa::{Kernel, Simd, unroll};
use crate::panel::Codes;

/// Independent sums: more than the cycles that a dot product takes, so that none is waited for, and fewer than registers.
const CHAINS: usize = 12;

/// See [`crate::Isa::peak`].
pub(crate) struct Peak<'a> {
    pub format: Format<'a>,
    pub is_kept: bool,
}

impl Kernel for Peak<'_> {
    type Out = f64;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> f64 {
        match Codes::of::<S>(self.format, self.is_kept) {
            Codes::Eight | Codes::EightShared => peak::<S, false>(s),
            _ => peak::<S, true>(s),
        }
    }
}

/// Of dot products, or of products that are added to small sums.
#[inline(always)]
fn peak<S: Simd, const SMALL: bool>(s: S) -> f64 {
    const ROUNDS: usize = 100_000;
    // Each sum is an operand of its next product, so that the compiler can compute nothing in advance.
    let weights = s.splat_i(std::hint::black_box(0x0102_0304));
    let mut sums: [S::I; CHAINS] = std::array::from_fn(|i| s.splat_i(i as i32));
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            unroll!(i in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] {
                sums[i] = s.in_order(match SMALL {
                    true => s.add_products(sums[i], weights, sums[i]),
                    false => s.dot(sums[i], weights, sums[i]),
                });
            });
        }
        // The compiler must not leave any out.
        std::hint::black_box(&sums);
        best = best.min(start.elapsed().as_secs_f64());
    }
    // For each byte a multiplication and an addition.
    (ROUNDS * CHAINS * S::LANES * 4 * 2) as f64 / best
}
