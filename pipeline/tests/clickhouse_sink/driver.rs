//! Drives one subtask of the sink as the runtime does.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{Field, FieldRef};
use tickhouse::connectors::{self, Connector, Options, Settings, TableDefinition};
use tickhouse::plan::{StreamKind, StreamSchema};
use tickhouse::runtime::{Barrier, Body, Clock, Context, Epoch, Operator, OperatorError, Outbox, Subtask};
use tickhouse::state::{Restored, Share, StateLogs, SubtaskSnapshot};

/// A sink and what it asked for.
pub struct Driver {
    operator: Box<dyn Operator>,
    clock: Clock,
    outbox: Outbox,
    logs: StateLogs,
}

/// The clickhouse connector, which waits so long at start.
pub fn clickhouse(wait: Duration) -> Box<dyn Connector> {
    let mut all = connectors::all(&Settings { wait });
    let position = all.iter().position(|connector| connector.name() == "clickhouse").unwrap();
    all.remove(position)
}

/// What a test writes where.
pub struct Target<'a> {
    pub url: &'a str,
    pub database: &'a str,
    pub table: &'a str,
    pub primary_key: &'a [&'a str],
    pub options: &'a [(&'a str, &'a str)],
    pub wait: Duration,
}

impl Target<'_> {
    /// The sink's only subtask, of a pipeline that saves no state.
    pub fn sink(&self, input: &StreamSchema) -> Driver {
        self.sink_of_run(input, None)
    }

    /// The sink's only subtask; `run` is the name of a run that saves state.
    pub fn sink_of_run(&self, input: &StreamSchema, run: Option<&str>) -> Driver {
        let table = TableDefinition {
            name: self.table.into(),
            columns: Vec::new(),
            primary_key: self.primary_key.iter().map(|k| (*k).to_owned()).collect(),
        };
        let own = [("url", self.url), ("database", self.database)];
        let options = own.iter().chain(self.options).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut options = Options::new(options);
        let stage = clickhouse(self.wait).sink(&table, &mut options, input).unwrap();
        options.finish().unwrap();
        let clock = Clock::system();
        let run = run.map(Into::into);
        let subtask = Subtask {
            pipeline: "test".into(),
            node: self.table.into(),
            index: 0,
            parallelism: 1,
            event_time_is_read: true,
            clock,
            run,
        };
        match stage.build(&subtask).unwrap() {
            Body::Operator(operator) => {
                Driver { operator, clock, outbox: Outbox::default(), logs: StateLogs::default() }
            }
            Body::Source(_) => panic!("not a sink"),
        }
    }
}

impl Driver {
    fn call<R>(&mut self, call: impl FnOnce(&mut dyn Operator, &mut Context<'_>) -> R) -> R {
        call(self.operator.as_mut(), &mut Context::new(self.clock.now(), &mut self.outbox))
    }

    /// Drives work until `done`.
    async fn work_until(&mut self, done: impl Fn(&dyn Operator) -> bool) -> Result<(), OperatorError> {
        poll_fn(|task| {
            while !done(self.operator.as_ref()) {
                match self.call(|operator, cx| operator.poll_work(task, cx)) {
                    Poll::Ready(Ok(())) => {}
                    other => return other,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Gives a batch when the sink takes one.
    pub async fn give(&mut self, batch: RecordBatch) -> Result<(), OperatorError> {
        self.work_until(|operator| operator.accepts_input()).await?;
        self.call(|operator, cx| operator.process(0, batch, cx))
    }

    /// Whether the sink takes a batch.
    pub fn accepts(&self) -> bool {
        self.operator.accepts_input()
    }

    /// Waits for the timer that the sink asked for, then drives work until nothing is in flight.
    pub async fn until_timer(&mut self) -> Result<(), OperatorError> {
        let wake = self.outbox.take_wake().expect("the sink asked to be woken");
        self.clock.sleep_until(wake).await;
        self.call(|operator, cx| operator.timer(cx))?;
        self.work_until(|operator| operator.in_flight() == 0).await
    }

    /// Ends the input and waits until all is in.
    pub async fn finish(&mut self) -> Result<(), OperatorError> {
        self.call(|operator, cx| operator.finish(cx))?;
        self.work_until(|operator| operator.is_settled()).await
    }

    /// Ends an epoch; returns what the sink has handed to its checkpoint.
    pub async fn barrier(&mut self) -> Result<Share, OperatorError> {
        self.call(|operator, cx| operator.barrier(Barrier { epoch: Epoch(1), stop: false }, cx))?;
        self.work_until(|operator| operator.is_settled()).await?;
        let mut snapshot = self.logs.snapshot();
        self.operator.snapshot(&mut snapshot)?;
        let SubtaskSnapshot { values, staged, .. } = snapshot.finish();
        Ok(Share { values, staged, ..Share::default() })
    }

    /// The checkpoint of the epoch is complete: waits until what was staged is in.
    pub async fn complete(&mut self) -> Result<(), OperatorError> {
        self.call(|operator, cx| operator.epoch_completed(Epoch(1), cx))?;
        self.work_until(|operator| !operator.awaits_completion()).await
    }

    /// Goes on from what a sink had handed over, and waits until it is in.
    pub async fn resume(&mut self, share: Share) -> Result<(), OperatorError> {
        self.operator.restore(&Restored::new([share].into(), 0, 1))?;
        self.work_until(|operator| operator.is_settled()).await
    }

    /// Gives `batches` and ends.
    pub async fn write(&mut self, batches: Vec<RecordBatch>) -> Result<(), OperatorError> {
        for batch in batches {
            self.give(batch).await?;
        }
        self.finish().await
    }
}

/// A column of a test.
pub fn column(name: &str, values: impl arrow::array::Array + 'static) -> (FieldRef, ArrayRef) {
    let values: ArrayRef = Arc::new(values);
    (Arc::new(Field::new(name, values.data_type().clone(), true)), values)
}

/// Rows of an append-only stream.
pub fn rows(columns: Vec<(FieldRef, ArrayRef)>) -> (StreamSchema, RecordBatch) {
    batch(columns, None)
}

/// Rows of an updating stream.
pub fn changes(columns: Vec<(FieldRef, ArrayRef)>, retract: Vec<bool>) -> (StreamSchema, RecordBatch) {
    batch(columns, Some(retract))
}

fn batch(columns: Vec<(FieldRef, ArrayRef)>, retract: Option<Vec<bool>>) -> (StreamSchema, RecordBatch) {
    let kind = if retract.is_some() { StreamKind::Updating } else { StreamKind::Append };
    let (fields, mut arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let rows = arrays[0].len();
    let input = StreamSchema::new(fields, kind).unwrap();
    arrays.push(Arc::new(TimestampNanosecondArray::from_value(0, rows)));
    arrays.extend(retract.map(|retract| Arc::new(BooleanArray::from(retract)) as ArrayRef));
    let batch = RecordBatch::try_new(Arc::clone(input.schema()), arrays).unwrap();
    (input, batch)
}
