//! How fast a processor computes dot products at best.

use std::time::Instant;

use crate::isa::{Kernel, Simd};

/// Independent sums: more than the cycles that a dot product takes, so that none is waited for, and fewer than registers.
const CHAINS: usize = 12;

/// See [`crate::Isa::peak`].
pub(crate) struct Peak;

impl Kernel for Peak {
    type Out = f64;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> f64 {
        const ROUNDS: usize = 100_000;
        // Each sum is an operand of its next product, so that the compiler can compute nothing in advance.
        let weights = s.splat_i(std::hint::black_box(0x0102_0304));
        let mut sums: [S::I; CHAINS] = std::array::from_fn(|i| s.splat_i(i as i32));
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = s.dot(*sum, weights, *sum);
                }
            }
            // The compiler must not leave any out.
            std::hint::black_box(&sums);
            best = best.min(start.elapsed().as_secs_f64());
        }
        // For each byte a multiplication and an addition.
        (ROUNDS * CHAINS * S::LANES * 4 * 2) as f64 / best
    }
}
