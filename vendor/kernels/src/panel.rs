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
//! Codes have a sign, and a weight is `scale * code`. Of super-blocks four groups have the same scale.
//!
//! Instruction sets that multiply small codes faster ([`Simd::SMALL_SUMS`]) have the codes of a type's own, without sign, where there are at most
//! 64 of them. Of blocks of 32 a weight is then `scale * code + minimum`. Super-blocks have integers for scales of their blocks, and one float:
//!
//! - with blocks of 32 (codes of 4 and 5 bits) a weight is `scale * block's scale * code + minimum`. Where the first of two groups has a row's scale
//!   there are the scales of both groups' blocks, 16 bits each, and where the second has it there is the super-block's;
//! - with blocks of 16 (codes of 3 and 6 bits) it is `scale * block's scale * (code - excess)`, where the excess is half the number of codes. Where
//!   a group has a row's scale there are those of both its blocks, 16 bits each, and where it has the minimum there is the super-block's scale.

use crate::acts::{GROUP, SHARING, SPAN, scales};
use crate::columns::Columns;
use crate::formats::{Block, Format, Weight, is_row, shares_scales, with_weight};
use crate::isa::{Kernel, Simd};
use crate::{RowFn, aligned};

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
    /// With sign, and the same scale in four groups
    EightShared,
    /// Of blocks of 32, below 16
    Four,
    /// Of blocks of 32, below 32
    Five,
    /// Of super-blocks of blocks of 32, below 16
    FourShared,
    /// Of super-blocks of blocks of 32, below 32
    FiveShared,
    /// Of super-blocks of blocks of 16, below 8
    ThreeShared,
    /// Of super-blocks of blocks of 16, below 64
    SixShared,
}

impl Codes {
    /// Those of rows of a format, or of kept columns of such rows.
    #[inline(always)]
    pub fn of<S: Simd>(format: Format, is_kept: bool) -> Codes {
        #[inline(always)]
        fn of<S: Simd, W: Weight>(_: W, is_kept: bool) -> Codes {
            match W::SMALL_CODES {
                Codes::Eight if shares_scales::<W>() => Codes::EightShared,
                codes if S::SMALL_SUMS && !is_kept => codes,
                _ if shares_scales::<W>() => Codes::EightShared,
                _ => Codes::Eight,
            }
        }
        with_weight!(format, w => of::<S, _>(w, is_kept))
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

/// A row on its way into a panel, as the file's head says.
pub(crate) struct PanelRow<'a> {
    /// Codes of all inputs, filled up to whole [`SPAN`]s
    pub codes: &'a mut [u8],
    /// A scale for each group
    pub scales: &'a mut [f32],
    /// A minimum for each group; nobody reads those of codes of 8 bits
    pub minima: &'a mut [f32],
}

/// Writes codes and scales of floats, whose number is that of the codes: the largest magnitude of `SHARE` groups becomes 127.
#[inline(always)]
pub(crate) fn quantize<S: Simd, const SHARE: usize>(s: S, x: &[f32], out: PanelRow) {
    let shares = x.chunks(SHARE * GROUP).zip(out.codes.chunks_mut(SHARE * GROUP));
    for ((x, codes), scale) in shares.zip(out.scales.chunks_mut(SHARE)) {
        let mut largest = s.splat(0.0);
        for v in x.chunks_exact(S::LANES) {
            largest = s.max_abs(largest, s.load_f(v));
        }
        let (to, inverse) = scales(s.reduce_max_or_nan(largest));
        scale.fill(to);
        let inverse = s.splat(inverse);
        for (v, codes) in x.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
            s.store_bytes(s.round(s.mul(s.load_f(v), inverse)), codes);
        }
    }
}

/// Of each `n` magnitudes, all become the largest of them; NaN counts as larger than any.
#[inline(always)]
pub(crate) fn share(magnitudes: &mut [f32], n: usize) {
    for magnitudes in magnitudes.chunks_exact_mut(n) {
        // The bits of magnitudes have the magnitudes' order, and NaN is above all.
        let largest = magnitudes.iter().fold(0, |largest, x| largest.max(x.to_bits()));
        magnitudes.fill(f32::from_bits(largest));
    }
}

/// The most rows of a panel.
pub(crate) const MAX_ROWS: usize = 32;

/// Inputs of a panel's rows that are packed at once; rows of less than twice as many are not divided. Their codes stay in the processor's nearest
/// memory until the panel is written.
const PIECE: usize = 512;

/// Codes of a piece of a row are followed by so many bytes that nobody reads. Without them rows would be a power of two apart, and processors
/// have room for few of such places in their nearest memory.
const GAP: usize = 64;

/// Scales of groups whose largest magnitudes are these, and what makes codes of their values: the largest becomes 127. As in `acts::scales`, a value
/// that is NaN or infinite makes its group NaN.
#[inline(always)]
pub(crate) fn scales_of<S: Simd>(s: S, largest: S::F) -> (S::F, S::F) {
    let scale = s.fma(largest, s.splat(0.0), s.div(largest, s.splat(127.0)));
    (scale, s.div(s.splat(127.0), s.max(largest, s.splat(1e-35))))
}

/// What packing writes in between. Each thread keeps it.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    minima: Vec<f32>,
    floats: Vec<f32>,
    kept: Vec<f32>,
}

/// Room in it for a piece of a panel's rows.
struct Room<'a> {
    /// `[panel_rows][piece + GAP]`
    codes: &'a mut [u8],
    /// `[panel_rows][groups of a piece]`
    scales: &'a mut [f32],
    /// `[panel_rows][groups of a piece]`
    minima: &'a mut [f32],
    /// Values of a row
    floats: &'a mut [f32],
    /// Of these the kept ones, and a vector more
    kept: &'a mut [f32],
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
        let Some(format) = (n_rows > 0).then(|| row(0).format) else { return };
        let width = columns.map_or(n_in, Columns::len).next_multiple_of(SPAN);
        let span_bytes = 2 * group_bytes::<S>();
        assert_eq!(panels.len(), n_rows.div_ceil(panel_rows::<S>()) * (width / SPAN) * span_bytes, "bytes of panels");
        // Of kept columns, and of a type of unknown blocks, nobody can say which bytes a piece of a row is made of.
        let block = with_weight!(format, w => block(w)).filter(|_| columns.is_none());
        let piece = if block.is_some() && width >= 2 * PIECE { PIECE } else { width };
        let piece_bytes = block.map_or(usize::MAX, |block| piece / block.inputs * block.bytes);
        let rows_of = |panel: usize| {
            let (first, mut rows) = (panel * panel_rows::<S>(), [&[][..]; MAX_ROWS]);
            for (i, bytes) in (first..n_rows.min(first + panel_rows::<S>())).zip(&mut rows) {
                let row = row(i);
                debug_assert_eq!(row.format.name(), format.name(), "rows of one format");
                assert!(with_weight!(format, w => is_row(w, row.bytes, n_in)), "a row of {n_in} inputs");
                *bytes = row.bytes;
            }
            rows
        };
        let n_floats = panel_rows::<S>() * piece / GROUP;
        let mut room = Room {
            codes: aligned(&mut scratch.codes, panel_rows::<S>() * (piece + GAP)),
            scales: aligned(&mut scratch.scales, n_floats),
            minima: aligned(&mut scratch.minima, n_floats),
            floats: aligned(&mut scratch.floats, if block.is_some() { piece } else { n_in.next_multiple_of(SPAN) }),
            kept: aligned(&mut scratch.kept, if columns.is_some() { width + S::LANES } else { 0 }),
        };
        let mut next = rows_of(0);
        for (p, panel) in panels.chunks_exact_mut(width / SPAN * span_bytes).enumerate() {
            let mut rows = next;
            next = rows_of(p + 1);
            let n = panel_rows::<S>().min(n_rows - p * panel_rows::<S>());
            for (i, part) in panel.chunks_mut(piece / SPAN * span_bytes).enumerate() {
                let width = part.len() / span_bytes * SPAN;
                let mut now = [&[][..]; MAX_ROWS];
                for ((now, rest), next) in now.iter_mut().zip(&mut rows).zip(next) {
                    (*now, *rest) = rest.split_at(piece_bytes.min(rest.len()));
                    // The processor reads ahead by itself, but not of so many rows at once, nor beyond a page of memory. Where rows are packed whole, of
                    // whatever length, nothing is fetched: it could be too much.
                    let soon = if rest.is_empty() { next } else { rest };
                    s.prefetch(soon.get(..piece_bytes).unwrap_or_default());
                }
                let n_in = if block.is_some() { width.min(n_in - i * piece) } else { n_in };
                let (rows, room) = (&now[..n], &mut room);
                with_weight!(format, weight => s.run(PackPiece { weight, rows, n_in, width, columns, room }));
                s.run(Interleave { width, room, panel: part });
            }
        }
    }
}

/// The block of a type.
fn block<W: Weight>(_: W) -> Option<Block> {
    W::BLOCK
}

/// As many inputs of a panel's rows as are packed at once.
struct PackPiece<'a, 'r, W> {
    weight: W,
    /// The bytes of these inputs; rows that the panel has beyond them become zeros
    rows: &'a [&'a [u8]],
    n_in: usize,
    /// Inputs of the panel that are made of them
    width: usize,
    columns: Option<&'a Columns>,
    room: &'a mut Room<'r>,
}

impl<W: Weight> Kernel for PackPiece<'_, '_, W> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PackPiece { weight, rows, n_in, width, columns, room } = self;
        let floats = &mut room.floats[..n_in.next_multiple_of(SPAN)];
        let codes = room.codes.chunks_exact_mut(width + GAP);
        let numbers = room.scales.chunks_exact_mut(width / GROUP).zip(room.minima.chunks_exact_mut(width / GROUP));
        for (i, (codes, (scales, minima))) in codes.zip(numbers).enumerate().take(panel_rows::<S>()) {
            let out = PanelRow { codes: &mut codes[..width], scales, minima };
            let Some(row) = rows.get(i) else {
                out.codes.fill(0);
                out.scales.fill(0.0);
                out.minima.fill(0.0);
                continue;
            };
            match columns {
                None if S::SMALL_SUMS && W::SMALL_CODES != Codes::Eight => weight.small_row(s, row, out),
                None => weight.panel_row(s, row, n_in, floats, out),
                Some(columns) => {
                    weight.decode(s, row, &mut floats[..n_in]);
                    keep(s, columns, n_in, floats, room.kept, width);
                    match shares_scales::<W>() {
                        true => quantize::<S, SHARING>(s, &room.kept[..width], out),
                        false => quantize::<S, 1>(s, &room.kept[..width], out),
                    }
                }
            }
        }
    }
}

/// Writes the kept ones of `n_in` floats to `kept`, and zeros up to `width`. There may be more floats, and `kept` has a vector more.
#[inline(always)]
fn keep<S: Simd>(s: S, columns: &Columns, n_in: usize, floats: &[f32], kept: &mut [f32], width: usize) {
    let mut n = 0;
    let bits = |i: usize| columns.masks()[i / 32] >> (i % 32) & ((1u64 << S::LANES) - 1) as u32;
    for (j, x) in floats.chunks_exact(S::LANES).enumerate() {
        let mask = if j * S::LANES < n_in { bits(j * S::LANES) } else { 0 };
        s.compress(s.load_f(x), mask, &mut kept[n..]);
        n += mask.count_ones() as usize;
    }
    kept[n..width].fill(0.0);
}

/// Writes the part of a panel that a piece of its rows is: codes, scales and minima change from row by row to group by group.
struct Interleave<'a, 'r> {
    width: usize,
    room: &'a Room<'r>,
    panel: &'a mut [u8],
}

impl Kernel for Interleave<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Interleave { width, room: Room { codes, scales, minima, .. }, panel } = self;
        let (rows, n_groups, row) = (panel_rows::<S>(), width / GROUP, width + GAP);
        let offset = s.splat_i(i32::from_le_bytes([S::OFFSET as u8; 4]));
        let mut square = [s.splat_i(0); 16];
        for (p, both) in panel.chunks_exact_mut(2 * group_bytes::<S>()).enumerate() {
            for v in 0..VECS {
                for part in 0..16 / S::LANES {
                    let square = &mut square[..S::LANES];
                    for (i, r) in square.iter_mut().enumerate() {
                        *r = s.load_i(&codes[(v * S::LANES + i) * row + p * SPAN + part * 4 * S::LANES..]);
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
                for (to, floats) in group[rows * GROUP..].chunks_exact_mut(4 * rows).zip([scales, minima]) {
                    for (i, to) in to.chunks_exact_mut(4).enumerate() {
                        to.copy_from_slice(&floats[i * n_groups + 2 * p + half].to_le_bytes());
                    }
                }
            }
        }
    }
}
