//! What makes activations.

use fastrand::Rng;
use kernels::{Acts, Format, GROUP, token_bytes};

use crate::common::*;

/// Formats whose products want scales of their own for each group, and the same one for some groups.
const BOTH: [Format; 2] = [Format::Q4_0, Format::Q4K];

/// Checks activations of `x` for products with rows of a format. Largest magnitudes may be off by `rounding` of themselves.
fn check_acts(x: &[f64], format: Format, token: &[u8], rounding: f64) {
    let k = x.len();
    for (g, (codes, tail)) in groups(token).enumerate() {
        let (at, scale) = (g * GROUP, tail.scale);
        assert!(codes.iter().enumerate().all(|(i, &c)| at + i < k || c == 0), "zeros behind the last input");
        let share = g / sharing(format) * sharing(format);
        let shared = &x[k.min(share * GROUP)..k.min((share + sharing(format)) * GROUP)];
        let x = &x[k.min(g * GROUP)..k.min((g + 1) * GROUP)];
        if shared.iter().any(|x| !x.is_finite()) {
            assert!(scale.is_nan(), "group {g}: {scale}");
            continue;
        }
        let largest = shared.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        assert!((f64::from(scale) * 127.0 - largest).abs() <= largest * (rounding + 1e-6) + 1e-35);
        let sum = |codes: &[u8]| codes.iter().map(|&c| i32::from(c as i8)).sum::<i32>();
        assert_eq!(tail.halves, [sum(&codes[..GROUP / 2]), sum(&codes[GROUP / 2..])]);
        assert_eq!((tail.start, tail.sum), (-128 * sum(codes), sum(codes) as f32 * scale));
        for (x, &code) in x.iter().zip(codes) {
            assert_ne!(code as i8, -128);
            let error = (x - f64::from(scale) * f64::from(code as i8)).abs();
            let bound = f64::from(scale) * 0.5 * (1.0 + 1e-4) + x.abs() * rounding + 1e-35;
            assert!(error <= bound, "group {g}: {x} as {code} of {scale}");
        }
    }
}

/// Rows of inputs that are hard: zeros, tiny, huge, of all sizes, with NaN or infinity.
fn hard_floats(rng: &mut Rng, n: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = [1.0, 0.0, 1e-30, 1e-38, 1e-45, 1e30, 3e38].map(|s| any_floats(rng, n, s)).to_vec();
    rows.push((0..n).map(|_| 10f32.powi(rng.i32(-36..38)) * (rng.f32() - 0.5)).collect());
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = any_floats(rng, n, 1.0);
        row[rng.usize(..n)] = special;
        rows.push(row);
    }
    rows
}

#[test]
fn quantize() {
    let mut rng = Rng::with_seed(1);
    for n in [1, 3, 31, 63, 64, 65, 127, 128, 200, 576] {
        for x in hard_floats(&mut rng, n) {
            let exact: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            for format in BOTH {
                let one = std::slice::from_ref(&x);
                let all: Vec<Vec<u8>> = isas().iter().map(|&isa| quantized(isa, one, format)).collect();
                for token in &all {
                    check_acts(&exact, format, token, 0.0);
                    assert_eq!(*token, all[0], "the same bytes everywhere");
                }
            }
        }
    }
}

/// Tokens are the same in a tile as alone, group after group of all tokens.
#[test]
fn tiles() {
    let mut rng = Rng::with_seed(12);
    for n in [1, 64, 65, 576] {
        let x: Vec<_> = (0..7).map(|_| any_floats(&mut rng, n, 1.0)).collect();
        let gain = any_floats(&mut rng, n, 2.0);
        for (isa, format) in isas().into_iter().flat_map(|isa| BOTH.map(|format| (isa, format))) {
            let shares = format.shares_scales();
            for tile_tokens in 1..=x.len() {
                let (tiles, alone) = (in_tiles(isa, &x, format, tile_tokens), quantized(isa, &x, format));
                let acts = Acts::new(&tiles, n, tile_tokens, shares);
                assert_eq!(acts.of(&(0..x.len()).collect::<Vec<_>>()), alone);
                assert_eq!(acts.of(&[5, 2]), [5, 2].map(|t| &alone[t * token_bytes(n)..][..token_bytes(n)]).concat());
            }
            let all: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
            let mut tile = vec![0xaa; 7 * token_bytes(n)];
            isa.rms_norm_quantize(&all, &gain, 1e-5, shares, &mut tile);
            for (i, (codes, _)) in groups(&tile).enumerate() {
                let (g, t) = (i / all.len(), i % all.len());
                let mut alone = vec![0xaa; token_bytes(n)];
                isa.rms_norm_quantize(&all[t..=t], &gain, 1e-5, shares, &mut alone);
                assert_eq!(codes, groups(&alone).nth(g).unwrap().0, "group {g} of token {t}");
            }
            for (t, x) in all.iter().enumerate() {
                let mut alone = vec![0xaa; token_bytes(n)];
                isa.rms_norm_quantize(&[x], &gain, 1e-5, shares, &mut alone);
                assert_eq!(Acts::new(&tile, n, 7, shares).of(&[t]), alone);
            }
        }
    }
}

#[test]
fn rms_norm_quantize() {
    let mut rng = Rng::with_seed(2);
    for n in [1, 7, 64, 65, 100, 576, 1000] {
        for x in hard_floats(&mut rng, n) {
            let (gain, eps) = (any_floats(&mut rng, n, 2.0), 1e-5f32);
            let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n as f64;
            if mean > 1e36 && mean.is_finite() {
                // The sum of squares is beyond what floats hold.
                continue;
            }
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            let exact: Vec<f64> = x.iter().zip(&gain).map(|(&x, &g)| f64::from(x) * factor * f64::from(g)).collect();
            for (isa, format) in isas().into_iter().flat_map(|isa| BOTH.map(|format| (isa, format))) {
                let mut token = vec![0xaa; token_bytes(n)];
                isa.rms_norm_quantize(&[&x], &gain, eps, format.shares_scales(), &mut token);
                if mean.is_finite() {
                    check_acts(&exact, format, &token, ROUNDING);
                } else {
                    let special = x.iter().position(|x| !x.is_finite()).unwrap();
                    assert!(groups(&token).nth(special / GROUP).unwrap().1.scale.is_nan());
                }
            }
        }
    }
}

#[test]
fn gated() {
    let mut rng = Rng::with_seed(10);
    for n in [1, 4, 15, 16, 17, 100, 576] {
        for size in [1.0, 10.0, 100.0, 1e-30, 1e30] {
            let (gate, up) = (any_floats(&mut rng, n, size), any_floats(&mut rng, n, 2.0));
            for (isa, act) in isas().into_iter().flat_map(|isa| ACTIVATIONS.map(|act| (isa, act))) {
                let mut out = vec![UNTOUCHED; n];
                isa.gated(act, &gate, &up, &mut out);
                for ((&g, &u), x) in gate.iter().zip(&up).zip(out) {
                    let exact = activated(act, f64::from(g)) * f64::from(u);
                    // The argument's rounding shows in the exponential, the more the further it is from zero.
                    let bound = exact.abs() * ROUNDING * if g < -1.0 { 1.0 + f64::from(g).powi(2) } else { 1.0 };
                    assert!(close(x, (exact, bound)), "{isa}: {act:?} of {g} * {u} = {exact}, not {x}");
                }
            }
        }
    }
    for (isa, act) in isas().into_iter().flat_map(|isa| ACTIVATIONS.map(|act| (isa, act))) {
        // As a vector and as what is left behind the last.
        for n in [1, 16] {
            let mut out = vec![0.0; n];
            isa.gated(act, &vec![f32::NAN; n], &vec![1.0; n], &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{isa}");
            isa.gated(act, &vec![1.0; n], &vec![f32::NAN; n], &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{isa}");
        }
    }
}
