//! Event time, watermarks, epochs.

use std::fmt;
use std::time::Duration;

use arrow::temporal_conversions::timestamp_ns_to_datetime;

/// A moment, in nanoseconds since the Unix epoch, UTC: of an event, or of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// Later than every event: the last watermark of a stream that has ended.
    pub const MAX: Self = Self(i64::MAX);
    /// Earlier than every event.
    pub const MIN: Self = Self(i64::MIN);

    /// This moment plus `duration`, at most [`Time::MAX`].
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// This moment minus `duration`, at least [`Time::MIN`].
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// The time from `earlier` to this moment; zero when it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match timestamp_ns_to_datetime(self.0) {
            Some(moment) => write!(f, "{}Z", moment.format("%Y-%m-%dT%H:%M:%S%.f")),
            None => write!(f, "{} ns", self.0),
        }
    }
}

/// A promise about the rows still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watermark {
    /// No row with an event time before this will be sent again; one that comes all the same is late.
    At(Time),
    /// Nothing is known and nobody should wait: the stream is quiet and holds no other back.
    Idle,
}

/// The number of a checkpoint, from 1: rows before a barrier belong to its epoch, rows after it to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Cuts every stream at the end of an epoch (Chandy and Lamport, 1985; aligned at operators with several inputs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barrier {
    /// The epoch that ends here.
    pub epoch: Epoch,
    /// Whether the pipeline stops cleanly behind this barrier: nothing follows it.
    pub stop: bool,
}
