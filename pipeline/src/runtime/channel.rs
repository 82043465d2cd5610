//! A channel from one subtask to one other, bounded by rows.
//!
//! A bound in batches would let memory grow with the size of the batches; a bound in rows does not. One sender, one
//! receiver, a lock that is held for a few instructions: the two meet in it once per batch.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, Waker};

use arrow::record_batch::RecordBatch;

use super::metrics::SubtaskMetrics;
use super::{Barrier, Watermark};

/// What flows between subtasks.
#[derive(Debug, Clone)]
pub enum Message {
    /// Rows; never empty.
    Batch(RecordBatch),
    /// No earlier row follows from this sender.
    Watermark(Watermark),
    /// The sender's epoch ends here.
    Barrier(Barrier),
    /// The sender has ended: nothing follows.
    End,
}

impl Message {
    fn rows(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.num_rows(),
            Self::Watermark(_) | Self::Barrier(_) | Self::End => 0,
        }
    }

    /// What the message takes up of a channel's bound. Messages without rows count as one row, so that they cannot pile
    /// up either.
    fn weight(&self) -> usize {
        self.rows().max(1)
    }
}

/// The other end is gone: its subtask has failed or was cancelled.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Message>,
    weight: usize,
    bound: usize,
    closed: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Of the receiving subtask.
    metrics: Arc<SubtaskMetrics>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let wakers = [queue.sender.take(), queue.receiver.take()];
        drop(queue);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The end that puts messages in. Dropping it closes the channel.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

/// The end that takes messages out. Dropping it closes the channel.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// A channel that holds at most `bound` rows, or one message, whichever is more. What waits in it is counted in `metrics`,
/// those of the receiving subtask.
pub fn channel(bound: usize, metrics: Arc<SubtaskMetrics>) -> (Sender, Receiver) {
    let queue = Queue { messages: VecDeque::new(), weight: 0, bound, closed: false, sender: None, receiver: None };
    let shared = Arc::new(Shared { queue: Mutex::new(queue), metrics });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Takes the message out of `slot` and puts it into the channel, as soon as there is room. `slot` must hold one.
    pub fn poll_send(&self, task: &mut task::Context<'_>, slot: &mut Option<Message>) -> Poll<Result<(), Closed>> {
        let mut queue = self.0.lock();
        if queue.closed {
            return Poll::Ready(Err(Closed));
        }
        let weight = slot.as_ref().map_or(0, Message::weight);
        if !queue.messages.is_empty() && queue.weight + weight > queue.bound {
            remember(&mut queue.sender, task);
            return Poll::Pending;
        }
        if let Some(message) = slot.take() {
            self.0.metrics.queued_rows.fetch_add(message.rows() as u64, Relaxed);
            queue.weight += weight;
            queue.messages.push_back(message);
        }
        let waker = queue.receiver.take();
        drop(queue);
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl Receiver {
    /// Takes the oldest message. What was sent before the sender went can still be taken.
    pub fn poll_receive(&self, task: &mut task::Context<'_>) -> Poll<Result<Message, Closed>> {
        let mut queue = self.0.lock();
        let Some(message) = queue.messages.pop_front() else {
            if queue.closed {
                return Poll::Ready(Err(Closed));
            }
            remember(&mut queue.receiver, task);
            return Poll::Pending;
        };
        queue.weight -= message.weight();
        // A waiting sender is woken when half of the bound is free, not for every message: fewer switches between the two.
        let roomy = queue.messages.is_empty() || queue.weight <= queue.bound / 2;
        let waker = if roomy { queue.sender.take() } else { None };
        drop(queue);
        self.0.metrics.queued_rows.fetch_sub(message.rows() as u64, Relaxed);
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(message))
    }
}

fn remember(slot: &mut Option<Waker>, task: &task::Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(task.waker()),
        None => *slot = Some(task.waker().clone()),
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use futures::task::noop_waker_ref;

    use super::*;
    use crate::runtime::tests::rows;
    use crate::runtime::{Time, Watermark};

    fn batch(count: i64) -> Message {
        Message::Batch(rows((0..count).map(|n| (n, n))))
    }

    fn send(sender: &Sender, message: Message) -> Poll<Result<(), Closed>> {
        sender.poll_send(&mut Context::from_waker(noop_waker_ref()), &mut Some(message))
    }

    fn receive(receiver: &Receiver) -> Poll<Result<usize, Closed>> {
        let message = receiver.poll_receive(&mut Context::from_waker(noop_waker_ref()));
        message.map(|message| message.map(|message| message.rows()))
    }

    #[test]
    fn rows_are_what_is_bounded() {
        let metrics = Arc::new(SubtaskMetrics::new());
        let (sender, receiver) = channel(10, Arc::clone(&metrics));
        assert_eq!(send(&sender, batch(4)), Poll::Ready(Ok(())));
        assert_eq!(send(&sender, batch(6)), Poll::Ready(Ok(())));
        assert_eq!(send(&sender, batch(1)), Poll::Pending);
        assert_eq!(metrics.queued_rows.load(Relaxed), 10);
        assert_eq!(receive(&receiver), Poll::Ready(Ok(4)));
        assert_eq!(send(&sender, batch(5)), Poll::Pending);
        assert_eq!(send(&sender, batch(4)), Poll::Ready(Ok(())));
        assert_eq!(metrics.queued_rows.load(Relaxed), 10);
    }

    #[test]
    fn a_batch_larger_than_the_bound_passes_alone() {
        let (sender, receiver) = channel(10, Arc::new(SubtaskMetrics::new()));
        assert_eq!(send(&sender, batch(50)), Poll::Ready(Ok(())));
        assert_eq!(send(&sender, batch(1)), Poll::Pending);
        assert_eq!(receive(&receiver), Poll::Ready(Ok(50)));
        assert_eq!(send(&sender, batch(1)), Poll::Ready(Ok(())));
        assert_eq!(send(&sender, batch(50)), Poll::Pending);
    }

    #[test]
    fn watermarks_cannot_pile_up() {
        let (sender, _receiver) = channel(10, Arc::new(SubtaskMetrics::new()));
        let accepted = (0..100).take_while(|n| send(&sender, Message::Watermark(Watermark::At(Time(*n)))).is_ready());
        assert_eq!(accepted.count(), 10);
    }

    #[test]
    fn what_was_sent_outlives_its_sender() {
        let (sender, receiver) = channel(10, Arc::new(SubtaskMetrics::new()));
        assert_eq!(send(&sender, batch(3)), Poll::Ready(Ok(())));
        drop(sender);
        assert_eq!(receive(&receiver), Poll::Ready(Ok(3)));
        assert_eq!(receive(&receiver), Poll::Ready(Err(Closed)));
    }

    #[test]
    fn a_sender_learns_that_nobody_receives() {
        let (sender, receiver) = channel(10, Arc::new(SubtaskMetrics::new()));
        drop(receiver);
        assert_eq!(send(&sender, batch(3)), Poll::Ready(Err(Closed)));
    }
}
