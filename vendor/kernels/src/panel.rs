//! Panels: weights as gemm wants them.
//!
//! A panel is `2 * LANES` rows of a matrix, the last one filled up with rows of zeros, in 8-bit codes with a scale for each row and group of 32
//! inputs. Groups lie one after the other, two by two (an odd last one is followed by zeros). With rows `r` and inputs `i` a group is
//!
//! ```text
//! codes, one byte each, of the first LANES rows:  r0 i0..i3 | r1 i0..i3 | ...   then of i4..i7, and so on to i28..i31
//! codes of the other rows in the same way
//! scales (F32):                                   r0 | r1 | ... of all rows
//! minima (F32), with small sums:                  r0 | r1 | ... of all rows
//! ```
//!
//! so that a vector holds four codes of each of `LANES` rows, as [`Simd::dot`] takes them.
//!
//! Codes have a sign, and a weight is `scale * code`. Instruction sets that multiply small codes faster ([`Simd::SMALL_SUMS`]) have the codes
//! of a type's own, without sign, where there are at most 64 of them. Of 4 or 5 bits a weight is then `scale * code + minimum`. Of 3 or 6 bits it
//! is `scale * (code - excess)`, where the excess is half the number of codes (4 or 32), and each half of a group has a scale of its own: where
//! other types have scales there are those of first halves, and where they have minima those of second halves.

use crate::RowFn;
use crate::acts::{GROUP, SPAN, scales};
use crate::columns::Columns;
use crate::formats::{Format, Row, Weight, is_row, with_weight};
use crate::isa::{Kernel, Simd};

/// Vectors that a panel's rows fill: two, so that gemm uses each activation that it broadcasts twice.
pub(crate) const VECS: usize = 2;

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

/// Bytes of a group of a panel: codes, scales and, if there may be some, minima.
pub(crate) const fn group_bytes<S: Simd>() -> usize {
    panel_rows::<S>() * (GROUP + if S::SMALL_SUMS { 8 } else { 4 })
}

/// What a panel's codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    /// With sign
    Eight,
    /// Below 16, with minima
    Four,
    /// Below 32, with minima
    Five,
    /// Below 8, with a scale for each half of a group
    Three,
    /// Below 64, with a scale for each half of a group
    Six,
}

impl Codes {
    /// Those of rows of a format, or of kept columns of such rows.
    #[inline(always)]
    pub fn of<S: Simd>(format: Format, is_kept: bool) -> Codes {
        #[inline(always)]
        fn of<W: Weight>(_: W) -> Codes {
            W::SMALL_CODES
        }
        if S::SMALL_SUMS && !is_kept { with_weight!(format, w => of(w)) } else { Codes::Eight }
    }
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

/// A row on its way into a panel. The weights of a group are `scale * code`, or of small codes `scale * code + minimum`, if halves of groups have
/// no scales of their own.
pub(crate) struct PanelRow<'a> {
    /// Codes of all inputs, filled up to whole [`SPAN`]s
    pub codes: &'a mut [u8],
    /// A scale for each group, or for its first half
    pub scales: &'a mut [f32],
    /// A minimum for each group, or a scale for its second half; nobody reads those of codes of 8 bits
    pub minima: &'a mut [f32],
}

/// Writes codes and scales of floats, whose number is that of the codes: the largest magnitude of a group becomes 127.
#[inline(always)]
pub(crate) fn quantize<S: Simd>(s: S, x: &[f32], out: PanelRow) {
    for ((x, codes), scale) in x.chunks_exact(GROUP).zip(out.codes.chunks_exact_mut(GROUP)).zip(out.scales) {
        let mut largest = s.splat(0.0);
        for v in x.chunks_exact(S::LANES) {
            largest = s.max_abs(largest, s.load_f(v));
        }
        let (to, inverse) = scales(s.reduce_max_or_nan(largest));
        *scale = to;
        let inverse = s.splat(inverse);
        for (v, codes) in x.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
            s.store_bytes(s.round(s.mul(s.load_f(v), inverse)), codes);
        }
    }
}

/// What packing writes in between. Each thread keeps it.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// `[panel_rows][width]`
    codes: Vec<u8>,
    /// `[panel_rows][n_groups]`
    scales: Vec<f32>,
    /// `[panel_rows][n_groups]`
    minima: Vec<f32>,
    /// A row's values
    floats: Vec<f32>,
    /// Of these the kept ones
    kept: Vec<f32>,
}

/// See [`crate::Isa::pack`].
pub(crate) struct Pack<'a, 'r> {
    pub row: RowFn<'a, 'r>,
    pub n_rows: usize,
    pub n_in: usize,
    pub columns: Option<&'a Columns>,
    pub scratch: &'a mut Scratch,
    /// One after the other
    pub panels: &'a mut [u8],
}

impl Kernel for Pack<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Pack { row, n_rows, n_in, columns, scratch, panels } = self;
        let n_groups = 2 * columns.map_or(n_in, Columns::len).div_ceil(SPAN);
        let width = n_groups * GROUP;
        let Scratch { codes, scales, minima, floats, kept } = scratch;
        let rows = panel_rows::<S>();
        codes.resize(rows * width, 0);
        scales.resize(rows * n_groups, 0.0);
        minima.resize(rows * n_groups, 0.0);
        floats.resize(n_in.next_multiple_of(SPAN), 0.0);
        assert_eq!(panels.len(), n_rows.div_ceil(rows) * n_groups * group_bytes::<S>(), "bytes of panels");
        for (p, panel) in panels.chunks_exact_mut(n_groups * group_bytes::<S>()).enumerate() {
            for i in 0..rows {
                let groups = i * n_groups..(i + 1) * n_groups;
                let out = PanelRow {
                    codes: &mut codes[i * width..(i + 1) * width],
                    scales: &mut scales[groups.clone()],
                    minima: &mut minima[groups],
                };
                if p * rows + i >= n_rows {
                    out.codes.fill(0);
                    out.scales.fill(0.0);
                    out.minima.fill(0.0);
                    continue;
                }
                let Row { bytes, format } = row(p * rows + i);
                assert!(with_weight!(format, w => is_row(w, bytes, n_in)), "a row of {n_in} inputs");
                with_weight!(format, weight => s.run(PackRow { weight, bytes, n_in, columns, floats, kept, out }));
            }
            interleave(s, codes, [scales, minima], panel);
        }
    }
}

/// One row on its way into a panel.
struct PackRow<'a, W> {
    weight: W,
    bytes: &'a [u8],
    n_in: usize,
    columns: Option<&'a Columns>,
    floats: &'a mut [f32],
    kept: &'a mut Vec<f32>,
    out: PanelRow<'a>,
}

impl<W: Weight> Kernel for PackRow<'_, W> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackRow { weight, bytes, n_in, columns, floats, kept, out } = self;
        match columns {
            None if S::SMALL_SUMS && W::SMALL_CODES != Codes::Eight => weight.small_row(s, bytes, out),
            None => weight.panel_row(s, bytes, n_in, floats, out),
            Some(columns) => {
                let width = out.codes.len();
                weight.decode(s, bytes, &mut floats[..n_in]);
                keep(s, columns, n_in, floats, kept, width);
                quantize(s, &kept[..width], out);
            }
        }
    }
}

/// Writes the kept ones of `n_in` floats to `kept`, and zeros up to `width`. There may be more floats.
#[inline(always)]
fn keep<S: Simd>(s: S, columns: &Columns, n_in: usize, floats: &[f32], kept: &mut Vec<f32>, width: usize) {
    // `compress` writes up to a whole vector.
    kept.resize(width + S::LANES, 0.0);
    let mut n = 0;
    let bits = |i: usize| columns.masks()[i / 32] >> (i % 32) & ((1u64 << S::LANES) - 1) as u32;
    for (j, x) in floats.chunks_exact(S::LANES).enumerate() {
        let mask = if j * S::LANES < n_in { bits(j * S::LANES) } else { 0 };
        s.compress(s.load_f(x), mask, &mut kept[n..]);
        n += mask.count_ones() as usize;
    }
    kept[n..width].fill(0.0);
}

/// Writes a panel: codes `[panel_rows][width]`, and scales and minima `[panel_rows][n_groups]`, change from row by row to group by group.
#[inline(always)]
fn interleave<S: Simd>(s: S, codes: &[u8], floats: [&[f32]; 2], panel: &mut [u8]) {
    let rows = panel_rows::<S>();
    let (width, n_groups) = (codes.len() / rows, floats[0].len() / rows);
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
                    let at = four / 8 * group_bytes::<S>() + (v * GROUP / 4 + four % 8) * S::LANES * 4;
                    s.store_i(s.add_bytes(*r, offset), &mut both[at..]);
                }
            }
        }
        for (half, group) in both.chunks_exact_mut(group_bytes::<S>()).enumerate() {
            for (to, floats) in group[rows * GROUP..].chunks_exact_mut(4 * rows).zip(floats) {
                for (i, to) in to.chunks_exact_mut(4).enumerate() {
                    to.copy_from_slice(&floats[i * n_groups + 2 * p + half].to_le_bytes());
                }
            }
        }
    }
}
