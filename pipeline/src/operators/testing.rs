//! What the operators' tests share: a driver that stands in for the runtime, rows to feed it, and DataFusion's batch
//! engine as an oracle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll, Wake, Waker};
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::{cast, col};
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;

use super::AggregateCall;
use crate::plan::{StreamKind, StreamSchema};
use crate::runtime::{
    Barrier, Body, Clock, Context, Epoch, Operator, OperatorError, Outbox, Output, Stage, Subtask, Time, Watermark,
};
use crate::state::{Restored, Share, StateLogs};

/// Runs one subtask as the runtime would, on a clock of its own.
pub(super) struct Driver {
    operator: Box<dyn Operator>,
    schema: SchemaRef,
    outbox: Outbox,
    wake: Option<Time>,
    pub(super) now: Time,
    sent: Vec<Output>,
    pub(super) late: u64,
    /// How long each call took that has ended.
    pub(super) calls: Vec<Duration>,
    logs: StateLogs,
    /// The logs as they have been saved so far.
    saved: BTreeMap<String, Vec<RecordBatch>>,
}

impl Driver {
    pub(super) fn new(stage: &dyn Stage) -> Self {
        Self::with_readers(stage, true)
    }

    /// As if something behind read event time, or nothing did.
    pub(super) fn with_readers(stage: &dyn Stage, event_time_is_read: bool) -> Self {
        Self::begun(stage, event_time_is_read, None)
    }

    fn begun(stage: &dyn Stage, event_time_is_read: bool, state: Option<&Restored>) -> Self {
        let clock = Clock::system();
        let subtask = Subtask {
            pipeline: "test".into(),
            node: "node".into(),
            index: 0,
            parallelism: 1,
            event_time_is_read,
            clock,
            run: None,
        };
        let Body::Operator(operator) = stage.build(&subtask).unwrap() else { panic!("an operator") };
        let schema = Arc::clone(stage.output().unwrap().schema());
        let (outbox, now) = (Outbox::default(), Time(1_000_000_000));
        let mut driver = Self {
            operator,
            schema,
            outbox,
            wake: None,
            now,
            sent: Vec::new(),
            late: 0,
            calls: Vec::new(),
            logs: StateLogs::default(),
            saved: BTreeMap::new(),
        };
        if let Some(state) = state {
            driver.call(|operator, _| operator.restore(state)).unwrap();
        }
        driver.call(|operator, cx| operator.start(cx)).unwrap();
        driver
    }

    /// A subtask of `stage` that goes on from a checkpoint.
    pub(super) fn resumed(stage: &dyn Stage, state: &Restored) -> Self {
        Self::begun(stage, true, Some(state))
    }

    /// What the checkpoint that a barrier makes now has of this subtask.
    pub(super) fn save(&mut self) -> Share {
        self.barrier();
        let mut snapshot = self.logs.snapshot();
        self.operator.snapshot(&mut snapshot).unwrap();
        let saved = snapshot.finish();
        for (name, change) in saved.tables {
            let log = self.saved.entry(name).or_default();
            if change.replaces {
                log.clear();
            }
            log.extend(change.batches);
        }
        Share { values: saved.values, tables: self.saved.clone(), staged: saved.staged }
    }

    /// Goes on with another subtask of `stage`, from the checkpoint that a barrier makes now.
    pub(super) fn restart(&mut self, stage: &dyn Stage) {
        let share = self.save();
        let next = Self::resumed(stage, &Restored::new([share].into(), 0, 1));
        self.sent.extend(next.sent);
        (self.operator, self.outbox, self.wake) = (next.operator, next.outbox, next.wake);
        (self.logs, self.saved) = (next.logs, next.saved);
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut dyn Operator, &mut Context<'_>) -> T) -> T {
        let result = call(self.operator.as_mut(), &mut Context::new(self.now, &mut self.outbox));
        while let Some(output) = self.outbox.pop() {
            if let Output::Batch(batch) = &output {
                assert_eq!(batch.schema(), self.schema);
            }
            self.sent.push(output);
        }
        if let Some(moment) = self.outbox.take_wake() {
            self.wake = Some(self.wake.map_or(moment, |open| open.min(moment)));
        }
        self.late += self.outbox.take_counts().late_rows;
        self.calls.extend(self.outbox.take_calls());
        result
    }

    /// Drives work in flight until there is nothing to do, and nobody has called the waker.
    pub(super) fn work(&mut self) -> Result<(), OperatorError> {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut task = task::Context::from_waker(&waker);
        loop {
            match self.call(|operator, cx| operator.poll_work(&mut task, cx)) {
                Poll::Ready(result) => result?,
                Poll::Pending if woken.0.swap(false, Ordering::Relaxed) => {}
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Gives a batch as it is, when the operator accepts one.
    pub(super) fn offer(&mut self, batch: RecordBatch) -> Result<bool, OperatorError> {
        if !self.operator.accepts_input() {
            return Ok(false);
        }
        self.call(|operator, cx| operator.process(0, batch, cx)).map(|()| true)
    }

    /// Gives a batch and does the work that it brings.
    pub(super) fn rows(&mut self, batch: RecordBatch) -> Result<(), OperatorError> {
        if batch.num_rows() > 0 {
            assert!(self.offer(batch)?, "the operator takes no input");
            self.work()?;
        }
        Ok(())
    }

    pub(super) fn watermark(&mut self, watermark: Watermark) {
        self.call(|operator, cx| operator.watermark(watermark, cx)).unwrap();
    }

    /// Lets time pass; timers fire when they are due.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while let Some(moment) = self.wake.take_if(|moment| *moment <= end) {
            self.now = self.now.max(moment);
            self.call(|operator, cx| operator.timer(cx)).unwrap();
            self.work().unwrap();
        }
        self.now = end;
    }

    pub(super) fn barrier(&mut self) {
        self.call(|operator, cx| operator.barrier(Barrier { epoch: Epoch(1), stop: false }, cx)).unwrap();
        self.work().unwrap();
    }

    /// The last watermark and the end.
    pub(super) fn finish(&mut self) {
        self.watermark(Watermark::At(Time::MAX));
        self.call(|operator, cx| operator.finish(cx)).unwrap();
        self.work().unwrap();
        assert!(self.is_settled(), "the operator does not end");
    }

    pub(super) fn is_settled(&self) -> bool {
        self.operator.is_settled()
    }

    pub(super) fn accepts_input(&self) -> bool {
        self.operator.accepts_input()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.operator.in_flight()
    }

    /// What was sent since the last call of this.
    pub(super) fn sent(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.sent)
    }

    /// The rows sent, in one batch; watermarks are dropped.
    pub(super) fn sent_rows(&mut self) -> RecordBatch {
        let batches = self.sent_batches();
        concat_batches(&self.schema, &batches).unwrap()
    }

    pub(super) fn sent_batches(&mut self) -> Vec<RecordBatch> {
        let batch = |output| match output {
            Output::Batch(batch) => Some(batch),
            Output::Watermark(_) => None,
        };
        self.sent().into_iter().filter_map(batch).collect()
    }

    /// What was sent, in short: the number of rows of each batch, and the watermarks.
    pub(super) fn trace(&mut self) -> Vec<String> {
        let text = |output| match output {
            Output::Batch(batch) => format!("{} rows", batch.num_rows()),
            Output::Watermark(Watermark::At(Time::MAX)) => "end".to_owned(),
            Output::Watermark(Watermark::At(time)) => format!("at {}", time.0),
            Output::Watermark(Watermark::Idle) => "idle".to_owned(),
        };
        self.sent().into_iter().map(text).collect()
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each row as text, columns parted by `|`.
pub(super) fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> =
        batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

pub(super) fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

/// A nullable column.
pub(super) fn field(name: &str, data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new(name, data_type, true))
}

/// A stream of `k BIGINT, s TEXT, v BIGINT, keep BOOLEAN`.
pub(super) fn events() -> StreamSchema {
    let (k, s) = (field("k", DataType::Int64), field("s", DataType::Utf8));
    let (v, keep) = (field("v", DataType::Int64), field("keep", DataType::Boolean));
    StreamSchema::new([k, s, v, keep], StreamKind::Append).unwrap()
}

/// A row of [`events`].
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) k: Option<i64>,
    pub(super) s: Option<String>,
    pub(super) v: Option<i64>,
    pub(super) keep: Option<bool>,
    pub(super) time: i64,
}

pub(super) fn event(k: i64, v: i64, time: i64) -> Event {
    Event { k: Some(k), s: Some(format!("s{k}")), v: Some(v), keep: Some(true), time }
}

/// Random events at times from 0 to `end`.
pub(super) fn random_events(end: i64) -> impl Strategy<Value = Vec<Event>> {
    let key = proptest::option::weighted(0.9, 0..12i64);
    let text = proptest::option::weighted(0.9, "[a-c]{0,2}");
    let value = proptest::option::weighted(0.8, -50..50i64);
    let keep = proptest::option::weighted(0.9, any::<bool>());
    let event = (key, text, value, keep, 0..end).prop_map(|(k, s, v, keep, time)| Event { k, s, v, keep, time });
    proptest::collection::vec(event, 1..200)
}

pub(super) fn batch_of(events: &[Event]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(events.iter().map(|e| e.k).collect::<Int64Array>()),
        Arc::new(events.iter().map(|e| e.s.clone()).collect::<StringArray>()),
        Arc::new(events.iter().map(|e| e.v).collect::<Int64Array>()),
        Arc::new(events.iter().map(|e| e.keep).collect::<BooleanArray>()),
        Arc::new(TimestampNanosecondArray::from_iter_values(events.iter().map(|e| e.time))),
    ];
    RecordBatch::try_new(Arc::clone(self::events().schema()), columns).unwrap()
}

/// `items` cut into runs of these lengths, over and over.
pub(super) fn cut<'a, T>(mut items: &'a [T], lengths: &[usize]) -> Vec<&'a [T]> {
    let mut runs = Vec::new();
    for length in lengths.iter().cycle() {
        if items.is_empty() {
            break;
        }
        let (run, rest) = items.split_at((*length).clamp(1, items.len()));
        runs.push(run);
        items = rest;
    }
    runs
}

/// Lengths for [`cut`].
pub(super) fn lengths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1..4usize, 1..60usize], 1..8)
}

/// A call of `function` over named columns of `input`, cast as the planner does where the function needs it.
pub(super) fn call(input: &StreamSchema, function: Arc<AggregateUDF>, args: &[&str], name: &str) -> AggregateCall {
    let argument = |arg: &&str| match ["avg", "median", "stddev"].contains(&function.name()) {
        true => cast(col(arg, input.schema()).unwrap(), input.schema(), DataType::Float64).unwrap(),
        false => col(arg, input.schema()).unwrap(),
    };
    let args: Vec<Arc<dyn PhysicalExpr>> = args.iter().map(argument).collect();
    let expr = AggregateExprBuilder::new(function, args).schema(Arc::clone(input.schema())).alias(name);
    AggregateCall { expr: Arc::new(expr.build().unwrap()), filter: None }
}

/// As [`call`], over distinct values.
pub(super) fn distinct(input: &StreamSchema, function: Arc<AggregateUDF>, arg: &str, name: &str) -> AggregateCall {
    let expr = AggregateExprBuilder::new(function, vec![col(arg, input.schema()).unwrap()]).distinct();
    let expr = expr.schema(Arc::clone(input.schema())).alias(name);
    AggregateCall { expr: Arc::new(expr.build().unwrap()), filter: None }
}

/// The rows, sorted, that DataFusion's batch engine gives for `sql` over table `events`.
pub(super) fn oracle(batch: RecordBatch, sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rows = runtime.block_on(async {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        context.register_batch("events", batch).unwrap();
        context.sql(sql).await.unwrap().collect().await.unwrap()
    });
    sorted(rows.iter().flat_map(lines).collect())
}
