//! The running half: rows gather, and one insert at a time carries them off.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::check::{Layout, Wanted};
use super::encode::Encoder;
use super::insert::Remote;
use crate::runtime::{Barrier, Context, Operator, OperatorError, Time};

/// So much memory of gathered rows is a batch, however few rows they are.
const MAX_BYTES: usize = 32 << 20;

/// When rows that have gathered are inserted, if no barrier comes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gathering {
    /// As soon as there are so many.
    pub(super) rows: usize,
    /// This long after the first of them.
    pub(super) interval: Duration,
}

/// One subtask of the sink.
pub(super) struct ClickHouseWriter {
    remote: Remote,
    wanted: Arc<Wanted>,
    gathering: Gathering,
    state: State,
    /// Rows not yet in an insert.
    gathered: Vec<RecordBatch>,
    gathered_rows: usize,
    gathered_bytes: usize,
    /// When what has gathered goes, however little it is.
    deadline: Option<Time>,
    /// What has gathered goes as soon as it can.
    flush: bool,
    /// The highest version given out, in microseconds.
    version: i64,
}

enum State {
    /// The table is being looked at; rows gather.
    Starting(BoxFuture<'static, Result<Layout, OperatorError>>),
    /// Nothing is under way.
    Ready(Writing),
    /// An insert is under way; rows gather.
    Inserting(Writing, BoxFuture<'static, Result<usize, OperatorError>>),
    /// An error was reported; nothing follows.
    Failed,
}

/// What every insert uses.
struct Writing {
    encoder: Encoder,
    statement: Arc<str>,
}

impl ClickHouseWriter {
    /// A subtask that waits up to `wait` for ClickHouse at start.
    pub(super) fn new(remote: Remote, wanted: Arc<Wanted>, gathering: Gathering, wait: Duration) -> Self {
        let starting = remote.clone().prepare(Arc::clone(&wanted), wait).boxed();
        Self {
            remote,
            wanted,
            gathering,
            state: State::Starting(starting),
            gathered: Vec::new(),
            gathered_rows: 0,
            gathered_bytes: 0,
            deadline: None,
            flush: false,
            version: 0,
        }
    }

    /// Whether what has gathered makes an insert of its own.
    fn is_full(&self) -> bool {
        self.gathered_rows >= self.gathering.rows || self.gathered_bytes >= MAX_BYTES
    }

    /// Begins an insert of all that has gathered, when it is due and none is under way.
    fn insert_if_due(&mut self, now: Time) -> Result<(), OperatorError> {
        let due = self.flush || self.is_full();
        if !due || self.gathered.is_empty() {
            return Ok(());
        }
        let writing = match std::mem::replace(&mut self.state, State::Failed) {
            State::Ready(writing) => writing,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        self.version = (now.0 / 1000).max(self.version + 1);
        let payload = writing.encoder.encode(&self.gathered, self.version)?;
        self.gathered.clear();
        (self.gathered_rows, self.gathered_bytes) = (0, 0);
        (self.deadline, self.flush) = (None, false);
        let name = self.wanted.name.clone();
        let insert = self.remote.clone().insert(name, Arc::clone(&writing.statement), payload).boxed();
        self.state = State::Inserting(writing, insert);
        Ok(())
    }

    fn flush(&mut self, now: Time) -> Result<(), OperatorError> {
        self.flush = !self.gathered.is_empty();
        self.insert_if_due(now)
    }
}

/// The memory of the rows themselves, without what a slice has beside them.
fn size(batch: &RecordBatch) -> usize {
    let column = |array: &ArrayRef| {
        let whole = array.get_array_memory_size();
        array.to_data().get_slice_memory_size().unwrap_or(whole)
    };
    batch.columns().iter().map(column).sum()
}

impl Operator for ClickHouseWriter {
    fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.gathered.is_empty() {
            let deadline = cx.now().after(self.gathering.interval);
            self.deadline = Some(deadline);
            cx.wake_at(deadline);
        }
        self.gathered_rows += batch.num_rows();
        self.gathered_bytes += size(&batch);
        self.gathered.push(batch);
        self.insert_if_due(cx.now())
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match self.deadline {
            Some(deadline) if cx.now() >= deadline => self.flush(cx.now()),
            Some(deadline) => {
                cx.wake_at(deadline);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn poll_work(&mut self, task: &mut task::Context<'_>, cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Starting(mut starting) => match starting.poll_unpin(task) {
                Poll::Ready(Ok(layout)) => {
                    let encoder = Encoder::new(self.wanted.name.clone(), layout, &self.wanted.input);
                    let statement = encoder.statement().into();
                    self.state = State::Ready(Writing { encoder, statement });
                    Poll::Ready(self.insert_if_due(cx.now()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.state = State::Starting(starting);
                    Poll::Pending
                }
            },
            State::Inserting(writing, mut insert) => match insert.poll_unpin(task) {
                Poll::Ready(Ok(rows)) => {
                    cx.record_delivery(rows);
                    self.state = State::Ready(writing);
                    Poll::Ready(self.insert_if_due(cx.now()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.state = State::Inserting(writing, insert);
                    Poll::Pending
                }
            },
            other => {
                self.state = other;
                Poll::Pending
            }
        }
    }

    fn accepts_input(&self) -> bool {
        !self.is_full()
    }

    fn barrier(&mut self, _: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush(cx.now())
    }

    /// A sink that has looked at its table, and whose rows are all in.
    fn is_settled(&self) -> bool {
        self.gathered.is_empty() && matches!(self.state, State::Ready(_))
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush(cx.now())
    }

    fn in_flight(&self) -> usize {
        usize::from(matches!(self.state, State::Starting(_) | State::Inserting(..)))
    }
}
