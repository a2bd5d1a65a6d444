//! Matrices in the panels that our kernels multiply many tokens with, packed once (`--pack resident`).

use std::ops::Range;
use std::sync::Arc;

use ggml::{Pages, dequantize_row};
use kernels::{Format, Isa, Row};

use super::kernel::format;
use super::matrix::Matrix;
use crate::error::Result;
use crate::system::parallel;

/// A matrix in panels, one after the other.
#[derive(Debug, Clone)]
pub struct Panels {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl Panels {
    /// Packs matrices, on `n_threads` threads. [`crate::error::Kind::Memory`] if they do not fit.
    pub fn of_all(matrices: &[Matrix], n_threads: usize) -> Result<Vec<Panels>> {
        let sizes: Vec<usize> = matrices.iter().map(n_bytes).collect();
        let advice = "leave out --pack resident, or use a smaller model";
        let (pages, ranges) = parallel::make(&sizes, n_threads, "the packed weights", advice, |i, out| {
            pack(&matrices[i], out);
        })?;
        Ok(ranges.into_iter().map(|range| Panels { pages: pages.clone(), range }).collect())
    }

    /// The panels, of `n_bytes` each, of `n_rows` rows from row `row` of the matrix on; `None` if no panel begins there.
    pub fn panels(&self, row: usize, n_rows: usize, n_bytes: usize) -> Option<&[u8]> {
        let rows = Isa::best().panel_rows();
        let start = self.range.start + row / rows * n_bytes;
        row.is_multiple_of(rows).then(|| &self.pages[start..start + n_rows.div_ceil(rows) * n_bytes])
    }
}

/// Packs a matrix: as many panels, one after the other, as its rows need.
fn pack(matrix: &Matrix, out: &mut [u8]) {
    let isa = Isa::best();
    let ty = matrix.ty();
    let other = move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out);
    let row = |i: usize| Row { bytes: matrix.row(i), format: format(ty).unwrap_or(Format::Other(&other)) };
    isa.pack(&row, matrix.n_out(), matrix.n_in(), None, out);
}

/// Bytes of a matrix in panels.
fn n_bytes(matrix: &Matrix) -> usize {
    let isa = Isa::best();
    matrix.n_out().div_ceil(isa.panel_rows()) * isa.panel_bytes(matrix.n_in())
}
