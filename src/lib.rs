//! pp-run
pub mod cli;
pub mod error;
pub mod gguf;
