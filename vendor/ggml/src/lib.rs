//! A safe wrapper over ggml, and over the parts of libllama that pp-run uses.
mod types;
pub use types::Type;
