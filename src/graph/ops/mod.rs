//! Operations of our own in a graph, computed on the CPU: matrix products and attention by our kernels.
//!
//! Each says what its sources are and which shapes they have. What a product multiplies comes as [`Operand`]s, which are no sources:
//! our kernels read the file's rows.

mod attend;
mod clock;
mod columns;
mod experts;
mod gemm;
mod gemv;
mod operand;
mod put_rows;
mod quantize;

pub use attend::attend;
pub use clock::{Clock, Mark};
pub use columns::ColumnProduct;
pub use experts::{Blend, ExpertProduct, OfChosen, Route};
pub use gemm::{Ahead, PanelProduct};
pub use gemv::{MAX_ROW_TOKENS, RowProduct};
pub use operand::{Combine, Operand, share_scales};
pub use put_rows::PutRows;
pub use quantize::{Quantize, words};
