//! What products multiply activations with.

use ggml::dequantize_row;
use kernels::{Activation, Format, Row};

use crate::weights::{Matrix, Panels, format, shares_scales};

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
        row_number(self.unit_rows, i, ids)
    }
}

/// Whether activations that are multiplied with these operands share scales. Scales are shared if one operand wants it: to the others it makes no
/// difference but in rounding.
pub fn share_scales(operands: &[Operand]) -> bool {
    operands.iter().any(|o| shares_scales(o.matrix.ty()))
}

/// What becomes of the products with several operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// One below the other.
    Stack,
    /// `act(first) * second`, of two operands of equal shape.
    Gated(Activation),
}

impl Combine {
    /// Operands whose rows are multiplied together.
    pub fn n_together(self) -> usize {
        match self {
            Combine::Stack => 1,
            Combine::Gated(_) => 2,
        }
    }
}

/// Writes the values of a row.
type Decode = Box<dyn Fn(&[u8], &mut [f32]) + Sync>;

/// The operands' rows, with what the kernels ask of each row looked up once.
pub struct Operands<'a> {
    all: Vec<Rows<'a>>,
}

/// The rows of an operand.
pub struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    unit_rows: Option<usize>,
    format: Option<Format<'static>>,
    /// Reads what has no format
    decode: Decode,
}

impl<'a> Operands<'a> {
    /// Those of these operands.
    pub fn new(operands: &'a [Operand]) -> Operands<'a> {
        let rows = |o: &'a Operand| {
            let ty = o.matrix.ty();
            Rows {
                bytes: o.matrix.bytes(),
                row_bytes: o.matrix.row_bytes(),
                unit_rows: o.unit_rows,
                format: format(ty),
                decode: Box::new(move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out)),
            }
        };
        Operands { all: operands.iter().map(rows).collect() }
    }

    /// One operand's rows.
    pub fn rows(&self, operand: usize) -> &Rows<'a> {
        &self.all[operand]
    }
}

impl Rows<'_> {
    /// How they are to be read.
    pub fn format(&self) -> Format<'_> {
        self.format.unwrap_or(Format::Other(&self.decode))
    }

    /// Row `i` of the product; `ids` are the kept units.
    pub fn row(&self, i: usize, ids: &[i32]) -> Row<'_> {
        let i = row_number(self.unit_rows, i, ids);
        Row { bytes: &self.bytes[i * self.row_bytes..][..self.row_bytes], format: self.format() }
    }
}

/// Number of row `i` of a product among a matrix's rows, of which only units of `unit_rows` rows may be multiplied.
fn row_number(unit_rows: Option<usize>, i: usize, ids: &[i32]) -> usize {
    match unit_rows {
        None => i,
        // Channels are units of one row, and there are many of them.
        Some(1) => ids[i] as usize,
        Some(rows) => ids[i / rows] as usize * rows + i % rows,
    }
}
