//! The process's priority beside other programs.

use crate::error::{Error, Result};

/// The nice value of this thread, -20 to 19: the higher, the more it gives way to others. `None` where the system has none.
#[cfg(unix)]
pub fn nice() -> Option<i32> {
    rustix::process::getpriority_process(None).ok()
}

#[cfg(not(unix))]
pub fn nice() -> Option<i32> {
    None
}

/// Sets the nice value of this thread and of those that it starts from now on. [`crate::error::Kind::Failed`] if the system does not allow it.
#[cfg(unix)]
pub fn set_nice(nice: i32) -> Result<()> {
    rustix::process::setpriority_process(None, nice)
        .map_err(|e| Error::failed(format!("a nice value of {nice} cannot be had: {e}")))
}

#[cfg(not(unix))]
pub fn set_nice(_: i32) -> Result<()> {
    Err(Error::unsupported("this system has no nice values"))
}
