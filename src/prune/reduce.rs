//! Reduced tensors: the kept rows, columns and heads of what a block needs.

use std::ops::Range;
use std::sync::Arc;

use ggml::{Op, Pages, Parts, Source, Type, dequantize_row, quantize_row};
use kernels::{ColumnLayout, Columns, Format, Isa, Row};

use crate::weights::{Matrix, format};

/// Type of rows of `n` columns out of a matrix. A block of a quantised type shares a scale among neighbours that are not kept together,
/// so that columns are quantised anew, to 8 bits (measured: as good as exact); floats stay as they are.
pub fn column_type(matrix: &Matrix, n: usize) -> Type {
    if !matrix.ty().is_quantized() {
        matrix.ty()
    } else if Type::Q8_0.row_bytes(n).is_some() {
        Type::Q8_0
    } else {
        Type::F16
    }
}

/// Writes the rows of the units `kept` of a matrix, `width` rows each: those that lie in `range` of all kept rows.
pub fn gather_rows(matrix: &Matrix, kept: &[i32], width: usize, range: Range<usize>, out: &mut [u8]) {
    for (out, i) in out.chunks_exact_mut(matrix.row_bytes()).zip(range) {
        out.copy_from_slice(matrix.row(kept[i / width] as usize * width + i % width));
    }
}

/// Writes, of the rows in `range` of a matrix, the columns of the units `kept`, `width` columns each, as [`column_type`].
pub fn gather_columns(matrix: &Matrix, kept: &[i32], width: usize, range: Range<usize>, out: &mut [u8]) {
    let n = kept.len() * width;
    let ty = column_type(matrix, n);
    let mut row = vec![0.0f32; matrix.n_in()];
    let mut columns = vec![0.0f32; n];
    for (out, j) in out.chunks_exact_mut(ty.row_bytes(n).expect("see column_type")).zip(range) {
        dequantize_row(matrix.ty(), matrix.row(j), &mut row);
        for (columns, &unit) in columns.chunks_exact_mut(width).zip(kept) {
            columns.copy_from_slice(&row[unit as usize * width..][..width]);
        }
        quantize_row(ty, &columns, out);
    }
}

/// Writes the columns in `range` of a matrix as rows of type `ty`.
pub fn transpose(matrix: &Matrix, ty: Type, range: Range<usize>, out: &mut [u8]) {
    let n_out = matrix.n_out();
    let mut row = vec![0.0f32; matrix.n_in()];
    let mut columns = vec![0.0f32; range.len() * n_out];
    for j in 0..n_out {
        dequantize_row(matrix.ty(), matrix.row(j), &mut row);
        columns.chunks_exact_mut(n_out).zip(&row[range.clone()]).for_each(|(column, &w)| column[j] = w);
    }
    let bytes = ty.row_bytes(n_out).expect("whole blocks");
    out.chunks_exact_mut(bytes)
        .zip(columns.chunks_exact(n_out))
        .for_each(|(out, column)| quantize_row(ty, column, out));
}

/// The columns of kept units of a matrix in the layout of our own kernels, made for many products with few tokens.
#[derive(Debug, Clone)]
pub struct OwnColumns {
    /// How they are laid out
    pub layout: Arc<ColumnLayout>,
    /// Where they are
    pub pages: Arc<Pages>,
    /// Where in these
    pub range: Range<usize>,
}

impl OwnColumns {
    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.pages[self.range.clone()]
    }
}

/// How our kernels lay out the columns of kept units of a matrix.
pub fn column_layout(matrix: &Matrix, kept: &[i32], width: usize) -> ColumnLayout {
    let columns = Columns::new(kept, width, matrix.n_in());
    // The layout never calls the function that would read values.
    let format = format(matrix.ty()).unwrap_or(Format::Other(&|_, _| ()));
    Isa::best().column_layout(format, matrix.n_out(), &columns)
}

/// Writes the columns of a matrix in that layout.
pub fn reduce_columns(matrix: &Matrix, layout: &ColumnLayout, out: &mut [u8]) {
    let ty = matrix.ty();
    let other = move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out);
    let row = |i: usize| Row { bytes: matrix.row(i), format: format(ty).unwrap_or(Format::Other(&other)) };
    Isa::best().reduce_columns(layout, &row, matrix.n_in(), out);
}

/// Kept units I32 `[n_kept]` -> `[n_in, n_kept * width]` of the matrix's type: their rows.
#[derive(Debug)]
pub struct GatherRows {
    /// The matrix
    pub matrix: Matrix,
    /// Rows of a unit
    pub width: usize,
}

impl Op for GatherRows {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let range = out.rows();
            gather_rows(&self.matrix, sources[0].row::<i32>(0), self.width, range, out.bytes());
        }
    }
}

/// Kept units I32 `[n_kept]` -> `[n_kept * width, n_out]` of [`column_type`]: their columns.
#[derive(Debug)]
pub struct GatherColumns {
    /// The matrix
    pub matrix: Matrix,
    /// Columns of a unit
    pub width: usize,
}

impl Op for GatherColumns {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let range = out.rows();
            gather_columns(&self.matrix, sources[0].row::<i32>(0), self.width, range, out.bytes());
        }
    }
}

/// Keys or values `[n, n_head_kv, m, n_seq]` and kept query heads I32 `[n_kept]` -> `[n, n_kept, m, n_seq]` of the same type: for
/// each kept head those that it reads.
#[derive(Debug)]
pub struct GatherHeads {
    /// Query heads to a key and value head
    pub n_rep: usize,
}

impl Op for GatherHeads {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let [_, _, m, _] = sources[0].ne();
            let kept = sources[1].row::<i32>(0);
            let range = out.rows();
            let row = out.bytes().len() / range.len();
            for (out, i) in out.bytes().chunks_exact_mut(row).zip(range) {
                let head = kept[i % kept.len()] as usize / self.n_rep;
                let i = i / kept.len();
                out.copy_from_slice(sources[0].bytes([head, i % m, i / m]));
            }
        }
    }
}

/// Queries of kept heads F32 `[n, n_kept, m]` and these heads I32 `[n_kept]` -> `[n, n_head, m]`: in the places of a whole block,
/// with zeros for the others.
#[derive(Debug)]
pub struct SpreadHeads {
    /// Heads of a whole block
    pub n_head: usize,
}

impl Op for SpreadHeads {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let n = sources[0].ne()[0];
            let kept = sources[1].row::<i32>(0);
            let range = out.rows();
            let n_head = self.n_head;
            for (out, i) in out.bytes().chunks_exact_mut(4 * n).zip(range) {
                match kept.binary_search(&((i % n_head) as i32)) {
                    Ok(j) => out.copy_from_slice(sources[0].bytes([j, i / n_head, 0])),
                    Err(_) => out.fill(0),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_of_units() {
        let m = Matrix::from_rows(&[&[0.0, 1.0, 2.0, 3.0], &[4.0, 5.0, 6.0, 7.0], &[8.0, 9.0, 10.0, 11.0], &[12.0; 4]]);
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let mut out = vec![0; 2 * 4 * 4];
        gather_rows(&m, &[1], 2, 0..2, &mut out);
        assert_eq!(floats(&out), [8.0, 9.0, 10.0, 11.0, 12.0, 12.0, 12.0, 12.0]);
        let mut out = vec![0; 2 * 2 * 4];
        gather_columns(&m, &[0, 3], 1, 1..3, &mut out);
        assert_eq!(floats(&out), [4.0, 7.0, 8.0, 11.0]);
        gather_columns(&m, &[1], 2, 0..2, &mut out);
        assert_eq!(floats(&out), [2.0, 3.0, 6.0, 7.0]);
        let mut out = vec![0; 2 * 4 * 4];
        transpose(&m, Type::F32, 1..3, &mut out);
        assert_eq!(floats(&out), [1.0, 5.0, 9.0, 12.0, 2.0, 6.0, 10.0, 12.0]);
    }
}
