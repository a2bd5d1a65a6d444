//! Reading stdin without waiting for ever.

use std::io::{self, Read, stdin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a wait looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Most bytes that are read at once.
const CHUNK: usize = 1 << 16;

/// The next bytes of stdin; none at its end, and `None` if `interrupt` was set before any came. `waits` is told every tenth of a second
/// that nothing has come yet.
pub fn read(interrupt: &AtomicBool, waits: &mut dyn FnMut()) -> io::Result<Option<Vec<u8>>> {
    while !ready() {
        if interrupt.load(Ordering::Relaxed) {
            return Ok(None);
        }
        waits();
    }
    let mut bytes = vec![0; CHUNK];
    let n = stdin().lock().read(&mut bytes)?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

/// Whether something can be read, or the end has come.
#[cfg(unix)]
fn ready() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], Some(&tick)) {
        Ok(n) => n > 0,
        Err(e) => e != rustix::io::Errno::INTR,
    }
}

/// On other systems a read waits by itself.
#[cfg(not(unix))]
fn ready() -> bool {
    let _ = TICK;
    true
}
