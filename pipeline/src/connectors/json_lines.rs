//! A sink that writes JSON lines into any byte stream; `stdout` and `single_file` differ only in what they open.

use std::io;
use std::task::{self, Poll};

use arrow::array::RecordBatch;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::formats::json::Encoder;
use crate::runtime::{Barrier, Context, Operator, OperatorError};
use crate::state::{Restored, Snapshot};

/// Lines held while a write is under way; beyond this the input waits.
const MAX_BUFFERED: usize = 1 << 20;

/// Where the lines go.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Whoever opens or writes.
type Work = BoxFuture<'static, io::Result<Output>>;

/// Opens what was written to before, cut off behind so many bytes.
pub(super) type Reopen = Box<dyn FnOnce(u64) -> Work + Send>;

/// The saved value that says how many bytes were written.
const WRITTEN: &str = "written";

/// Writes each batch's lines at once, in order. The writes are held here and driven by the runtime.
pub(super) struct JsonLines {
    /// What the lines are written to, for messages.
    target: String,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// Rows in `buffer`, and in the write under way.
    rows: (usize, usize),
    /// Bytes written, those of the write under way included.
    written: u64,
    /// For what can be cut off and written on.
    reopen: Option<Reopen>,
    is_resumable: bool,
    /// Whether the output is to be there though no line has come: what begins anew loses what was in it, so that it is not
    /// opened before the pipeline is known to run.
    is_due: bool,
    state: State,
}

enum State {
    /// The output has not been asked for.
    Closed(Work),
    /// The output is being opened, or written to.
    Busy(Work),
    /// The output takes the next write.
    Idle(Output),
    /// An error was reported; nothing follows.
    Failed,
}

impl JsonLines {
    /// A sink into what `open` opens.
    pub(super) fn new(target: String, encoder: Encoder, open: Work) -> Self {
        Self {
            target,
            encoder,
            buffer: Vec::new(),
            rows: (0, 0),
            written: 0,
            reopen: None,
            is_resumable: false,
            is_due: false,
            state: State::Closed(open),
        }
    }

    /// The same sink, for an output that a pipeline which goes on from a checkpoint goes on with: what was written behind
    /// the checkpoint is cut off.
    pub(super) fn resumable(self, reopen: Reopen) -> Self {
        Self { reopen: Some(reopen), is_resumable: true, ..self }
    }

    fn failed(&self, error: io::Error) -> OperatorError {
        let message = match error.kind() {
            io::ErrorKind::BrokenPipe => {
                format!("{} was closed by its reader; rows can no longer be written", self.target)
            }
            _ => format!("cannot write to {}", self.target),
        };
        OperatorError::external(message).because(error)
    }
}

async fn write(mut output: Output, lines: Vec<u8>) -> io::Result<Output> {
    output.write_all(&lines).await?;
    output.flush().await?;
    Ok(output)
}

impl Operator for JsonLines {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        if let Some(written) = state.values(WRITTEN)?.into_iter().next()
            && let Some(reopen) = self.reopen.take()
        {
            self.written = written;
            self.state = State::Busy(reopen(written));
        }
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        if self.is_resumable {
            snapshot.value(WRITTEN, self.written);
        }
        Ok(())
    }

    fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.rows.0 += batch.num_rows();
        Ok(self.encoder.encode(&batch, &mut self.buffer)?)
    }

    fn poll_work(&mut self, task: &mut task::Context<'_>, cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Closed(open) if self.is_due || !self.buffer.is_empty() => {
                self.state = State::Busy(open);
                Poll::Ready(Ok(()))
            }
            State::Idle(output) if !self.buffer.is_empty() => {
                self.written += self.buffer.len() as u64;
                self.state = State::Busy(write(output, std::mem::take(&mut self.buffer)).boxed());
                self.rows = (0, self.rows.0);
                Poll::Ready(Ok(()))
            }
            State::Busy(mut work) => match work.poll_unpin(task) {
                Poll::Ready(Ok(output)) => {
                    cx.record_delivery(std::mem::take(&mut self.rows.1));
                    self.state = State::Idle(output);
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(error))),
                Poll::Pending => {
                    self.state = State::Busy(work);
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
        self.buffer.len() < MAX_BUFFERED
    }

    fn barrier(&mut self, _: Barrier, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.is_due = true;
        Ok(())
    }

    fn finish(&mut self, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.is_due = true;
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.buffer.is_empty()
            && match self.state {
                State::Closed(_) => !self.is_due,
                State::Idle(_) => true,
                State::Busy(_) | State::Failed => false,
            }
    }

    fn in_flight(&self) -> usize {
        usize::from(matches!(self.state, State::Busy(_)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use arrow::array::{Int64Array, TimestampNanosecondArray};
    use arrow::datatypes::{DataType, Field};
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::formats::json::Shape;
    use crate::plan::{StreamKind, StreamSchema};
    use crate::runtime::{Epoch, Outbox, Time};

    fn input() -> StreamSchema {
        StreamSchema::new([Arc::new(Field::new("n", DataType::Int64, false))], StreamKind::Append).unwrap()
    }

    fn batch(from: i64, rows: usize) -> RecordBatch {
        let numbers = Int64Array::from_iter_values(from..from + rows as i64);
        let times = TimestampNanosecondArray::from_value(0, rows);
        RecordBatch::try_new(Arc::clone(input().schema()), vec![Arc::new(numbers), Arc::new(times)]).unwrap()
    }

    fn sink(output: impl AsyncWrite + Send + Unpin + 'static) -> JsonLines {
        JsonLines::new(
            "the pipe".into(),
            Encoder::new(&input(), Shape::Rows).unwrap(),
            async { Ok(Box::new(output) as Output) }.boxed(),
        )
    }

    async fn settle(sink: &mut JsonLines) -> Result<(), OperatorError> {
        std::future::poll_fn(|task| {
            let mut outbox = Outbox::default();
            loop {
                if sink.is_settled() {
                    return Poll::Ready(Ok(()));
                }
                match sink.poll_work(task, &mut Context::new(Time(0), &mut outbox)) {
                    Poll::Ready(Ok(())) => continue,
                    other => return other,
                }
            }
        })
        .await
    }

    fn give(sink: &mut JsonLines, batch: RecordBatch) {
        let mut outbox = Outbox::default();
        sink.process(0, batch, &mut Context::new(Time(0), &mut outbox)).unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_input_back_and_gets_every_line() {
        let (ours, mut theirs) = tokio::io::duplex(512);
        let mut sink = sink(ours);
        let mut given = 0;
        while sink.accepts_input() {
            give(&mut sink, batch(given, 1000));
            given += 1000;
        }
        assert!(!sink.is_settled());
        let mut text = String::new();
        let write = async {
            settle(&mut sink).await.unwrap();
            assert!(sink.accepts_input());
            drop(sink);
        };
        let ((), read) = tokio::join!(write, theirs.read_to_string(&mut text));
        read.unwrap();
        assert!(text.lines().eq((0..given).map(|n| format!("{{\"n\":{n}}}"))));
    }

    #[tokio::test]
    async fn the_output_is_opened_with_the_first_line_a_barrier_or_the_end() {
        type Cause = fn(&mut JsonLines, &mut Context<'_>);
        let causes: [Cause; 3] = [
            |sink, cx| sink.process(0, batch(0, 1), cx).unwrap(),
            |sink, cx| sink.barrier(Barrier { epoch: Epoch(1), stop: false }, cx).unwrap(),
            |sink, cx| sink.finish(cx).unwrap(),
        ];
        for cause in causes {
            let opened = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&opened);
            let open = async move {
                seen.store(true, Relaxed);
                Ok(Box::new(tokio::io::sink()) as Output)
            };
            let encoder = Encoder::new(&input(), Shape::Rows).unwrap();
            let mut sink = JsonLines::new("the file".into(), encoder, open.boxed());
            settle(&mut sink).await.unwrap();
            assert!(!opened.load(Relaxed), "nothing has come");
            cause(&mut sink, &mut Context::new(Time(0), &mut Outbox::default()));
            settle(&mut sink).await.unwrap();
            assert!(opened.load(Relaxed));
        }
    }

    #[tokio::test]
    async fn a_closed_pipe_is_an_error_that_says_so() {
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        let mut sink = sink(ours);
        give(&mut sink, batch(0, 10));
        let error = settle(&mut sink).await.unwrap_err();
        assert!(error.to_string().contains("the pipe was closed by its reader"), "{error}");
    }
}
