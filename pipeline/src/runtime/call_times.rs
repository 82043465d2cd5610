//! How long the calls of a subtask took: a histogram.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The buckets' upper bounds, in microseconds: what is at hand, a network nearby, one far away, and timeouts.
const BOUNDS: [u64; 25] = [
    100,
    200,
    300,
    500,
    700,
    1_000,
    2_000,
    3_000,
    5_000,
    7_000,
    10_000,
    20_000,
    30_000,
    50_000,
    70_000,
    100_000,
    200_000,
    300_000,
    500_000,
    700_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
];

/// Counts calls by how long they took.
#[derive(Debug)]
pub(super) struct CallTimes {
    /// Calls that took no longer than the bound of the same place and longer than the one before; the last has no bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl CallTimes {
    pub(super) fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1], micros: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(BOUNDS.partition_point(|bound| *bound < micros)) {
            count.fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(micros, Relaxed);
    }

    pub(super) fn snapshot(&self) -> CallTimesSnapshot {
        CallTimesSnapshot {
            counts: self.counts.iter().map(|count| count.load(Relaxed)).collect(),
            total: Duration::from_micros(self.micros.load(Relaxed)),
        }
    }
}

/// Calls by how long they took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallTimesSnapshot {
    counts: Vec<u64>,
    /// What all calls took together.
    pub total: Duration,
}

impl CallTimesSnapshot {
    /// How many calls took no longer than each bound, in seconds.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        bounds.zip(&self.counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }

    /// All calls.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_the_first_bucket_that_holds_it() {
        let times = CallTimes::new();
        for micros in [0, 100, 101, 4_000, 200_000_000] {
            times.add(Duration::from_micros(micros));
        }
        let found = times.snapshot();
        let below = |seconds: f64| found.cumulative().find(|(bound, _)| *bound == seconds).map(|(_, count)| count);
        assert_eq!([0.0001, 0.0002, 0.003, 0.005, 100.0].map(below), [2, 3, 3, 4, 4].map(Some));
        assert_eq!((found.count(), found.total), (5, Duration::from_micros(200_004_201)));
    }
}
