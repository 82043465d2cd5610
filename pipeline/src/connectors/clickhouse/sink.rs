//! The running half: rows gather into chunks, and one insert at a time carries them off.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::check::{Layout, Wanted};
use super::chunk::{Chunk, Tokens};
use super::encode::{Encoder, Payload, size};
use super::insert::Remote;
use super::repeats::Repeats;
use crate::runtime::{Barrier, Context, Epoch, Operator, OperatorError, Time};
use crate::state::{Restored, Snapshot};

/// The saved value that holds the highest version given out.
const VERSION: &str = "version";

/// When a subtask has staged so much, it asks for a checkpoint.
const MAX_STAGED_BYTES: usize = 16 << 20;

/// So much memory of gathered rows is a batch, however few rows they are.
const MAX_BYTES: usize = 16 << 20;

/// When rows that have gathered are inserted, if no barrier comes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gathering {
    /// As soon as there are so many.
    pub(super) rows: usize,
    /// This long after the first of them.
    pub(super) interval: Duration,
}

/// One subtask of the sink.
///
/// Rows gather until they make a chunk: the body of one INSERT. Where chunks are not staged, a chunk is inserted as soon as
/// the one before is in. Where they are, those of an epoch are handed to its checkpoint and inserted when that is complete;
/// the next barrier waits until they are in, so that at most two epochs' chunks are held.
pub(super) struct ClickHouseWriter {
    remote: Remote,
    wanted: Arc<Wanted>,
    gathering: Gathering,
    tokens: Tokens,
    stages: bool,
    state: State,
    /// Rows not yet in a chunk.
    gathered: Vec<RecordBatch>,
    gathered_rows: usize,
    gathered_bytes: usize,
    /// When what has gathered goes, however little it is.
    deadline: Option<Time>,
    /// What has gathered goes as soon as it can.
    flush: bool,
    /// The chunks of the epoch that has not ended.
    staged: Vec<Chunk>,
    staged_bytes: usize,
    /// The chunks that a checkpoint has taken which is not complete.
    handed: Vec<Chunk>,
    /// The chunks that may be inserted.
    due: VecDeque<Chunk>,
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

/// What every chunk is made with.
struct Writing {
    encoder: Encoder,
    statement: Arc<str>,
    repeats: Arc<Repeats>,
}

impl State {
    fn writing(&self) -> Option<&Writing> {
        match self {
            Self::Ready(writing) | Self::Inserting(writing, _) => Some(writing),
            Self::Starting(_) | Self::Failed => None,
        }
    }
}

impl ClickHouseWriter {
    /// A subtask that waits up to `wait` for ClickHouse at start, and `stages` its chunks with checkpoints.
    pub(super) fn new(
        remote: Remote,
        wanted: Arc<Wanted>,
        gathering: Gathering,
        wait: Duration,
        tokens: Tokens,
        stages: bool,
    ) -> Self {
        let starting = remote.clone().prepare(Arc::clone(&wanted), wait).boxed();
        Self {
            remote,
            wanted,
            gathering,
            tokens,
            stages,
            state: State::Starting(starting),
            gathered: Vec::new(),
            gathered_rows: 0,
            gathered_bytes: 0,
            deadline: None,
            flush: false,
            staged: Vec::new(),
            staged_bytes: 0,
            handed: Vec::new(),
            due: VecDeque::new(),
            version: 0,
        }
    }

    /// Whether what has gathered makes a chunk of its own.
    fn is_full(&self) -> bool {
        self.gathered_rows >= self.gathering.rows || self.gathered_bytes >= MAX_BYTES
    }

    /// Makes what has gathered a chunk, when it is enough or may not wait, and begins the next insert when none is under way.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        // Where chunks are not staged the next waits for the one before, and gathers meanwhile.
        let may_take = if self.stages { self.state.writing().is_some() } else { matches!(self.state, State::Ready(_)) };
        if may_take && !self.gathered.is_empty() && (self.flush || self.is_full()) {
            let chunk = self.take_chunk(cx.now())?;
            if self.stages {
                self.staged_bytes += chunk.body.len();
                self.staged.push(chunk);
                if self.is_over() {
                    cx.want_checkpoint();
                }
            } else {
                self.due.push_back(chunk);
            }
        }
        self.insert_next();
        Ok(())
    }

    fn take_chunk(&mut self, now: Time) -> Result<Chunk, OperatorError> {
        let starting = || OperatorError::internal("rows were to be written before the table was looked at");
        let writing = self.state.writing().ok_or_else(starting)?;
        self.version = (now.0 / 1000).max(self.version + 1);
        let Payload { body, rows } = writing.encoder.encode(&self.gathered, self.version)?;
        let (statement, token) = (Arc::clone(&writing.statement), self.tokens.next());
        let chunk = Chunk { statement, body, rows, token, made: now, is_restored: false };
        self.gathered.clear();
        (self.gathered_rows, self.gathered_bytes) = (0, 0);
        (self.deadline, self.flush) = (None, false);
        Ok(chunk)
    }

    fn insert_next(&mut self) {
        if !matches!(self.state, State::Ready(_)) {
            return;
        }
        let Some(chunk) = self.due.pop_front() else { return };
        self.state = match std::mem::replace(&mut self.state, State::Failed) {
            State::Ready(writing) => {
                let (name, repeats) = (self.wanted.name.clone(), Arc::clone(&writing.repeats));
                let insert = self.remote.clone().insert(name, chunk, repeats).boxed();
                State::Inserting(writing, insert)
            }
            other => other,
        };
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush = !self.gathered.is_empty();
        self.go_on(cx)
    }

    /// Whether more is staged than should be.
    fn is_over(&self) -> bool {
        self.staged_bytes >= MAX_STAGED_BYTES
    }
}

impl Operator for ClickHouseWriter {
    /// What was staged belongs to a complete checkpoint: it is inserted, again if it was before.
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        self.version = state.values(VERSION)?.into_iter().max().unwrap_or(0);
        self.due = state.staged().into_iter().map(Chunk::restore).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(VERSION, self.version);
        for chunk in &self.staged {
            let (about, body) = chunk.stage();
            snapshot.stage(about, body);
        }
        self.handed.append(&mut self.staged);
        self.staged_bytes = 0;
        Ok(())
    }

    fn epoch_completed(&mut self, _: Epoch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.due.extend(self.handed.drain(..));
        self.go_on(cx)
    }

    fn awaits_completion(&self) -> bool {
        !self.handed.is_empty() || !self.due.is_empty() || matches!(self.state, State::Inserting(..))
    }

    fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.gathered.is_empty() && !self.stages {
            let deadline = cx.now().after(self.gathering.interval);
            self.deadline = Some(deadline);
            cx.wake_at(deadline);
        }
        self.gathered_rows += batch.num_rows();
        self.gathered_bytes += size(&batch);
        self.gathered.push(batch);
        self.go_on(cx)
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match self.deadline {
            Some(deadline) if cx.now() >= deadline => self.flush(cx),
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
                    let repeats = Arc::new(layout.repeats.clone());
                    let encoder = Encoder::new(self.wanted.name.clone(), layout, &self.wanted.input);
                    let statement = encoder.statement().into();
                    self.state = State::Ready(Writing { encoder, statement, repeats });
                    Poll::Ready(self.go_on(cx))
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
                    Poll::Ready(self.go_on(cx))
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

    /// Where too much is staged, rows wait while a checkpoint is under way that this subtask has passed: its completion does
    /// not need them to move. Otherwise they are let in even then, since the barrier that was asked for is behind some.
    fn accepts_input(&self) -> bool {
        !self.is_full() && (!self.is_over() || self.handed.is_empty())
    }

    fn barrier(&mut self, _: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush(cx)
    }

    /// A sink that has looked at its table, and whose rows are all in, but for those that are staged.
    fn is_settled(&self) -> bool {
        let nothing_due = self.handed.is_empty() && self.due.is_empty();
        self.gathered.is_empty() && nothing_due && matches!(self.state, State::Ready(_))
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush(cx)
    }

    fn in_flight(&self) -> usize {
        usize::from(matches!(self.state, State::Starting(_) | State::Inserting(..)))
    }
}
