//! The receiving side of a subtask: many channels read fairly, watermarks merged, barriers aligned.

use std::collections::VecDeque;
use std::task::{self, Poll};

use arrow::record_batch::RecordBatch;

use super::channel::{Closed, Message, Receiver};
use super::subtask::Halt;
use super::watermarks::WatermarkMerge;
use super::{Barrier, OperatorError, Watermark};

/// What the channels together have to say.
#[derive(Debug)]
pub enum InputEvent {
    /// Rows of one of the node's inputs.
    Batch(usize, RecordBatch),
    /// The merged watermark has moved.
    Watermark(Watermark),
    /// The barrier has arrived on every channel that has not ended.
    Barrier(Barrier),
    /// Every channel has ended. Comes once, last.
    Ended,
}

/// Whether a channel is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Its barrier has arrived; not read until all the others' have.
    Aligning,
    Ended,
}

#[derive(Debug)]
struct Lane {
    /// Which of the node's inputs.
    input: usize,
    receiver: Receiver,
    gate: Gate,
}

/// All channels into one subtask.
#[derive(Debug)]
pub struct Inputs {
    lanes: Vec<Lane>,
    watermarks: WatermarkMerge,
    /// The barrier that some channels have delivered and others not.
    aligning: Option<Barrier>,
    /// Where the next search for a message starts: behind the lane that was read last, so that all get their turn.
    cursor: usize,
    /// What follows from a message besides the first event: the end of a channel may move the watermark, complete a
    /// barrier and end the subtask.
    pending: VecDeque<InputEvent>,
}

impl Inputs {
    /// Reads these channels, each with the number of the node's input it belongs to.
    pub fn new(channels: Vec<(usize, Receiver)>) -> Self {
        let watermarks = WatermarkMerge::new(channels.len());
        let lanes = channels.into_iter().map(|(input, receiver)| Lane { input, receiver, gate: Gate::Open }).collect();
        Self { lanes, watermarks, aligning: None, cursor: 0, pending: VecDeque::new() }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// [`Halt::Cut`] when a sender is gone without having ended; senders that disagree about the barrier.
    pub fn poll_next(&mut self, task: &mut task::Context<'_>) -> Poll<Result<InputEvent, Halt>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Poll::Ready(Ok(event));
            }
            let Some((index, message)) = self.poll_lanes(task) else {
                return Poll::Pending;
            };
            self.accept(index, message?)?;
        }
    }

    /// The first message that is there, seen from the cursor, and its lane.
    fn poll_lanes(&mut self, task: &mut task::Context<'_>) -> Option<(usize, Result<Message, Closed>)> {
        let count = self.lanes.len();
        for index in (self.cursor..count).chain(0..self.cursor) {
            let lane = self.lanes.get(index).filter(|lane| lane.gate == Gate::Open);
            if let Some(Poll::Ready(message)) = lane.map(|lane| lane.receiver.poll_receive(task)) {
                self.cursor = (index + 1) % count;
                return Some((index, message));
            }
        }
        None
    }

    fn accept(&mut self, index: usize, message: Message) -> Result<(), OperatorError> {
        let Some(lane) = self.lanes.get_mut(index) else { return Ok(()) };
        match message {
            Message::Batch(batch) => self.pending.push_back(InputEvent::Batch(lane.input, batch)),
            Message::Watermark(watermark) => {
                self.pending.extend(self.watermarks.update(index, watermark).map(InputEvent::Watermark));
            }
            Message::Barrier(barrier) => {
                lane.gate = Gate::Aligning;
                let expected = *self.aligning.get_or_insert(barrier);
                if expected != barrier {
                    let text = format!("one sender is at epoch {}, another at epoch {}", expected.epoch, barrier.epoch);
                    return Err(OperatorError::internal(text));
                }
                self.complete_alignment();
            }
            Message::End => {
                lane.gate = Gate::Ended;
                self.pending.extend(self.watermarks.end(index).map(InputEvent::Watermark));
                self.complete_alignment();
                if self.lanes.iter().all(|lane| lane.gate == Gate::Ended) {
                    self.pending.push_back(InputEvent::Ended);
                }
            }
        }
        Ok(())
    }

    fn complete_alignment(&mut self) {
        if self.lanes.iter().any(|lane| lane.gate == Gate::Open) {
            return;
        }
        if let Some(barrier) = self.aligning.take() {
            for lane in self.lanes.iter_mut().filter(|lane| lane.gate == Gate::Aligning) {
                lane.gate = Gate::Open;
            }
            self.pending.push_back(InputEvent::Barrier(barrier));
        }
    }
}
