//! Products of many tokens with packed rows, or their kept columns.

use fastrand::Rng;
use kernels::{Activation, Acts, Columns, Format, GROUP, Isa, Out, Packed, Row, token_bytes};

use crate::common::*;

/// Results of a product: of each token as many as two panels have rows, and two more.
struct Results {
    rows: usize,
    floats: Vec<f32>,
}

impl Results {
    fn new(isa: Isa, n_tokens: usize) -> Results {
        let rows = 2 * isa.panel_rows() + 2;
        Results { rows, floats: vec![UNTOUCHED; rows * n_tokens] }
    }

    fn get(&self, t: usize, i: usize) -> f32 {
        self.floats[t * self.rows + i]
    }
}

impl Out for Results {
    fn token(&mut self, t: usize) -> &mut [f32] {
        &mut self.floats[t * self.rows..(t + 1) * self.rows]
    }
}

/// One product of many tokens.
struct Case<'a> {
    format: Format<'a>,
    n_in: usize,
    /// Of one or two matrices
    rows: [Vec<Vec<u8>>; 2],
    gated: Option<Activation>,
    /// Kept units and their width
    kept: Option<(Vec<i32>, usize)>,
    /// Activations of each token, of kept inputs
    x: Vec<Vec<f32>>,
    /// Which of them are multiplied
    tokens: Vec<usize>,
}

impl<'a> Case<'a> {
    fn any(rng: &mut Rng, format: Format<'a>, panel_rows: usize) -> Case<'a> {
        let n_in = match format {
            Format::Other(_) => rng.usize(1..300),
            // Rows from 1024 inputs on are packed in pieces.
            _ => block(format).0 * rng.usize(1..6) + if rng.u8(..4) == 0 { 1024 } else { 0 },
        };
        let n_rows = rng.usize(1..=2 * panel_rows + 1);
        let rows = [(); 2].map(|()| (0..n_rows).map(|_| any_row(rng, format, n_in)).collect());
        let kept = rng.bool().then(|| {
            let widths: Vec<usize> = [1, 2, 3, 8].into_iter().filter(|w| n_in.is_multiple_of(*w)).collect();
            let width = rng.choice(widths).unwrap();
            let (last, share) = (n_in / width - 1, rng.f32());
            let kept = (0..=last).filter(|&u| u == last || rng.f32() < share).map(|u| u as i32);
            (kept.collect::<Vec<_>>(), width)
        });
        let k = kept.as_ref().map_or(n_in, |(kept, width)| kept.len() * width);
        let n_tokens = rng.usize(0..14);
        let size = |t: usize| [2.0, 0.0, 1e-25, 1e25][if t < 8 { 0 } else { t % 4 }];
        let x = (0..n_tokens + 1).map(|t| any_floats(rng, k, size(t))).collect();
        let mut tokens: Vec<usize> = (0..n_tokens).collect();
        rng.shuffle(&mut tokens);
        Case {
            format,
            n_in,
            rows,
            gated: rng.choice([None, Some(Activation::Silu), Some(Activation::Gelu)]).unwrap(),
            kept,
            x,
            tokens,
        }
    }

    fn n_rows(&self) -> usize {
        self.rows[0].len()
    }

    fn row(&self, which: usize, i: usize) -> Row<'_> {
        Row { bytes: &self.rows[which][i], format: self.format }
    }

    fn run(&self, isa: Isa, acts: Acts) -> Results {
        let columns = self.kept.as_ref().map(|(kept, width)| Columns::new(kept, *width, self.n_in));
        assert_eq!((acts.n_tokens(), acts.k()), (self.x.len(), columns.as_ref().map_or(self.n_in, Columns::len)));
        let mut out = Results::new(isa, self.x.len());
        let packed = |which| {
            let mut panels = vec![0; self.n_rows().div_ceil(isa.panel_rows()) * isa.panel_bytes(acts.k())];
            isa.pack(&|i| self.row(which, i), self.n_rows(), self.n_in, columns.as_ref(), &mut panels);
            panels
        };
        let panels: Vec<Vec<u8>> = (0..1 + usize::from(self.gated.is_some())).map(packed).collect();
        let (n_rows, tokens) = (self.n_rows(), &self.tokens[..]);
        let of = |which: usize| Packed { bytes: &panels[which], format: self.format, is_kept: columns.is_some() };
        match self.gated {
            None => isa.gemm(of(0), n_rows, acts, tokens, &mut out),
            Some(act) => isa.gemm_gated(act, [of(0), of(1)], n_rows, acts, tokens, &mut out),
        }
        out
    }

    fn weights(&self, which: usize, i: usize) -> Weights {
        let row = self.row(which, i);
        let kept = |all: &[f32]| match &self.kept {
            Some((kept, width)) => kept.iter().flat_map(|&u| &all[u as usize * width..][..*width]).copied().collect(),
            None => all.to_vec(),
        };
        let largest = |x: &[f32]| x.iter().fold(0.0f64, |a, x| a.max(f64::from(x.abs())));
        let values_of = |row: &Row| kept(&values(row, self.n_in));
        let x: Vec<f32> = values_of(&row);
        let mut most: Vec<f64> = x.chunks(GROUP).map(largest).collect();
        // These types are packed by the largest value that a code could stand for, in the row or not.
        let codes = match self.format {
            Format::Q4_0 => Some(2..18),
            Format::Q4_1 => Some(4..20),
            Format::Q2K => Some(16..80),
            Format::Q3K => Some(0..96),
            Format::Q4K => Some(16..144),
            Format::Q5K => Some(16..176),
            Format::Q6K => Some(0..192),
            Format::Iq4Xs => Some(8..136),
            _ => None,
        };
        for code in [0x00, 0xff] {
            let (Some(codes), None) = (&codes, &self.kept) else { continue };
            let mut bytes = row.bytes.to_vec();
            bytes.chunks_exact_mut(block(self.format).1).for_each(|b| b[codes.clone()].fill(code));
            let x = values_of(&Row { bytes: &bytes, ..row });
            most.iter_mut().zip(x.chunks(GROUP)).for_each(|(most, x)| *most = most.max(largest(x)));
        }
        for most in most.chunks_mut(sharing(self.format)) {
            let largest = most.iter().fold(0.0, |a: f64, &b| a.max(b));
            most.fill(largest);
        }
        Weights { values: x, steps: most.iter().map(|x| x / 127.0).collect() }
    }
}

/// `act(a) * b` of such products.
fn gate(act: Activation, (a, a_bound): (f64, f64), (b, b_bound): (f64, f64)) -> (f64, f64) {
    // The slopes are below 1.13.
    let a = activated(act, a);
    let a_bound = 1.13 * a_bound + ROUNDING * a.abs();
    (a * b, a.abs() * b_bound + b.abs() * a_bound + a_bound * b_bound)
}

#[test]
fn gemm() {
    let mut rng = Rng::with_seed(3);
    for number in 0..400 {
        let format = FORMATS[number % FORMATS.len()];
        for isa in isas() {
            let case = Case::any(&mut rng, format, isa.panel_rows());
            // The same activations may be multiplied with rows of a format that shares scales, too.
            let sharing = if rng.bool() { Format::Q4K } else { format };
            let acts = quantized(isa, &case.x, sharing);
            let out = case.run(isa, Acts::new(&acts, case.x[0].len(), 1, sharing.shares_scales()));
            let weights = [0, 1].map(|which| (0..case.n_rows()).map(|i| case.weights(which, i)).collect::<Vec<_>>());
            let k = case.x[0].len();
            for (t, token) in acts.chunks_exact(token_bytes(k)).enumerate() {
                let x = dequantized(token, k);
                let n_written = if case.tokens.contains(&t) { case.n_rows() } else { 0 };
                for (i, (a, b)) in weights[0].iter().zip(&weights[1]).enumerate().take(n_written) {
                    let first = dot(a, &x);
                    let expected = case.gated.map_or(first, |act| gate(act, first, dot(b, &x)));
                    let what = (format, case.n_in, &case.kept, case.gated, t, i);
                    assert!(close(out.get(t, i), expected), "{isa} {what:?}: {} {expected:?}", out.get(t, i));
                }
                assert!((n_written..out.rows).all(|i| out.get(t, i) == UNTOUCHED), "{isa}: nothing else is written");
            }
        }
    }
}

#[test]
#[should_panic(expected = "activations that share scales")]
fn activations_of_another_format() {
    let case = Case::any(&mut Rng::with_seed(14), Format::Q4K, Isa::best().panel_rows());
    let acts = quantized(Isa::best(), &case.x, Format::Q4_0);
    case.run(Isa::best(), Acts::new(&acts, case.x[0].len(), 1, false));
}

#[test]
fn whole_numbers_are_multiplied_exactly() {
    let mut rng = Rng::with_seed(4);
    for format in [Format::Q4_1, Format::Q4K, Format::Q8_0] {
        for isa in isas() {
            for kept in [None, Some((vec![0, 1, 3, 9, 10, 11, 15, 17, 20, 31], 8))] {
                let n_in = 256 * rng.usize(1..4);
                let k = kept.as_ref().map_or(n_in, |(kept, width)| kept.len() * width);
                let rows = [(); 2].map(|()| (0..isa.panel_rows()).map(|_| whole_row(&mut rng, format, n_in)).collect());
                let x: Vec<_> = (0..13).map(|_| whole_acts(&mut rng, k)).collect();
                let case = Case { format, n_in, rows, gated: None, kept, x, tokens: (0..13).collect() };
                let out = case.run(isa, Acts::new(&quantized(isa, &case.x, format), k, 1, format.shares_scales()));
                for i in 0..case.n_rows() {
                    let weights = case.weights(0, i).values;
                    for (t, x) in case.x.iter().enumerate() {
                        assert_eq!(out.get(t, i), whole_dot(&weights, x), "{isa} {format:?}");
                    }
                }
            }
        }
    }
}

/// A token's products are the same bits in tiles of any size, in any order, with any others.
#[test]
fn tiles() {
    let mut rng = Rng::with_seed(13);
    for number in 0..200 {
        let format = FORMATS[number % FORMATS.len()];
        for isa in isas() {
            let mut case = Case::any(&mut rng, format, isa.panel_rows());
            let k = case.x[0].len();
            let out = case.run(isa, Acts::new(&quantized(isa, &case.x, format), k, 1, format.shares_scales()));
            let tokens = case.tokens.clone();
            case.tokens.sort_unstable();
            for tile_tokens in [isa.tile_tokens(), rng.usize(1..9)] {
                let tiles = in_tiles(isa, &case.x, format, tile_tokens);
                let other = case.run(isa, Acts::new(&tiles, k, tile_tokens, format.shares_scales()));
                for (t, i) in tokens.iter().flat_map(|&t| (0..case.n_rows()).map(move |i| (t, i))) {
                    let (a, b) = (out.get(t, i), other.get(t, i));
                    assert_eq!(a.to_bits(), b.to_bits(), "{isa} {format:?} {tile_tokens}: {a} {b}");
                }
            }
        }
    }
}

/// A weight or an activation that is no number makes its results none, and no others.
#[test]
fn nan_stays() {
    let mut rng = Rng::with_seed(7);
    for number in 0..200 {
        let format = FORMATS[number % FORMATS.len()];
        for isa in isas() {
            let mut case = Case::any(&mut rng, format, isa.panel_rows());
            case.kept = None;
            case.x = (0..3).map(|_| any_floats(&mut rng, case.n_in, 1.0)).collect();
            case.tokens = vec![0, 1, 2];
            let special = rng.choice([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).unwrap();
            let in_weights = rng.bool();
            let bad_row = rng.usize(..case.n_rows());
            let which = usize::from(case.gated.is_some() && rng.bool());
            if in_weights {
                let row = &mut case.rows[which][bad_row];
                // In the scale or in the minimum, of any block.
                let at = rng.usize(..row.len() / block(format).1) * block(format).1;
                match format {
                    Format::Other(_) => row[at..at + 4].copy_from_slice(&special.to_le_bytes()),
                    Format::Mxfp4 => row[at] = 255,
                    _ => {
                        let at = at + rng.choice(floats_at(format)).unwrap();
                        let bits = if special.is_nan() { 0x7e01u16 } else { 0x7c00 };
                        row[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                    }
                }
            } else {
                case.x[1][rng.usize(..case.n_in)] = special;
            }
            let acts = quantized(isa, &case.x, format);
            let out = case.run(isa, Acts::new(&acts, case.n_in, 1, format.shares_scales()));
            for t in 0..3 {
                for i in 0..case.n_rows() {
                    let is_bad = if in_weights { i == bad_row } else { t == 1 };
                    let x = out.get(t, i);
                    assert_eq!(x.is_nan(), is_bad, "{isa} {format:?} {special} {in_weights}: {x}");
                }
            }
            if format.has_gemv() {
                let out =
                    products(isa, format, &case.rows[which], Acts::new(&acts, case.n_in, 1, format.shares_scales()));
                for (i, out) in out.iter().enumerate() {
                    for (t, x) in out.iter().enumerate() {
                        // Infinity may stay infinity.
                        let is_bad = if in_weights { i == bad_row } else { t == 1 };
                        assert_eq!(!x.is_finite(), is_bad, "{isa} {format:?} {special} {in_weights}: {x}");
                    }
                }
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let mut rng = Rng::with_seed(8);
    let least = isas().iter().map(|isa| isa.panel_rows()).min().unwrap();
    for number in 0..200 {
        let case = Case::any(&mut rng, FORMATS[number % FORMATS.len()], least);
        let acts = quantized(Isa::best(), &case.x, case.format);
        let k = case.x[0].len();
        let all: Vec<Results> =
            isas().iter().map(|&isa| case.run(isa, Acts::new(&acts, k, 1, case.format.shares_scales()))).collect();
        for (t, token) in acts.chunks_exact(token_bytes(k)).enumerate() {
            let x = dequantized(token, k);
            for i in 0..if case.tokens.contains(&t) { case.n_rows() } else { 0 } {
                let products = [0, 1].map(|which| {
                    let mut w = case.weights(which, i);
                    let (exact, bound) = dot(&w, &x);
                    // Codes agree, but for one that is half-way between two before it is rounded. Codes of a type's own on one instruction set may
                    // be rounded to others on another.
                    let is_own = matches!(
                        case.format,
                        Format::Q3K
                            | Format::Q4_0
                            | Format::Q4_1
                            | Format::Q4K
                            | Format::Q5_0
                            | Format::Q5_1
                            | Format::Q5K
                            | Format::Q6K
                    );
                    w.steps.iter_mut().for_each(|s| *s *= if is_own { 1.0 } else { 0.02 });
                    (exact, dot(&w, &x).1.min(bound))
                });
                let (_, bound) = case.gated.map_or(products[0], |act| gate(act, products[0], products[1]));
                for out in &all {
                    let expected = (f64::from(all[0].get(t, i)), bound);
                    assert!(
                        close(out.get(t, i), expected),
                        "{:?} {t} {i}: {} {expected:?}",
                        case.format,
                        out.get(t, i)
                    );
                }
            }
        }
    }
}
