//! How many threads to compute with, and why: what Linux says of the processors that the process may use.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The processors that the process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    /// Logical processors that the process may run on
    pub allowed: usize,
    /// Physical cores among them
    pub physical: usize,
    /// Performance cores among the physical; all of them where cores are alike
    pub performance: usize,
    /// Processors' worth of time that a control group leaves, if fewer than the allowed
    pub quota: Option<usize>,
    /// Threads to compute with
    pub threads: usize,
}

impl Cpus {
    /// Looks at this machine.
    pub fn find() -> Cpus {
        Cpus::find_in(Path::new("/"), std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// `parallelism` is std's number, which heeds affinity and control groups' quotas.
    fn find_in(root: &Path, parallelism: usize) -> Cpus {
        let cpus = allowed_in(root);
        let allowed = if cpus.is_empty() { parallelism } else { cpus.len() };
        let (physical, performance) = match cpus.is_empty() {
            true => (allowed, allowed),
            false => (cores(root, &cpus), cores(root, &performance(root, &cpus))),
        };
        let quota = (parallelism < allowed).then_some(parallelism);
        // Hyper-threads share the units that multiply matrices, and a slow core makes the fast ones wait.
        let threads = performance.min(quota.unwrap_or(performance)).max(1);
        Cpus { allowed, physical, performance, quota, threads }
    }
}

/// The numbers of the processors that the process may run on; none where the system does not say.
pub fn allowed() -> BTreeSet<usize> {
    allowed_in(Path::new("/"))
}

fn allowed_in(root: &Path) -> BTreeSet<usize> {
    let status = read(root, "proc/self/status").unwrap_or_default();
    parse_list(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default())
}

/// One thread for each physical performance core that the process may use.
pub fn default_threads() -> usize {
    Cpus::find().threads
}

/// Number of physical cores that these processors are hyper-threads of.
fn cores(root: &Path, cpus: &BTreeSet<usize>) -> usize {
    let core = |cpu: &usize| {
        let siblings = read(root, &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
        siblings.unwrap_or_else(|| cpu.to_string())
    };
    cpus.iter().map(core).collect::<BTreeSet<_>>().len()
}

/// The processors of the fast kind; all of them if the process is kept to slow ones, or if there is only one kind.
fn performance(root: &Path, cpus: &BTreeSet<usize>) -> BTreeSet<usize> {
    // Intel's hybrid processors have two kinds of cores.
    let fast = parse_list(&read(root, "sys/devices/cpu_core/cpus").unwrap_or_default());
    let fast: BTreeSet<usize> = fast.intersection(cpus).copied().collect();
    if !fast.is_empty() {
        return fast;
    }
    // ARM's processors often have three kinds of cores; the middle kind is fast enough to help.
    let capacity = |cpu: usize| -> u64 {
        let text = read(root, &format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"));
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    let largest = cpus.iter().map(|&cpu| capacity(cpu)).max().unwrap_or(0);
    cpus.iter().copied().filter(|&cpu| capacity(cpu) >= largest - largest / 4).collect()
}

/// Linux's `0-3,8`. Numbers beyond what any machine has are left out.
fn parse_list(text: &str) -> BTreeSet<usize> {
    const MAX: usize = 1 << 16;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse::<usize>().ok()?.min(MAX))
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn read(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok().map(|t| t.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose process may use the processors `allowed`, and what its files say.
    fn machine(allowed: &str, files: &[(&str, &str)], parallelism: usize) -> Cpus {
        let root = tempfile::tempdir().unwrap();
        let status = format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n");
        for (path, text) in files.iter().copied().chain([("proc/self/status", status.as_str())]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        Cpus::find_in(root.path(), parallelism)
    }

    /// What `name` says of each processor.
    fn of_each<'a>(name: &str, texts: &[&'a str]) -> Vec<(String, &'a str)> {
        let path = |i: usize| format!("sys/devices/system/cpu/cpu{i}/{name}");
        texts.iter().enumerate().map(|(i, text)| (path(i), *text)).collect()
    }

    fn borrowed<'a>(files: &'a [(String, &'a str)]) -> Vec<(&'a str, &'a str)> {
        files.iter().map(|(path, text)| (path.as_str(), *text)).collect()
    }

    #[test]
    fn hybrid_intel_computes_on_performance_cores() {
        // Two performance cores of two hyper-threads each, four efficiency cores.
        let mut files = of_each("topology/thread_siblings_list", &["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]);
        files.push(("sys/devices/cpu_core/cpus".to_owned(), "0-3"));
        files.push(("sys/devices/cpu_atom/cpus".to_owned(), "4-7"));
        let cpus = machine("0-7", &borrowed(&files), 8);
        assert_eq!(cpus, Cpus { allowed: 8, physical: 6, performance: 2, quota: None, threads: 2 });
        // Kept to efficiency cores, it takes these.
        let cpus = machine("4-6", &borrowed(&files), 3);
        assert_eq!(cpus, Cpus { allowed: 3, physical: 3, performance: 3, quota: None, threads: 3 });
    }

    #[test]
    fn arm_computes_on_big_and_middle_cores() {
        let files = of_each("cpu_capacity", &["250", "250", "250", "250", "800", "800", "800", "1024"]);
        let cpus = machine("0-7", &borrowed(&files), 8);
        assert_eq!(cpus, Cpus { allowed: 8, physical: 8, performance: 4, quota: None, threads: 4 });
        let cpus = machine("0-3", &borrowed(&files), 4);
        assert_eq!((cpus.performance, cpus.threads), (4, 4));
    }

    #[test]
    fn hyper_threads_of_one_core_are_one_thread() {
        let files = of_each("topology/thread_siblings_list", &["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]);
        let cpus = machine("1,5", &borrowed(&files), 2);
        assert_eq!(cpus, Cpus { allowed: 2, physical: 1, performance: 1, quota: None, threads: 1 });
        assert_eq!(machine("0-7", &borrowed(&files), 8).threads, 4);
    }

    #[test]
    fn a_quota_is_not_exceeded() {
        let files = of_each("topology/thread_siblings_list", &["0", "1", "2", "3", "4", "5", "6", "7"]);
        let cpus = machine("0-7", &borrowed(&files), 2);
        assert_eq!(cpus, Cpus { allowed: 8, physical: 8, performance: 8, quota: Some(2), threads: 2 });
    }

    #[test]
    fn where_nothing_can_be_read_std_is_believed() {
        let root = tempfile::tempdir().unwrap();
        let expected = Cpus { allowed: 6, physical: 6, performance: 6, quota: None, threads: 6 };
        assert_eq!(Cpus::find_in(root.path(), 6), expected);
        assert_eq!(machine("x,3-,-", &[], 6), expected);
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list(" 0-2,8,10-11\n"), [0, 1, 2, 8, 10, 11].into());
        assert_eq!(parse_list("5-3,,a-b,65535-99999999999"), [65535, 65536].into());
        assert!(parse_list("").is_empty());
    }
}
