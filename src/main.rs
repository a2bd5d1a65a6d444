//! pp-run.
fn main() {}
