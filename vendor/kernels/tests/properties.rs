//! What every instruction set must compute, beside references in plain code.
//!
//! Cases are drawn from generators with fixed seeds. Bounds follow from where rounding happens: a code of 8 bits is off by half a
//! step at most, floats by some units in the last place of the sum of magnitudes.

use fastrand::Rng;
use kernels::{Acts, Cells, Columns, FEW, Format, GROUP, Isa, Out, Query, Row, token_bytes};

/// Relative to a sum of magnitudes: what floats lose on the way.
const ROUNDING: f64 = 1e-5;

fn isas() -> Vec<Isa> {
    let all = Isa::all();
    assert_eq!(all.last().unwrap().to_string(), "portable");
    all
}

#[test]
fn the_best_is_within_the_build() {
    let old = cfg!(target_feature = "avx2") && !cfg!(any(target_feature = "avx512f", target_feature = "avxvnni"));
    let best = if old { "AVX2".to_owned() } else { isas()[0].to_string() };
    assert_eq!(Isa::best().to_string(), best);
}

/// A vector instruction that is a function of its own is many times slower. In a build for any x86-64 the compiler leaves it one if
/// it is used in a function that it does not inline, as a closure may be.
#[test]
#[cfg(all(target_arch = "x86_64", not(target_feature = "avx2"), not(debug_assertions)))]
fn instructions_are_inlined() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let name = b"core_arch3x86";
    let symbols = program.windows(name.len() + 80).filter(|w| w.starts_with(name) && w[name.len()].is_ascii_digit());
    let functions: Vec<_> = symbols
        .map(|w| String::from_utf8_lossy(w.split(|b| *b == 0).next().unwrap()).into_owned())
        // These ask what the processor has.
        .filter(|s| !s.contains("xgetbv") && !s.contains("cpuid"))
        .collect();
    assert!(functions.is_empty(), "{functions:#?}");
}

/// A 16-bit float, by its definition.
fn half(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1024.0 + fraction) * 2f32.powi(e - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// A 16-bit float of ordinary size.
fn any_half(rng: &mut Rng) -> [u8; 2] {
    let exponent = rng.u16(8..18);
    (exponent << 10 | rng.u16(0..1024) | u16::from(rng.bool()) << 15).to_le_bytes()
}

/// Mostly ordinary floats; `size` is their scale.
fn any_floats(rng: &mut Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.f32() + rng.f32() - 1.0) * size).collect()
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn read_floats(bytes: &[u8], out: &mut [f32]) {
    for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *out = f32::from_le_bytes(b.try_into().unwrap());
    }
}

const FORMATS: [Format; 5] = [Format::Q4_0, Format::Q4_1, Format::Q4K, Format::Q8_0, Format::Other(&read_floats)];

/// Inputs and bytes of a block.
fn block(format: Format) -> (usize, usize) {
    match format {
        Format::Q4_0 => (32, 18),
        Format::Q4_1 => (32, 20),
        Format::Q4K => (256, 144),
        Format::Q8_0 => (32, 34),
        Format::Other(_) => (1, 4),
    }
}

fn row_bytes(format: Format, n_in: usize) -> usize {
    n_in / block(format).0 * block(format).1
}

/// A row as a file might have it.
fn any_row(rng: &mut Rng, format: Format, n_in: usize) -> Vec<u8> {
    if let Format::Other(_) = format {
        return bytes_of(&any_floats(rng, n_in, 3.0));
    }
    let mut row: Vec<u8> = (0..row_bytes(format, n_in)).map(|_| rng.u8(..)).collect();
    for b in row.chunks_exact_mut(block(format).1) {
        b[..2].copy_from_slice(&any_half(rng));
        if matches!(format, Format::Q4_1 | Format::Q4K) {
            b[2..4].copy_from_slice(&any_half(rng));
        }
    }
    row
}

/// A row's values, by the definition of its format.
fn values(row: &Row, n_in: usize) -> Vec<f32> {
    let mut out = vec![0.0; n_in];
    for (b, out) in row.bytes.chunks_exact(block(row.format).1).zip(out.chunks_exact_mut(block(row.format).0)) {
        for (i, x) in out.iter_mut().enumerate() {
            let nibble = |codes: &[u8], half: usize| {
                f32::from(if i % (2 * half) < half { codes[i % half] & 15 } else { codes[i % half] >> 4 })
            };
            *x = match row.format {
                Format::Q4_0 => half(b) * (nibble(&b[2..], 16) - 8.0),
                Format::Q4_1 => half(b) * nibble(&b[4..], 16) + half(&b[2..]),
                Format::Q8_0 => half(b) * f32::from(b[2 + i] as i8),
                Format::Q4K => {
                    let (q, j) = (&b[4..16], i / 32);
                    let (scale, min) = match j {
                        0..4 => (q[j] & 63, q[j + 4] & 63),
                        _ => (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4),
                    };
                    let code = nibble(&b[16 + i / 64 * 32..], 32);
                    half(b) * f32::from(scale) * code - half(&b[2..]) * f32::from(min)
                }
                Format::Other(_) => f32::from_le_bytes(b.try_into().unwrap()),
            };
        }
    }
    out
}

/// Activations of tokens, one after the other.
fn quantized(isa: Isa, tokens: &[Vec<f32>]) -> Vec<u8> {
    let bytes = token_bytes(tokens[0].len());
    let mut out = vec![0xaa; tokens.len() * bytes];
    tokens.iter().zip(out.chunks_exact_mut(bytes)).for_each(|(x, out)| isa.quantize(x, out));
    out
}

/// Scale and sum of each group of a token's activations.
fn tail(token: &[u8], k: usize) -> Vec<(f32, i32)> {
    let tail = &token[k.next_multiple_of(2 * GROUP)..];
    let word = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    tail.chunks_exact(8).map(|b| (f32::from_le_bytes(word(b)), i32::from_le_bytes(word(&b[4..])))).collect()
}

/// What a token's activations stand for.
fn dequantized(token: &[u8], k: usize) -> Vec<f32> {
    let scales = tail(token, k);
    (0..k).map(|i| scales[i / GROUP].0 * f32::from(token[i] as i8)).collect()
}

/// Checks activations of `x`, whose largest magnitude may be off by `rounding` of itself.
fn check_acts(x: &[f64], token: &[u8], rounding: f64) {
    let k = x.len();
    let (codes, tail) = (&token[..k.next_multiple_of(2 * GROUP)], tail(token, k));
    assert!(codes[k..].iter().all(|&c| c == 0), "zeros behind the last input");
    for (g, (codes, (scale, sum))) in codes.chunks_exact(GROUP).zip(tail).enumerate() {
        let x = &x[k.min(g * GROUP)..k.min((g + 1) * GROUP)];
        if x.iter().any(|x| !x.is_finite()) {
            assert!(scale.is_nan(), "group {g}: {scale}");
            continue;
        }
        let largest = x.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        assert!((f64::from(scale) * 127.0 - largest).abs() <= largest * (rounding + 1e-6) + 1e-35);
        assert_eq!(sum, codes.iter().map(|&c| i32::from(c as i8)).sum::<i32>());
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
            let all: Vec<Vec<u8>> = isas().iter().map(|&isa| quantized(isa, std::slice::from_ref(&x))).collect();
            for token in &all {
                check_acts(&exact, token, 0.0);
                assert_eq!(*token, all[0], "the same bytes everywhere");
            }
        }
    }
}

#[test]
fn norm_quantize() {
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
            for isa in isas() {
                let mut token = vec![0xaa; token_bytes(n)];
                isa.norm_quantize(&x, &gain, eps, &mut token);
                if mean.is_finite() {
                    check_acts(&exact, &token, ROUNDING);
                } else {
                    let special = x.iter().position(|x| !x.is_finite()).unwrap();
                    assert!(tail(&token, n)[special / GROUP].0.is_nan());
                }
            }
        }
    }
}

/// Results of a product: of each token as many as a panel has rows, and one more.
struct Results {
    rows: usize,
    floats: Vec<f32>,
}

/// What is in places that are not to be written.
const UNTOUCHED: f32 = -12345.0;

impl Results {
    fn new(isa: Isa, n_tokens: usize) -> Results {
        let rows = isa.panel_rows() + 1;
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

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Weights of a row's kept inputs, and the step of the codes that each group of them becomes.
struct Weights {
    values: Vec<f32>,
    steps: Vec<f64>,
}

/// One product of many tokens.
struct Case<'a> {
    format: Format<'a>,
    n_in: usize,
    /// Of one or two matrices
    rows: [Vec<Vec<u8>>; 2],
    gated: bool,
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
            _ => block(format).0 * rng.usize(1..6),
        };
        let n_rows = rng.usize(1..=panel_rows);
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
        Case { format, n_in, rows, gated: rng.bool(), kept, x, tokens }
    }

    fn n_rows(&self) -> usize {
        self.rows[0].len()
    }

    fn row(&self, which: usize, i: usize) -> Row<'_> {
        Row { bytes: &self.rows[which][i], format: self.format }
    }

    fn run(&self, isa: Isa, acts: &[u8]) -> Results {
        let columns = self.kept.as_ref().map(|(kept, width)| Columns::new(kept, *width, self.n_in));
        let acts = Acts::new(acts, self.x[0].len());
        assert_eq!((acts.n_tokens(), acts.k()), (self.x.len(), columns.as_ref().map_or(self.n_in, Columns::len)));
        let mut out = Results::new(isa, self.x.len());
        let panel = |which| {
            let mut panel = vec![0; isa.panel_bytes(acts.k())];
            isa.pack(|i| self.row(which, i), self.n_rows(), self.n_in, columns.as_ref(), &mut panel);
            panel
        };
        let panels: Vec<Vec<u8>> = (0..1 + usize::from(self.gated)).map(panel).collect();
        let panels: Vec<&[u8]> = panels.iter().map(|p| &p[..]).collect();
        isa.multiply(&panels, self.n_rows(), acts, &self.tokens, &mut out);
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
        // Codes of 4 bits go through a table of all 16 values, in the row or not.
        let codes = match self.format {
            Format::Q4_0 => Some(2..18),
            Format::Q4_1 => Some(4..20),
            Format::Q4K => Some(16..144),
            Format::Q8_0 | Format::Other(_) => None,
        };
        for code in [0x00, 0xff] {
            let (Some(codes), None) = (&codes, &self.kept) else { continue };
            let mut bytes = row.bytes.to_vec();
            bytes.chunks_exact_mut(block(self.format).1).for_each(|b| b[codes.clone()].fill(code));
            let x = values_of(&Row { bytes: &bytes, ..row });
            most.iter_mut().zip(x.chunks(GROUP)).for_each(|(most, x)| *most = most.max(largest(x)));
        }
        Weights { values: x, steps: most.iter().map(|x| x / 127.0).collect() }
    }
}

/// A product, and by how much it may be off as weights become codes.
fn dot(w: &Weights, x: &[f32]) -> (f64, f64) {
    let (mut sum, mut bound) = (0.0, 0.0);
    for ((w, step), x) in w.values.chunks(GROUP).zip(&w.steps).zip(x.chunks(GROUP)) {
        for (&w, &x) in w.iter().zip(x) {
            let (w, x) = (f64::from(w), f64::from(x));
            sum += w * x;
            bound += (step * 0.5 * (1.0 + 1e-4) + w.abs() * ROUNDING) * x.abs();
        }
    }
    (sum, bound)
}

/// `silu(a) * b` of such products.
fn gate((a, a_bound): (f64, f64), (b, b_bound): (f64, f64)) -> (f64, f64) {
    // The slope of silu is 1.1 at most.
    let (a, a_bound) = (silu(a), 1.1 * a_bound + ROUNDING * silu(a).abs());
    (a * b, a.abs() * b_bound + b.abs() * a_bound + a_bound * b_bound)
}

fn close(x: f32, (exact, bound): (f64, f64)) -> bool {
    // Beyond the range of floats there is nothing to compare; below it all is zero.
    exact.abs() + bound > 1e38 || (f64::from(x) - exact).abs() <= bound + 1e-35
}

#[test]
fn multiply() {
    let mut rng = Rng::with_seed(3);
    for number in 0..400 {
        let format = FORMATS[number % FORMATS.len()];
        for isa in isas() {
            let case = Case::any(&mut rng, format, isa.panel_rows());
            let acts = quantized(isa, &case.x);
            let out = case.run(isa, &acts);
            let weights = [0, 1].map(|which| (0..case.n_rows()).map(|i| case.weights(which, i)).collect::<Vec<_>>());
            let k = case.x[0].len();
            for (t, token) in acts.chunks_exact(token_bytes(k)).enumerate() {
                let x = dequantized(token, k);
                let n_written = if case.tokens.contains(&t) { case.n_rows() } else { 0 };
                for (i, (a, b)) in weights[0].iter().zip(&weights[1]).enumerate().take(n_written) {
                    let first = dot(a, &x);
                    let expected = if case.gated { gate(first, dot(b, &x)) } else { first };
                    let what = (format, case.n_in, &case.kept, case.gated, t, i);
                    assert!(close(out.get(t, i), expected), "{isa} {what:?}: {} {expected:?}", out.get(t, i));
                }
                assert!((n_written..out.rows).all(|i| out.get(t, i) == UNTOUCHED), "{isa}: nothing else is written");
            }
        }
    }
}

/// A row of whole numbers up to 127 that 8 bits hold exactly, and 127 or -127 among each eight.
fn whole_row(rng: &mut Rng, format: Format, n_in: usize) -> Vec<u8> {
    let (one, eight, seven) = (0x3c00u16.to_le_bytes(), 0x4800u16.to_le_bytes(), 0x4700u16.to_le_bytes());
    let mut row = vec![0; row_bytes(format, n_in)];
    for b in row.chunks_exact_mut(block(format).1) {
        match format {
            // 8 * code + 7: 15 makes 127.
            Format::Q4_1 => {
                b[..4].copy_from_slice(&[eight, seven].concat());
                b[4..].iter_mut().enumerate().for_each(|(i, b)| *b = if i % 8 == 3 { 0xff } else { rng.u8(..) });
            }
            // The same of scales 8, minima 7 and a factor of -1 on these.
            Format::Q4K => {
                b[..4].copy_from_slice(&[one, 0xbc00u16.to_le_bytes()].concat());
                b[4..8].fill(8);
                b[8..12].fill(7);
                b[12..16].fill(0x78);
                b[16..].iter_mut().enumerate().for_each(|(i, b)| *b = if i % 8 == 3 { 0xff } else { rng.u8(..) });
            }
            Format::Q8_0 => {
                b[..2].copy_from_slice(&one);
                let code =
                    |i, rng: &mut Rng| if i % 8 == 3 { rng.choice([127, -127]).unwrap() } else { rng.i8(-127..) };
                b[2..].iter_mut().enumerate().for_each(|(i, b)| *b = code(i, rng) as u8);
            }
            Format::Q4_0 | Format::Other(_) => unreachable!("Q4_0 has no such values"),
        }
    }
    row
}

/// Whole activations with 127 or -127 among each eight.
fn whole_acts(rng: &mut Rng, k: usize) -> Vec<f32> {
    (0..k).map(|i| if i % 8 == 5 { rng.choice([127.0, -127.0]).unwrap() } else { rng.i32(-127..=127) as f32 }).collect()
}

fn whole_dot(w: &[f32], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| (w * x) as i32).sum::<i32>() as f32
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
                let case = Case { format, n_in, rows, gated: false, kept, x, tokens: (0..13).collect() };
                let out = case.run(isa, &quantized(isa, &case.x));
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

/// Products of a few tokens, `[row][token]`.
fn few(isa: Isa, format: Format, rows: &[Vec<u8>], acts: Acts) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    let row = |i: usize| Row { bytes: &rows[i], format };
    isa.multiply_few(&isa.few(acts, format), row, rows.len(), |i, x| {
        assert_eq!(i, out.len(), "row by row");
        out.push(x.to_vec());
    });
    out
}

#[test]
fn multiply_few() {
    let mut rng = Rng::with_seed(5);
    for format in FORMATS.into_iter().filter(Format::is_direct) {
        for n_tokens in 1..=FEW {
            // Groups without their second half, and without a group of an even number.
            for n_blocks in [1, 2, 3, 4, 5, 6, 7, 9] {
                let n_in = block(format).0 * n_blocks;
                let rows: Vec<_> = (0..rng.usize(0..5)).map(|_| any_row(&mut rng, format, n_in)).collect();
                let size = |t: usize| [1.0, 1.0, 1e30, 1e-30, 0.0][t % 5];
                let x: Vec<_> = (0..n_tokens).map(|t| any_floats(&mut rng, n_in, size(t))).collect();
                for isa in isas() {
                    let acts = quantized(isa, &x);
                    let out = few(isa, format, &rows, Acts::new(&acts, n_in));
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

/// Sum of the magnitudes of what is added up: scale times code, and minimum.
fn magnitude(format: Format, row: &[u8], values: &[f32], x: &[f32]) -> f64 {
    let mut bare = row.to_vec();
    for b in bare.chunks_exact_mut(block(format).1) {
        match format {
            Format::Q4_1 => b[4..].fill(0),
            Format::Q4K => b[16..].fill(0),
            _ => b.fill(0),
        }
    }
    let minima = self::values(&Row { bytes: &bare, format }, values.len());
    let terms = values.iter().zip(&minima).zip(x);
    terms.map(|((w, m), x)| (f64::from((w - m).abs()) + f64::from(m.abs())) * f64::from(x.abs())).sum()
}

#[test]
fn few_whole_numbers_are_multiplied_exactly() {
    let mut rng = Rng::with_seed(6);
    for format in [Format::Q4_1, Format::Q4K, Format::Q8_0] {
        for n_tokens in 1..=FEW {
            let n_in = block(format).0 * rng.usize(1..4);
            let rows: Vec<_> = (0..3).map(|_| whole_row(&mut rng, format, n_in)).collect();
            let x: Vec<_> = (0..n_tokens).map(|_| whole_acts(&mut rng, n_in)).collect();
            for isa in isas() {
                let out = few(isa, format, &rows, Acts::new(&quantized(isa, &x), n_in));
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
#[should_panic(expected = "9 tokens are not few")]
fn more_than_a_few() {
    let (row, x) = (vec![0; 18], vec![vec![1.0; 32]; FEW + 1]);
    few(Isa::best(), Format::Q4_0, &[row], Acts::new(&quantized(Isa::best(), &x), 32));
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
            let which = usize::from(case.gated && rng.bool());
            if in_weights {
                let row = &mut case.rows[which][bad_row];
                // In the scale or in the minimum, of any block.
                let at = rng.usize(..row.len() / block(format).1) * block(format).1;
                match format {
                    Format::Other(_) => row[at..at + 4].copy_from_slice(&special.to_le_bytes()),
                    _ => {
                        let has_minimum = matches!(format, Format::Q4_1 | Format::Q4K);
                        let at = at + if has_minimum && rng.bool() { 2 } else { 0 };
                        let bits = if special.is_nan() { 0x7e01u16 } else { 0x7c00 };
                        row[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                    }
                }
            } else {
                case.x[1][rng.usize(..case.n_in)] = special;
            }
            let acts = quantized(isa, &case.x);
            let out = case.run(isa, &acts);
            for t in 0..3 {
                for i in 0..case.n_rows() {
                    let is_bad = if in_weights { i == bad_row } else { t == 1 };
                    let x = out.get(t, i);
                    assert_eq!(x.is_nan(), is_bad, "{isa} {format:?} {special} {in_weights}: {x}");
                }
            }
            if format.is_direct() {
                let out = few(isa, format, &case.rows[which], Acts::new(&acts, case.n_in));
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
        let acts = quantized(Isa::best(), &case.x);
        let k = case.x[0].len();
        let all: Vec<Results> = isas().iter().map(|&isa| case.run(isa, &acts)).collect();
        for (t, token) in acts.chunks_exact(token_bytes(k)).enumerate() {
            let x = dequantized(token, k);
            for i in 0..if case.tokens.contains(&t) { case.n_rows() } else { 0 } {
                let products = [0, 1].map(|which| {
                    let mut w = case.weights(which, i);
                    let (exact, bound) = dot(&w, &x);
                    // Codes agree, but for one that is half-way between two before it is rounded.
                    w.steps.iter_mut().for_each(|s| *s *= 0.02);
                    (exact, dot(&w, &x).1.min(bound))
                });
                let (_, bound) = if case.gated { gate(products[0], products[1]) } else { products[0] };
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

/// Products of the kept columns of rows with one token's kept inputs, tile by tile.
fn reduced(isa: Isa, format: Format, rows: &[Vec<u8>], n_in: usize, columns: &Columns, x: &[f32]) -> Vec<f32> {
    let row = |i: usize| Row { bytes: &rows[i], format };
    let w = isa.column_layout(format, rows.len(), columns);
    assert_eq!(w.n_out(), rows.len());
    let mut tiles = vec![0u8; w.n_bytes()];
    isa.reduce_columns(&w, row, n_in, &mut tiles);
    let acts = isa.column_acts(&w, x);
    let mut out = vec![UNTOUCHED; rows.len()];
    let (first, rest) = out.split_at_mut(w.tile_rows().min(rows.len()));
    isa.multiply_columns(&w, &tiles, &acts, 0, first);
    if !rest.is_empty() {
        isa.multiply_columns(&w, &tiles, &acts, w.tile_rows(), rest);
    }
    out
}

#[test]
fn columns() {
    let mut rng = Rng::with_seed(11);
    for number in 0..300 {
        let format = FORMATS[number % FORMATS.len()];
        let n_in = match format {
            Format::Other(_) => rng.usize(1..300),
            _ => block(format).0 * rng.usize(1..6),
        };
        let share = rng.f32();
        // Whole blocks may be missing.
        let gone = rng.usize(..n_in.div_ceil(32));
        let mut kept: Vec<i32> = (0..n_in).filter(|i| i / 32 != gone && rng.f32() < share).map(|i| i as i32).collect();
        if kept.is_empty() {
            kept.push(rng.usize(..n_in) as i32);
        }
        let columns = Columns::new(&kept, 1, n_in);
        let rows: Vec<Vec<u8>> = (0..rng.usize(1..40)).map(|_| any_row(&mut rng, format, n_in)).collect();
        let size = rng.choice([1.0, 1e-20, 1e20]).unwrap();
        let x = any_floats(&mut rng, kept.len(), size);
        for isa in isas() {
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            for (bytes, out) in rows.iter().zip(out) {
                let expected = reduced_dot(&Row { bytes, format }, n_in, &kept, &x);
                assert!(close(out, expected), "{isa} {format:?} {n_in} {kept:?}: {out} {expected:?}");
            }
        }
    }
}

/// A product of kept inputs, and by how much it may be off as a block's inputs become codes.
fn reduced_dot(row: &Row, n_in: usize, kept: &[i32], x: &[f32]) -> (f64, f64) {
    let all = values(row, n_in);
    let largest = |x: &mut dyn Iterator<Item = f32>| x.fold(0.0f64, |a, x| a.max(f64::from(x.abs())));
    // Scales and minima of super-blocks, and scales of blocks of other types, become 16-bit floats.
    let (of_scales, of_codes) = match row.format {
        Format::Q4K => (5e-4, 0.0),
        Format::Other(_) => (5e-4, 0.5 / 127.0),
        _ => (0.0, 0.0),
    };
    let (mut sum, mut bound, mut kept_x) = (0.0, 0.0, vec![0.0f32; n_in]);
    kept.iter().zip(x).for_each(|(&i, &x)| kept_x[i as usize] = x);
    for (w, x) in all.chunks(32).zip(kept_x.chunks(32)) {
        let x_step = largest(&mut x.iter().copied()) / 127.0;
        let w_step = largest(&mut w.iter().copied()) * of_codes;
        for (&w, &x) in w.iter().zip(x).filter(|(_, x)| **x != 0.0) {
            let (w, x) = (f64::from(w), f64::from(x));
            sum += w * x;
            bound += w.abs() * x_step * 0.501 + w_step * (x.abs() + x_step);
        }
    }
    (sum, bound + (ROUNDING + of_scales) * magnitude(row.format, row.bytes, &all, &kept_x))
}

#[test]
fn whole_columns_are_multiplied_exactly() {
    let mut rng = Rng::with_seed(12);
    for format in [Format::Q4_1, Format::Q4K, Format::Q8_0] {
        for n_in in [256, 512] {
            let kept: Vec<i32> = (0..n_in as i32).filter(|i| i % 8 == 5 || rng.bool()).collect();
            let columns = Columns::new(&kept, 1, n_in);
            let rows: Vec<Vec<u8>> = (0..20).map(|_| whole_row(&mut rng, format, n_in)).collect();
            let all = whole_acts(&mut rng, n_in);
            let x: Vec<f32> = kept.iter().map(|&i| all[i as usize]).collect();
            for isa in isas() {
                let out = reduced(isa, format, &rows, n_in, &columns, &x);
                for (bytes, out) in rows.iter().zip(out) {
                    let w = values(&Row { bytes, format }, n_in);
                    let w: Vec<f32> = kept.iter().map(|&i| w[i as usize]).collect();
                    assert_eq!(out, whole_dot(&w, &x), "{isa} {format:?}");
                }
            }
        }
    }
}

#[test]
fn nan_stays_in_columns() {
    let mut rng = Rng::with_seed(13);
    for format in FORMATS {
        let n_in = 256;
        let kept: Vec<i32> = (0..n_in as i32).filter(|i| i % 3 != 1).collect();
        let columns = Columns::new(&kept, 1, n_in);
        let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, format, n_in)).collect();
        let mut x = any_floats(&mut rng, kept.len(), 1.0);
        for isa in isas() {
            let bad: Vec<u8> = rows[7].clone();
            match format {
                Format::Other(_) => rows[7][..4].copy_from_slice(&f32::NAN.to_le_bytes()),
                _ => rows[7][..2].copy_from_slice(&0x7e01u16.to_le_bytes()),
            }
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            assert!(out.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 7)), "{isa} {format:?} {out:?}");
            rows[7] = bad;
            let good = std::mem::replace(&mut x[5], f32::INFINITY);
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            assert!(out.iter().all(|x| x.is_nan()), "{isa} {format:?} {out:?}");
            x[5] = good;
        }
    }
}

/// Attention by its definition.
fn attention(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Vec<f64> {
    let dot =
        |k: &Vec<f32>| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * f64::from(scale);
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let value = |i: usize| weights.iter().zip(values).map(|(w, v)| w / sum * f64::from(v[i])).sum();
    (0..q.len()).map(value).collect()
}

/// Cells of 16-bit floats, or of floats that a function reads: their bytes, and their values.
fn any_cells(rng: &mut Rng, halves: bool, n: usize, d: usize) -> (Vec<Vec<u8>>, Vec<Vec<f32>>) {
    let mut cell = |_| {
        if halves {
            let bytes: Vec<u8> = (0..d).flat_map(|_| any_half(rng)).collect();
            let floats = bytes.chunks_exact(2).map(half).collect();
            (bytes, floats)
        } else {
            let floats = any_floats(rng, d, 2.0);
            (bytes_of(&floats), floats)
        }
    };
    (0..n).map(&mut cell).unzip()
}

/// The bytes of cells with something between them, and how far it is from one to the next.
fn apart(cells: &[Vec<u8>]) -> (Vec<u8>, usize) {
    let between = [0xffu8; 10];
    (cells.iter().flat_map(|c| c.iter().chain(&between)).copied().collect(), cells[0].len() + between.len())
}

/// Results of all queries.
fn attended(
    isa: Isa,
    queries: &[Query],
    keys: &[Vec<u8>],
    values: &[Vec<u8>],
    halves: bool,
    scale: f32,
) -> Vec<Vec<f32>> {
    let read = (!halves).then_some(&read_floats as &dyn Fn(&[u8], &mut [f32]));
    let [(keys, k_stride), (values, v_stride)] = [apart(keys), apart(values)];
    let len = queries[0].q.len() * if halves { 2 } else { 4 };
    let keys = Cells { bytes: &keys, stride: k_stride, len, values: read };
    let values = Cells { bytes: &values, stride: v_stride, len, values: read };
    let mut results = Vec::new();
    isa.attend(queries, &keys, &values, scale, &mut |i, out| {
        assert_eq!(i, results.len(), "query by query");
        results.push(out.to_vec());
    });
    results
}

#[test]
fn attend() {
    let mut rng = Rng::with_seed(9);
    for (number, d) in [1, 3, 12, 20, 64, 80, 100, 128].into_iter().cycle().take(128).enumerate() {
        // Few queries take another way, and those of equal sight together.
        let n_queries = if number % 2 == 0 { rng.usize(1..6) } else { rng.usize(1..20) };
        let (n_cells, halves) = (rng.usize(1..200), number % 3 != 0);
        let (keys, key_floats) = any_cells(&mut rng, halves, n_cells, d);
        let (values, value_floats) = any_cells(&mut rng, halves, n_cells, d);
        let q: Vec<Vec<f32>> = (0..n_queries).map(|_| any_floats(&mut rng, d, 2.0)).collect();
        let mut visible = rng.usize(1..=n_cells);
        let mut query = |q| {
            if rng.u8(0..3) == 0 {
                visible = rng.usize(1..=n_cells);
            }
            Query { q, visible }
        };
        let queries: Vec<Query> = q.iter().map(|q| query(q)).collect();
        let scale = rng.choice([1.0 / (d as f32).sqrt(), 3.0]).unwrap();
        for isa in isas() {
            let out = attended(isa, &queries, &keys, &values, halves, scale);
            assert_eq!(out.len(), n_queries);
            for (query, out) in queries.iter().zip(out) {
                let n = query.visible;
                let exact = attention(query.q, &key_floats[..n], &value_floats[..n], scale);
                let close = |(x, exact): (&f32, &f64)| (f64::from(*x) - exact).abs() < 1e-3 * (1.0 + exact.abs());
                assert!(out.len() == d && out.iter().zip(&exact).all(close), "{isa} d {d}, {n}: {out:?} {exact:?}");
            }
        }
    }
}

#[test]
fn attention_to_nan() {
    for isa in isas() {
        for (q, k, v) in [(f32::NAN, 1.0, 1.0), (1.0, f32::NAN, 1.0), (1.0, 1.0, f32::NAN), (1.0, f32::INFINITY, 1.0)] {
            let cell = |special: f32, i: usize| bytes_of(&[if i == 66 { special } else { 0.5 }; 16]);
            let cells = |special: f32| (0..70).map(|i| cell(special, i)).collect::<Vec<_>>();
            let q = [q; 16];
            for n_queries in [1, 7] {
                let queries = vec![Query { q: &q, visible: 70 }; n_queries];
                let out = attended(isa, &queries, &cells(k), &cells(v), false, 1.0);
                assert!(out.iter().flatten().all(|x| x.is_nan()), "{isa} {q:?} {k} {v}: {out:?}");
            }
        }
    }
}

#[test]
fn swiglu() {
    let mut rng = Rng::with_seed(10);
    for n in [1, 4, 15, 16, 17, 100, 576] {
        for size in [1.0, 10.0, 100.0, 1e-30, 1e30] {
            let (gate, up) = (any_floats(&mut rng, n, size), any_floats(&mut rng, n, 2.0));
            for isa in isas() {
                let mut out = vec![UNTOUCHED; n];
                isa.swiglu(&gate, &up, &mut out);
                for ((&g, &u), x) in gate.iter().zip(&up).zip(out) {
                    let exact = silu(f64::from(g)) * f64::from(u);
                    assert!(close(x, (exact, exact.abs() * ROUNDING)), "{isa}: silu({g}) * {u} = {exact}, not {x}");
                }
            }
        }
    }
    for isa in isas() {
        // As a vector and as what is left behind the last.
        for n in [1, 16] {
            let mut out = vec![0.0; n];
            isa.swiglu(&vec![f32::NAN; n], &vec![1.0; n], &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{isa}");
            isa.swiglu(&vec![1.0; n], &vec![f32::NAN; n], &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{isa}");
        }
    }
}

/// Scales of columns are 16-bit floats: rows of very different size, and what is left out, must not make these overflow.
#[test]
fn columns_of_any_size() {
    let mut rng = Rng::with_seed(14);
    let n_in = 256;
    let kept: Vec<i32> = (0..n_in as i32).filter(|i| i / 32 != 3 && i % 3 != 1).collect();
    let columns = Columns::new(&kept, 1, n_in);
    let x = any_floats(&mut rng, kept.len(), 1.0);
    let check = |format, rows: Vec<Vec<u8>>| {
        for isa in isas() {
            let out = reduced(isa, format, &rows, n_in, &columns, &x);
            for (i, (bytes, out)) in rows.iter().zip(out).enumerate() {
                let expected = reduced_dot(&Row { bytes, format }, n_in, &kept, &x);
                assert!(close(out, expected), "{isa} {format:?} row {i}: {out} {expected:?}");
            }
        }
    };
    let mut rng = Rng::with_seed(15);
    let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, Format::Q4K, n_in)).collect();
    // The first row's scale and minimum are the least that there are.
    rows[0][..4].copy_from_slice(&[1, 0, 1, 0]);
    rows[9][..4].copy_from_slice(&[0xff, 0x6b, 0xff, 0x6b]);
    check(Format::Q4K, rows);
    for size in [3e3, 1e8, 1e-8] {
        let floats = (0..20).map(|_| bytes_of(&any_floats(&mut rng, n_in, size))).collect();
        check(Format::Other(&read_floats), floats);
    }
    // A block of which nothing is kept.
    let mut rows: Vec<Vec<u8>> = (0..20).map(|_| any_row(&mut rng, Format::Q4_1, n_in)).collect();
    rows[4][3 * 20..3 * 20 + 2].copy_from_slice(&0x7e01u16.to_le_bytes());
    for isa in isas() {
        let out = reduced(isa, Format::Q4_1, &rows, n_in, &columns, &x);
        assert!(out.iter().all(|x| x.is_finite()), "{isa}: {out:?}");
    }
}
