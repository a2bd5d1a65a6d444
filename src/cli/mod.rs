//! The command line.
pub mod options;
