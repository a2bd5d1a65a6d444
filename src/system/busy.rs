//! How busy the machine is with other programs. Linux says it in /proc; elsewhere nothing is known.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::time::Duration;

use super::{cpus, priority};

/// The threads that the process has now, and how long they wait for a processor.
#[derive(Debug)]
pub struct Waits {
    /// /proc/self/task/ID/schedstat of each
    threads: Vec<File>,
    /// What they had waited when they were last looked at
    before: Duration,
}

impl Waits {
    /// Begins to watch. `None` where the system does not say.
    pub fn begin() -> Option<Waits> {
        let open = |id: std::io::Result<fs::DirEntry>| File::open(id.ok()?.path().join("schedstat")).ok();
        let threads: Vec<File> = fs::read_dir("/proc/self/task").ok()?.filter_map(open).collect();
        let mut waits = Waits { threads, before: Duration::ZERO };
        waits.before = waits.total()?;
        Some(waits)
    }

    /// How long all of them together were ready to run, but put aside, since this was last asked.
    pub fn lately(&mut self) -> Option<Duration> {
        let total = self.total()?;
        let lately = total.saturating_sub(self.before);
        self.before = total;
        Some(lately)
    }

    fn total(&self) -> Option<Duration> {
        let mut text = [0u8; 80];
        let mut waited = |mut file: &File| {
            file.rewind().ok()?;
            let n = file.read(&mut text).ok()?;
            parse_waited(std::str::from_utf8(&text[..n]).ok()?)
        };
        // A thread that has ended says nothing more.
        let waited: Vec<Duration> = self.threads.iter().filter_map(&mut waited).collect();
        (!waited.is_empty()).then(|| waited.iter().sum())
    }
}

/// Nanoseconds on a processor, nanoseconds of waiting for one, and how often it had one.
fn parse_waited(text: &str) -> Option<Duration> {
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// A look at the processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Processors of the machine
    pub n_cpus: usize,
    /// Threads that run or could run now: this one, and those of other programs
    pub n_running: usize,
    /// Processors that the process may use
    n_allowed: usize,
    /// What these did since the start, in a unit of the kernel's: all of it, and of that nothing
    all: u64,
    idle: u64,
}

impl Glance {
    /// Looks. `None` where the system does not say.
    pub fn now() -> Option<Glance> {
        // A program that gives way to all others takes nothing from us, unless we do so too.
        let nice_is_idle = priority::nice().is_some_and(|nice| nice <= 0);
        Glance::parse(&fs::read_to_string("/proc/stat").ok()?, &cpus::allowed(), nice_is_idle)
    }

    fn parse(stat: &str, allowed: &BTreeSet<usize>, nice_is_idle: bool) -> Option<Glance> {
        let n_running = stat.lines().find_map(|l| l.strip_prefix("procs_running "))?.trim().parse().ok()?;
        let mut glance = Glance { n_cpus: 0, n_running, n_allowed: 0, all: 0, idle: 0 };
        for line in stat.lines() {
            let Some((Ok(cpu), times)) =
                line.strip_prefix("cpu").and_then(|l| l.split_once(' ')).map(|(cpu, times)| (cpu.parse(), times))
            else {
                continue;
            };
            glance.n_cpus += 1;
            if !allowed.is_empty() && !allowed.contains(&cpu) {
                continue;
            }
            glance.n_allowed += 1;
            // user, nice, system, idle, iowait, irq, softirq, steal; guests are counted as user.
            let times: Vec<u64> = times.split_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
            let &[_, nice, _, idle, iowait, ..] = times.as_slice() else { return None };
            glance.all += times.iter().sum::<u64>();
            glance.idle += idle + iowait + if nice_is_idle { nice } else { 0 };
        }
        (glance.n_allowed > 0).then_some(glance)
    }

    /// How many of the processors that the process may use were idle since an earlier look, on average. `None` if no time was counted since.
    pub fn idle_since(&self, earlier: &Glance) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all).filter(|&all| all > 0)?;
        // The kernel may take a little of it back.
        let idle = self.idle.saturating_sub(earlier.idle);
        Some(idle as f64 / all as f64 * self.n_allowed as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  30 6 3 100 1 0 0 0 0 0\n\
        cpu0 10 2 1 50 1 0 0 0 0 0\n\
        cpu1 20 4 2 50 0 0 0 0 0 0\n\
        intr 1 2 3\n\
        procs_running 3\n\
        procs_blocked 0\n";

    fn glance(stat: &str, allowed: &[usize], nice_is_idle: bool) -> Option<Glance> {
        Glance::parse(stat, &allowed.iter().copied().collect(), nice_is_idle)
    }

    #[test]
    fn idle_processors_are_counted_among_the_allowed() {
        let both = glance(STAT, &[0, 1], false).unwrap();
        assert_eq!((both.n_cpus, both.n_running), (2, 3));
        let later = STAT.replace("cpu0 10 2 1 50", "cpu0 20 2 1 50").replace("cpu1 20 4 2 50", "cpu1 20 9 2 55");
        let after = glance(&later, &[0, 1], false).unwrap();
        assert_eq!(after.idle_since(&both), Some(0.5));
        assert_eq!(both.idle_since(&both), None);
        assert_eq!(both.idle_since(&after), None);
        // On processor 1 half was idle; and all of it, if those that give way do not count.
        let idle = |allowed: &[usize], nice_is_idle| {
            let [before, after] = [STAT, &later].map(|stat| glance(stat, allowed, nice_is_idle).unwrap());
            after.idle_since(&before)
        };
        assert_eq!(idle(&[1], false), Some(0.5));
        assert_eq!(idle(&[1], true), Some(1.0));
        assert_eq!(idle(&[], true), Some(1.0));
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        assert_eq!(glance("", &[], false), None);
        assert_eq!(glance("procs_running 3\n", &[], false), None);
        assert_eq!(glance("procs_running 3\ncpu0 1 2\n", &[], false), None);
        assert_eq!(glance(&STAT.replace("procs_running 3", ""), &[], false), None);
        assert_eq!(parse_waited("123 456 7\n"), Some(Duration::from_nanos(456)));
        assert_eq!(parse_waited("123\n"), None);
    }
}
