//! What goes wrong below Rust, turned into one line on stderr and an exit code: a mapped file that was cut short, an assertion of ggml's, an
//! exception that leaves C++.
//!
//! All of it ends the process at once. The terminal gets back the settings that it had when the process began.

use std::ffi::{CStr, c_char};
#[cfg(unix)]
use std::ffi::{c_int, c_void};
use std::sync::Once;
#[cfg(unix)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

/// Exit codes of the program.
const INTERNAL: i32 = 70;
const OUT_OF_MEMORY: i32 = 71;
const MALFORMED: i32 = 65;
#[cfg(unix)]
const FILE_CHANGED: i32 = 74;

/// Whether libllama runs a model, of an architecture whose files are not checked to the last: then what it asserts is about the file.
static RUNS_BY_LIBLLAMA: AtomicBool = AtomicBool::new(false);

/// From now on what ggml and libllama assert is taken as the fault of a file.
pub(crate) fn blame_the_model() {
    RUNS_BY_LIBLLAMA.store(true, Ordering::Relaxed);
}

/// Watches from now on.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(unix)]
        catch_bus_errors();
        // SAFETY: the callback is a function of the right type that lives as long as the process.
        unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
        // SAFETY: as above.
        unsafe { set_terminate(on_terminate) };
    });
}

unsafe extern "C" {
    /// `std::set_terminate`
    #[link_name = "_ZSt13set_terminatePFvvE"]
    fn set_terminate(handler: extern "C" fn()) -> Option<extern "C" fn()>;
}

/// ggml says why it aborts, and would then.
unsafe extern "C" fn on_abort(message: *const c_char) {
    // SAFETY: ggml passes a C string that lives during the call.
    let message = unsafe { CStr::from_ptr(message) }.to_bytes();
    let has = |part: &[u8]| message.windows(part.len()).any(|w| w == part);
    // What ggml asserts of memory that it asked for, and of threads that it started (ggml-cpu.c).
    if has(b"memory") || has(b"mem_buffer") || has(b"alloc") || has(b"rc == 0") {
        end(&[b"out of memory or threads: ggml gave up"], OUT_OF_MEMORY);
    }
    let line = message.split(|&b| b == b'\n').next().unwrap_or_default();
    if RUNS_BY_LIBLLAMA.load(Ordering::Relaxed) {
        let what = b"libllama gave up on this model: its file is damaged, or of a kind that libllama cannot compute: ";
        end(&[what, line], MALFORMED);
    }
    end(&[b"internal error, please report it: ggml: ", line], INTERNAL);
}

/// Nobody caught an exception: those that llama.cpp does not expect are of memory.
extern "C" fn on_terminate() {
    end(&[b"out of memory, or an internal error of llama.cpp"], OUT_OF_MEMORY);
}

/// Writes a line and ends the process, with nothing but calls that a signal handler may make.
fn end(parts: &[&[u8]], code: i32) -> ! {
    let [a, b] = [0, 1].map(|i| parts.get(i).copied().unwrap_or_default());
    limit::end(&[b"pp-run: error: ", a, b, b"\n"], code)
}

/// Where files are mapped, as start and end: more files than models have parts. A free place is 0.
#[cfg(unix)]
static MAPPED: [(AtomicUsize, AtomicUsize); 256] = [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 256];

/// Notes that a file is mapped at these bytes. Of files beyond the first 256 nothing is known.
#[cfg(unix)]
pub(crate) fn mapped(bytes: &[u8]) {
    watch();
    let start = bytes.as_ptr().addr();
    for (first, end) in &MAPPED {
        if first.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            end.store(start + bytes.len().next_multiple_of(4096), Ordering::Release);
            return;
        }
    }
}

/// Notes that it no longer is.
#[cfg(unix)]
pub(crate) fn unmapped(bytes: &[u8]) {
    let start = bytes.as_ptr().addr();
    if let Some((first, end)) = MAPPED.iter().find(|(first, _)| first.load(Ordering::Acquire) == start) {
        end.store(0, Ordering::Release);
        first.store(0, Ordering::Release);
    }
}

#[cfg(unix)]
fn catch_bus_errors() {
    // SAFETY: all zeros are a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is complete, and its handler makes only calls that a handler may make.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
}

/// The bytes of a mapped file are gone: it was cut short. Other bus errors go the usual way.
#[cfg(unix)]
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system passes information of a fault, which has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let inside = |(first, end): &(AtomicUsize, AtomicUsize)| {
        (first.load(Ordering::Acquire)..end.load(Ordering::Acquire)).contains(&address)
    };
    if MAPPED.iter().any(inside) {
        end(
            &[b"a model (or another mapped file) was cut short, or cannot be read any more, while it was in use"],
            FILE_CHANGED,
        );
    }
    // SAFETY: restores the default; the fault comes again when the handler returns.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
