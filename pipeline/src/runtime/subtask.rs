//! What subtasks of every kind have in common: how they end, how they report, how they share the processor.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc;

use super::channel::Closed;
use super::error::of_panic;
use super::metrics::SubtaskMetrics;
use super::saving::Saving;
use super::{Clock, Epoch, OperatorError};
use crate::state::SubtaskSnapshot;

/// How a subtask's life ended, when not in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing more to do: its inputs have ended, or as a source it has.
    Ended,
    /// It passed a barrier that stops the pipeline.
    Stopped,
    /// A neighbour is gone without a word. Whoever made it go reports the error.
    Cut,
}

/// Why a subtask cannot go on.
#[derive(Debug)]
pub enum Halt {
    /// Its own error.
    Failed(OperatorError),
    /// A neighbour is gone.
    Cut,
}

impl From<OperatorError> for Halt {
    fn from(error: OperatorError) -> Self {
        Self::Failed(error)
    }
}

impl From<Closed> for Halt {
    fn from(_: Closed) -> Self {
        Self::Cut
    }
}

/// Runs a subtask's life; a panic in it becomes an error.
pub async fn guard(life: impl Future<Output = Result<Outcome, Halt>>) -> Result<Outcome, OperatorError> {
    // What a panic may have left half done is dropped with the future and not looked at again.
    match AssertUnwindSafe(life).catch_unwind().await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(Halt::Cut)) => Ok(Outcome::Cut),
        Ok(Err(Halt::Failed(error))) => Err(error),
        Err(payload) => Err(of_panic(payload.as_ref())),
    }
}

/// What a subtask tells the coordinator.
#[derive(Debug)]
pub struct Report {
    /// The subtask's number among all of the pipeline.
    pub subtask: usize,
    /// What it has to say.
    pub said: Said,
}

/// What there is to say.
#[derive(Debug)]
pub enum Said {
    /// It has passed the barrier of an epoch: all that belongs to the epoch has left it, and this is its state.
    Passed(Epoch, SubtaskSnapshot),
    /// It has ended, and this is its last state. Said again when the state has changed since.
    Ended(SubtaskSnapshot),
    /// It holds so much that is delivered with the next checkpoint that this should come soon.
    WantsCheckpoint,
}

/// Where a subtask reports to.
#[derive(Debug)]
pub struct Reporter {
    /// The subtask's number among all of the pipeline.
    pub subtask: usize,
    /// To the coordinator.
    pub reports: mpsc::UnboundedSender<Report>,
}

impl Reporter {
    /// Tells the coordinator.
    pub fn say(&self, said: Said) {
        // Without a coordinator the pipeline is being torn down, this subtask with it.
        let _ = self.reports.send(Report { subtask: self.subtask, said });
    }
}

/// What every subtask has beside its body and its channels.
#[derive(Debug)]
pub struct Belongings {
    /// The only clock that it reads.
    pub clock: Clock,
    /// The way to the coordinator.
    pub reporter: Reporter,
    /// What it counts.
    pub metrics: Arc<SubtaskMetrics>,
    /// Its state.
    pub saving: Saving,
}

/// Sees to it that a subtask that is never out of work lets others run.
///
/// tokio switches tasks only where they wait. A subtask that always finds input and room to send would keep its thread.
#[derive(Debug, Default)]
pub struct Pace {
    busy: Duration,
}

impl Pace {
    const SLICE: Duration = Duration::from_millis(1);

    /// Adds time spent computing.
    pub fn spend(&mut self, busy: Duration) {
        self.busy += busy;
    }

    /// Lets others run if the subtask has used up its slice of time.
    pub async fn breathe(&mut self) {
        if self.busy >= Self::SLICE {
            self.busy = Duration::ZERO;
            tokio::task::yield_now().await;
        }
    }
}
