//! The machine that pp-run runs on: memory, processors, the terminal's width, and where files are.

pub mod cpus;
pub mod memory;
pub mod parallel;
pub mod places;
pub mod terminal;
