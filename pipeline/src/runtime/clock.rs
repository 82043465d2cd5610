//! The clock that the runtime gives to operators.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Time;

/// Where a pipeline's wall-clock time comes from.
///
/// [`Clock::simulated`] follows tokio's clock, so that a test under `#[tokio::test(start_paused = true)]` runs a whole
/// pipeline through hours in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    simulated: Option<(Time, Instant)>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { simulated: None }
    }

    /// A clock that shows `start` now and moves with tokio's clock.
    pub fn simulated(start: Time) -> Self {
        Self { simulated: Some((start, Instant::now())) }
    }

    /// The time now.
    #[expect(clippy::disallowed_methods, reason = "this is where time becomes an input")]
    pub fn now(&self) -> Time {
        match self.simulated {
            Some((start, since)) => start.after(since.elapsed()),
            None => Time(0).after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        }
    }

    /// Waits until `moment`; returns at once when it has passed.
    pub async fn sleep_until(&self, moment: Time) {
        // The machine's clock may be set while we sleep: look again before believing.
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}
