//! What a process can only say of its memory, its files and its terminal from outside of Rust, and its end at once.
//!
//! The program's allocator: the system's, but memory that cannot be had ends the process with one line and an exit code, where Rust
//! would abort it; and a piece of code can be limited in what it takes ([`within`]).
//!
//! Code that strangers wrote (a chat template) may double a string until all memory is gone, in a few steps. Neither its interpreter nor
//! Rust has a way to make that an error: an allocator may fail, but must not unwind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
#[cfg(unix)]
use std::sync::OnceLock;
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

/// The terminal's settings when the process began; none if stdin is no terminal. (Known where [`stdout_was_closed`] is.)
#[cfg(unix)]
static TERMINAL: OnceLock<libc::termios> = OnceLock::new();

/// Looks at stdout and at the terminal before Rust begins.
#[cfg(any(target_os = "linux", target_os = "macos"))]
extern "C" fn look_around() {
    // SAFETY: asks for a flag of a number that may or may not be a file's; nothing is changed.
    let closed = unsafe { libc::fcntl(1, libc::F_GETFD) } == -1;
    STDOUT_WAS_CLOSED.store(closed, Ordering::Relaxed);
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: there is room for the settings.
    if unsafe { libc::tcgetattr(0, settings.as_mut_ptr()) } == 0 {
        // SAFETY: on success they were written.
        let _ = TERMINAL.set(unsafe { settings.assume_init() });
    }
}

#[used]
#[cfg(any(target_os = "linux", target_os = "macos"))]
// SAFETY: the section is a list of functions without arguments, which the loader calls before `main`; this one needs nothing of Rust's runtime.
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static BEFORE_MAIN: extern "C" fn() = look_around;

/// The allocator.
#[derive(Debug)]
pub struct Limited;

fn take(bytes: usize) {
    let Some(limit) = LIMIT.get() else { return };
    match limit.left.checked_sub(bytes) {
        Some(left) => LIMIT.set(Some(Limit { left, ..limit })),
        None => end(&[limit.line.as_bytes()], MALFORMED),
    }
}

fn give_back(bytes: usize) {
    if let Some(limit) = LIMIT.get() {
        LIMIT.set(Some(Limit { left: limit.left.saturating_add(bytes), ..limit }));
    }
}

fn had(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        end(&[b"pp-run: error: out of memory: the operating system has no more for this process\n"], OUT_OF_MEMORY);
    }
    memory
}

/// Writes the parts of a line to stderr and ends the process, with nothing but calls that a signal handler may make, and without taking any
/// memory: no handlers run and nothing is flushed. The terminal gets back the settings that it had when the process began.
#[cold]
pub fn end(line: &[&[u8]], code: i32) -> ! {
    #[cfg(unix)]
    if let Some(settings) = TERMINAL.get() {
        // SAFETY: asks for a number.
        let of_terminal = unsafe { libc::tcgetpgrp(0) };
        // SAFETY: as above.
        let own = unsafe { libc::getpgrp() };
        // A process in the background would be stopped, and the settings are those of whoever is in front.
        if of_terminal == own {
            // SAFETY: the settings are what tcgetattr wrote; a failure changes nothing.
            unsafe { libc::tcsetattr(0, libc::TCSANOW, settings) };
        }
    }
    for part in line {
        // SAFETY: the pointer and the length are of one live slice; a failure changes nothing.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len() as _) };
    }
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
