//! Whether a file's weights are numbers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// Whether no weight and no scale of the file is NaN or infinite, looked at by `n_threads` threads: kernels for quantised weights do not
/// pass a NaN on reliably, so what it does to an answer may never show. `stop` ends the search without a finding.
pub fn check_values(gguf: &Gguf, n_threads: usize, stop: &AtomicBool) -> Result<()> {
    let next = AtomicUsize::new(0);
    let first_bad = AtomicUsize::new(usize::MAX);
    let work = || {
        while let Some((i, t)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let i = if stop.load(Ordering::Relaxed) { usize::MAX } else { i };
            gguf.tensors().get(i).map(|t| (i, t))
        } {
            if !t.ty.is_finite(gguf.data(t)) {
                first_bad.fetch_min(i, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    match gguf.tensors().get(first_bad.into_inner()) {
        Some(t) => Err(Error::malformed(format!("tensor '{}' holds invalid values (NaN or infinity)", t.name))
            .in_file(gguf.path())),
        None => Ok(()),
    }
}
