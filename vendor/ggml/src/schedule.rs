//! A graph that is loaded: which device computes which node, and the memory of its intermediate results.

use std::ptr::NonNull;
use std::rc::Rc;

use llama_cpp_sys_2 as sys;

use crate::device::Device;
use crate::exec::{Backends, ComputeError, Element};
use crate::graph::{Graph, Slot};

/// One of ggml's schedulers: holds at most one loaded graph, and the memory that it is computed in, which stays for the
/// next graph. Made by [`Executor::schedule`](crate::Executor::schedule), and computed by that executor only.
///
/// Schedules share their executor's devices and threads, and keep these for as long as they live themselves. They stay on
/// one thread:
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<ggml::Schedule>();
/// ```
#[derive(Debug)]
pub struct Schedule {
    sched: NonNull<sys::ggml_backend_sched>,
    /// How many tensors a graph may have: those made for it, and those of stores
    max_tensors: usize,
    graph: Option<Graph>,
    /// Whether ggml's allocator has the memory that it believes it has. Measuring and running out of memory take it away, which
    /// the allocator does not notice when the next graph is like the last one.
    has_memory: bool,
    /// How many nodes of the graph compute something.
    n_operations: usize,
    backends: Rc<Backends>,
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.graph = None;
        // SAFETY: this owner made the scheduler and frees it once, before it lets go of the backends.
        unsafe { sys::ggml_backend_sched_free(self.sched.as_ptr()) };
    }
}

/// A scheduler of ggml's for graphs of up to `max_tensors` tensors, which the caller frees.
fn scheduler(backends: &Backends, max_tensors: usize) -> NonNull<sys::ggml_backend_sched> {
    let mut pointers = backends.pointers();
    let n = i32::try_from(pointers.len()).expect("devices are few");
    // From 32 tokens on, ggml can copy weights of a layer on the CPU to a GPU and multiply there. That is switched off: such a layer is computed on
    // the CPU, whole, at any number of tokens, and takes no memory of a GPU.
    let (has_copies_of_inputs, moves_operations) = (false, false);
    // SAFETY: the array holds n live backends, the CPU last as ggml asks; null selects their own buffer types.
    let sched = unsafe {
        let (backends, own_types) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        sys::ggml_backend_sched_new(backends, own_types, n, max_tensors, has_copies_of_inputs, moves_operations)
    };
    NonNull::new(sched).expect("ggml_backend_sched_new never fails")
}

impl Schedule {
    pub(crate) fn new(backends: &Rc<Backends>) -> Schedule {
        // Enough for most models: for larger graphs it grows.
        let max_tensors = 1 << 12;
        let sched = scheduler(backends, max_tensors);
        Schedule { sched, max_tensors, graph: None, has_memory: false, n_operations: 0, backends: backends.clone() }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_backend_sched {
        self.sched.as_ptr()
    }

    pub(crate) fn is_of(&self, backends: &Rc<Backends>) -> bool {
        Rc::ptr_eq(&self.backends, backends)
    }

    /// The loaded graph.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn graph(&self) -> &Graph {
        self.graph.as_ref().expect("a graph is loaded")
    }

    pub(crate) fn n_operations(&self) -> usize {
        self.n_operations
    }

    /// Bytes of memory for intermediate results that `graph` needs on each device. Reserves nothing, gives back what is reserved and too
    /// small, and unloads the loaded graph.
    pub fn measure(&mut self, graph: &Graph) -> Vec<(Device, usize)> {
        self.make_ready_for(graph);
        self.has_memory = false;
        let mut sizes = vec![0usize; self.backends.pointers().len()];
        graph.lend(|graph| {
            // SAFETY: scheduler and graph are live; sizes has one element per backend.
            unsafe { sys::ggml_backend_sched_reserve_size(self.sched.as_ptr(), graph, sizes.as_mut_ptr()) };
        });
        // SAFETY: the scheduler is live.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        self.backends.devices().into_iter().zip(sizes).collect()
    }

    /// Reserves the memory that `graph` needs, so that loading a graph that needs no more cannot fail. Unloads the loaded
    /// graph.
    ///
    /// # Errors
    /// [`ComputeError::OutOfMemory`] if the memory cannot be had.
    pub fn reserve(&mut self, graph: &Graph) -> Result<(), ComputeError> {
        self.make_ready_for(graph);
        let reserved = graph.lend(|graph| {
            // SAFETY: scheduler and graph are live.
            unsafe { sys::ggml_backend_sched_reserve(self.sched.as_ptr(), graph) }
        });
        // SAFETY: the scheduler is live; where it failed it still knows the graph's tensors.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        self.has_memory = reserved;
        if reserved { Ok(()) } else { Err(ComputeError::OutOfMemory) }
    }

    /// Gives the tensors of `graph` memory, and keeps it in place of the loaded graph.
    ///
    /// # Errors
    /// [`ComputeError::OutOfMemory`] if the memory cannot be had; then no graph is loaded.
    ///
    /// # Panics
    /// If the graph has tensors of a [sketch](crate::Store::sketch).
    pub fn load(&mut self, graph: Graph) -> Result<(), ComputeError> {
        assert!(!graph.is_sketch(), "load: the graph has tensors without memory");
        self.make_ready_for(&graph);
        if !self.has_memory {
            self.reserve(&graph)?;
        }
        // SAFETY: scheduler and graph are live; the graph is kept until the scheduler is reset or freed.
        if !unsafe { sys::ggml_backend_sched_alloc_graph(self.sched.as_ptr(), graph.as_ptr()) } {
            self.unload();
            self.has_memory = false;
            return Err(ComputeError::OutOfMemory);
        }
        for ids in graph.row_ids() {
            // SAFETY: the graph is live.
            let t = unsafe { ids.as_ref() };
            if !t.buffer.is_null() {
                // SAFETY: the tensor is live and has memory. Until it is set, it chooses the first row, which is there.
                unsafe { sys::ggml_backend_tensor_memset(ids.as_ptr(), 0, 0, sys::ggml_nbytes(t)) };
            }
        }
        self.n_operations = graph.n_operations();
        self.graph = Some(graph);
        Ok(())
    }

    /// In how many parts the loaded graph runs, each on one device: at each border results are copied from a device to another.
    pub fn n_splits(&self) -> usize {
        // SAFETY: the scheduler is live.
        let n = unsafe { sys::ggml_backend_sched_get_n_splits(self.sched.as_ptr()) };
        usize::try_from(n).expect("a count")
    }

    /// Lets go of the loaded graph, if there is one, and of the stores that it refers to.
    pub fn unload(&mut self) {
        // SAFETY: the scheduler is live; it forgets the graph's tensors before they go.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        self.graph = None;
    }

    /// Unloads the loaded graph, and takes a larger scheduler if `graph` needs one.
    fn make_ready_for(&mut self, graph: &Graph) {
        self.unload();
        if graph.n_tensors() > self.max_tensors {
            self.max_tensors = graph.n_tensors().next_power_of_two();
            let old = std::mem::replace(&mut self.sched, scheduler(&self.backends, self.max_tensors));
            // SAFETY: this owner made the old scheduler, which has no graph and is not used again.
            unsafe { sys::ggml_backend_sched_free(old.as_ptr()) };
            self.has_memory = false;
        }
    }

    /// Sets an input of the loaded graph; `data` holds all its elements. Inputs are set before each computation, as ggml
    /// may use their memory for results once they have been read.
    ///
    /// # Panics
    /// If no graph is loaded, if the slot is not an input, if `data` is not of the input's type and size, or if it chooses a
    /// row ([`Builder::get_rows`](crate::Builder::get_rows)) that is not there.
    pub fn set<T: Element>(&mut self, slot: Slot, data: &[T]) {
        let tensor = self.graph().slot(slot);
        // SAFETY: the tensor is live while its graph is.
        let t = unsafe { tensor.as_ref() };
        assert!(t.flags & sys::GGML_TENSOR_FLAG_INPUT as i32 != 0, "set: the slot is not an input");
        assert_eq!(t.type_, T::TYPE.raw(), "set: element type of an input");
        // SAFETY: as above.
        let bytes = unsafe { sys::ggml_nbytes(tensor.as_ptr()) };
        assert_eq!(bytes, size_of_val(data), "set: size of an input");
        if let Some(limit) = self.graph().row_limit(tensor) {
            let wrong = data.iter().find(|id| id.row().is_none_or(|row| row >= limit));
            assert!(wrong.is_none(), "set: {wrong:?} is not one of {limit} rows");
        }
        if t.buffer.is_null() {
            // Nothing in the graph reads it.
            return;
        }
        // SAFETY: the tensor has memory of exactly this many bytes.
        unsafe { sys::ggml_backend_tensor_set(tensor.as_ptr(), data.as_ptr().cast(), 0, bytes) };
    }

    /// Copies the first elements of an output of the loaded graph.
    ///
    /// # Panics
    /// If no graph is loaded, or the output is of another type or has fewer elements than `data`.
    pub fn get<T: Element>(&self, slot: Slot, data: &mut [T]) {
        let tensor = self.graph().slot(slot);
        // SAFETY: the tensor is live while its graph is.
        let t = unsafe { tensor.as_ref() };
        assert_eq!(t.type_, T::TYPE.raw(), "get: element type of an output");
        let bytes = size_of_val(data);
        // SAFETY: as above.
        assert!(bytes <= unsafe { sys::ggml_nbytes(tensor.as_ptr()) }, "get: size of an output");
        assert!(!t.buffer.is_null(), "get: the slot has no memory");
        // SAFETY: the tensor has memory of at least this many bytes; every bit pattern is a valid element.
        unsafe { sys::ggml_backend_tensor_get(tensor.as_ptr(), data.as_mut_ptr().cast(), 0, bytes) };
    }
}
