//! The machine that pp-run runs on: memory, processors and what else they do, the terminal's width, its stdin, and where files are.

pub mod busy;
pub mod cpus;
pub mod memory;
pub mod parallel;
pub mod places;
pub mod priority;
pub mod stdin;
pub mod terminal;
