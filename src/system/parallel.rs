//! Work that several threads share.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use ggml::Pages;

use super::memory;
use crate::error::{Error, Result};

/// Bytes that an array begins at a multiple of: a line of the processor's cache.
const ALIGNMENT: usize = 64;

/// Makes arrays of these sizes, one by one on `n_threads` threads, in one piece of memory: `fill` writes that of a number. Returns the
/// memory, and where each array is in it. [`crate::error::Kind::Memory`] if they do not fit.
pub fn make(
    sizes: &[usize],
    n_threads: usize,
    what: &str,
    advice: &str,
    fill: impl Fn(usize, &mut [u8]) + Sync,
) -> Result<(Arc<Pages>, Vec<Range<usize>>)> {
    let mut ranges = Vec::with_capacity(sizes.len());
    let mut end = 0usize;
    for &size in sizes {
        ranges.push(end..end + size);
        end += size.next_multiple_of(ALIGNMENT);
    }
    memory::require(end as u64, what, advice)?;
    let mut pages =
        Pages::new(end).map_err(|e| Error::memory(format!("memory for {what} could not be had: {e}: {advice}")))?;
    let mut rest = &mut pages[..];
    let mut jobs = Vec::with_capacity(sizes.len());
    for (i, &size) in sizes.iter().enumerate() {
        let (out, later) = rest.split_at_mut(size.next_multiple_of(ALIGNMENT));
        jobs.push((i, &mut out[..size]));
        rest = later;
    }
    // The largest first, so that threads end together.
    jobs.sort_by_key(|j| std::cmp::Reverse(j.1.len()));
    let n_threads = n_threads.min(jobs.len());
    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        // In a block of its own: the lock must not be held during the work.
        while let Some((i, out)) = { jobs.lock().expect("no holder panics").next() } {
            fill(i, out);
        }
    };
    std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(work))));
    Ok((Arc::new(pages), ranges))
}

/// `n_rows` rows of `row` bytes, each of `n_threads` threads making one range of them.
pub fn rows(n_rows: usize, row: usize, n_threads: usize, make: impl Fn(Range<usize>, &mut [u8]) + Sync) -> Vec<u8> {
    let mut out = vec![0u8; n_rows * row];
    let share = n_rows.div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(share * row).enumerate() {
            let make = &make;
            scope.spawn(move || make(i * share..(i * share + out.len() / row), out));
        }
    });
    out
}
