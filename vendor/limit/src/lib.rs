//! What a process can only say of its memory and its files from outside of Rust.
//!
//! The program's allocator: the system's, but memory that cannot be had ends the process with one line and an exit code, where Rust
//! would abort it; and a piece of code can be limited in what it takes ([`within`]).
//!
//! Code that strangers wrote (a chat template) may double a string until all memory is gone, in a few steps. Neither its interpreter nor
//! Rust has a way to make that an error: an allocator may fail, but must not unwind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code for data that a limit forbids.
const MALFORMED: i32 = 65;
/// Exit code for memory that cannot be had.
const OUT_OF_MEMORY: i32 = 71;

#[derive(Clone, Copy)]
struct Limit {
    /// Bytes that may still be taken
    left: usize,
    /// The line that ends the process
    line: &'static str,
}

thread_local! {
    // Neither made lazily nor dropped: an allocator cannot wait for an allocation.
    static LIMIT: Cell<Option<Limit>> = const { Cell::new(None) };
}

/// Runs `f`, which may take `bytes` of memory more than there is now, on this thread. If it takes more, the process ends with exit code
/// 65 and `line`, which is to end in a line break, on stderr.
pub fn within<T>(bytes: usize, line: &'static str, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Limit>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(Some(Limit { left: bytes, line })));
    f()
}

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the process began without a stdout. Rust opens /dev/null in its place before `main`, to which all that is written is lost without
/// an error. (Known on Linux and macOS.)
pub fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

/// Looks at stdout before Rust begins.
#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look_at_stdout() {
    // SAFETY: asks for a flag of a number that may or may not be a file's; nothing is changed.
    let closed = unsafe { libc::fcntl(1, libc::F_GETFD) } == -1;
    STDOUT_WAS_CLOSED.store(closed, Ordering::Relaxed);
}

#[used]
#[cfg(any(target_os = "linux", target_os = "macos"))]
// SAFETY: the section is a list of functions without arguments, which the loader calls before `main`; this one needs nothing of Rust's runtime.
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static BEFORE_MAIN: extern "C" fn() = look_at_stdout;

/// The allocator.
#[derive(Debug)]
pub struct Limited;

fn take(bytes: usize) {
    let Some(limit) = LIMIT.get() else { return };
    match limit.left.checked_sub(bytes) {
        Some(left) => LIMIT.set(Some(Limit { left, ..limit })),
        None => end(limit.line, MALFORMED),
    }
}

fn give_back(bytes: usize) {
    if let Some(limit) = LIMIT.get() {
        LIMIT.set(Some(Limit { left: limit.left.saturating_add(bytes), ..limit }));
    }
}

fn had(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        end("pp-run: error: out of memory: the operating system has no more for this process\n", OUT_OF_MEMORY);
    }
    memory
}

/// Ends the process without taking any memory: no handlers run and nothing is flushed.
#[cold]
fn end(line: &str, code: i32) -> ! {
    // SAFETY: the pointer and the length are of one live string; a failure changes nothing.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len() as _) };
    // SAFETY: ends the process at once, and needs nothing of it.
    unsafe { libc::_exit(code) }
}

// SAFETY: every block comes from the system's allocator and goes back to it with the layout that it was asked for; nothing here
// allocates or unwinds.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        had(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        had(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block is there until the new one is.
        take(size);
        // SAFETY: the caller's contract is the system allocator's.
        let memory = had(unsafe { System.realloc(memory, layout, size) });
        give_back(layout.size());
        memory
    }
}
