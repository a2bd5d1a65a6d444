//! Running graphs: allocate, set inputs, compute, get outputs.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use llama_cpp_sys_2 as sys;

use crate::device::Device;
use crate::graph::{Graph, Slot, computes};
use crate::types::Type;

/// Why a computation has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeError {
    /// The interrupt flag was set.
    Interrupted,
    /// Memory for the graph's intermediate results could not be had.
    OutOfMemory,
    /// A device failed.
    Failed,
}

/// An element that moves between the program and a tensor.
pub trait Element: Copy + sealed::Sealed {
    /// The tensor's type.
    const TYPE: Type;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty => $ty:expr),* $(,)?) => {
        $(
            impl sealed::Sealed for $t {}
            impl Element for $t {
                const TYPE: Type = $ty;
            }
        )*
    };
}

/// Bits of a 16-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

elements! { f32 => Type::F32, i32 => Type::I32, i64 => Type::I64, F16 => Type::F16 }

/// When a node of a graph was computed.
#[derive(Debug, Clone)]
pub struct NodeTime {
    /// Its name.
    pub name: String,
    /// Its operation, as ggml names it.
    pub op: String,
    /// Its shape.
    pub ne: [usize; 4],
    /// When its computation began.
    pub start: Instant,
    /// How long it took.
    pub duration: Duration,
    /// Whether all of its floats are finite; `true` for what is no F32 in the program's memory.
    pub finite: bool,
}

/// What [`trace`] writes to.
struct Trace {
    /// When the node that is being computed began.
    start: Instant,
    nodes: Vec<NodeTime>,
}

/// Runs one graph at a time on the given devices and the CPU.
///
/// Lives on one thread, like the tensors that its graphs refer to.
#[derive(Debug)]
pub struct Executor {
    sched: NonNull<sys::ggml_backend_sched>,
    backends: Vec<Backend>,
    pool: NonNull<sys::ggml_threadpool>,
    graph: Option<Graph>,
    watch: Arc<Watch>,
}

/// What a computation asks and tells between operations.
#[derive(Debug)]
struct Watch {
    interrupt: Arc<AtomicBool>,
    /// Operations of the graph that runs that are done, and all of them
    done: AtomicUsize,
    all: AtomicUsize,
}

#[derive(Debug)]
struct Backend {
    ptr: NonNull<sys::ggml_backend>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: this owner made the backend and frees it once.
        unsafe { sys::ggml_backend_free(self.ptr.as_ptr()) }
    }
}

/// ggml asks this between operations whether to go on.
unsafe extern "C" fn interrupted(watch: *mut c_void) -> bool {
    // SAFETY: the pointer is to the Watch in the executor's Arc, which outlives the backend that calls this.
    let watch = unsafe { &*watch.cast::<Watch>() };
    watch.done.fetch_add(1, Ordering::Relaxed);
    watch.interrupt.load(Ordering::Relaxed)
}

/// ggml calls this before each node (`ask`), to hear whether it is to stop after it, and after each at which it was to stop.
unsafe extern "C" fn trace(node: *mut sys::ggml_tensor, ask: bool, trace: *mut c_void) -> bool {
    // SAFETY: the pointer is to the Trace of `compute_traced`, which waits for this thread and does not touch it.
    let trace = unsafe { &mut *trace.cast::<Trace>() };
    // SAFETY: ggml passes a live node of the graph that it computes.
    let t = unsafe { &*node };
    if ask {
        trace.start = Instant::now();
        return computes(t.op);
    }
    let duration = trace.start.elapsed();
    let text = |s: *const c_char| {
        // SAFETY: a NUL-terminated string: the name in the node, or one of ggml's constants.
        unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
    };
    // SAFETY: the node is live.
    let op = text(unsafe { sys::ggml_op_desc(node) });
    let ne = t.ne.map(|n| usize::try_from(n).unwrap_or(0));
    trace.nodes.push(NodeTime {
        name: text(t.name.as_ptr()),
        op,
        ne,
        start: trace.start,
        duration,
        finite: is_finite(t),
    });
    true
}

/// Whether a node that was computed holds finite floats only, as far as it can be read here.
fn is_finite(t: &sys::ggml_tensor) -> bool {
    // SAFETY: the node is live.
    let contiguous = unsafe { sys::ggml_is_contiguous(t) };
    // SAFETY: the buffer is null or live.
    let on_host = !t.buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(t.buffer) };
    if t.type_ != sys::GGML_TYPE_F32 || !contiguous || !on_host || t.data.is_null() {
        return true;
    }
    // SAFETY: the node is live.
    let n = unsafe { sys::ggml_nelements(t) };
    let n = usize::try_from(n).unwrap_or(0);
    // SAFETY: a contiguous F32 tensor in host memory that was just computed: n aligned floats, which nobody writes while the
    // scheduler waits for this callback.
    let values = unsafe { std::slice::from_raw_parts(t.data.cast::<f32>(), n) };
    values.iter().all(|v| v.is_finite())
}

impl Executor {
    /// An executor over `gpus` and the CPU with `n_threads` threads at most, for graphs of up to `max_tensors`
    /// tensors. A computation ends early once `interrupt` is set.
    pub fn new(
        gpus: &[Device],
        n_threads: usize,
        max_tensors: usize,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Executor, ComputeError> {
        let mut backends = Vec::new();
        for device in gpus.iter().copied().chain([Device::cpu()]) {
            // SAFETY: the device is registered; no parameters.
            let ptr = unsafe { sys::ggml_backend_dev_init(device.as_ptr(), std::ptr::null()) };
            backends.push(Backend { ptr: NonNull::new(ptr).ok_or(ComputeError::Failed)? });
        }
        let n_threads = i32::try_from(n_threads).expect("thread counts are small");
        // SAFETY: takes a number, returns a struct by value.
        let mut params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        // SAFETY: params is a live local.
        let pool = unsafe { sys::ggml_threadpool_new(&mut params) };
        let Some(pool) = NonNull::new(pool) else { return Err(ComputeError::Failed) };
        let mut pointers: Vec<_> = backends.iter().map(|b| b.ptr.as_ptr()).collect();
        let cpu = *pointers.last().expect("the CPU is always there");
        // SAFETY: cpu is a live CPU backend; the pool outlives it (see `Drop`).
        unsafe { sys::ggml_backend_cpu_set_threadpool(cpu, pool.as_ptr()) };
        let watch = Arc::new(Watch { interrupt, done: AtomicUsize::new(0), all: AtomicUsize::new(0) });
        // SAFETY: cpu is live; what is watched is kept by the executor for longer than the backend.
        unsafe {
            sys::ggml_backend_cpu_set_abort_callback(cpu, Some(interrupted), Arc::as_ptr(&watch).cast_mut().cast());
        }
        let n = i32::try_from(pointers.len()).expect("devices are few");
        // SAFETY: the array holds n live backends, the CPU last as ggml asks; null selects their own buffer types.
        let sched = unsafe {
            sys::ggml_backend_sched_new(pointers.as_mut_ptr(), std::ptr::null_mut(), n, max_tensors, false, true)
        };
        let sched = NonNull::new(sched).expect("ggml_backend_sched_new never fails");
        Ok(Executor { sched, backends, pool, graph: None, watch })
    }

    /// Bytes of intermediate results that `graph` needs, summed over the devices, without reserving them.
    pub fn measure(&mut self, graph: &Graph) -> usize {
        self.graph = None;
        let mut sizes = vec![0usize; self.backends.len()];
        // SAFETY: scheduler and graph are live; sizes has one element per backend.
        unsafe { sys::ggml_backend_sched_reserve_size(self.sched.as_ptr(), graph.as_ptr(), sizes.as_mut_ptr()) };
        // SAFETY: the scheduler is live.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        sizes.iter().sum()
    }

    /// Reserves the memory for graphs up to the size of this one.
    pub fn reserve(&mut self, graph: &Graph) -> Result<(), ComputeError> {
        self.graph = None;
        // SAFETY: the scheduler is live and holds no other graph.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        // SAFETY: scheduler and graph are live.
        let reserved = unsafe { sys::ggml_backend_sched_reserve(self.sched.as_ptr(), graph.as_ptr()) };
        if reserved { Ok(()) } else { Err(ComputeError::OutOfMemory) }
    }

    /// Makes `graph` the current one and gives its tensors memory.
    pub fn load(&mut self, graph: Graph) -> Result<(), ComputeError> {
        self.graph = None;
        // SAFETY: the scheduler is live.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        // SAFETY: scheduler and graph are live; the graph is kept until the next one.
        if !unsafe { sys::ggml_backend_sched_alloc_graph(self.sched.as_ptr(), graph.as_ptr()) } {
            return Err(ComputeError::OutOfMemory);
        }
        self.watch.all.store(graph.n_operations(), Ordering::Relaxed);
        self.graph = Some(graph);
        Ok(())
    }

    /// Lets go of the current graph, and of the stores that it refers to.
    pub fn unload(&mut self) {
        // SAFETY: the scheduler is live; it forgets the graph's tensors before they go.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        self.graph = None;
    }

    fn tensor(&self, slot: Slot) -> NonNull<sys::ggml_tensor> {
        self.graph.as_ref().expect("a graph is loaded").slot(slot)
    }

    /// Sets an input of the current graph; `data` holds all its elements.
    pub fn set<T: Element>(&mut self, slot: Slot, data: &[T]) {
        let tensor = self.tensor(slot);
        // SAFETY: the tensor is live while its graph is.
        let t = unsafe { tensor.as_ref() };
        assert_eq!(t.type_, T::TYPE.raw(), "element type of an input");
        // SAFETY: as above.
        let bytes = unsafe { sys::ggml_nbytes(tensor.as_ptr()) };
        assert_eq!(bytes, size_of_val(data), "size of an input");
        if t.buffer.is_null() {
            // Nothing in the graph reads it.
            return;
        }
        // SAFETY: the tensor has memory of exactly this many bytes.
        unsafe { sys::ggml_backend_tensor_set(tensor.as_ptr(), data.as_ptr().cast(), 0, bytes) };
    }

    /// Computes the current graph with `n_threads` CPU threads.
    pub fn compute(&mut self, n_threads: usize) -> Result<(), ComputeError> {
        let status = self.run(n_threads);
        self.check(status)
    }

    /// [`Executor::compute`], node by node, which takes somewhat longer: when each was computed.
    pub fn compute_traced(&mut self, n_threads: usize) -> Result<Vec<NodeTime>, ComputeError> {
        let mut traced = Trace { start: Instant::now(), nodes: Vec::new() };
        let to = (&raw mut traced).cast();
        // SAFETY: the scheduler is live; it forgets `traced` again below, before that goes.
        unsafe { sys::ggml_backend_sched_set_eval_callback(self.sched.as_ptr(), Some(trace), to) };
        let status = self.run(n_threads);
        // SAFETY: the scheduler is live.
        unsafe { sys::ggml_backend_sched_set_eval_callback(self.sched.as_ptr(), None, std::ptr::null_mut()) };
        self.check(status).map(|()| traced.nodes)
    }

    fn run(&mut self, n_threads: usize) -> sys::ggml_status {
        let graph = self.graph.as_ref().expect("a graph is loaded").as_ptr();
        self.watch.done.store(0, Ordering::Relaxed);
        let cpu = self.backends.last().expect("the CPU is always there").ptr;
        let n_threads = i32::try_from(n_threads).expect("thread counts are small");
        // SAFETY: cpu is a live CPU backend.
        unsafe { sys::ggml_backend_cpu_set_n_threads(cpu.as_ptr(), n_threads) };
        // SAFETY: scheduler and graph are live, and the graph was allocated by `load`.
        unsafe { sys::ggml_backend_sched_graph_compute(self.sched.as_ptr(), graph) }
    }

    fn check(&self, status: sys::ggml_status) -> Result<(), ComputeError> {
        assert!(!self.graph.as_ref().is_some_and(Graph::op_failed), "an operation of the program's own failed");
        match status {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(ComputeError::Interrupted),
            sys::GGML_STATUS_ALLOC_FAILED => Err(ComputeError::OutOfMemory),
            _ => Err(ComputeError::Failed),
        }
    }

    /// Copies the first elements of an output of the current graph.
    pub fn get<T: Element>(&self, slot: Slot, data: &mut [T]) {
        let tensor = self.tensor(slot);
        // SAFETY: the tensor is live while its graph is.
        let t = unsafe { tensor.as_ref() };
        assert_eq!(t.type_, T::TYPE.raw(), "element type of an output");
        let bytes = size_of_val(data);
        // SAFETY: as above.
        assert!(bytes <= unsafe { sys::ggml_nbytes(tensor.as_ptr()) }, "size of an output");
        assert!(!t.buffer.is_null(), "the output was computed");
        // SAFETY: the tensor has memory of at least this many bytes; every bit pattern is a valid element.
        unsafe { sys::ggml_backend_tensor_get(tensor.as_ptr(), data.as_mut_ptr().cast(), 0, bytes) };
    }

    /// Lets the worker threads sleep until the next computation. Otherwise they wait for it by spinning for a while, which
    /// takes the core from whatever else runs.
    pub fn pause(&self) {
        // SAFETY: the pool is live.
        unsafe { sys::ggml_threadpool_pause(self.pool.as_ptr()) };
    }

    /// The flag that ends a computation early.
    pub fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.watch.interrupt
    }

    /// Tells from any thread which share of the computation that runs is done, as far as the CPU has part in it.
    pub fn progress(&self) -> impl Fn() -> f64 + Send + use<> {
        let watch = self.watch.clone();
        move || {
            let [done, all] = [&watch.done, &watch.all].map(|n| n.load(Ordering::Relaxed) as f64);
            if all > 0.0 { (done / all).min(1.0) } else { 0.0 }
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.graph = None;
        // SAFETY: this owner made the scheduler and frees it once, before the backends that it refers to.
        unsafe { sys::ggml_backend_sched_free(self.sched.as_ptr()) };
        // The backends are freed before the pool that one of them uses.
        self.backends.clear();
        // SAFETY: this owner made the pool and frees it once; no backend uses it any more.
        unsafe { sys::ggml_threadpool_free(self.pool.as_ptr()) };
    }
}
