//! What a processor could do at best.

use std::time::Instant;

use crate::simd::{Kernel, Simd};

/// Sums that do not wait for each other: more than a dot product takes cycles, and no more than there are registers.
const CHAINS: usize = 12;

/// See [`crate::Isa::peak`].
pub(crate) struct Peak;

impl Kernel for Peak {
    type Out = f64;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> f64 {
        const ROUNDS: usize = 100_000;
        // Each sum is a factor of its next product: nothing can be computed once and for all but what is also computed once in a
        // product of matrices, of the weights.
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
            // All are needed.
            std::hint::black_box(&sums);
            best = best.min(start.elapsed().as_secs_f64());
        }
        // Of each byte a multiplication and an addition.
        (ROUNDS * CHAINS * S::LANES * 4 * 2) as f64 / best
    }
}
