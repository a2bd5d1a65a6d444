//! Operations of the caller's own inside a graph, computed on the CPU by ggml's threads.
//!
//! ggml calls an operation on all of its threads at once. Each call takes parts of the result from one counter until none is
//! left, so that every part is computed exactly once, and threads that are fast take more of them.

#![allow(clippy::unnecessary_cast, reason = "C enums are signed on Windows")]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use crate::exec::Element;
use crate::types::Type;

/// An operation of which parts of the result are independent of each other.
pub trait Op: Send + Sync {
    /// How the result `[ne0, ne1, ..]` is divided into parts for the threads to take. Asked once, when the graph is built.
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { rows: 0, columns: ne[0] }
    }

    /// Computes parts of the result from the sources, as long as there are any. Several threads call this at once. A panic
    /// comes out of [`Executor::compute`](crate::Executor::compute).
    fn compute(&self, sources: &[Source], parts: &mut Parts);
}

/// The parts of a result that no thread has taken yet.
#[derive(Debug)]
pub struct Parts<'a> {
    next: &'a AtomicUsize,
    division: Division,
    n_rows: usize,
    ne0: usize,
    ty: Type,
    row_bytes: usize,
    data: NonNull<u8>,
}

/// Size of the parts of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Rows of a part, counted over all dimensions above the first. 0 makes a few parts for each thread.
    pub rows: usize,
    /// Elements of each row of a part: all, or fewer if the result's type has no blocks.
    pub columns: usize,
}

/// A source of an operation: an array `[ne0, ne1, ne2, ne3]` whose rows are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    tensor: &'a sys::ggml_tensor,
}

/// Part of an operation's result that one thread computes: some columns of some rows. Rows are counted over all dimensions
/// above the first.
#[derive(Debug)]
pub struct Part<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    ty: Type,
    /// Elements of a whole row, and its bytes.
    ne0: usize,
    row_bytes: usize,
    /// Row 0 of the result.
    data: NonNull<u8>,
    result: PhantomData<&'a mut [u8]>,
}

/// What ggml hands back to [`call`].
pub(crate) struct Custom {
    op: Box<dyn Op>,
    n_sources: usize,
    /// Kept here, as no two threads may go by different ones.
    division: Division,
    failed: AtomicBool,
    /// The next part to take, and the threads that found none left.
    next: AtomicUsize,
    done: AtomicUsize,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custom").field("n_sources", &self.n_sources).finish_non_exhaustive()
    }
}

impl Custom {
    /// An operation with a result of this type and shape.
    pub(crate) fn new(op: impl Op + 'static, n_sources: usize, ty: Type, ne: [usize; 4]) -> Custom {
        let division = op.division(ne);
        let columns = division.columns;
        assert!(
            columns == ne[0] || (columns > 0 && ty.block_size() == 1),
            "custom: parts of {columns} columns of {ne:?} of {ty:?}"
        );
        Custom {
            op: Box::new(op),
            n_sources,
            division,
            failed: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    /// Whether a call panicked.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn run(&self, dst: &sys::ggml_tensor, nth: usize) {
        let ty = Type::from_id(dst.type_ as u32).expect("results have types of this ggml");
        let ne = dst.ne.map(|n| usize::try_from(n).expect("dimensions are not negative"));
        let row_bytes = ty.row_bytes(ne[0]).expect("whole blocks");
        let n_rows = ne[1] * ne[2] * ne[3];
        let Division { rows, columns } = self.division;
        let rows = if rows == 0 { n_rows.div_ceil(4 * nth) } else { rows };
        let sources: Vec<Source> = dst.src[..self.n_sources]
            .iter()
            // SAFETY: the sources were given to ggml by `Builder::custom` and live as long as the graph; their data was
            // computed by earlier nodes and is not written during this one.
            .map(|&s| Source { tensor: unsafe { s.as_ref() }.expect("a source for each argument") })
            .collect();
        let data = NonNull::new(dst.data.cast::<u8>()).expect("the result has memory");
        let division = Division { rows, columns };
        let mut parts = Parts { next: &self.next, division, n_rows, ne0: ne[0], ty, row_bytes, data };
        self.op.compute(&sources, &mut parts);
    }

    /// Says that one of `nth` threads has no part left to take: the last one makes ready for the node's next run.
    fn leave(&self, nth: usize) {
        if self.done.fetch_add(1, Ordering::AcqRel) + 1 == nth {
            self.done.store(0, Ordering::Relaxed);
            // ggml's threads meet after each node, so that no thread sees the next run before this.
            self.next.store(0, Ordering::Release);
        }
    }
}

/// ggml calls this on each of its threads.
pub(crate) unsafe extern "C" fn call(dst: *mut sys::ggml_tensor, _ith: i32, nth: i32, data: *mut c_void) {
    // SAFETY: the pointer is to the Custom that the graph owns.
    let custom = unsafe { &*data.cast::<Custom>() };
    // SAFETY: ggml passes the live result node.
    let dst = unsafe { &*dst };
    // A panic must not cross into C: `Executor::compute` raises it again.
    if catch_unwind(AssertUnwindSafe(|| custom.run(dst, nth as usize))).is_err() {
        custom.failed.store(true, Ordering::Relaxed);
    }
    custom.leave(nth as usize);
}

impl<'a> Source<'a> {
    pub fn ne(&self) -> [usize; 4] {
        self.tensor.ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// The bytes of row `[i1, i2, i3]`.
    ///
    /// # Panics
    /// If there is no such row, or its elements are not neighbours.
    pub fn bytes(&self, [i1, i2, i3]: [usize; 3]) -> &'a [u8] {
        let [ne0, ne1, ne2, ne3] = self.ne();
        assert!(i1 < ne1 && i2 < ne2 && i3 < ne3, "row {:?} of a source of {:?}", [i1, i2, i3], self.ne());
        let ty = self.ty();
        assert!(self.tensor.nb[0] == ty.block_bytes(), "the rows of a source are not contiguous");
        let nb = self.tensor.nb;
        // SAFETY: the row is within the tensor, by its shape and strides.
        let start = unsafe { self.tensor.data.cast::<u8>().add(i1 * nb[1] + i2 * nb[2] + i3 * nb[3]) };
        // SAFETY: a row of ne0 elements is contiguous; nothing writes it while the operation runs.
        unsafe { std::slice::from_raw_parts(start, ty.row_bytes(ne0).expect("whole blocks")) }
    }

    /// The rows `[i1, .., i3]` along the third dimension: the bytes from the first to the last, how far it is from one to the next, and
    /// the bytes of each.
    ///
    /// # Panics
    /// If there is no such row, its elements are not neighbours, or the rows overlap.
    pub fn along(&self, i1: usize, i3: usize) -> (&'a [u8], usize, usize) {
        let (n, row) = (self.ne()[2], self.bytes([i1, 0, i3]));
        let stride = self.tensor.nb[2];
        assert!(n > 0 && stride >= row.len(), "the rows of a source overlap");
        // SAFETY: the rows lie within the tensor, by its shape and strides, and what is between them within the same array; nothing
        // writes them while the operation runs.
        let all = unsafe { std::slice::from_raw_parts(row.as_ptr(), (n - 1) * stride + row.len()) };
        (all, stride, row.len())
    }

    /// The bytes of all rows.
    ///
    /// # Panics
    /// If the array is not contiguous.
    pub fn all_bytes(&self) -> &'a [u8] {
        let [ne0, ne1, ne2, ne3] = self.ne();
        let row = self.bytes([0; 3]).len();
        let nb = self.tensor.nb;
        assert!(
            ne0 > 0 && nb[1] == row && nb[2] == row * ne1 && nb[3] == row * ne1 * ne2,
            "a source is not contiguous"
        );
        // SAFETY: the array is contiguous and has this many rows; nothing writes it while the operation runs.
        unsafe { std::slice::from_raw_parts(self.tensor.data.cast::<u8>(), row * ne1 * ne2 * ne3) }
    }

    pub fn ty(&self) -> Type {
        Type::from_id(self.tensor.type_ as u32).expect("sources have types of this ggml")
    }

    /// The elements of row `[i1, i2, i3]`.
    ///
    /// # Panics
    /// If there is no such row, its elements are not neighbours, or they are of another type.
    pub fn elements<T: Element>(&self, row: [usize; 3]) -> &'a [T] {
        assert_eq!(self.tensor.type_, T::TYPE.raw(), "element type of a source");
        // SAFETY: every bit pattern is a valid element; the split is checked below.
        let (before, row, after) = unsafe { self.bytes(row).align_to::<T>() };
        assert!(before.is_empty() && after.is_empty(), "elements are not aligned");
        row
    }

    /// The elements of row `i1` of a matrix.
    ///
    /// # Panics
    /// As [`Source::elements`].
    pub fn row<T: Element>(&self, i1: usize) -> &'a [T] {
        self.elements([i1, 0, 0])
    }
}

impl Parts<'_> {
    /// Takes a part; `None` if none is left.
    #[allow(clippy::should_implement_trait, reason = "a part lives no longer than the call that it was given in")]
    pub fn next(&mut self) -> Option<Part<'_>> {
        let Division { rows, columns } = self.division;
        let across = self.ne0.div_ceil(columns);
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        let (i, j) = (part / across, part % across);
        (i < self.n_rows.div_ceil(rows)).then(|| Part {
            rows: i * rows..self.n_rows.min((i + 1) * rows),
            columns: j * columns..self.ne0.min((j + 1) * columns),
            ty: self.ty,
            ne0: self.ne0,
            row_bytes: self.row_bytes,
            data: self.data,
            result: PhantomData,
        })
    }
}

impl Part<'_> {
    /// Numbers of the rows.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Numbers of the elements of each row.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The bytes of whole rows, one after the other.
    ///
    /// # Panics
    /// If the part is some columns only.
    pub fn bytes(&mut self) -> &mut [u8] {
        assert!(self.columns == (0..self.ne0), "the part has columns {:?} of {}", self.columns, self.ne0);
        let n = self.rows.len() * self.row_bytes;
        // SAFETY: the result is contiguous (made by `Builder::custom`) and has the part's rows.
        let start = unsafe { self.data.add(self.rows.start * self.row_bytes) };
        // SAFETY: the bytes are rows of the result, which nothing else reads before all threads are done with this node, and
        // which no other thread writes: parts are disjoint. The borrow of the part makes the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), n) }
    }

    /// The elements of whole rows, one row after the other.
    ///
    /// # Panics
    /// If the part is some columns only, or the result is of another type.
    pub fn elements<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.ty, T::TYPE, "element type of a result");
        // SAFETY: every bit pattern is a valid element; the split is checked below.
        let (before, elements, after) = unsafe { self.bytes().align_to_mut::<T>() };
        assert!(before.is_empty() && after.is_empty(), "elements are not aligned");
        elements
    }

    /// The part's elements of row `i`, counted over the whole result.
    ///
    /// # Panics
    /// If the row is not the part's, or the result is of another type.
    pub fn row<T: Element>(&mut self, i: usize) -> &mut [T] {
        assert_eq!(self.ty, T::TYPE, "element type of a result");
        assert!(self.rows.contains(&i), "row {i} of a part of rows {:?}", self.rows);
        // SAFETY: the result is contiguous and has row i, and the part's columns are within it.
        let start = unsafe { self.data.add(i * self.row_bytes + self.columns.start * size_of::<T>()) };
        let start = start.cast::<T>();
        assert!(start.is_aligned(), "elements are not aligned");
        // SAFETY: as in `bytes`: elements of this part alone, valid for every bit pattern.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.columns.len()) }
    }
}
