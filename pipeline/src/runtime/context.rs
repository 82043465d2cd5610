//! What an operator is given with every call: the time, and a place to put what it sends.

use std::collections::VecDeque;
use std::time::Duration;

use arrow::record_batch::RecordBatch;

use super::{Time, Watermark};

/// One thing that an operator sends to all its readers.
#[derive(Debug, Clone)]
pub enum Output {
    /// Rows, in the columns of the node's output.
    Batch(RecordBatch),
    /// A watermark: no earlier row follows.
    Watermark(Watermark),
}

/// What an operator has sent during a call and when it wants to be woken. The runtime empties it after each call.
#[derive(Debug, Default)]
pub struct Outbox {
    outputs: VecDeque<Output>,
    wake: Option<Time>,
    wants_checkpoint: bool,
    counts: Counts,
    calls: Vec<Duration>,
}

/// What an operator has counted during a call, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows left out because they were behind the watermark.
    pub late_rows: u64,
    /// Rows that a sink has handed over for good.
    pub delivered_rows: u64,
}

impl Outbox {
    /// Takes the oldest thing sent.
    pub fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the moment at which [`super::Operator::timer`] is due, if one was asked for.
    pub fn take_wake(&mut self) -> Option<Time> {
        self.wake.take()
    }

    /// Takes whether a checkpoint was asked for.
    pub fn take_wants_checkpoint(&mut self) -> bool {
        std::mem::take(&mut self.wants_checkpoint)
    }

    /// Takes what was counted since the last call of this.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Takes how long each of the calls took that have ended.
    pub fn take_calls(&mut self) -> impl Iterator<Item = Duration> {
        self.calls.drain(..)
    }

    /// Whether everything sent was taken.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }
}

/// The time of a call, and the way to send.
#[derive(Debug)]
pub struct Context<'a> {
    now: Time,
    outbox: &'a mut Outbox,
}

impl<'a> Context<'a> {
    /// A call at `now` that sends into `outbox`.
    pub fn new(now: Time, outbox: &'a mut Outbox) -> Self {
        Self { now, outbox }
    }

    /// The wall-clock time of this call. Operators read no other clock.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Whether something that was sent before still waits for a full reader. An operator that turns one batch into many
    /// makes the next only when this is false; [`super::Operator::poll_work`] is called again when it has changed.
    pub fn is_blocked(&self) -> bool {
        !self.outbox.outputs.is_empty()
    }

    /// Sends rows on. Empty batches are not sent.
    pub fn emit(&mut self, batch: RecordBatch) {
        if batch.num_rows() > 0 {
            self.outbox.outputs.push_back(Output::Batch(batch));
        }
    }

    /// Sends a watermark, behind all rows sent so far.
    pub fn emit_watermark(&mut self, watermark: Watermark) {
        self.outbox.outputs.push_back(Output::Watermark(watermark));
    }

    /// Asks for a call of [`super::Operator::timer`] at `moment` or soon after. An earlier wish that is still open stays
    /// when it is earlier; there is one timer per subtask.
    pub fn wake_at(&mut self, moment: Time) {
        let earliest = self.outbox.wake.map_or(moment, |open| open.min(moment));
        self.outbox.wake = Some(earliest);
    }

    /// Asks for a checkpoint now, or as soon as the one under way is complete, rather than at the end of the interval: for
    /// an operator that holds much until then.
    pub fn want_checkpoint(&mut self) {
        self.outbox.wants_checkpoint = true;
    }

    /// Counts rows that were left out because they came behind the watermark.
    pub fn count_late(&mut self, rows: usize) {
        self.outbox.counts.late_rows += rows as u64;
    }

    /// Notes how long a call of a function took that has ended.
    pub fn record_call(&mut self, took: Duration) {
        self.outbox.calls.push(took);
    }

    /// Counts rows that a sink has handed over for good (ClickHouse has acknowledged them). The time of the call is
    /// shown as the sink's last delivery.
    pub fn record_delivery(&mut self, rows: usize) {
        self.outbox.counts.delivered_rows += rows as u64;
    }
}
