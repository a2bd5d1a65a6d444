//! How long prompts take for what is not the products themselves.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ggml::{Op, Parts, Source};

/// Times so far, which operations of a graph add to while it is computed.
#[derive(Debug, Default)]
pub struct Clock {
    /// Nanoseconds of probes, from the first node to the choice of what is kept
    probe: AtomicI64,
    /// Nanoseconds of packing weights, summed over threads, that of probes aside
    pack: AtomicI64,
}

impl Clock {
    /// Time of probes so far.
    pub fn probe(&self) -> Duration {
        nanoseconds(&self.probe)
    }

    /// Time of packing so far, summed over threads.
    pub fn pack(&self) -> Duration {
        nanoseconds(&self.pack)
    }

    /// Adds to the time of packing.
    pub fn add_pack(&self, time: Duration) {
        self.pack.fetch_add(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

fn nanoseconds(n: &AtomicI64) -> Duration {
    Duration::from_nanos(u64::try_from(n.load(Ordering::Relaxed)).unwrap_or(0))
}

/// Marks a moment of a graph: the start or the end of a probe. Its result, one number, is of no use.
///
/// A start subtracts the present time from the clock and an end adds it, so that the clock goes forward by the time between.
#[derive(Debug)]
pub struct Mark {
    /// The clock
    pub clock: Arc<Clock>,
    /// The probe begins
    pub is_start: bool,
}

impl Op for Mark {
    fn compute(&self, _sources: &[Source], parts: &mut Parts) {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        while let Some(mut out) = parts.next() {
            let now = ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as i64;
            self.clock.probe.fetch_add(if self.is_start { -now } else { now }, Ordering::Relaxed);
            out.elements::<f32>().fill(0.0);
        }
    }
}
