//! The model: an architecture, its hyper-parameters and its weights. It knows tensors and tokens, never text.

pub mod arch;
mod check;
mod hparams;
mod keys;
mod load;
mod options;
mod rope;

pub use arch::{ARCHITECTURES, read as read_hparams};
pub use check::check_values;
pub use hparams::Hparams;
pub use load::{Model, description};
pub use options::{Options, RopeOptions, RopeScaling};
