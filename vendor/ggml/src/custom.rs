//! Operations of the caller's own, computed on the CPU by ggml's threads, inside a graph.

#![allow(clippy::unnecessary_cast, reason = "C enums are signed on Windows")]

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use crate::exec::Element;
use crate::types::Type;

/// An operation whose result's rows are independent of each other.
pub trait Op: Send + Sync {
    /// Computes rows of the result from the sources. Several threads call this at once, each for rows of its own.
    fn compute(&self, sources: &[Source], out: &mut Rows);
}

/// A source of an operation: an array `[ne0, ne1, ne2, ne3]` whose rows are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    tensor: &'a sys::ggml_tensor,
}

/// Rows of an operation's result that one call computes; rows are counted over all dimensions above the first.
#[derive(Debug)]
pub struct Rows<'a> {
    range: Range<usize>,
    ty: Type,
    bytes: &'a mut [u8],
}

/// What ggml hands back to [`call`].
pub(crate) struct Custom {
    op: Box<dyn Op>,
    n_sources: usize,
    failed: AtomicBool,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custom").field("n_sources", &self.n_sources).finish_non_exhaustive()
    }
}

impl Custom {
    pub(crate) fn new(op: impl Op + 'static, n_sources: usize) -> Custom {
        Custom { op: Box::new(op), n_sources, failed: AtomicBool::new(false) }
    }

    /// Whether a call panicked.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn run(&self, dst: &sys::ggml_tensor, ith: usize, nth: usize) {
        let ty = Type::from_id(dst.type_ as u32).expect("results have types of this ggml");
        let ne = dst.ne.map(|n| usize::try_from(n).expect("dimensions are not negative"));
        let row = ty.row_bytes(ne[0]).expect("whole blocks");
        let n_rows = ne[1] * ne[2] * ne[3];
        let share = n_rows.div_ceil(nth);
        let range = (ith * share).min(n_rows)..((ith + 1) * share).min(n_rows);
        if range.is_empty() {
            return;
        }
        // SAFETY: the result is contiguous (made by `Builder::custom`) and has n_rows rows; the range is within them.
        let start = unsafe { dst.data.cast::<u8>().add(range.start * row) };
        // SAFETY: the bytes are rows of the result, which nothing else reads before all threads are done with this node,
        // and which no other thread writes: the ranges of the threads are disjoint.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, range.len() * row) };
        let sources: Vec<Source> = dst.src[..self.n_sources]
            .iter()
            // SAFETY: the sources were given to ggml by `Builder::custom` and live as long as the graph; their data was
            // computed by earlier nodes and is not written during this one.
            .map(|&s| Source { tensor: unsafe { s.as_ref() }.expect("a source for each argument") })
            .collect();
        self.op.compute(&sources, &mut Rows { range, ty, bytes });
    }
}

/// ggml calls this on each of its threads.
pub(crate) unsafe extern "C" fn call(dst: *mut sys::ggml_tensor, ith: i32, nth: i32, data: *mut c_void) {
    // SAFETY: the pointer is to the Custom that the graph owns.
    let custom = unsafe { &*data.cast::<Custom>() };
    // SAFETY: ggml passes the live result node.
    let dst = unsafe { &*dst };
    // A panic must not cross into C: `Executor::compute` raises it again.
    let run = || custom.run(dst, ith as usize, nth as usize);
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        custom.failed.store(true, Ordering::Relaxed);
    }
}

impl<'a> Source<'a> {
    /// Shape.
    pub fn ne(&self) -> [usize; 4] {
        self.tensor.ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// The bytes of row `[i1, i2, i3]`.
    pub fn bytes(&self, [i1, i2, i3]: [usize; 3]) -> &'a [u8] {
        let [ne0, ne1, ne2, ne3] = self.ne();
        assert!(i1 < ne1 && i2 < ne2 && i3 < ne3, "a row of the source");
        let ty = Type::from_id(self.tensor.type_ as u32).expect("sources have types of this ggml");
        assert!(self.tensor.nb[0] == ty.block_bytes(), "rows are contiguous");
        let nb = self.tensor.nb;
        // SAFETY: the row is within the tensor, by its shape and strides.
        let start = unsafe { self.tensor.data.cast::<u8>().add(i1 * nb[1] + i2 * nb[2] + i3 * nb[3]) };
        // SAFETY: a row of ne0 elements is contiguous; nothing writes it while the operation runs.
        unsafe { std::slice::from_raw_parts(start, ty.row_bytes(ne0).expect("whole blocks")) }
    }

    /// Row `i1` of a matrix.
    pub fn row<T: Element>(&self, i1: usize) -> &'a [T] {
        assert_eq!(self.tensor.type_, T::TYPE.raw(), "element type of a source");
        let bytes = self.bytes([i1, 0, 0]);
        // SAFETY: every bit pattern is a valid element; the split is checked below.
        let (before, row, after) = unsafe { bytes.align_to::<T>() };
        assert!(before.is_empty() && after.is_empty(), "elements are aligned");
        row
    }
}

impl Rows<'_> {
    /// Numbers of the rows.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The rows, one after the other.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The rows' elements, one row after the other.
    pub fn elements<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.ty, T::TYPE, "element type of a result");
        // SAFETY: every bit pattern is a valid element; the split is checked below.
        let (before, elements, after) = unsafe { self.bytes.align_to_mut::<T>() };
        assert!(before.is_empty() && after.is_empty(), "elements are aligned");
        elements
    }
}
