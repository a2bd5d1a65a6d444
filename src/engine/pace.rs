//! The pace of a session's steps: how many threads each of them takes of the machine, and how long the program rests between them.
//!
//! The thin part around [`Threads`]: looks at the machine and at the clock.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::threads::{Fewer, IDLE_LOOK, LOOK, Threads};
use crate::system::busy::{Glance, Waits};

/// What was known of the machine before a pause of this length is no longer known.
const PAUSE: Duration = Duration::from_millis(100);

/// Time between two looks at who else runs.
const APART: Duration = Duration::from_millis(1);

/// So many looks at the most, until one finds that nobody else runs: what always runs is seen by all of them.
const LOOKS: usize = 8;

/// How often the flag of an interruption is looked at in a rest.
const TICK: Duration = Duration::from_millis(10);

/// Takes fewer threads while others use the processors, where the system tells of that.
#[derive(Debug)]
pub struct Pace {
    threads: Threads,
    /// The waits of the threads that compute now; `None` before the first step, and where the system does not tell
    waits: Option<Waits>,
    /// How many compute now
    n: usize,
    /// What they computed for since their waits were looked at
    time: Duration,
    /// When it was last looked for idle processors
    idle: Option<(Instant, Glance)>,
    /// When the last step ended
    end: Option<Instant>,
}

impl Pace {
    /// For steps that take `most` threads, or fewer.
    pub fn new(most: usize) -> Pace {
        Pace { threads: Threads::new(most), waits: None, n: 0, time: Duration::ZERO, idle: None, end: None }
    }

    /// Whether the next step begins after a pause.
    pub fn is_after_pause(&self) -> bool {
        self.end.is_none_or(|end| end.elapsed() > PAUSE)
    }

    /// How many threads the next step takes of `asked`. After a pause, none of the process's own threads may run but the one that calls.
    pub fn next(&mut self, asked: usize) -> usize {
        if self.is_after_pause() {
            self.idle = None;
            if let Some((n_cpus, n_others)) = others() {
                self.threads.begin(n_cpus, n_others);
            }
            // What the threads waited in the pause does not count.
            self.waits = None;
        }
        self.threads.next(asked)
    }

    /// Hears that the next step is computed by `n` threads, which have been started.
    pub fn begin(&mut self, n: usize) {
        if self.n != n || self.waits.is_none() {
            (self.n, self.time) = (n, Duration::ZERO);
            self.waits = Waits::begin();
        }
    }

    /// Hears that it took so long.
    pub fn end(&mut self, time: Duration) {
        let now = Instant::now();
        self.end = Some(now);
        self.time += time;
        if self.time < LOOK {
            return;
        }
        let Some(aside) = self.waits.as_mut().and_then(Waits::lately) else { return };
        self.threads.learn_aside(self.n, std::mem::take(&mut self.time), aside);
        if !self.threads.are_fewer() {
            self.idle = None;
            return;
        }
        let since = self.idle.map(|(at, _)| now - at);
        if since.is_none_or(|since| since >= IDLE_LOOK) {
            let glance = Glance::now();
            if let Some((at, before)) = self.idle {
                self.threads.learn_idle(now - at, glance.and_then(|g| g.idle_since(&before)));
            }
            self.idle = glance.map(|glance| (now, glance));
        }
    }

    /// What was given up since this was last asked.
    pub fn take_fewer(&mut self) -> Option<Fewer> {
        self.threads.take_fewer()
    }
}

/// Processors of the machine, and threads of other programs that run now: the least of a few looks, as many a program runs for a moment.
fn others() -> Option<(usize, usize)> {
    let look = || Glance::now().map(|g| (g.n_cpus, g.n_running.saturating_sub(1)));
    let mut least = look()?;
    for _ in 1..LOOKS {
        if least.1 == 0 {
            break;
        }
        // Who sleeps beside busy programs waits for their time slices.
        let start = Instant::now();
        while start.elapsed() < APART {
            spin_loop();
        }
        least = look()?.min(least);
    }
    Some(least)
}

/// Rests, so that the program computes for a share of the time only.
#[derive(Debug)]
pub struct Rest {
    /// This share, more than 0, at most 1
    power: f64,
    until: Option<Instant>,
}

impl Rest {
    /// For this share of the time.
    pub fn new(power: f64) -> Rest {
        Rest { power, until: None }
    }

    /// Whether the next step is to wait.
    pub fn is_due(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }

    /// Waits until the next step may begin, or until `interrupt` is set.
    pub fn wait(&mut self, interrupt: &AtomicBool) {
        let Some(until) = self.until.take() else { return };
        while !interrupt.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sleep(left.min(TICK));
        }
    }

    /// Hears that a step took so long.
    pub fn after(&mut self, time: Duration) {
        self.until = (self.power < 1.0).then(|| Instant::now() + time.mul_f64(1.0 / self.power - 1.0));
    }
}
