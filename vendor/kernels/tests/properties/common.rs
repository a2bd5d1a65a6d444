//! Weights of all types, activations, and products of both, by their definitions.

use fastrand::Rng;
use kernels::{Activation, Acts, Format, GROUP, Isa, Row, token_bytes};

/// Relative to a sum of magnitudes: what floats lose on the way.
pub const ROUNDING: f64 = 1e-5;

pub fn isas() -> Vec<Isa> {
    let all = Isa::all();
    assert_eq!(all.last().unwrap().to_string(), "portable");
    all
}

/// A 16-bit float, by its definition.
pub fn half(bytes: &[u8]) -> f32 {
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
pub fn any_half(rng: &mut Rng) -> [u8; 2] {
    let exponent = rng.u16(8..18);
    (exponent << 10 | rng.u16(0..1024) | u16::from(rng.bool()) << 15).to_le_bytes()
}

/// Mostly ordinary floats; `size` is their scale.
pub fn any_floats(rng: &mut Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.f32() + rng.f32() - 1.0) * size).collect()
}

pub fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn read_floats(bytes: &[u8], out: &mut [f32]) {
    for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *out = f32::from_le_bytes(b.try_into().unwrap());
    }
}

/// Types whose definition is written here, and one that a function reads. (`formats/tests.rs` has the tests for all types.)
pub const FORMATS: [Format; 14] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q2K,
    Format::Q3K,
    Format::Q4K,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q5K,
    Format::Q6K,
    Format::Iq4Nl,
    Format::Iq4Xs,
    Format::Mxfp4,
    Format::Q8_0,
    Format::Other(&read_floats),
];

/// Where a block's 16-bit floats are: its scale and, if it has one, its minimum.
pub fn floats_at(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => &[0],
        Format::Q4_1 | Format::Q4K | Format::Q5_1 | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        _ => &[],
    }
}

/// Inputs and bytes of a block.
pub fn block(format: Format) -> (usize, usize) {
    match format {
        Format::Q4_0 => (32, 18),
        Format::Q4_1 => (32, 20),
        Format::Q2K => (256, 84),
        Format::Q3K => (256, 110),
        Format::Q4K => (256, 144),
        Format::Q5_0 => (32, 22),
        Format::Q5_1 => (32, 24),
        Format::Q5K => (256, 176),
        Format::Q6K => (256, 210),
        Format::Iq4Nl => (32, 18),
        Format::Iq4Xs => (256, 136),
        Format::Mxfp4 => (32, 17),
        Format::Q8_0 => (32, 34),
        Format::Other(_) => (1, 4),
        _ => unreachable!("see FORMATS"),
    }
}

pub fn row_bytes(format: Format, n_in: usize) -> usize {
    n_in / block(format).0 * block(format).1
}

/// A row as a file might have it.
pub fn any_row(rng: &mut Rng, format: Format, n_in: usize) -> Vec<u8> {
    if let Format::Other(_) = format {
        return bytes_of(&any_floats(rng, n_in, 3.0));
    }
    let mut row: Vec<u8> = (0..row_bytes(format, n_in)).map(|_| rng.u8(..)).collect();
    for b in row.chunks_exact_mut(block(format).1) {
        if let Format::Mxfp4 = format {
            b[0] = rng.u8(118..136);
            continue;
        }
        for &at in floats_at(format) {
            b[at..at + 2].copy_from_slice(&any_half(rng));
        }
    }
    row
}

/// A row's values, by the definition of its format.
pub fn values(row: &Row, n_in: usize) -> Vec<f32> {
    let mut out = vec![0.0; n_in];
    for (b, out) in row.bytes.chunks_exact(block(row.format).1).zip(out.chunks_exact_mut(block(row.format).0)) {
        for (i, x) in out.iter_mut().enumerate() {
            let nibble = |codes: &[u8], half: usize| {
                f32::from(if i % (2 * half) < half { codes[i % half] & 15 } else { codes[i % half] >> 4 })
            };
            let value = |code: f32| {
                let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
                table[code as usize] as f32
            };
            let fifth = |bits: &[u8]| f32::from(bits[i / 8] >> (i % 8) & 1) * 16.0;
            // The lower two bits of codes of Q2_K and Q3_K.
            let quarter = |codes: &[u8]| codes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
            *x = match row.format {
                Format::Q2K => {
                    let (scale, min) = (f32::from(b[i / 16] & 15), f32::from(b[i / 16] >> 4));
                    half(&b[80..]) * scale * f32::from(quarter(&b[16..])) - half(&b[82..]) * min
                }
                Format::Q3K => {
                    let (q, j) = (&b[96..108], i / 16);
                    let lower = if j < 8 { q[j] & 15 } else { q[j - 8] >> 4 };
                    let scale = f32::from(lower | (q[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32.0;
                    let code = quarter(&b[32..]) | (b[i % 32] >> (i / 32) & 1) << 2;
                    half(&b[108..]) * scale * (f32::from(code) - 4.0)
                }
                Format::Q5_0 => half(b) * (nibble(&b[6..], 16) + fifth(&b[2..6]) - 16.0),
                Format::Q5_1 => half(b) * (nibble(&b[8..], 16) + fifth(&b[4..8])) + half(&b[2..]),
                Format::Q6K => {
                    let (group, within) = (i / 128, i % 128);
                    let upper = b[128 + 32 * group + within % 32] >> (2 * (within / 32)) & 3;
                    let code = nibble(&b[64 * group..], 64) + f32::from(upper << 4) - 32.0;
                    half(&b[208..]) * f32::from(b[192 + i / 16] as i8) * code
                }
                Format::Iq4Nl => half(b) * value(nibble(&b[2..], 16)),
                Format::Iq4Xs => {
                    let j = i / 32;
                    let upper = u16::from_le_bytes([b[2], b[3]]) >> (2 * j) & 3;
                    let scale = f32::from(b[4 + j / 2] >> (4 * (j % 2)) & 15 | (upper as u8) << 4) - 32.0;
                    half(b) * scale * value(nibble(&b[8 + 16 * j..], 16))
                }
                Format::Q4_0 => half(b) * (nibble(&b[2..], 16) - 8.0),
                Format::Q4_1 => half(b) * nibble(&b[4..], 16) + half(&b[2..]),
                Format::Mxfp4 => {
                    let code = nibble(&b[1..], 16) as u8;
                    let (sign, exponent, fraction) = (code >> 3, i32::from(code >> 1 & 3), f32::from(code & 1));
                    let size = match exponent {
                        0 => 0.5 * fraction,
                        e => (1.0 + 0.5 * fraction) * 2f32.powi(e - 1),
                    };
                    let scale = 2f32.powi(i32::from(b[0]) - 127);
                    if sign == 1 { -size * scale } else { size * scale }
                }
                Format::Q8_0 => half(b) * f32::from(b[2 + i] as i8),
                Format::Q4K | Format::Q5K => {
                    let (q, j) = (&b[4..16], i / 32);
                    let (scale, min) = match j {
                        0..4 => (q[j] & 63, q[j + 4] & 63),
                        _ => (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4),
                    };
                    let code = match row.format {
                        Format::Q5K => {
                            let upper = b[16 + i % 32] >> j & 1;
                            nibble(&b[48 + i / 64 * 32..], 32) + f32::from(upper << 4)
                        }
                        _ => nibble(&b[16 + i / 64 * 32..], 32),
                    };
                    half(b) * f32::from(scale) * code - half(&b[2..]) * f32::from(min)
                }
                Format::Other(_) => f32::from_le_bytes(b.try_into().unwrap()),
                _ => unreachable!("see FORMATS"),
            };
        }
    }
    out
}

/// Activations of tokens in tiles of so many, for products with rows of a format.
pub fn in_tiles(isa: Isa, tokens: &[Vec<f32>], format: Format, tile_tokens: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for tile in tokens.chunks(tile_tokens) {
        let mut bytes = vec![0xaa; tile.len() * token_bytes(tile[0].len())];
        isa.quantize(&tile.iter().map(Vec::as_slice).collect::<Vec<_>>(), format.shares_scales(), &mut bytes);
        out.extend(bytes);
    }
    out
}

/// Activations of tokens, one after the other, for products with rows of a format.
pub fn quantized(isa: Isa, tokens: &[Vec<f32>], format: Format) -> Vec<u8> {
    in_tiles(isa, tokens, format, 1)
}

/// What there is of a group beside its codes.
pub struct Tail {
    pub scale: f32,
    pub start: i32,
    pub sum: f32,
    pub halves: [i32; 2],
}

/// Codes and the rest of each group of a token's activations.
pub fn groups(token: &[u8]) -> impl Iterator<Item = (&[u8], Tail)> {
    token.chunks_exact(GROUP + 16).map(|group| {
        let (codes, tail) = group.split_at(GROUP);
        let word = |i: usize| <[u8; 4]>::try_from(&tail[4 * i..4 * i + 4]).unwrap();
        let half = |i: usize| i32::from(i16::from_le_bytes([tail[12 + 2 * i], tail[13 + 2 * i]]));
        let (scale, sum) = (f32::from_le_bytes(word(0)), f32::from_le_bytes(word(2)));
        (codes, Tail { scale, start: i32::from_le_bytes(word(1)), sum, halves: [half(0), half(1)] })
    })
}

/// Groups that have the same scale in products with rows of a format.
pub fn sharing(format: Format) -> usize {
    if format.shares_scales() { 4 } else { 1 }
}

/// What a token's activations stand for.
pub fn dequantized(token: &[u8], k: usize) -> Vec<f32> {
    let values = groups(token).flat_map(|(codes, tail)| codes.iter().map(move |&c| tail.scale * f32::from(c as i8)));
    values.take(k).collect()
}

/// What is in places that are not to be written.
pub const UNTOUCHED: f32 = -12345.0;

pub const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::Gelu];

pub fn activated(act: Activation, x: f64) -> f64 {
    let argument = match act {
        Activation::Silu => x,
        Activation::Gelu => (8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)),
    };
    x / (1.0 + (-argument).exp())
}

pub fn close(x: f32, (exact, bound): (f64, f64)) -> bool {
    // Beyond the range of floats there is nothing to compare; below it all is zero.
    exact.abs() + bound > 1e38 || (f64::from(x) - exact).abs() <= bound + 1e-35
}

/// Weights of a row's kept inputs, and the step of the codes that each group of them becomes.
pub struct Weights {
    pub values: Vec<f32>,
    pub steps: Vec<f64>,
}

/// A product, and by how much it may be off as weights become codes.
pub fn dot(w: &Weights, x: &[f32]) -> (f64, f64) {
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

/// Sum of the magnitudes of what is added up: scale times code, and minimum.
pub fn magnitude(format: Format, row: &[u8], values: &[f32], x: &[f32]) -> f64 {
    let mut bare = row.to_vec();
    for b in bare.chunks_exact_mut(block(format).1) {
        match format {
            Format::Q4_1 | Format::Q5_1 => b[4..].fill(0),
            Format::Q4K => b[16..].fill(0),
            Format::Q2K => b[16..80].fill(0),
            _ => b.fill(0),
        }
    }
    let minima = self::values(&Row { bytes: &bare, format }, values.len());
    let terms = values.iter().zip(&minima).zip(x);
    terms.map(|((w, m), x)| (f64::from((w - m).abs()) + f64::from(m.abs())) * f64::from(x.abs())).sum()
}

/// A row of whole numbers up to 127 that 8 bits hold exactly, and 127 or -127 among each eight.
pub fn whole_row(rng: &mut Rng, format: Format, n_in: usize) -> Vec<u8> {
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
            _ => unreachable!("{format:?} has no such rows"),
        }
    }
    row
}

/// Whole activations with 127 or -127 among each eight.
pub fn whole_acts(rng: &mut Rng, k: usize) -> Vec<f32> {
    (0..k).map(|i| if i % 8 == 5 { rng.choice([127.0, -127.0]).unwrap() } else { rng.i32(-127..=127) as f32 }).collect()
}

pub fn whole_dot(w: &[f32], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| (w * x) as i32).sum::<i32>() as f32
}

/// Products of few tokens with rows where they are, `[row][token]`.
pub fn products(isa: Isa, format: Format, rows: &[Vec<u8>], acts: Acts) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    let row = |i: usize| Row { bytes: &rows[i], format };
    isa.gemv(&isa.gemv_acts(acts, format), &row, rows.len(), &mut |i, x| {
        assert_eq!(i, out.len(), "row by row");
        out.push(x.to_vec());
    });
    out
}
