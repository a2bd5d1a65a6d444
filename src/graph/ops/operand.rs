//! What products multiply activations with.

use ggml::{Type, dequantize_row};
use kernels::{Format, Row};

use crate::weights::{Matrix, Panels, format};

/// A matrix of a product: all its rows, or those of the units that the product's ids name.
#[derive(Debug, Clone)]
pub struct Operand {
    /// The weights
    pub matrix: Matrix,
    /// Rows of a unit, if only kept units are multiplied
    pub unit_rows: Option<usize>,
    /// All rows, in panels already
    pub packed: Option<Panels>,
}

impl Operand {
    /// All rows of a matrix.
    pub fn all(matrix: Matrix, packed: Option<Panels>) -> Operand {
        Operand { matrix, unit_rows: None, packed }
    }

    /// The rows of kept units, of `unit_rows` rows each.
    pub fn units(matrix: Matrix, unit_rows: usize) -> Operand {
        Operand { matrix, unit_rows: Some(unit_rows), packed: None }
    }

    /// Rows of the product; `n_kept` is the number of ids.
    pub fn n_out(&self, n_kept: usize) -> usize {
        self.unit_rows.map_or(self.matrix.n_out(), |rows| n_kept * rows)
    }

    /// Number of row `i` of the product among the matrix's rows.
    pub fn row_number(&self, i: usize, ids: &[i32]) -> usize {
        self.unit_rows.map_or(i, |rows| ids[i / rows] as usize * rows + i % rows)
    }
}

/// What becomes of the products with several operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// One below the other.
    Stack,
    /// `silu(first) * second`, of two operands of equal shape.
    SwiGlu,
}

impl Combine {
    /// Operands whose rows are multiplied together.
    pub fn n_together(self) -> usize {
        match self {
            Combine::Stack => 1,
            Combine::SwiGlu => 2,
        }
    }
}

/// Rows of several operands as kernels read them.
pub struct Rows<'a> {
    operands: &'a [Operand],
    others: Vec<Box<Decode>>,
}

/// Writes the values of a row.
type Decode = dyn Fn(&[u8], &mut [f32]) + Sync;

impl<'a> Rows<'a> {
    /// Those of these operands.
    pub fn new(operands: &'a [Operand]) -> Rows<'a> {
        let decode =
            |ty: Type| Box::new(move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out)) as Box<Decode>;
        Rows { operands, others: operands.iter().map(|o| decode(o.matrix.ty())).collect() }
    }

    /// How an operand's rows are to be read.
    pub fn format(&self, operand: usize) -> Format<'_> {
        format(self.operands[operand].matrix.ty()).unwrap_or(Format::Other(&self.others[operand]))
    }

    /// Row `i` of the product with an operand; `ids` are the kept units.
    pub fn row(&self, operand: usize, i: usize, ids: &[i32]) -> Row<'_> {
        let o = &self.operands[operand];
        Row { bytes: o.matrix.row(o.row_number(i, ids)), format: self.format(operand) }
    }
}
