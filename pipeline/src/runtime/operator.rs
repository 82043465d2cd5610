//! The contract between the runtime and everything that it runs.

use std::sync::Arc;
use std::task::{self, Poll};

use arrow::record_batch::RecordBatch;
use futures::future::BoxFuture;

use super::{Barrier, Clock, Context, Epoch, OperatorError, Time, Watermark};
use crate::plan::NodePlan;
use crate::state::{Restored, Snapshot};

/// Which of a node's subtasks is being built.
#[derive(Debug, Clone)]
pub struct Subtask {
    /// The pipeline's name (`--name`).
    pub pipeline: String,
    /// The node's name: unique in the pipeline.
    pub node: String,
    /// From 0.
    pub index: usize,
    /// How many subtasks the node has.
    pub parallelism: usize,
    /// Whether anything behind the node reads the event time of its rows. If not, [`crate::plan::TIMESTAMP_COLUMN`] may have any
    /// times in it.
    pub event_time_is_read: bool,
    /// The clock, for futures that outlive a call (back-off between tries).
    pub clock: Clock,
    /// The name of this run, where state is saved: no other run of any pipeline that has completed a checkpoint has it. None
    /// when no state is saved.
    pub run: Option<Arc<str>>,
}

/// A node that can be run: one [`Body`] per subtask.
pub trait Stage: NodePlan {
    /// Builds one subtask. Called once per subtask before any row moves; may not block or do I/O (what needs I/O to
    /// start does it in its first call).
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError>;

    /// Whether rows leave the pipeline here when their checkpoint is complete ([`Operator::epoch_completed`]). A complete
    /// checkpoint of such a pipeline is never passed over without being asked for.
    fn commits(&self) -> bool {
        false
    }
}

/// The running half of a node.
pub enum Body {
    /// Has no inputs; makes rows.
    Source(Box<dyn Source>),
    /// Has inputs; a sink is an operator that sends nothing.
    Operator(Box<dyn Operator>),
}

/// One subtask of an operator or a sink.
///
/// Calls come one at a time, on one task. An operator never spawns, sleeps, reads a clock or touches a channel: it
/// computes on what it is given, and sends through the [`Context`]. Work that takes time (calls to a UDF, inserts) is
/// held by the operator as futures which the runtime drives through [`Operator::poll_work`].
///
/// An error ends the pipeline; after one, no method is called again. A panic is turned into an error.
pub trait Operator: Send {
    /// Called once, before every other call, when the pipeline goes on from a checkpoint in which the node had state: takes
    /// back what [`Operator::snapshot`] saved. The node may have had another number of subtasks.
    fn restore(&mut self, _state: &Restored) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Called once, before every other call but [`Operator::restore`]: the place to ask for a first timer.
    fn start(&mut self, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Takes one batch of input `input`, in that input's schema; never empty. Called only while
    /// [`Operator::accepts_input`] is true.
    fn process(&mut self, input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError>;

    /// The least watermark over all inputs has moved. It never goes back. [`Watermark::At`] [`Time::MAX`] comes last,
    /// when every input has ended. By default it is passed on.
    ///
    /// An operator that holds rows back must send what the watermark completes before it passes the watermark on,
    /// and may not pass it on before rows that are earlier.
    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.emit_watermark(watermark);
        Ok(())
    }

    /// The moment asked for by [`Context::wake_at`] has come. Ask again for another.
    fn timer(&mut self, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Drives work in flight. `Ready(Ok(()))`: something finished (its rows may have been sent) and the call should be
    /// repeated; `Pending`: nothing to do until the waker in `task` is called. Without work in flight: `Pending`.
    fn poll_work(&mut self, _task: &mut task::Context<'_>, _cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        Poll::Pending
    }

    /// Whether another batch may be given now. False is back-pressure: the inputs wait, work in flight goes on.
    fn accepts_input(&self) -> bool {
        true
    }

    /// A barrier has arrived on every input. Send (or begin to insert) all that belongs to the epoch and is not saved by
    /// [`Operator::snapshot`]. The barrier moves on when [`Operator::is_settled`] is true; until then no input is given, and
    /// work in flight is driven. When [`Barrier::stop`] is set nothing may be left in flight.
    fn barrier(&mut self, _barrier: Barrier, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Whether nothing is in flight that must be done before a barrier may pass or the operator may end.
    fn is_settled(&self) -> bool {
        true
    }

    /// Saves what is needed to go on behind the barrier, or the end, that the operator has just settled for. Called only
    /// where state is saved. Should take no longer than the rows that have changed: see [`Snapshot::log`].
    fn snapshot(&mut self, _snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// The checkpoint of `epoch` is complete, and with it everything that this operator has handed over: what was staged
    /// ([`Snapshot::stage`]) may be delivered. May come while a later barrier is being settled. Not called for the checkpoint
    /// that the pipeline goes on from: what that has staged comes back by [`Operator::restore`].
    fn epoch_completed(&mut self, _epoch: Epoch, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Whether something that was staged is not delivered yet. A subtask does not end before it is.
    fn awaits_completion(&self) -> bool {
        false
    }

    /// Every input has ended and the last watermark was seen. Send what is left; the operator ends when
    /// [`Operator::is_settled`] is true.
    fn finish(&mut self, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Calls or inserts under way, for the live view and the metrics.
    fn in_flight(&self) -> usize {
        0
    }
}

/// What a source has to say.
#[derive(Debug)]
pub enum SourceEvent {
    /// Rows, in the columns of the node's output.
    Batch(RecordBatch),
    /// A watermark that the source itself knows. Most leave watermarks to the watermark operator behind them.
    Watermark(Watermark),
    /// No more rows, ever.
    End,
}

/// What a source may use while it waits.
#[derive(Debug, Clone, Copy)]
pub struct SourceContext {
    /// The only clock that a source reads.
    pub clock: Clock,
}

impl SourceContext {
    /// The time now.
    pub fn now(&self) -> Time {
        self.clock.now()
    }
}

/// One subtask of a source.
pub trait Source: Send {
    /// Waits for the next event. Must be cancel-safe: the runtime drops the future when a barrier is due and calls
    /// again later; no row may be lost or doubled by that. After [`SourceEvent::End`] it is not called again.
    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>>;

    /// Called before every other call when the pipeline goes on from a checkpoint in which the node had state: takes back
    /// what [`Source::snapshot`] saved. The node may have had another number of subtasks.
    fn restore(&mut self, _state: &Restored) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Saves the position behind the rows returned so far. Called at each barrier and at the end, where state is saved.
    fn snapshot(&mut self, _snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        Ok(())
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source(_) => "Source",
            Self::Operator(_) => "Operator",
        })
    }
}
