//! The model: an architecture, its hyper-parameters and its weights. It knows tensors and tokens, never text.

mod arch;
mod check;
mod hparams;
mod keys;
mod load;
mod options;
mod rope;

pub use arch::{has_graph, read as read_hparams, unknown as unknown_architecture};
pub use check::check_values;
pub use hparams::LayerSizes;
pub use load::{Model, description};
pub use options::{Options, RopeOptions, RopeScaling, RunBy};
