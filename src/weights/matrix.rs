//! Matrices as files have them: rows of blocks of some type, read where they are.

use std::ops::Range;
use std::sync::Arc;

use ggml::{Map, Pages, Type};

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

    /// The matrix of some of the rows.
    pub fn part(&self, rows: Range<usize>) -> Matrix {
        let within = |range: &Range<usize>| range.start + rows.start * self.row..range.start + rows.end * self.row;
        let bytes = match &self.bytes {
            Bytes::Mapped(map, range) => Bytes::Mapped(map.clone(), within(range)),
            Bytes::Made(pages, range) => Bytes::Made(pages.clone(), within(range)),
        };
        Matrix { bytes, n_out: rows.len(), ..*self }
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

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row
    }

    /// The bytes of row `j`.
    pub fn row(&self, j: usize) -> &[u8] {
        self.rows(j, 1)
    }

    /// The bytes of `n` rows, from row `j` on.
    pub fn rows(&self, j: usize, n: usize) -> &[u8] {
        &self.bytes()[j * self.row..(j + n) * self.row]
    }
}
