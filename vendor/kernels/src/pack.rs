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

/// What packing and multiplying write in between; kept by each thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One or two panels.
    pub panels: [Vec<u8>; 2],
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

/// Codes of two blocks of 16 values each, `d * code + m`.
#[inline(always)]
fn tables<S: Simd>(s: S, d: [f32; 2], m: [f32; 2]) -> ([[u8; 16]; 2], [f32; 2]) {
    const IOTA: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    let mut tables = [[0u8; 16]; 2];
    let mut steps = [0.0; 2];
    for i in 0..2 {
        let largest = m[i].abs().max((d[i] * 15.0 + m[i]).abs());
        // `max` passes over NaN.
        let (step, inverse) = scales(largest + (d[i] + m[i]) * 0.0);
        let (d, m) = (s.splat(d[i] * inverse), s.splat(m[i] * inverse));
        for j in (0..16).step_by(S::LANES) {
            s.store_bytes(s.round(s.fma(s.load_f(&IOTA[j..]), d, m)), &mut tables[i][j..]);
        }
        steps[i] = step;
    }
    (tables, steps)
}

/// Codes of a row of blocks of 32 in `B` bytes, whose 16 bytes of codes start at `at`; `scale` reads a block's factor and minimum.
#[inline(always)]
fn code_blocks<S: Simd, const B: usize>(s: S, row: &[u8], at: usize, scale: impl Fn(&[u8]) -> (f32, f32), out: Coded) {
    let none = [0u8; B];
    let codes = out.codes.chunks_exact_mut(SPAN);
    for ((pair, codes), to) in row.chunks(2 * B).zip(codes).zip(out.scales.chunks_exact_mut(2)) {
        let (a, b) = pair.split_at(B);
        // The last group may be missing.
        let b = if b.is_empty() { &none[..] } else { b };
        let ((d0, m0), (d1, m1)) = (scale(a), scale(b));
        let (tables, steps) = tables(s, [d0, d1], [m0, m1]);
        s.look_up([&a[at..], &b[at..]], &tables, codes);
        to.copy_from_slice(&steps);
    }
}

/// Codes of a row of Q4_K's super-blocks.
#[inline(always)]
fn code_q4_k<S: Simd>(s: S, row: &[u8], out: Coded) {
    let blocks = row.chunks_exact(144);
    let codes = out.codes.chunks_exact_mut(4 * SPAN);
    for ((block, codes), scales) in blocks.zip(codes).zip(out.scales.chunks_exact_mut(8)) {
        let (d, m) = crate::rows::q4_k_scales(s, block);
        for j in 0..4 {
            let (tables, steps) = tables(s, [d[2 * j], d[2 * j + 1]], [m[2 * j], m[2 * j + 1]]);
            s.look_up_halves(&block[16 + 32 * j..], &tables, &mut codes[SPAN * j..]);
            scales[2 * j..2 * j + 2].copy_from_slice(&steps);
        }
    }
}

/// Packs one panel: `row(i)` gives its rows; those beyond `n_rows` are zeros.
#[inline(always)]
pub(crate) fn pack<'r, S: Simd>(
    s: S,
    row: impl Fn(usize) -> Row<'r>,
    n_rows: usize,
    n_in: usize,
    columns: Option<&Columns>,
    scratch: &mut Scratch,
    which: usize,
) {
    let k = columns.map_or(n_in, Columns::len);
    let n_groups = 2 * k.div_ceil(SPAN);
    let width = n_groups * GROUP;
    let Scratch { panels, codes, scales, floats: buffer, kept } = scratch;
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
            Format::Q4_0 => {
                let scale = |b: &[u8]| (half(s, &b[..2]), -8.0 * half(s, &b[..2]));
                code_blocks::<S, 18>(s, row.bytes, 2, scale, out);
            }
            Format::Q4_1 => code_blocks::<S, 20>(s, row.bytes, 4, |b| (half(s, &b[..2]), half(s, &b[2..4])), out),
            Format::Q4K => code_q4_k(s, row.bytes, out),
            Format::Q8_0 | Format::Other(_) => {
                row.floats(s, &mut buffer[..n_in]);
                buffer[n_in..].fill(0.0);
                code_floats(s, buffer, out);
            }
        }
    }
    // Row by row becomes four inputs by four inputs.
    let panel = &mut panels[which];
    panel.resize(n_groups * group_bytes::<S>(), 0);
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
