//! Reduced tensors: the kept rows, columns and heads of what a block needs.

use std::ops::Range;
use std::sync::Arc;

use ggml::{Map, Op, Pages, Parts, Source, Type, dequantize_row, quantize_row};

/// A matrix `[n_in, n_out]` in a type of files, row by row.
#[derive(Debug, Clone)]
pub struct Matrix {
    bytes: Bytes,
    ty: Type,
    n_in: usize,
    n_out: usize,
    /// Bytes of a row
    row: usize,
}

#[derive(Debug, Clone)]
enum Bytes {
    Mapped(Arc<Map>, Range<usize>),
    Made(Arc<Pages>, Range<usize>),
}

impl Matrix {
    /// The matrix at `range` of a map.
    ///
    /// # Panics
    /// If the range is not the matrix's size.
    pub fn mapped(map: Arc<Map>, range: Range<usize>, ty: Type, n_in: usize, n_out: usize) -> Matrix {
        let row = ty.row_bytes(n_in).expect("whole blocks");
        assert_eq!(row * n_out, range.len(), "bytes of the matrix");
        Matrix { bytes: Bytes::Mapped(map, range), ty, n_in, n_out, row }
    }

    /// The matrix of the rows that were made in `range` of some memory.
    pub fn made(pages: Arc<Pages>, range: Range<usize>, ty: Type, n_in: usize) -> Matrix {
        let row = ty.row_bytes(n_in).expect("whole blocks");
        Matrix { ty, n_in, n_out: range.len() / row, row, bytes: Bytes::Made(pages, range) }
    }

    /// A matrix of floats.
    #[cfg(test)]
    pub fn from_rows(rows: &[&[f32]]) -> Matrix {
        let bytes = ggml::quantize(Type::F32, &rows.concat(), rows[0].len());
        let mut pages = Pages::new(bytes.len()).expect("a few bytes");
        pages.copy_from_slice(&bytes);
        Matrix::made(Arc::new(pages), 0..bytes.len(), Type::F32, rows[0].len())
    }

    /// Inputs: the length of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Outputs: the number of rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Element type.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map, range) => &map[range.clone()],
            Bytes::Made(pages, range) => &pages[range.clone()],
        }
    }

    /// The bytes of row `j`.
    pub fn row(&self, j: usize) -> &[u8] {
        self.rows(j, 1)
    }

    /// The bytes of `n` rows, from row `j` on.
    pub fn rows(&self, j: usize, n: usize) -> &[u8] {
        &self.bytes()[j * self.row..(j + n) * self.row]
    }

    /// Type of rows of `n` columns out of this matrix. A block of a quantised type shares a scale among neighbours that are not
    /// kept together, so that columns are quantised anew, to 8 bits (measured: as good as exact); floats stay as they are.
    pub fn column_type(&self, n: usize) -> Type {
        if !self.ty.is_quantized() {
            self.ty
        } else if Type::Q8_0.row_bytes(n).is_some() {
            Type::Q8_0
        } else {
            Type::F16
        }
    }

    /// Writes the rows of the units `kept` (`width` rows each) that lie in `range` of all of these.
    pub fn gather_rows(&self, kept: &[i32], width: usize, range: Range<usize>, out: &mut [u8]) {
        for (out, i) in out.chunks_exact_mut(self.row).zip(range) {
            out.copy_from_slice(self.row(kept[i / width] as usize * width + i % width));
        }
    }

    /// Writes, of the rows in `range`, the columns of the units `kept` (`width` columns each), as [`Matrix::column_type`].
    pub fn gather_columns(&self, kept: &[i32], width: usize, range: Range<usize>, out: &mut [u8]) {
        let n = kept.len() * width;
        let ty = self.column_type(n);
        let mut row = vec![0.0f32; self.n_in];
        let mut columns = vec![0.0f32; n];
        for (out, j) in out.chunks_exact_mut(ty.row_bytes(n).expect("see column_type")).zip(range) {
            dequantize_row(self.ty, self.row(j), &mut row);
            for (columns, &unit) in columns.chunks_exact_mut(width).zip(kept) {
                columns.copy_from_slice(&row[unit as usize * width..][..width]);
            }
            quantize_row(ty, &columns, out);
        }
    }
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
            self.matrix.gather_rows(sources[0].row::<i32>(0), self.width, range, out.bytes());
        }
    }
}

/// Kept units I32 `[n_kept]` -> `[n_kept * width, n_out]` of [`Matrix::column_type`]: their columns.
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
            self.matrix.gather_columns(sources[0].row::<i32>(0), self.width, range, out.bytes());
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
        m.gather_rows(&[1], 2, 0..2, &mut out);
        assert_eq!(floats(&out), [8.0, 9.0, 10.0, 11.0, 12.0, 12.0, 12.0, 12.0]);
        let mut out = vec![0; 2 * 2 * 4];
        m.gather_columns(&[0, 3], 1, 1..3, &mut out);
        assert_eq!(floats(&out), [4.0, 7.0, 8.0, 11.0]);
        m.gather_columns(&[1], 2, 0..2, &mut out);
        assert_eq!(floats(&out), [2.0, 3.0, 6.0, 7.0]);
    }
}
