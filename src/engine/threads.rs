//! How many threads compute: as many as find a processor free.
//!
//! ggml's threads wait for each other after every node, so one that the system puts aside makes all of them wait. Then fewer threads are
//! faster. A state machine without a machine and without a clock, as [`super::pruning`] is: it hears what was seen, and is asked how many
//! threads to take. So the rule can be tested with any figures.

use std::fmt;
use std::time::Duration;

/// What was put aside while so long was computed decides whether threads are given up.
pub const LOOK: Duration = Duration::from_millis(50);

/// How long after threads were given up it is first looked for idle processors, and how often from then on.
pub const IDLE_LOOK: Duration = Duration::from_millis(200);

/// The longest time that processors must have been idle.
const MOST_PATIENCE: Duration = Duration::from_secs(10);

/// Threads that are given up within this time of their return came back too early.
const TRIAL: Duration = Duration::from_secs(2);

/// Threads are given up if they were put aside, all together, for more than this share of what one of them adds to the speed. It is less than
/// 1, as a thread adds less than its share: memory is as fast for fewer.
const MUCH: f64 = 0.7;

/// Processors that must be idle for a thread to return.
const IDLE: f64 = 0.8;

/// Threads that were given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fewer {
    /// How many computed, at the least
    pub least: usize,
    /// Of how many that were asked for
    pub of: usize,
}

impl fmt::Display for Fewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "threads {} of {}: the machine was busy", self.least, self.of)
    }
}

/// The rule, and what it has come to so far.
#[derive(Debug)]
pub struct Threads {
    /// As many as are ever asked for
    most: usize,
    /// As many as find a processor free
    free: usize,
    /// How long processors must have been idle before threads return to them. It doubles when they returned too early.
    patience: Duration,
    /// For how long they were idle
    idle: Duration,
    /// Since when threads returned, as long as that is on trial
    trial: Option<Duration>,
    /// What was given up since this was last asked
    fewer: Option<Fewer>,
}

impl Threads {
    /// `most` are never exceeded.
    pub fn new(most: usize) -> Threads {
        Threads { most, free: most, patience: IDLE_LOOK, idle: Duration::ZERO, trial: None, fewer: None }
    }

    /// How many threads compute next where `asked` may.
    pub fn next(&mut self, asked: usize) -> usize {
        let n = asked.min(self.free);
        if n < asked && self.fewer.is_none_or(|f| n < f.least) {
            self.fewer = Some(Fewer { least: n, of: asked });
        }
        n
    }

    /// Whether fewer threads compute than could.
    pub fn are_fewer(&self) -> bool {
        self.free < self.most
    }

    /// What was given up since this was last asked.
    pub fn take_fewer(&mut self) -> Option<Fewer> {
        self.fewer.take()
    }

    /// After a pause nothing is known but this: `n_others` threads of other programs run on the machine's `n_cpus` processors.
    pub fn begin(&mut self, n_cpus: usize, n_others: usize) {
        self.set_free(n_cpus.saturating_sub(n_others));
        self.trial = None;
    }

    /// Hears that `n` threads computed for `time`, and were put aside for the time `aside`, all together.
    pub fn learn_aside(&mut self, n: usize, time: Duration, aside: Duration) {
        let aside = aside.as_secs_f64() / time.as_secs_f64().max(f64::MIN_POSITIVE);
        if n > 1 && aside * n as f64 > MUCH {
            self.patience = match self.trial.take() {
                Some(_) => (2 * self.patience).min(MOST_PATIENCE),
                None => IDLE_LOOK,
            };
            // So many others want a processor, each a part of the time.
            self.set_free(n - (aside.round() as usize).clamp(1, n - 1));
            return;
        }
        self.trial = self.trial.map(|since| since + time).filter(|&since| since < TRIAL);
    }

    /// Hears how many processors were idle for `time`, on average; `None` if that is unknown, and then it has to be tried.
    pub fn learn_idle(&mut self, time: Duration, idle: Option<f64>) {
        let idle = idle.unwrap_or(1.0);
        self.idle = if idle < IDLE { Duration::ZERO } else { self.idle + time };
        if self.idle >= self.patience {
            self.set_free(self.free + (idle + 1.0 - IDLE) as usize);
            self.trial = Some(Duration::ZERO);
        }
    }

    fn set_free(&mut self, n: usize) {
        self.free = n.clamp(1, self.most);
        self.idle = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which the threads compute beside busy programs. All share its processors evenly.
    struct Machine {
        n_cpus: usize,
        threads: Threads,
        /// How many threads computed, in each look
        looks: Vec<usize>,
        /// Idle processors, summed over the looks since they were last asked for
        idle: f64,
    }

    impl Machine {
        fn new(n_cpus: usize) -> Machine {
            Machine { n_cpus, threads: Threads::new(n_cpus), looks: Vec::new(), idle: 0.0 }
        }

        /// Computes for so many looks beside `n_busy` programs.
        fn run(&mut self, n_busy: usize, n_looks: usize) -> &[usize] {
            let (first, many) = (self.looks.len(), IDLE_LOOK.div_duration_f64(LOOK) as usize);
            for _ in 0..n_looks {
                let n = self.threads.next(self.n_cpus);
                self.looks.push(n);
                let each = (self.n_cpus as f64 / (n + n_busy) as f64).min(1.0);
                self.threads.learn_aside(n, LOOK, LOOK.mul_f64((1.0 - each) * n as f64));
                self.idle += self.n_cpus.saturating_sub(n + n_busy) as f64;
                if self.looks.len().is_multiple_of(many) {
                    let idle = std::mem::take(&mut self.idle) / many as f64;
                    if self.threads.are_fewer() {
                        self.threads.learn_idle(IDLE_LOOK, Some(idle));
                    }
                }
            }
            &self.looks[first..]
        }

        fn changes(&self) -> usize {
            self.looks.windows(2).filter(|w| w[0] != w[1]).count()
        }
    }

    #[test]
    fn an_idle_machine_computes_with_all() {
        let mut machine = Machine::new(2);
        machine.threads.begin(2, 0);
        assert!(machine.run(0, 100).iter().all(|&n| n == 2));
        assert_eq!(machine.threads.take_fewer(), None);
        // Others run now and then, for a little.
        for aside in [0.0, 0.1, 0.3, 0.0, 0.2] {
            machine.threads.learn_aside(2, LOOK, LOOK.mul_f64(aside));
            assert_eq!(machine.threads.next(2), 2);
        }
    }

    #[test]
    fn busy_programs_are_given_their_processors_at_the_first_look() {
        for n_busy in [1, 2, 3] {
            let mut machine = Machine::new(2);
            let looks = machine.run(n_busy, 100);
            assert!(looks[0] == 2 && looks[1..].iter().all(|&n| n == 1), "{n_busy}: {looks:?}");
            assert_eq!(machine.threads.take_fewer(), Some(Fewer { least: 1, of: 2 }));
            assert_eq!(machine.threads.take_fewer(), None);
        }
        let mut machine = Machine::new(8);
        assert_eq!(machine.run(3, 100).last(), Some(&5));
        // Where all processors are busy, few threads lose least.
        assert_eq!(machine.run(8, 100).last(), Some(&1));
    }

    #[test]
    fn the_first_step_knows_who_else_runs() {
        let mut threads = Threads::new(2);
        for (n_others, n) in [(1, 1), (0, 2), (2, 1), (9, 1)] {
            threads.begin(2, n_others);
            assert_eq!(threads.next(2), n, "{n_others}");
        }
        // There are more processors than threads.
        let mut threads = Threads::new(4);
        threads.begin(8, 3);
        assert_eq!((threads.next(4), threads.next(2)), (4, 2));
        threads.begin(8, 6);
        assert_eq!((threads.next(4), threads.next(2), threads.next(1)), (2, 2, 1));
        assert_eq!(threads.take_fewer(), Some(Fewer { least: 2, of: 4 }));
    }

    #[test]
    fn threads_return_once_the_machine_is_idle() {
        let mut machine = Machine::new(2);
        machine.run(1, 100);
        let looks = machine.run(0, 100).to_vec();
        let back = looks.iter().position(|&n| n == 2).unwrap();
        assert!(back <= 8 && looks[back..].iter().all(|&n| n == 2), "{looks:?}");
        // All of them at once.
        let mut machine = Machine::new(16);
        machine.run(16, 100);
        machine.run(0, 8);
        assert_eq!(machine.looks.last(), Some(&16));
    }

    #[test]
    fn a_long_load_is_no_reason_to_try() {
        let mut machine = Machine::new(2);
        machine.run(1, 10_000);
        machine.run(2, 10_000);
        assert_eq!(machine.changes(), 1);
    }

    #[test]
    fn a_load_that_comes_and_goes_is_followed() {
        let mut machine = Machine::new(2);
        for _ in 0..10 {
            machine.run(1, 100);
            machine.run(0, 100);
        }
        assert_eq!(machine.changes(), 20);
        // One that goes too briefly is not.
        let mut machine = Machine::new(2);
        machine.run(1, 10);
        for _ in 0..100 {
            machine.run(1, 10);
            machine.run(0, 2);
        }
        assert_eq!(machine.changes(), 1);
    }

    #[test]
    fn threads_that_returned_in_vain_wait_longer_and_longer() {
        // Processors seem to be idle, but whoever takes them is put aside: a quota, or an unknown.
        for idle in [Some(1.0), None] {
            let mut threads = Threads::new(2);
            let n_looks = 20 * 60;
            let mut n_tries = 0;
            for i in 0..n_looks {
                let n = threads.next(2);
                n_tries += usize::from(n == 2);
                threads.learn_aside(n, LOOK, LOOK.mul_f64(0.6 * (n - 1) as f64));
                if threads.are_fewer() && i % 4 == 0 {
                    threads.learn_idle(IDLE_LOOK, idle);
                }
            }
            // Within a minute.
            assert!((8..=14).contains(&n_tries), "{n_tries}");
            // When the machine is free at last, they return and stay.
            for _ in 0..100 {
                threads.learn_aside(1, LOOK, Duration::ZERO);
                threads.learn_idle(IDLE_LOOK, Some(1.0));
            }
            for _ in 0..100 {
                threads.learn_aside(2, LOOK, Duration::ZERO);
                assert_eq!(threads.next(2), 2);
            }
            // And the next load is a new one.
            threads.learn_aside(2, LOOK, LOOK);
            threads.learn_idle(IDLE_LOOK, Some(1.0));
            assert_eq!(threads.next(2), 2);
        }
    }
}
