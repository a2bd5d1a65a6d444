//! Weights in the panels that our kernels multiply many tokens with: packed once, when the model is loaded (`--pack resident`).

use std::ops::Range;
use std::sync::Arc;

use ggml::{Pages, dequantize_row};
use kernels::{Format, Isa, Row};

use super::kernel::{Kernel, format};
use super::matrix::Matrix;
use super::tensors::Weight;
use crate::error::Result;
use crate::system::parallel;

/// A matrix in panels, one after the other.
#[derive(Debug, Clone)]
pub struct Panels {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl Panels {
    /// The panel whose first row is number `row` of the matrix, `n_bytes` long; `None` if no panel begins there.
    pub fn panel(&self, row: usize, n_bytes: usize) -> Option<&[u8]> {
        let n_rows = Isa::best().panel_rows();
        let start = self.range.start + row / n_rows * n_bytes;
        row.is_multiple_of(n_rows).then(|| &self.pages[start..start + n_bytes])
    }
}

/// Packs those of the weights that our kernels multiply, on `n_threads` threads. [`crate::error::Kind::Memory`] if they do not fit.
pub fn pack_all(weights: Vec<&mut Weight>, n_threads: usize) -> Result<()> {
    let mut weights: Vec<&mut Weight> = weights.into_iter().filter(|w| w.kernel != Kernel::Ggml).collect();
    let matrices: Vec<Matrix> = weights.iter().map(|w| w.rows.clone()).collect();
    let sizes: Vec<usize> = matrices.iter().map(n_bytes).collect();
    let advice = "leave out --pack resident, or use a smaller model";
    let (pages, ranges) = parallel::make(&sizes, n_threads, "the packed weights", advice, |i, out| {
        pack(&matrices[i], out);
    })?;
    for (weight, range) in weights.iter_mut().zip(ranges) {
        weight.packed = Some(Panels { pages: pages.clone(), range });
    }
    Ok(())
}

/// Packs a matrix: as many panels, one after the other, as its rows need.
fn pack(matrix: &Matrix, out: &mut [u8]) {
    let isa = Isa::best();
    let ty = matrix.ty();
    let other = move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out);
    let row = |i: usize| Row { bytes: matrix.row(i), format: format(ty).unwrap_or(Format::Other(&other)) };
    for (i, panel) in out.chunks_exact_mut(isa.panel_bytes(matrix.n_in())).enumerate() {
        let first = i * isa.panel_rows();
        let n = isa.panel_rows().min(matrix.n_out() - first);
        isa.pack(|i| row(first + i), n, matrix.n_in(), None, panel);
    }
}

/// Bytes of a matrix in panels.
fn n_bytes(matrix: &Matrix) -> usize {
    let isa = Isa::best();
    matrix.n_out().div_ceil(isa.panel_rows()) * isa.panel_bytes(matrix.n_in())
}
