//! Products of few tokens with rows where they are.

use fastrand::Rng;
use kernels::{Acts, Format, GROUP, Isa, MAX_GEMV_TOKENS, Row, token_bytes};

use crate::common::*;

#[test]
fn gemv() {
    let mut rng = Rng::with_seed(5);
    for format in FORMATS.into_iter().filter(|f| f.has_gemv()) {
        for n_tokens in 1..=MAX_GEMV_TOKENS {
            // Groups without their second half, and without a group of an even number.
            for n_blocks in [1, 2, 3, 4, 5, 6, 7, 9] {
                let n_in = block(format).0 * n_blocks;
                let rows: Vec<_> = (0..rng.usize(0..5)).map(|_| any_row(&mut rng, format, n_in)).collect();
                let size = |t: usize| [1.0, 1.0, 1e30, 1e-30, 0.0][t % 5];
                let x: Vec<_> = (0..n_tokens).map(|t| any_floats(&mut rng, n_in, size(t))).collect();
                for isa in isas() {
                    // The same activations may be multiplied with rows of a format that shares scales, too.
                    let sharing = if rng.bool() { Format::Q4K } else { format };
                    let acts = quantized(isa, &x, sharing);
                    let out = products(isa, format, &rows, Acts::new(&acts, n_in, 1, sharing.shares_scales()));
                    assert_eq!(out.len(), rows.len());
                    for (row, out) in rows.iter().zip(&out) {
                        // Weights are used as they are.
                        let values = values(&Row { bytes: row, format }, n_in);
                        let weights = Weights { steps: vec![0.0; n_in.div_ceil(GROUP)], values };
                        assert_eq!(out.len(), n_tokens);
                        for (token, out) in acts.chunks_exact(token_bytes(n_in)).zip(out) {
                            let (exact, _) = dot(&weights, &dequantized(token, n_in));
                            let bound = ROUNDING * magnitude(format, row, &weights.values, &dequantized(token, n_in));
                            assert!(
                                close(*out, (exact, bound)),
                                "{isa} {format:?} {n_blocks} {n_tokens}: {out} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn whole_numbers_are_multiplied_exactly() {
    let mut rng = Rng::with_seed(6);
    for format in [Format::Q4_1, Format::Q4K, Format::Q8_0] {
        for n_tokens in 1..=MAX_GEMV_TOKENS {
            let n_in = block(format).0 * rng.usize(1..4);
            let rows: Vec<_> = (0..3).map(|_| whole_row(&mut rng, format, n_in)).collect();
            let x: Vec<_> = (0..n_tokens).map(|_| whole_acts(&mut rng, n_in)).collect();
            for isa in isas() {
                let out = products(
                    isa,
                    format,
                    &rows,
                    Acts::new(&quantized(isa, &x, format), n_in, 1, format.shares_scales()),
                );
                for (row, out) in rows.iter().zip(out) {
                    let weights = values(&Row { bytes: row, format }, n_in);
                    let expected: Vec<f32> = x.iter().map(|x| whole_dot(&weights, x)).collect();
                    assert_eq!(out, expected, "{isa} {format:?}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "1 to 8 tokens, not 9")]
fn too_many_tokens() {
    let (row, x) = (vec![0; 18], vec![vec![1.0; 32]; MAX_GEMV_TOKENS + 1]);
    let acts = quantized(Isa::best(), &x, Format::Q4_0);
    products(Isa::best(), Format::Q4_0, &[row], Acts::new(&acts, 32, 1, false));
}

#[test]
#[should_panic(expected = "activations that share scales")]
fn activations_of_another_format() {
    let x = vec![vec![1.0; 256]];
    let acts = quantized(Isa::best(), &x, Format::Q4_0);
    products(Isa::best(), Format::Q4K, &[vec![0; 144]], Acts::new(&acts, 256, 1, false));
}
