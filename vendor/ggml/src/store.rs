//! Tensors that outlive graphs: weights and caches.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use crate::device::{BufferType, Device, Usage};
use crate::graph::{Context, init_context};
use crate::map::Map;
use crate::types::Type;

/// A tensor to be made.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Name in graph dumps; at most 63 bytes are kept.
    pub name: String,
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

/// Name of a tensor of one [`Store`]. No other store owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorId {
    /// Number of the [`Specs`] that gave the id.
    specs: u64,
    index: usize,
}

/// Tensors of a [`Store`] that is still to be made.
#[derive(Debug)]
pub struct Specs {
    /// No other `Specs` of the process has this number.
    number: u64,
    list: Vec<TensorSpec>,
}

impl Default for Specs {
    fn default() -> Specs {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Specs { number: NEXT.fetch_add(1, Ordering::Relaxed), list: Vec::new() }
    }
}

impl Specs {
    /// No tensors yet.
    pub fn new() -> Specs {
        Specs::default()
    }

    /// Adds a tensor, and returns the id that it will have in the store.
    pub fn push(&mut self, spec: TensorSpec) -> TensorId {
        self.list.push(spec);
        TensorId { specs: self.number, index: self.list.len() - 1 }
    }

    #[allow(clippy::len_without_is_empty, reason = "no caller needs to know")]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The tensors, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &TensorSpec> {
        self.list.iter()
    }
}

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
    /// Number of the [`Specs`] that it was made of.
    specs: u64,
    tensors: Vec<NonNull<sys::ggml_tensor>>,
    buffers: Vec<Buffer>,
    context: Context,
    maps: Vec<Arc<Map>>,
    /// Which tensors are in a map, by id: these are read-only.
    mapped: Vec<bool>,
    /// Which tensors are in memory where the CPU keeps weights in a layout of its own, such as CPU_REPACK: only `mul_mat`
    /// reads these, and they are written as a whole.
    packed: Vec<bool>,
    /// No graph has used the store yet.
    fresh: Cell<bool>,
    /// The tensors have no memory.
    is_sketch: bool,
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
    /// Makes the tensors. Those in buffers hold anything until they are filled. `maps` are what the numbers in
    /// [`Place::Mapped`] count.
    ///
    /// # Errors
    /// If a buffer cannot be had.
    ///
    /// # Panics
    /// If a tensor has no elements, rows that are not whole blocks of its type, or more bytes than any memory; if it is in
    /// memory with a layout of its own that has none for its type and shape (see [`Device::supports`]); if a mapped tensor is
    /// not inside its map, not aligned to [`MAPPED_ALIGNMENT`], or of a device that does not compute in place.
    pub fn new(specs: Specs, maps: Vec<Arc<Map>>) -> Result<Store, AllocError> {
        let (mut store, specs) = Store::without_memory(specs, maps);
        store.is_sketch = false;
        store.map_tensors(&specs)?;
        store.allocate_tensors(&specs)?;
        Ok(store)
    }

    /// Makes tensors without memory: graphs with them can only be [measured](crate::Schedule::measure).
    ///
    /// # Panics
    /// If a tensor has no elements, rows that are not whole blocks of its type, or more bytes than any memory; if it is in
    /// memory with a layout of its own that has none for its type and shape.
    pub fn sketch(specs: Specs) -> Store {
        let (mut store, specs) = Store::without_memory(specs, Vec::new());
        let mut index: HashMap<BufferType, usize> = HashMap::new();
        for (spec, tensor) in specs.iter().zip(&store.tensors) {
            let kind = match spec.place {
                Place::Buffer(kind) => kind,
                Place::Mapped(device, ..) => device.buffer_type(),
            };
            let buffers = &mut store.buffers;
            let buffer = *index.entry(kind).or_insert_with(|| {
                // SAFETY: the buffer type lives as long as the process. A buffer of no bytes takes no memory.
                let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(kind.as_ptr(), 0) };
                buffers.push(Buffer { ptr: NonNull::new(buffer).expect("a buffer of no bytes") });
                buffers.len() - 1
            });
            // SAFETY: tensor and buffer are live, and the store keeps both. Where a tensor has a buffer and no data, ggml's schedulers see on
            // which device it is, and nobody can read or write it: every operation on data asks whether the store is a sketch.
            unsafe { (*tensor.as_ptr()).buffer = store.buffers[buffer].ptr.as_ptr() };
        }
        store
    }

    /// Makes the tensors, which have no buffers yet.
    fn without_memory(specs: Specs, maps: Vec<Arc<Map>>) -> (Store, Vec<TensorSpec>) {
        let Specs { number, list: specs } = specs;
        let context = init_context(specs.len());
        let mapped = specs.iter().map(|s| matches!(s.place, Place::Mapped(..))).collect();
        let layouts = Device::cpu().extra_buffer_types();
        let packed: Vec<bool> =
            specs.iter().map(|s| matches!(s.place, Place::Buffer(kind) if layouts.contains(&kind))).collect();
        for (spec, &packed) in specs.iter().zip(&packed) {
            let TensorSpec { name, ty, ne, place } = spec;
            let shape = ne.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            assert!(ty.n_bytes(shape).is_some(), "tensor {name}: shape {ne:?} of {ty:?}");
            if let (true, &Place::Buffer(kind)) = (packed, place) {
                let usage = if ne[2] == 1 { Usage::MulMat } else { Usage::MulMatId };
                let fits = ne[3] == 1 && Device::cpu().supports(kind, *ty, [ne[0], ne[1], ne[2]], usage);
                assert!(fits, "tensor {name}: {kind:?} has no layout for {ne:?} of {ty:?}");
            }
        }
        let mut store = Store {
            specs: number,
            tensors: Vec::new(),
            buffers: Vec::new(),
            context,
            maps,
            mapped,
            packed,
            fresh: Cell::new(true),
            is_sketch: true,
        };
        for spec in &specs {
            let ne = spec.ne.map(|n| i64::try_from(n).expect("checked above"));
            // SAFETY: the context is live, has room for all tensors, and allocates no data; the type is ggml's.
            let tensor = unsafe { sys::ggml_new_tensor(store.context.as_ptr(), spec.ty.raw(), 4, ne.as_ptr()) };
            let tensor = NonNull::new(tensor).expect("the context has room for all tensors");
            let name = CString::new(spec.name.replace('\0', "")).expect("no NUL is left");
            // SAFETY: the tensor is live; ggml copies at most 63 bytes of the C string.
            unsafe { sys::ggml_set_name(tensor.as_ptr(), name.as_ptr()) };
            store.tensors.push(tensor);
        }
        (store, specs)
    }

    /// Whether its tensors have no memory.
    pub(crate) fn is_sketch(&self) -> bool {
        self.is_sketch
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
            let all: &[u8] =
                self.maps.get(map).unwrap_or_else(|| panic!("a mapped tensor is in map {map}, which is not there"));
            let bytes = all.get(first..last).expect("a mapped tensor is beyond its map");
            assert!(first.is_multiple_of(MAPPED_ALIGNMENT), "a mapped tensor is not aligned");
            assert!(device.computes_in_place(), "a mapped tensor is of {device:?}, which does not compute in place");
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

    /// Whether the tensor is this store's.
    pub fn owns(&self, id: TensorId) -> bool {
        // Every id of the store's specs is below the number of tensors, as the specs went into the store whole.
        id.specs == self.specs
    }

    /// Number of the tensor, for an operation of this name.
    fn index(&self, id: TensorId, operation: &str) -> usize {
        assert!(self.owns(id), "{operation}: the tensor is of another store");
        id.index
    }

    /// A tensor for use in a graph.
    ///
    /// # Panics
    /// If it is of another store.
    pub(crate) fn leaf(&self, id: TensorId) -> NonNull<sys::ggml_tensor> {
        let index = self.index(id, "leaf");
        self.fresh.set(false);
        self.tensors[index]
    }

    /// Whether only `mul_mat` can read the tensor.
    pub(crate) fn is_packed(&self, id: TensorId) -> bool {
        self.packed[self.index(id, "leaf")]
    }

    /// Marks the buffers as weights, which ggml's scheduler runs operations next to: those of a sketch, too, so that it is measured alike.
    pub fn set_weights(&mut self) {
        for b in &self.buffers {
            // SAFETY: the buffer is live.
            unsafe { sys::ggml_backend_buffer_set_usage(b.ptr.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        }
    }

    /// Keeps what is in the program's memory from being swapped out; `false` if the operating system refuses.
    #[cfg(unix)]
    pub fn lock(&self) -> bool {
        assert!(!self.is_sketch, "lock: the tensors have no memory");
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
    ///
    /// # Panics
    /// If the tensor is of another store.
    pub fn n_bytes(&self, id: TensorId) -> usize {
        self.bytes_of(self.index(id, "n_bytes"))
    }

    fn bytes_of(&self, index: usize) -> usize {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_nbytes(self.tensors[index].as_ptr()) }
    }

    /// A tensor for an operation of this name on `length` bytes from `offset` on.
    fn bytes(&self, id: TensorId, operation: &str, offset: usize, length: usize) -> NonNull<sys::ggml_tensor> {
        assert!(!self.is_sketch, "{operation}: the tensor has no memory");
        let index = self.index(id, operation);
        let n = self.bytes_of(index);
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= n),
            "{operation}: {length} bytes from {offset} on of a tensor of {n} bytes"
        );
        self.tensors[index]
    }

    fn assert_plain(&self, id: TensorId, operation: &str) {
        assert!(!self.packed[self.index(id, operation)], "{operation}: the tensor is in a layout of its own");
    }

    fn assert_writable(&self, id: TensorId, operation: &str) {
        assert!(!self.mapped[self.index(id, operation)], "{operation}: a mapped tensor is read-only");
    }

    /// Writes zeros into `length` bytes of a tensor from `offset` on.
    ///
    /// # Panics
    /// If the tensor is of another store, mapped, which is read-only, or in a layout of its own, or if the bytes are not the
    /// tensor's.
    pub fn zero(&self, id: TensorId, offset: usize, length: usize) {
        self.assert_writable(id, "zero");
        self.assert_plain(id, "zero");
        let tensor = self.bytes(id, "zero", offset, length);
        // SAFETY: the tensor is live, in memory of its own, and holds the bytes; the store is used by one thread, and no
        // graph runs while it is here.
        unsafe { sys::ggml_backend_tensor_memset(tensor.as_ptr(), 0, offset, length) };
    }

    /// Copies bytes of a tensor, from `offset` on.
    ///
    /// # Panics
    /// If the tensor is of another store, or in a layout of its own, or if the bytes are not the tensor's.
    pub fn read(&self, id: TensorId, offset: usize, out: &mut [u8]) {
        self.assert_plain(id, "read");
        let tensor = self.bytes(id, "read", offset, out.len());
        // SAFETY: the tensor is live, has a buffer and holds the bytes; `out` is as long and exclusively borrowed; the store
        // is used by one thread, and no graph runs while it is here.
        unsafe { sys::ggml_backend_tensor_get(tensor.as_ptr(), out.as_mut_ptr().cast(), offset, out.len()) };
    }

    /// Replaces bytes of a tensor, from `offset` on.
    ///
    /// # Panics
    /// If the tensor is of another store, or mapped, which is read-only, if the bytes are not the tensor's, or if they are
    /// some only of a tensor that is in a layout of its own.
    pub fn write(&self, id: TensorId, offset: usize, bytes: &[u8]) {
        self.assert_writable(id, "write");
        let tensor = self.bytes(id, "write", offset, bytes.len());
        if bytes.len() < self.n_bytes(id) {
            self.assert_plain(id, "write");
        }
        // SAFETY: the tensor is live, in memory of its own, and holds the bytes; the store is used by one thread, and no
        // graph runs while it is here.
        unsafe { sys::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast(), offset, bytes.len()) };
    }

    /// Copies data into tensors that are in buffers, in the layout of the buffer's kind, on `n_threads` threads.
    /// After each tensor `done` is called on the calling thread's behalf with the bytes so far; it can stop the copy.
    /// Returns whether all was copied.
    ///
    /// # Panics
    /// If a tensor is of another store, mapped or given twice, if a length differs from the tensor's size, or if a graph has used the store.
    pub fn fill(
        &mut self,
        data: &[(TensorId, &[u8])],
        n_threads: usize,
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> bool {
        assert!(!self.is_sketch, "fill: the tensors have no memory");
        assert!(self.fresh.get(), "fill: a graph uses the store");
        let mut seen = vec![false; self.tensors.len()];
        struct Job<'a>(NonNull<sys::ggml_tensor>, &'a [u8]);
        // SAFETY: each tensor is in one job only (asserted below), so no two threads write to one tensor; nothing else
        // uses the store while it is borrowed mutably.
        unsafe impl Sync for Job<'_> {}
        let jobs: Vec<Job> = data
            .iter()
            .map(|&(id, bytes)| {
                self.assert_writable(id, "fill");
                let index = self.index(id, "fill");
                assert!(!std::mem::replace(&mut seen[index], true), "fill: a tensor is given twice");
                assert_eq!(self.bytes_of(index), bytes.len(), "fill: length of a tensor's data");
                Job(self.tensors[index], bytes)
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
