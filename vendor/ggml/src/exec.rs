//! Devices that are started, and the computation of a [`Schedule`]'s graph on them.
//!
//! This module owns ggml's backends, the CPU's threads, and what a computation asks and tells while it runs. Which graph is
//! loaded, and the memory of its intermediate results, are the [`Schedule`]'s.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use llama_cpp_sys_2 as sys;

use crate::device::Device;
use crate::graph::computes;
use crate::schedule::Schedule;
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
pub trait Element: Copy + fmt::Debug + sealed::Sealed {
    const TYPE: Type;
}

mod sealed {
    pub trait Sealed {
        /// The row that an integer chooses; none for one that is negative, and for floats.
        fn row(self) -> Option<usize>;
    }
}

macro_rules! elements {
    ($($t:ty => $ty:expr, $row:expr);* $(;)?) => {
        $(
            impl sealed::Sealed for $t {
                fn row(self) -> Option<usize> {
                    $row(self)
                }
            }
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

elements! {
    f32 => Type::F32, |_| None;
    i32 => Type::I32, |id| usize::try_from(id).ok();
    i64 => Type::I64, |id| usize::try_from(id).ok();
    F16 => Type::F16, |_| None;
}

/// When a node of a graph was computed.
#[derive(Debug, Clone)]
pub struct NodeTime {
    pub name: String,
    /// The operation, as ggml names it.
    pub op: String,
    pub ne: [usize; 4],
    pub start: Instant,
    pub duration: Duration,
    /// Whether all elements are finite; `true` for nodes that are not F32 or not in the program's memory.
    pub finite: bool,
}

/// What [`trace`] writes to.
struct Trace {
    /// When the node that is being computed began.
    start: Instant,
    nodes: Vec<NodeTime>,
}

/// Computes graphs on the given devices and the CPU, one at a time.
///
/// The CPU's threads are those of the last computation: one that takes another number of them has them started anew. ggml would let
/// those that a graph does not use wait for the next one by spinning, which takes a processor from whoever needs it.
///
/// The graphs are in [`Schedule`]s, of which an executor can have several. All of them live on the thread that the executor
/// was made on, like the tensors that their graphs refer to:
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<ggml::Executor>();
/// ```
#[derive(Debug)]
pub struct Executor {
    backends: Rc<Backends>,
    /// The CPU's threads; `None` before the first computation
    pool: Option<Pool>,
}

/// Threads of the CPU, that of the caller included.
#[derive(Debug)]
struct Pool {
    ptr: NonNull<sys::ggml_threadpool>,
    n_threads: i32,
}

/// What an executor and its schedules share.
#[derive(Debug)]
pub(crate) struct Backends {
    /// The CPU is the last one.
    list: Vec<Backend>,
    watch: Arc<Watch>,
}

/// What a computation asks and tells between operations.
#[derive(Debug)]
struct Watch {
    interrupt: Arc<AtomicBool>,
    /// How many operations of the graph that runs are done, and how many there are.
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

impl Backends {
    pub(crate) fn pointers(&self) -> Vec<*mut sys::ggml_backend> {
        self.list.iter().map(|b| b.ptr.as_ptr()).collect()
    }

    /// The devices, in the order of [`Backends::pointers`].
    pub(crate) fn devices(&self) -> Vec<Device> {
        let device = |b: &Backend| {
            // SAFETY: the backend is live.
            let ptr = unsafe { sys::ggml_backend_get_device(b.ptr.as_ptr()) };
            Device::from_ptr(NonNull::new(ptr).expect("a backend is of a device"))
        };
        self.list.iter().map(device).collect()
    }

    fn cpu(&self) -> *mut sys::ggml_backend {
        self.list.last().expect("the CPU is always there").ptr.as_ptr()
    }
}

impl Pool {
    /// How long threads wait for the next graph by spinning before they sleep, in ggml's unit, which is some milliseconds: longer than
    /// a token is drawn. ggml's own 50 keeps a processor busy for some tenths of a second after the last graph.
    const POLL: u32 = 1;

    fn new(n_threads: i32) -> Option<Pool> {
        // SAFETY: takes a number, returns a struct by value.
        let mut params = unsafe { sys::ggml_threadpool_params_default(n_threads) };
        params.poll = Pool::POLL;
        // SAFETY: params is a live local.
        let ptr = unsafe { sys::ggml_threadpool_new(&mut params) };
        NonNull::new(ptr).map(|ptr| Pool { ptr, n_threads })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: this owner made the pool and frees it once; `Executor::forget_pool` has taken it from the backend.
        unsafe { sys::ggml_threadpool_free(self.ptr.as_ptr()) };
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.forget_pool();
    }
}

/// ggml asks this between operations whether to stop.
unsafe extern "C" fn interrupted(watch: *mut c_void) -> bool {
    // SAFETY: the pointer is to the Watch in the Arc of `Backends`, which outlives the backend that calls this.
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

/// The most threads that ggml's pools have (GGML_MAX_N_THREADS).
const MAX_THREADS: usize = 512;

/// The most devices that ggml's schedulers take (GGML_SCHED_MAX_BACKENDS).
const MAX_BACKENDS: usize = 16;

pub(crate) fn thread_count(n_threads: usize) -> i32 {
    assert!((1..=MAX_THREADS).contains(&n_threads), "a computation takes 1 to {MAX_THREADS} threads, not {n_threads}");
    n_threads as i32
}

impl Executor {
    /// Starts `gpus` and the CPU. A computation ends early once `interrupt` is set.
    ///
    /// # Errors
    /// [`ComputeError::Failed`] if a device cannot be started.
    ///
    /// # Panics
    /// If there are more than 15 `gpus`: ggml's limit.
    pub fn new(gpus: &[Device], interrupt: Arc<AtomicBool>) -> Result<Executor, ComputeError> {
        assert!(gpus.len() < MAX_BACKENDS, "an executor has up to {MAX_BACKENDS} devices");
        let mut list = Vec::new();
        for device in gpus.iter().copied().chain([Device::cpu()]) {
            device.buffer_type();
            // SAFETY: the device is registered and, as it was asked for its memory, ready; no parameters.
            let ptr = unsafe { sys::ggml_backend_dev_init(device.as_ptr(), std::ptr::null()) };
            list.push(Backend { ptr: NonNull::new(ptr).ok_or(ComputeError::Failed)? });
        }
        let watch = Arc::new(Watch { interrupt, done: AtomicUsize::new(0), all: AtomicUsize::new(0) });
        let backends = Backends { list, watch };
        let cpu = backends.cpu();
        let watch = Arc::as_ptr(&backends.watch).cast_mut().cast();
        // SAFETY: cpu is live; `Backends` keeps the Watch for longer than the backend.
        unsafe { sys::ggml_backend_cpu_set_abort_callback(cpu, Some(interrupted), watch) };
        Ok(Executor { backends: Rc::new(backends), pool: None })
    }

    /// A schedule without a graph.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(&self.backends)
    }

    /// Computes the schedule's graph with `n_threads` CPU threads.
    ///
    /// # Errors
    /// [`ComputeError::Interrupted`] if the interrupt flag was set meanwhile, [`ComputeError::OutOfMemory`] and
    /// [`ComputeError::Failed`] if a device reports it, or if the threads cannot be started. The graph's outputs then hold anything.
    ///
    /// # Panics
    /// If the schedule is of another executor or has no graph, if `n_threads` is 0 or above 512, or if an
    /// [`Op`](crate::Op) of the graph panicked.
    pub fn compute(&mut self, schedule: &mut Schedule, n_threads: usize) -> Result<(), ComputeError> {
        let status = self.run(schedule, n_threads)?;
        check(schedule, status)
    }

    /// [`Executor::compute`] node by node, which takes somewhat longer. Returns when each node was computed.
    ///
    /// # Errors
    /// As [`Executor::compute`].
    ///
    /// # Panics
    /// As [`Executor::compute`].
    pub fn compute_traced(&mut self, schedule: &mut Schedule, n_threads: usize) -> Result<Vec<NodeTime>, ComputeError> {
        let mut traced = Trace { start: Instant::now(), nodes: Vec::new() };
        let sched = schedule.as_ptr();
        let to = (&raw mut traced).cast();
        // SAFETY: the scheduler is live; it forgets `traced` again when `forget` goes, which is before `traced` does.
        unsafe { sys::ggml_backend_sched_set_eval_callback(sched, Some(trace), to) };
        let forget = ForgetTrace(sched);
        let status = self.run(schedule, n_threads);
        drop(forget);
        check(schedule, status?).map(|()| traced.nodes)
    }

    fn run(&mut self, schedule: &mut Schedule, n_threads: usize) -> Result<sys::ggml_status, ComputeError> {
        assert!(schedule.is_of(&self.backends), "compute: the schedule is of another executor");
        let graph = schedule.graph().as_ptr();
        self.start_threads(n_threads)?;
        let Watch { done, all, .. } = &*self.backends.watch;
        done.store(0, Ordering::Relaxed);
        all.store(schedule.n_operations(), Ordering::Relaxed);
        // SAFETY: scheduler and graph are live, the graph was given memory by `Schedule::load`, and the backends that the
        // scheduler uses are this executor's, which is borrowed mutably: nothing else runs on them.
        Ok(unsafe { sys::ggml_backend_sched_graph_compute(schedule.as_ptr(), graph) })
    }

    /// Starts so many threads for the CPU, unless there are as many. A computation does so too.
    ///
    /// # Errors
    /// [`ComputeError::Failed`] if they cannot be started.
    ///
    /// # Panics
    /// If `n_threads` is 0 or above 512.
    pub fn start_threads(&mut self, n_threads: usize) -> Result<(), ComputeError> {
        let n_threads = thread_count(n_threads);
        if self.pool.as_ref().is_some_and(|pool| pool.n_threads == n_threads) {
            return Ok(());
        }
        // The old threads go first: both may be more than the system allows.
        self.forget_pool();
        let pool = Pool::new(n_threads).ok_or(ComputeError::Failed)?;
        let cpu = self.backends.cpu();
        // SAFETY: cpu is a live CPU backend.
        unsafe { sys::ggml_backend_cpu_set_n_threads(cpu, n_threads) };
        // SAFETY: as above; `forget_pool` takes the pool from it before it is freed.
        unsafe { sys::ggml_backend_cpu_set_threadpool(cpu, pool.ptr.as_ptr()) };
        self.pool = Some(pool);
        Ok(())
    }

    /// Ends the CPU's threads.
    fn forget_pool(&mut self) {
        // SAFETY: the backend is live, and so is the pool that it has, if any, which it pauses.
        unsafe { sys::ggml_backend_cpu_set_threadpool(self.backends.cpu(), std::ptr::null_mut()) };
        self.pool = None;
    }

    /// Lets the worker threads sleep until the next computation. Otherwise they wait for it by spinning for a while, which
    /// takes the core from whatever else runs.
    pub fn pause(&self) {
        if let Some(pool) = &self.pool {
            // SAFETY: the pool is live.
            unsafe { sys::ggml_threadpool_pause(pool.ptr.as_ptr()) };
        }
    }

    /// The flag that ends a computation early.
    pub fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.backends.watch.interrupt
    }

    /// Tells from any thread which share, 0 to 1, of the graph that is computed now, or was last, is done. What other
    /// devices than the CPU compute is not counted.
    pub fn progress(&self) -> impl Fn() -> f64 + Send + use<> {
        let watch = self.backends.watch.clone();
        move || {
            let [done, all] = [&watch.done, &watch.all].map(|n| n.load(Ordering::Relaxed) as f64);
            if all > 0.0 { (done / all).min(1.0) } else { 0.0 }
        }
    }
}

/// Takes the trace from the scheduler that it was given to, also when a panic unwinds.
struct ForgetTrace(sys::ggml_backend_sched_t);

impl Drop for ForgetTrace {
    fn drop(&mut self) {
        // SAFETY: the scheduler is live: `compute_traced` borrows the schedule for longer than this lives.
        unsafe { sys::ggml_backend_sched_set_eval_callback(self.0, None, std::ptr::null_mut()) };
    }
}

fn check(schedule: &Schedule, status: sys::ggml_status) -> Result<(), ComputeError> {
    assert!(!schedule.graph().op_failed(), "an operation of the program's own panicked");
    match status {
        sys::GGML_STATUS_SUCCESS => Ok(()),
        sys::GGML_STATUS_ABORTED => Err(ComputeError::Interrupted),
        sys::GGML_STATUS_ALLOC_FAILED => Err(ComputeError::OutOfMemory),
        _ => Err(ComputeError::Failed),
    }
}
