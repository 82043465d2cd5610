//! The sending side of a subtask: rows find their receivers, everything else goes to all of them.

use std::sync::Arc;
use std::task::{self, Poll};

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::channel::{Closed, Message, Sender};
use super::metrics::SubtaskMetrics;
use super::{OperatorError, hash};
use crate::plan::Exchange;

/// A channel and the message that waits to go into it.
#[derive(Debug)]
struct Lane {
    sender: Sender,
    waiting: Option<Message>,
}

/// One edge, seen from one sending subtask.
#[derive(Debug)]
struct Route {
    exchange: Exchange,
    lanes: Vec<Lane>,
    /// The receiver of the next batch, where batches are not divided.
    next: usize,
    /// Whether the batch after it goes to the next receiver. Changes do not go round: one that withdraws a row could be ahead of
    /// the one that adds it.
    goes_round: bool,
    division: Division,
}

/// How the last batch was divided among receivers. Kept for its memory.
#[derive(Debug, Default)]
struct Division {
    /// Of each row: its hash, then its receiver.
    owners: Vec<u64>,
    /// The rows of each receiver, in a part for as many as the batch has: nothing needs to be counted first.
    rows: Vec<u32>,
    /// Where the rows of each receiver end in them.
    ends: Vec<usize>,
}

/// All edges out of one subtask.
///
/// One message is on its way at a time: it is cut into one piece per channel, and the next message is taken when every
/// piece is in its channel. A receiver that is full thus holds the sender back, and no receiver is more than one message
/// ahead of what its channel holds.
#[derive(Debug)]
pub struct Outputs {
    routes: Vec<Route>,
    metrics: Arc<SubtaskMetrics>,
}

impl Outputs {
    /// No edges yet; what is sent is counted in `metrics`.
    pub fn new(metrics: Arc<SubtaskMetrics>) -> Self {
        Self { routes: Vec::new(), metrics }
    }

    /// Adds an edge with the channels to all of its receivers that this subtask (number `index`) sends to. Its rows may be
    /// changes of rows sent before (`is_updating`).
    pub fn add(&mut self, exchange: Exchange, is_updating: bool, senders: Vec<Sender>, index: usize) {
        let next = index % senders.len().max(1);
        let lanes = senders.into_iter().map(|sender| Lane { sender, waiting: None }).collect();
        self.routes.push(Route { exchange, lanes, next, goes_round: !is_updating, division: Division::default() });
    }

    /// Whether nobody reads this subtask: a sink.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Cuts `message` into pieces, which [`Outputs::poll_flush`] then sends. The message before it must have been flushed.
    ///
    /// # Errors
    /// Rows that cannot be hashed or split.
    pub fn load(&mut self, message: &Message) -> Result<(), OperatorError> {
        match message {
            Message::Batch(batch) => self.metrics.sent(batch.num_rows()),
            Message::Watermark(watermark) => self.metrics.set_watermark(*watermark),
            Message::Barrier(_) | Message::End => {}
        }
        for route in &mut self.routes {
            match message {
                Message::Batch(batch) => route.load_batch(batch).map_err(|error| {
                    OperatorError::internal("rows could not be divided among the subtasks that read them")
                        .because(error)
                })?,
                other => route.lanes.iter_mut().for_each(|lane| lane.waiting = Some(other.clone())),
            }
        }
        Ok(())
    }

    /// Sends the pieces of the loaded message, all at once; ready when all are in their channels.
    pub fn poll_flush(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), Closed>> {
        let mut full = false;
        for lane in self.routes.iter_mut().flat_map(|route| &mut route.lanes).filter(|lane| lane.waiting.is_some()) {
            match lane.sender.poll_send(task, &mut lane.waiting) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(closed)) => return Poll::Ready(Err(closed)),
                Poll::Pending => full = true,
            }
        }
        self.metrics.set_blocked(full);
        if full { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl Route {
    fn load_batch(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let count = self.lanes.len();
        match &self.exchange {
            Exchange::Hash(keys) if count > 1 && !keys.is_empty() => {
                let keys = keys.iter().map(|key| column(batch, *key)).collect::<Result<Vec<_>, _>>()?;
                for (receiver, part) in split(batch, &keys, count, &mut self.division)? {
                    self.put(receiver, part);
                }
            }
            Exchange::Hash(_) => self.put(0, batch.clone()),
            Exchange::Forward => {
                self.put(self.next, batch.clone());
                if self.goes_round {
                    self.next = (self.next + 1) % count.max(1);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, receiver: usize, batch: RecordBatch) {
        if let Some(lane) = self.lanes.get_mut(receiver) {
            lane.waiting = Some(Message::Batch(batch));
        }
    }
}

fn column(batch: &RecordBatch, index: usize) -> Result<&ArrayRef, ArrowError> {
    let missing =
        || ArrowError::SchemaError(format!("key column {index} of a batch with {} columns", batch.num_columns()));
    batch.columns().get(index).ok_or_else(missing)
}

/// Cuts `batch` into one part per receiver that has rows in it, in the order of the rows. A batch that is all for one
/// receiver is not copied.
///
/// Parts are not gathered into larger batches: with 8,192 rows and some dozen receivers they are still large enough for
/// work by columns, and gathering would hold rows back at every watermark.
fn split(
    batch: &RecordBatch,
    keys: &[&ArrayRef],
    receivers: usize,
    division: &mut Division,
) -> Result<Vec<(usize, RecordBatch)>, ArrowError> {
    let count = batch.num_rows();
    let Division { owners, rows, ends } = division;
    hash::hash_columns_into(keys.iter().copied(), count, owners)?;
    // On its own: a loop that also stores where the product says is three times as slow.
    owners.iter_mut().for_each(|owner| *owner = hash::owner(*owner, receivers) as u64);
    rows.resize(receivers * count, 0);
    ends.clear();
    ends.extend((0..receivers).map(|receiver| receiver * count));
    for (row, owner) in (0_u32..).zip(owners) {
        let end = &mut ends[*owner as usize];
        rows[*end] = row;
        *end += 1;
    }
    let mut parts = Vec::with_capacity(receivers);
    for (receiver, end) in ends.iter().enumerate() {
        let own = &rows[receiver * count..*end];
        if own.len() == count {
            return Ok(vec![(receiver, batch.clone())]);
        }
        if !own.is_empty() {
            parts.push((receiver, take_record_batch(batch, &UInt32Array::from(own.to_vec()))?));
        }
    }
    Ok(parts)
}
