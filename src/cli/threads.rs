//! How many threads to compute with.

use std::collections::HashSet;
use std::fs;

/// One thread per physical core that the process may use: hyper-threads share the units that matrices are multiplied with.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Cores by the list of hyper-threads that each CPU shares one with.
fn physical_cores() -> Option<usize> {
    let mut cores = HashSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let siblings = entry.path().join("topology/thread_siblings_list");
        if let Ok(list) = fs::read_to_string(siblings) {
            cores.insert(list);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}
