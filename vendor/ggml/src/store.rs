//! Tensors that outlive graphs: weights and caches.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use crate::device::{BufferType, Device};
use crate::graph::{Context, init_context};
use crate::map::Map;
use crate::types::Type;

/// A tensor to be made.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Name in graph dumps; at most 63 bytes are kept.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Shape; unused dimensions are 1.
    pub ne: [u64; 4],
    /// Where its bytes are.
    pub place: Place,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a buffer of this kind, to be filled by [`Store::fill`].
    Buffer(BufferType),
    /// In a map of those that the store was given, by number, at this offset, used in place by this device.
    Mapped(Device, usize, usize),
}

/// Alignment that ggml's CPU backend asks of a tensor that it uses in place.
pub const MAPPED_ALIGNMENT: usize = 32;

/// Name of a tensor of one [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorId(usize);

/// Why a store could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocError {
    /// Name of the kind of memory.
    pub buffer_type: String,
    /// Bytes asked for.
    pub bytes: usize,
}

/// Owner of tensors and of the buffers that they are in.
///
/// Lives on one thread: graphs read and write the tensors without locks.
#[derive(Debug)]
pub struct Store {
    tensors: Vec<NonNull<sys::ggml_tensor>>,
    buffers: Vec<Buffer>,
    context: Context,
    maps: Vec<Arc<Map>>,
    /// Which tensors are in a map, by id: these are read-only.
    mapped: Vec<bool>,
    /// No graph has used the store yet.
    fresh: Cell<bool>,
}

#[derive(Debug)]
struct Buffer {
    ptr: NonNull<sys::ggml_backend_buffer>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: this owner made the buffer and frees it once; its tensors are only reachable through the same store.
        unsafe { sys::ggml_backend_buffer_free(self.ptr.as_ptr()) }
    }
}

impl Store {
    /// Makes the tensors. Those in buffers hold anything until they are filled.
    ///
    /// # Panics
    /// If a mapped tensor is not inside its map or not aligned to [`MAPPED_ALIGNMENT`], if a shape is not whole blocks
    /// of its type, or if sizes overflow: the caller has checked them.
    pub fn new(specs: &[TensorSpec], maps: Vec<Arc<Map>>) -> Result<Store, AllocError> {
        let context = init_context(specs.len());
        let mapped = specs.iter().map(|s| matches!(s.place, Place::Mapped(..))).collect();
        let (tensors, buffers) = Default::default();
        let mut store = Store { tensors, buffers, context, maps, mapped, fresh: Cell::new(true) };
        for spec in specs {
            assert!(
                spec.ty.row_bytes(usize::try_from(spec.ne[0]).unwrap()).is_some(),
                "{}: ne0 is not whole blocks",
                spec.name
            );
            spec.ne.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).expect("number of elements overflows");
            let ne = spec.ne.map(|n| i64::try_from(n).expect("a dimension overflows"));
            // SAFETY: the context is live, has room for all tensors, and allocates no data; the type is ggml's.
            let tensor = unsafe { sys::ggml_new_tensor(store.context.as_ptr(), spec.ty.raw(), 4, ne.as_ptr()) };
            let tensor = NonNull::new(tensor).expect("the context has room for all tensors");
            let name = CString::new(spec.name.replace('\0', "")).expect("no NUL is left");
            // SAFETY: the tensor is live; ggml copies at most 63 bytes of the C string.
            unsafe { sys::ggml_set_name(tensor.as_ptr(), name.as_ptr()) };
            store.tensors.push(tensor);
        }
        store.map_tensors(specs)?;
        store.allocate_tensors(specs)?;
        Ok(store)
    }

    /// One buffer per device and map over the part of the map that its tensors span.
    fn map_tensors(&mut self, specs: &[TensorSpec]) -> Result<(), AllocError> {
        let mut spans: Vec<(Device, usize, usize, usize, usize)> = Vec::new();
        for (spec, tensor) in specs.iter().zip(&self.tensors) {
            let Place::Mapped(device, map, offset) = spec.place else { continue };
            // SAFETY: the tensor is live.
            let bytes = unsafe { sys::ggml_nbytes(tensor.as_ptr()) };
            let end = offset.checked_add(bytes).expect("a mapped tensor's end overflows");
            match spans.iter_mut().find(|s| (s.0, s.1) == (device, map)) {
                Some(s) => *s = (device, map, s.2.min(offset), s.3.max(end), s.4.max(bytes)),
                None => spans.push((device, map, offset, end, bytes)),
            }
        }
        for (device, map, first, last, largest) in spans {
            let bytes = &self.maps[map][first..last];
            assert!(first.is_multiple_of(MAPPED_ALIGNMENT), "a mapped tensor is not aligned");
            // SAFETY: the bytes belong to the map, which the store keeps for as long as the buffer; they are only read,
            // as weights are never the target of an operation.
            let buffer = unsafe {
                sys::ggml_backend_dev_buffer_from_host_ptr(
                    device.as_ptr(),
                    bytes.as_ptr().cast_mut().cast(),
                    bytes.len(),
                    largest,
                )
            };
            let failed = || AllocError { buffer_type: device.name(), bytes: bytes.len() };
            let buffer = Buffer { ptr: NonNull::new(buffer).ok_or_else(failed)? };
            // SAFETY: the buffer is live.
            unsafe { sys::ggml_backend_buffer_set_usage(buffer.ptr.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
            // SAFETY: the buffer is live; for device memory the base may differ from the map's address.
            let base = unsafe { sys::ggml_backend_buffer_get_base(buffer.ptr.as_ptr()) };
            for (spec, tensor) in specs.iter().zip(&self.tensors) {
                let Place::Mapped(d, m, offset) = spec.place else { continue };
                if (d, m) != (device, map) {
                    continue;
                }
                assert!(offset.is_multiple_of(MAPPED_ALIGNMENT), "a mapped tensor is not aligned");
                // SAFETY: first <= offset and the tensor ends within the buffer, by the spans above.
                let address = unsafe { base.byte_add(offset - first) };
                // SAFETY: tensor and buffer are live; the address is within the buffer.
                let status = unsafe { sys::ggml_backend_tensor_alloc(buffer.ptr.as_ptr(), tensor.as_ptr(), address) };
                assert_eq!(status, sys::GGML_STATUS_SUCCESS);
            }
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// One buffer per kind of memory.
    fn allocate_tensors(&mut self, specs: &[TensorSpec]) -> Result<(), AllocError> {
        let mut groups: Vec<(BufferType, Vec<NonNull<sys::ggml_tensor>>)> = Vec::new();
        let mut index: HashMap<BufferType, usize> = HashMap::new();
        for (spec, tensor) in specs.iter().zip(&self.tensors) {
            let Place::Buffer(kind) = spec.place else { continue };
            let group = *index.entry(kind).or_insert_with(|| {
                groups.push((kind, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(*tensor);
        }
        for (kind, tensors) in groups {
            let align = kind.alignment();
            let mut offsets = Vec::with_capacity(tensors.len());
            let mut total = 0usize;
            for tensor in &tensors {
                offsets.push(total);
                // SAFETY: buffer type and tensor are live.
                let bytes = unsafe { sys::ggml_backend_buft_get_alloc_size(kind.as_ptr(), tensor.as_ptr()) };
                total = bytes
                    .checked_next_multiple_of(align)
                    .and_then(|b| total.checked_add(b))
                    .expect("the sum of sizes overflows");
            }
            // SAFETY: the buffer type lives as long as the process.
            let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(kind.as_ptr(), total) };
            let failed = || AllocError { buffer_type: kind.name(), bytes: total };
            let buffer = Buffer { ptr: NonNull::new(buffer).ok_or_else(failed)? };
            // SAFETY: the buffer is live.
            let base = unsafe { sys::ggml_backend_buffer_get_base(buffer.ptr.as_ptr()) };
            for (tensor, offset) in tensors.iter().zip(offsets) {
                // SAFETY: the offset is below the buffer's size.
                let address = unsafe { base.byte_add(offset) };
                // SAFETY: tensor and buffer are live; the tensor's bytes from the address on are its own.
                let status = unsafe { sys::ggml_backend_tensor_alloc(buffer.ptr.as_ptr(), tensor.as_ptr(), address) };
                assert_eq!(status, sys::GGML_STATUS_SUCCESS);
            }
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// Ids of the tensors, in the order of the specs.
    pub fn ids(&self) -> impl Iterator<Item = TensorId> + use<> {
        (0..self.tensors.len()).map(TensorId)
    }

    pub(crate) fn tensor(&self, id: TensorId) -> NonNull<sys::ggml_tensor> {
        self.fresh.set(false);
        self.tensors[id.0]
    }

    /// Marks the buffers as weights, which ggml's scheduler runs operations next to.
    pub fn set_weights(&mut self) {
        for b in &self.buffers {
            // SAFETY: the buffer is live.
            unsafe { sys::ggml_backend_buffer_set_usage(b.ptr.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        }
    }

    /// Keeps what is in the program's memory from being swapped out; `false` if the operating system refuses.
    #[cfg(unix)]
    pub fn lock(&self) -> bool {
        self.buffers.iter().all(|b| {
            let buffer = b.ptr.as_ptr();
            // SAFETY: the buffer is live.
            let kind = unsafe { sys::ggml_backend_buffer_get_type(buffer) };
            let kind = BufferType::from_ptr(NonNull::new(kind).expect("every buffer has a type"));
            if !kind.in_program_memory() {
                return true;
            }
            // SAFETY: the buffer is live.
            let base = unsafe { sys::ggml_backend_buffer_get_base(buffer) };
            // SAFETY: the buffer is live.
            let size = unsafe { sys::ggml_backend_buffer_get_size(buffer) };
            // SAFETY: the bytes are the buffer's; locking does not change them.
            unsafe { libc::mlock(base, size) == 0 }
        })
    }

    /// Keeps what is in the program's memory from being swapped out; `false` if the operating system refuses.
    #[cfg(not(unix))]
    pub fn lock(&self) -> bool {
        false
    }

    /// Size of a tensor in bytes.
    pub fn n_bytes(&self, id: TensorId) -> usize {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_nbytes(self.tensors[id.0].as_ptr()) }
    }

    /// Writes zeros into `length` bytes of a tensor from `offset` on.
    ///
    /// # Panics
    /// If the tensor is mapped, which is read-only, or if the bytes are not the tensor's.
    pub fn zero(&self, id: TensorId, offset: usize, length: usize) {
        assert!(!self.mapped[id.0], "a mapped tensor is read-only");
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.n_bytes(id)), "bytes of the tensor");
        // SAFETY: the tensor is live, in memory of its own, and holds the bytes; the store is used by one thread, and no
        // graph runs while it is here.
        unsafe { sys::ggml_backend_tensor_memset(self.tensors[id.0].as_ptr(), 0, offset, length) };
    }

    /// Copies bytes of a tensor, from `offset` on.
    ///
    /// # Panics
    /// If the bytes are not the tensor's.
    pub fn read(&self, id: TensorId, offset: usize, out: &mut [u8]) {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.n_bytes(id)), "bytes of the tensor");
        // SAFETY: the tensor is live, has a buffer and holds the bytes; `out` is as long and exclusively borrowed; the store
        // is used by one thread, and no graph runs while it is here.
        unsafe {
            sys::ggml_backend_tensor_get(self.tensors[id.0].as_ptr(), out.as_mut_ptr().cast(), offset, out.len())
        };
    }

    /// Replaces bytes of a tensor, from `offset` on.
    ///
    /// # Panics
    /// If the tensor is mapped, which is read-only, or if the bytes are not the tensor's.
    pub fn write(&self, id: TensorId, offset: usize, bytes: &[u8]) {
        assert!(!self.mapped[id.0], "a mapped tensor is read-only");
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.n_bytes(id)), "bytes of the tensor");
        // SAFETY: the tensor is live, in memory of its own, and holds the bytes; the store is used by one thread, and no
        // graph runs while it is here.
        unsafe {
            sys::ggml_backend_tensor_set(self.tensors[id.0].as_ptr(), bytes.as_ptr().cast(), offset, bytes.len())
        };
    }

    /// Copies data into tensors that are in buffers, in the layout of the buffer's kind, on `n_threads` threads.
    /// After each tensor `done` is called on the calling thread's behalf with the bytes so far; it can stop the copy.
    /// Returns whether all was copied.
    ///
    /// # Panics
    /// If a tensor is mapped or given twice, if a length differs from the tensor's size, or if a graph has used the store.
    pub fn fill(
        &mut self,
        data: &[(TensorId, &[u8])],
        n_threads: usize,
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> bool {
        assert!(self.fresh.get(), "the store is in use");
        let mut seen = vec![false; self.tensors.len()];
        struct Job<'a>(NonNull<sys::ggml_tensor>, &'a [u8]);
        // SAFETY: each tensor is in one job only (asserted below), so no two threads write to one tensor; nothing else
        // uses the store while it is borrowed mutably.
        unsafe impl Sync for Job<'_> {}
        let jobs: Vec<Job> = data
            .iter()
            .map(|&(id, bytes)| {
                assert!(!std::mem::replace(&mut seen[id.0], true), "a tensor is given twice");
                assert!(!self.mapped[id.0], "a mapped tensor is read-only");
                let tensor = self.tensors[id.0];
                // SAFETY: the tensor is live.
                assert_eq!(unsafe { sys::ggml_nbytes(tensor.as_ptr()) }, bytes.len(), "length of a tensor's data");
                Job(tensor, bytes)
            })
            .collect();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let progress = std::sync::Mutex::new((0usize, done));
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(Job(tensor, bytes)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                // SAFETY: the tensor is live, has a buffer, is of exactly this many bytes, and is this job's alone.
                unsafe { sys::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len()) };
                let mut progress = progress.lock().unwrap_or_else(|e| e.into_inner());
                progress.0 += bytes.len();
                let sum = progress.0;
                if (progress.1)(sum).is_break() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..n_threads.min(jobs.len()) {
                scope.spawn(work);
            }
            work();
        });
        !stop.load(Ordering::Relaxed)
    }
}
