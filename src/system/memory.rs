//! How much memory can be had, and errors that say so before it is taken.

use std::fs;
use std::path::PathBuf;

use ggml::Device;

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

/// Of version 2, else of version 1.
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
        // Inside a container the path may be the host's: then the root of the mount is the group itself.
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

/// Bytes that are needed of each device's memory.
#[derive(Debug, Default, Clone)]
pub struct Needs(Vec<(Device, u64)>);

impl Needs {
    /// Adds what is needed of a device's memory.
    pub fn add(&mut self, device: Device, bytes: u64) {
        match self.0.iter_mut().find(|n| n.0 == device) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => self.0.push((device, bytes)),
        }
    }

    /// Adds other needs.
    pub fn extend(&mut self, others: &Needs) {
        others.0.iter().for_each(|&(device, bytes)| self.add(device, bytes));
    }

    /// As much of each device as either needs.
    pub fn or(mut self, others: &Needs) -> Needs {
        for &(device, bytes) in &others.0 {
            let own = self.0.iter().find(|n| n.0 == device).map_or(0, |n| n.1);
            self.add(device, bytes.saturating_sub(own));
        }
        self
    }

    /// By device.
    pub fn iter(&self) -> impl Iterator<Item = (Device, u64)> {
        self.0.iter().copied()
    }

    /// Of all devices.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(n.1))
    }

    /// [`crate::error::Kind::Memory`] if a device has not as much left, see [`require_of`].
    pub fn require(&self, what: &str, advice: &str) -> Result<()> {
        self.0.iter().try_for_each(|&(device, bytes)| require_of(device, bytes, what, advice))
    }
}

/// [`require`] of a device's own memory: a GPU's, or the machine's. Of a GPU layers can be taken, too.
pub fn require_of(device: Device, bytes: u64, what: &str, advice: &str) -> Result<()> {
    if device == Device::cpu() {
        return require(bytes, what, advice);
    }
    let left = device.memory().0 as u64;
    match bytes > left {
        true => Err(Error::memory(format!(
            "{what} would take {} of {}, of which only {} are free: {advice}, or leave layers to the CPU (a smaller -ngl, or auto)",
            human(bytes),
            device.name(),
            human(left)
        ))),
        false => Ok(()),
    }
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
