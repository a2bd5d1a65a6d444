//! How much memory can be had, and errors that say so before it is taken.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ggml::Pages;

use crate::error::{Error, Result};

/// Bytes of memory that a process can still take without swapping: what the kernel estimates, or what the control group
/// leaves, if that is less. `None` where the system does not say (then nothing is refused in advance).
pub fn available() -> Option<u64> {
    let free = meminfo("MemAvailable:")?;
    Some(cgroup().map_or(free, |c| c.left.min(free)))
}

/// The most memory that this process has had at once, in bytes: its maximum resident set, mapped files included. `None` where
/// the system does not say.
pub fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok())?;
    Some(kib * 1024)
}

/// Bytes of memory that the machine has. `None` where the system does not say.
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

/// Bytes of memory that the control group may use, if the machine has more.
pub fn limit() -> Option<u64> {
    cgroup().map(|c| c.limit).filter(|&limit| total().is_none_or(|total| limit < total))
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limits of the process's control group and its parents.
struct Cgroup {
    /// The least of the limits, in bytes
    limit: u64,
    /// The least that one of them leaves
    left: u64,
}

/// The limits of control groups, of version 2 or 1.
fn cgroup() -> Option<Cgroup> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<Cgroup> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, limit, usage, cache) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            _ => continue,
        };
        let mut dir = PathBuf::from(format!("{root}{path}"));
        // Inside a container the path may be that of the host: then the root of the mount is the group itself.
        if !dir.is_dir() {
            dir = PathBuf::from(root);
        }
        loop {
            if let (Some(limit), Some(usage)) = (number(dir.join(limit)), number(dir.join(usage))) {
                let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
                // Pages of files that were not used lately are given back before the limit bites.
                let reclaimable =
                    stat.lines().find_map(|l| l.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
                let left = limit.saturating_sub(usage.saturating_sub(reclaimable));
                let least = least.get_or_insert(Cgroup { limit, left });
                (least.limit, least.left) = (least.limit.min(limit), least.left.min(left));
            }
            if dir.as_os_str() == root || !dir.pop() {
                break;
            }
        }
    }
    least
}

/// `n` bytes as people read them.
pub fn human(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 || unit == "TiB" {
            return if unit == "bytes" { format!("{n} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit returns")
}

/// Refuses what cannot fit: `bytes` for `what`; `advice` is what the user can do.
pub fn require(bytes: u64, what: &str, advice: &str) -> Result<()> {
    match available() {
        Some(left) if bytes > left => Err(Error::memory(format!(
            "{what} would take {}, but only {} of memory are available: {advice}",
            human(bytes),
            human(left)
        ))),
        _ => Ok(()),
    }
}

/// Each array begins at a multiple of so many bytes, the length of a line of the processor's cache.
const ALIGNMENT: usize = 64;

/// Makes arrays of these sizes in one piece of memory, on `n_threads` threads: `fill` writes the array of a number. Returns the memory and
/// the place of each array in it. The error is of kind [`crate::error::Kind::Memory`] if they do not fit.
pub fn make(
    sizes: &[usize],
    n_threads: usize,
    what: &str,
    advice: &str,
    fill: impl Fn(usize, &mut [u8]) + Sync,
) -> Result<(Arc<Pages>, Vec<Range<usize>>)> {
    let mut ranges = Vec::with_capacity(sizes.len());
    let mut end = 0usize;
    for &size in sizes {
        ranges.push(end..end + size);
        end += size.next_multiple_of(ALIGNMENT);
    }
    require(end as u64, what, advice)?;
    let mut pages =
        Pages::new(end).map_err(|e| Error::memory(format!("memory for {what} could not be had: {e}: {advice}")))?;
    let mut rest = &mut pages[..];
    let mut jobs = Vec::with_capacity(sizes.len());
    for (i, &size) in sizes.iter().enumerate() {
        let (out, later) = rest.split_at_mut(size.next_multiple_of(ALIGNMENT));
        jobs.push((i, &mut out[..size]));
        rest = later;
    }
    // The largest first, so that threads end together.
    jobs.sort_by_key(|j| std::cmp::Reverse(j.1.len()));
    let n_threads = n_threads.min(jobs.len());
    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        // The block ends the lock before the work begins.
        while let Some((i, out)) = { jobs.lock().expect("no holder panics").next() } {
            fill(i, out);
        }
    };
    std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(work))));
    Ok((Arc::new(pages), ranges))
}
