//! The one timer of a subtask.

use std::fmt;
use std::task::{self, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{Clock, Time};

/// When [`super::Operator::timer`] is due.
pub struct Timer {
    clock: Clock,
    due: Option<Time>,
    sleep: Option<BoxFuture<'static, ()>>,
}

impl Timer {
    /// Not set.
    pub fn new(clock: Clock) -> Self {
        Self { clock, due: None, sleep: None }
    }

    /// Due at `moment`, unless it is due earlier.
    pub fn ask(&mut self, moment: Time) {
        if self.due.is_none_or(|due| moment < due) {
            self.due = Some(moment);
            self.sleep = None;
        }
    }

    /// Ready once when it is due; then it is no longer set.
    pub fn poll_due(&mut self, task: &mut task::Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let clock = self.clock;
        let sleep = self.sleep.get_or_insert_with(|| async move { clock.sleep_until(due).await }.boxed());
        let done = sleep.poll_unpin(task);
        if done.is_ready() {
            (self.due, self.sleep) = (None, None);
        }
        done
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("due", &self.due).finish_non_exhaustive()
    }
}
