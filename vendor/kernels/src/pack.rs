//! Panels: weights as the matrix product wants them.
//!
//! A panel is `2 * LANES` rows of a matrix (or fewer, filled up with zeros) in 8 bits with a scale for each row and group of 32
//! inputs. Group by group: for each four inputs the four codes of each row, row by row, then the scales of the rows (F32).

use crate::acts::{GROUP, SPAN, scales};
use crate::rows::{Format, Row, half};
use crate::simd::{Kernel, Simd, VECS};

/// Inputs of a matrix that are kept.
#[derive(Debug, Clone)]
pub struct Columns {
    /// A bit for each input.
    mask: Vec<u32>,
    n: usize,
}

impl Columns {
    /// The inputs of the units `kept`, ascending, of `width` inputs each, out of `n_in`.
    ///
    /// # Panics
    /// If a unit is beyond the matrix.
    pub fn new(kept: &[i32], width: usize, n_in: usize) -> Columns {
        let mut mask = vec![0u32; n_in.div_ceil(32)];
        for &unit in kept {
            let first = usize::try_from(unit).expect("units are counted from 0") * width;
            assert!(first + width <= n_in, "a unit of the matrix");
            (first..first + width).for_each(|i| mask[i / 32] |= 1 << (i % 32));
        }
        let n = mask.iter().map(|m| m.count_ones() as usize).sum();
        Columns { mask, n }
    }

    /// Number of kept inputs.
    pub fn len(&self) -> usize {
        self.n
    }

    /// A bit for each input of the matrix, 32 by 32.
    pub(crate) fn masks(&self) -> &[u32] {
        &self.mask
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// Rows of a panel.
pub(crate) const fn panel_rows<S: Simd>() -> usize {
    VECS * S::LANES
}

/// See [`crate::Isa::panel_rows`].
pub(crate) struct PanelRows;

impl Kernel for PanelRows {
    type Out = usize;

    #[inline(always)]
    fn call<S: Simd>(self, _s: S) -> usize {
        panel_rows::<S>()
    }
}

/// Bytes of a group of a panel: codes and scales.
pub(crate) const fn group_bytes<S: Simd>() -> usize {
    panel_rows::<S>() * (GROUP + 4)
}

/// See [`crate::Isa::panel_bytes`].
pub(crate) struct PanelBytes {
    pub k: usize,
}

impl Kernel for PanelBytes {
    type Out = usize;

    #[inline(always)]
    fn call<S: Simd>(self, _s: S) -> usize {
        2 * self.k.div_ceil(SPAN) * group_bytes::<S>()
    }
}

/// What packing writes in between; kept by each thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    floats: Vec<f32>,
    kept: Vec<f32>,
}

/// Writes a row's codes (signed bytes) and scales.
struct Coded<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

/// Codes of floats, filled up with zeros: the largest magnitude of a group is 127.
#[inline(always)]
fn code_floats<S: Simd>(s: S, x: &[f32], out: Coded) {
    for ((x, codes), scale) in x.chunks_exact(GROUP).zip(out.codes.chunks_exact_mut(GROUP)).zip(out.scales) {
        let mut largest = s.splat(0.0);
        for v in x.chunks_exact(S::LANES) {
            largest = s.largest(largest, s.load_f(v));
        }
        let (to, inverse) = scales(s.max_lane(largest));
        *scale = to;
        let inverse = s.splat(inverse);
        for (v, codes) in x.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
            s.store_bytes(s.round(s.mul(s.load_f(v), inverse)), codes);
        }
    }
}

/// For blocks of values `d * code + m` with codes of 4 bits: the steps of their codes of 8 bits; `d` and `m` become what a code of 4 bits
/// is to be multiplied with, and what is to be added, for that of 8.
#[inline(always)]
fn steps<S: Simd>(s: S, d: &mut [f32; 16], m: &mut [f32; 16]) -> [f32; 16] {
    let mut steps = [0.0; 16];
    for i in (0..16).step_by(S::LANES) {
        let (first, least) = (s.load_f(&d[i..]), s.load_f(&m[i..]));
        let last = s.fma(first, s.splat(15.0), least);
        let largest = s.largest(s.largest(s.splat(0.0), least), last);
        // As `acts::scales`: what is no number makes the block NaN.
        let step = s.fma(largest, s.splat(0.0), s.div(largest, s.splat(127.0)));
        let inverse = s.div(s.splat(127.0), s.max(largest, s.splat(1e-35)));
        s.store_f(step, &mut steps[i..]);
        s.store_f(s.mul(first, inverse), &mut d[i..]);
        s.store_f(s.mul(least, inverse), &mut m[i..]);
    }
    steps
}

/// The codes of 8 bits for those of 4, of two blocks; see [`steps`].
#[inline(always)]
fn tables<S: Simd>(s: S, d: &[f32], m: &[f32]) -> [[u8; 16]; 2] {
    const IOTA: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    let mut tables = [[0u8; 16]; 2];
    for i in 0..2 {
        for j in (0..16).step_by(S::LANES) {
            let code = s.fma(s.load_f(&IOTA[j..]), s.splat(d[i]), s.splat(m[i]));
            s.store_bytes(s.round(code), &mut tables[i][j..]);
        }
    }
    tables
}

/// Codes of a row of Q4_0: the file's own.
#[inline(always)]
fn code_q4_0<S: Simd>(s: S, row: &[u8], out: Coded) {
    const LESS_8: [u8; 16] = [248, 249, 250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5, 6, 7];
    // The last group may be missing.
    let none = [0u8; 18];
    let codes = out.codes.chunks_exact_mut(SPAN);
    for ((pair, codes), to) in row.chunks(36).zip(codes).zip(out.scales.chunks_exact_mut(2)) {
        let (a, b) = pair.split_at(18);
        let b = if b.is_empty() { &none[..] } else { b };
        s.look_up([&a[2..], &b[2..]], &[LESS_8; 2], codes);
        // An infinite scale makes its block NaN, as in the other formats.
        let (a, b) = (half(s, a), half(s, b));
        to.copy_from_slice(&[a + a * 0.0, b + b * 0.0]);
    }
}

/// Codes of a row of Q4_1.
#[inline(always)]
fn code_q4_1<S: Simd>(s: S, row: &[u8], out: Coded) {
    let none = [0u8; 20];
    let codes = out.codes.chunks_mut(8 * SPAN);
    for ((blocks, codes), to) in row.chunks(16 * 20).zip(codes).zip(out.scales.chunks_mut(16)) {
        let (mut d, mut m) = ([0.0; 16], [0.0; 16]);
        for ((d, m), b) in d.iter_mut().zip(&mut m).zip(blocks.chunks_exact(20)) {
            (*d, *m) = (half(s, b), half(s, &b[2..]));
        }
        let steps = steps(s, &mut d, &mut m);
        to.copy_from_slice(&steps[..to.len()]);
        for (i, (pair, codes)) in blocks.chunks(40).zip(codes.chunks_exact_mut(SPAN)).enumerate() {
            let (a, b) = pair.split_at(20);
            let b = if b.is_empty() { &none[..] } else { b };
            s.look_up([&a[4..], &b[4..]], &tables(s, &d[2 * i..], &m[2 * i..]), codes);
        }
    }
}

/// Codes of a row of Q4_K's super-blocks.
#[inline(always)]
fn code_q4_k<S: Simd>(s: S, row: &[u8], out: Coded) {
    let blocks = row.chunks_exact(144);
    let codes = out.codes.chunks_exact_mut(4 * SPAN);
    for ((block, codes), scales) in blocks.zip(codes).zip(out.scales.chunks_exact_mut(8)) {
        let (mut d, mut m) = ([0.0; 16], [0.0; 16]);
        let both = crate::rows::q4_k_scales(s, block);
        d[..8].copy_from_slice(&both.0);
        m[..8].copy_from_slice(&both.1);
        scales.copy_from_slice(&steps(s, &mut d, &mut m)[..8]);
        for (i, codes) in codes.chunks_exact_mut(SPAN).enumerate() {
            s.look_up_halves(&block[16 + 32 * i..], &tables(s, &d[2 * i..], &m[2 * i..]), codes);
        }
    }
}

/// See [`crate::Isa::pack`].
pub(crate) struct Pack<'a, R> {
    pub row: R,
    pub n_rows: usize,
    pub n_in: usize,
    pub columns: Option<&'a Columns>,
    pub scratch: &'a mut Scratch,
    pub panel: &'a mut [u8],
}

impl<'r, R: Fn(usize) -> Row<'r>> Kernel for Pack<'_, R> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Pack { row, n_rows, n_in, columns, scratch, panel } = self;
        assert!(n_rows <= panel_rows::<S>(), "rows of one panel");
        pack(s, row, n_rows, n_in, columns, scratch, panel);
    }
}

/// Packs one panel: `row(i)` gives its rows; those beyond `n_rows` are zeros.
#[inline(always)]
fn pack<'r, S: Simd>(
    s: S,
    row: impl Fn(usize) -> Row<'r>,
    n_rows: usize,
    n_in: usize,
    columns: Option<&Columns>,
    scratch: &mut Scratch,
    panel: &mut [u8],
) {
    let k = columns.map_or(n_in, Columns::len);
    let n_groups = 2 * k.div_ceil(SPAN);
    let width = n_groups * GROUP;
    let Scratch { codes, scales, floats: buffer, kept } = scratch;
    let rows = panel_rows::<S>();
    codes.resize(rows * width, 0);
    scales.resize(rows * n_groups, 0.0);
    buffer.resize(n_in.next_multiple_of(SPAN), 0.0);
    for i in 0..rows {
        let codes = &mut codes[i * width..(i + 1) * width];
        let scales = &mut scales[i * n_groups..(i + 1) * n_groups];
        if i >= n_rows {
            codes.fill(0);
            scales.fill(0.0);
            continue;
        }
        let row = row(i);
        let out = Coded { codes, scales };
        if let Some(columns) = columns {
            row.floats(s, &mut buffer[..n_in]);
            // Room for what `compress` writes behind.
            kept.resize(width + S::LANES, 0.0);
            let mut n = 0;
            let bits = |i: usize| columns.mask[i / 32] >> (i % 32) & ((1u64 << S::LANES) - 1) as u32;
            for (j, x) in buffer.chunks_exact(S::LANES).enumerate() {
                let mask = if j * S::LANES < n_in { bits(j * S::LANES) } else { 0 };
                s.compress(s.load_f(x), mask, &mut kept[n..]);
                n += mask.count_ones() as usize;
            }
            kept[k..width].fill(0.0);
            code_floats(s, &kept[..width], out);
            continue;
        }
        match row.format {
            Format::Q4_0 => code_q4_0(s, row.bytes, out),
            Format::Q4_1 => code_q4_1(s, row.bytes, out),
            Format::Q4K => code_q4_k(s, row.bytes, out),
            Format::Q8_0 | Format::Other(_) => {
                row.floats(s, &mut buffer[..n_in]);
                buffer[n_in..].fill(0.0);
                code_floats(s, buffer, out);
            }
        }
    }
    // Row by row becomes four inputs by four inputs.
    assert_eq!(panel.len(), n_groups * group_bytes::<S>(), "bytes of a panel");
    let offset = s.splat_i(i32::from_le_bytes([S::OFFSET as u8; 4]));
    let mut square = [s.splat_i(0); 16];
    for (p, both) in panel.chunks_exact_mut(2 * group_bytes::<S>()).enumerate() {
        for v in 0..VECS {
            for part in 0..16 / S::LANES {
                let square = &mut square[..S::LANES];
                for (i, r) in square.iter_mut().enumerate() {
                    *r = s.load_i(&codes[(v * S::LANES + i) * width + p * SPAN + part * 4 * S::LANES..]);
                }
                s.transpose(square);
                for (i, r) in square.iter().enumerate() {
                    let four = part * S::LANES + i;
                    let at = four / 8 * group_bytes::<S>() + four % 8 * rows * 4 + v * S::LANES * 4;
                    s.store_i(s.add_bytes(*r, offset), &mut both[at..]);
                }
            }
        }
        for (half, group) in both.chunks_exact_mut(group_bytes::<S>()).enumerate() {
            for (i, to) in group[rows * GROUP..].chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&scales[i * n_groups + 2 * p + half].to_le_bytes());
            }
        }
    }
}
