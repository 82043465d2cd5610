//! Tests of whole pipelines, and the nodes they are made of.

mod barriers;
mod ending;
mod failures;
mod flow;
mod random_graphs;
mod routing;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use arrow::array::{AsArray as _, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};

use super::*;
use crate::plan::{Exchange, NodeId, NodePlan, StreamKind, StreamSchema};

/// A node made of a closure.
pub struct TestStage {
    kind: &'static str,
    output: Option<StreamSchema>,
    max_parallelism: Option<usize>,
    build: Box<dyn Fn(&Subtask) -> Body + Send + Sync>,
}

impl fmt::Debug for TestStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

impl NodePlan for TestStage {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn output(&self) -> Option<&StreamSchema> {
        self.output.as_ref()
    }

    fn max_parallelism(&self) -> Option<usize> {
        self.max_parallelism
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for TestStage {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok((self.build)(subtask))
    }
}

/// The one stream of these tests: `key`, `value`, `_timestamp`.
pub fn stream() -> StreamSchema {
    let column = |name| Arc::new(Field::new(name, DataType::Int64, false));
    StreamSchema::new([column("key"), column("value")], StreamKind::Append).unwrap()
}

/// Rows with these keys and values; event time is the value.
pub fn rows(rows: impl IntoIterator<Item = (i64, i64)>) -> RecordBatch {
    let (keys, values): (Vec<i64>, Vec<i64>) = rows.into_iter().unzip();
    let times = TimestampNanosecondArray::from(values.clone());
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(Int64Array::from(keys)), Arc::new(Int64Array::from(values)), Arc::new(times)];
    RecordBatch::try_new(Arc::clone(stream().schema()), columns).unwrap()
}

/// The keys and values of a batch.
pub fn pairs(batch: &RecordBatch) -> Vec<(i64, i64)> {
    let column = |index| batch.column(index).as_primitive::<Int64Type>().values().iter().copied();
    column(0).zip(column(1)).collect()
}

/// What a source does next.
#[derive(Debug, Clone)]
pub enum Step {
    Rows(RecordBatch),
    Watermark(Watermark),
    Wait(Duration),
    /// Waits until it is stopped.
    Forever,
}

/// A source that does what it is told, then ends.
struct Script {
    steps: VecDeque<Step>,
    due: Option<Time>,
}

impl Source for Script {
    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            loop {
                match self.steps.front() {
                    None => return Ok(SourceEvent::End),
                    Some(Step::Forever) => pending().await,
                    Some(Step::Wait(time)) => {
                        let due = *self.due.get_or_insert_with(|| cx.now().after(*time));
                        cx.clock.sleep_until(due).await;
                        self.due = None;
                    }
                    Some(Step::Rows(batch)) => {
                        let batch = batch.clone();
                        self.steps.pop_front();
                        return Ok(SourceEvent::Batch(batch));
                    }
                    Some(Step::Watermark(watermark)) => {
                        let watermark = *watermark;
                        self.steps.pop_front();
                        return Ok(SourceEvent::Watermark(watermark));
                    }
                }
                self.steps.pop_front();
            }
        }
        .boxed()
    }
}

/// What a recording sink has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Row { key: i64, value: i64 },
    Watermark(Watermark),
    Barrier(Barrier),
    Finished,
}

/// What the subtasks of recording sinks have seen, in each subtask's order.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<(usize, Seen)>>>);

impl Log {
    fn add(&self, subtask: usize, seen: Seen) {
        self.0.lock().unwrap().push((subtask, seen));
    }

    pub fn all(&self) -> Vec<(usize, Seen)> {
        self.0.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// All rows, with the subtask that saw them.
    pub fn rows(&self) -> Vec<(usize, i64, i64)> {
        let row = |(subtask, seen)| match seen {
            Seen::Row { key, value } => Some((subtask, key, value)),
            _ => None,
        };
        self.all().into_iter().filter_map(row).collect()
    }

    /// All rows in order of key and value.
    pub fn sorted(&self) -> Vec<(i64, i64)> {
        let mut rows: Vec<_> = self.rows().into_iter().map(|(_, key, value)| (key, value)).collect();
        rows.sort_unstable();
        rows
    }

    pub fn watermarks(&self, of: usize) -> Vec<Watermark> {
        let watermark = |(subtask, seen)| match seen {
            Seen::Watermark(watermark) if subtask == of => Some(watermark),
            _ => None,
        };
        self.all().into_iter().filter_map(watermark).collect()
    }

    /// The rows of each epoch, over all subtasks, sorted; rows behind the last barrier under the epoch after it.
    pub fn by_epoch(&self) -> BTreeMap<u64, Vec<(i64, i64)>> {
        let mut epochs: BTreeMap<usize, u64> = BTreeMap::new();
        let mut rows: BTreeMap<u64, Vec<(i64, i64)>> = BTreeMap::new();
        for (subtask, seen) in self.all() {
            let epoch = epochs.entry(subtask).or_insert(1);
            match seen {
                Seen::Row { key, value } => rows.entry(*epoch).or_default().push((key, value)),
                Seen::Barrier(barrier) => *epoch = barrier.epoch.0 + 1,
                Seen::Watermark(_) | Seen::Finished => {}
            }
        }
        rows.values_mut().for_each(|rows| rows.sort_unstable());
        rows
    }
}

/// A sink that records.
struct Recorder {
    subtask: usize,
    log: Log,
}

impl Operator for Recorder {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.record_delivery(batch.num_rows());
        for (key, value) in pairs(&batch) {
            self.log.add(self.subtask, Seen::Row { key, value });
        }
        Ok(())
    }

    fn watermark(&mut self, watermark: Watermark, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.log.add(self.subtask, Seen::Watermark(watermark));
        Ok(())
    }

    fn barrier(&mut self, barrier: Barrier, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.log.add(self.subtask, Seen::Barrier(barrier));
        Ok(())
    }

    fn finish(&mut self, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.log.add(self.subtask, Seen::Finished);
        Ok(())
    }
}

/// Sends on what it is given.
pub struct Pass;

impl Operator for Pass {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.emit(batch);
        Ok(())
    }
}

/// A job under construction.
#[derive(Default)]
pub struct Graph {
    pub job: Job,
}

impl Graph {
    pub fn add(&mut self, stage: TestStage, inputs: Vec<(NodeId, Exchange)>) -> NodeId {
        self.job.add(None, Arc::new(stage), inputs).unwrap()
    }

    /// A source whose subtask `i` of `n` does `script(i, n)`.
    pub fn source(
        &mut self,
        max_parallelism: Option<usize>,
        script: impl Fn(usize, usize) -> Vec<Step> + Send + Sync + 'static,
    ) -> NodeId {
        let build = move |subtask: &Subtask| {
            let steps = script(subtask.index, subtask.parallelism).into();
            Body::Source(Box::new(Script { steps, due: None }))
        };
        let stage = TestStage { kind: "script", output: Some(stream()), max_parallelism, build: Box::new(build) };
        self.add(stage, Vec::new())
    }

    pub fn operator<O: Operator + 'static>(
        &mut self,
        max_parallelism: Option<usize>,
        inputs: Vec<(NodeId, Exchange)>,
        operator: impl Fn(&Subtask) -> O + Send + Sync + 'static,
    ) -> NodeId {
        let build = move |subtask: &Subtask| Body::Operator(Box::new(operator(subtask)));
        let stage = TestStage { kind: "operator", output: Some(stream()), max_parallelism, build: Box::new(build) };
        self.add(stage, inputs)
    }

    pub fn sink(&mut self, max_parallelism: Option<usize>, inputs: Vec<(NodeId, Exchange)>) -> Log {
        let log = Log::default();
        let sink = log.clone();
        self.custom_sink(max_parallelism, inputs, move |subtask| Recorder {
            subtask: subtask.index,
            log: sink.clone(),
        });
        log
    }

    pub fn custom_sink<O: Operator + 'static>(
        &mut self,
        max_parallelism: Option<usize>,
        inputs: Vec<(NodeId, Exchange)>,
        operator: impl Fn(&Subtask) -> O + Send + Sync + 'static,
    ) -> NodeId {
        let build = move |subtask: &Subtask| Body::Operator(Box::new(operator(subtask)));
        self.add(TestStage { kind: "sink", output: None, max_parallelism, build: Box::new(build) }, inputs)
    }

    /// Starts it on a simulated clock that shows [`START`].
    pub fn start(&self, parallelism: usize) -> Running {
        start(&self.job, options(parallelism)).unwrap()
    }
}

/// 2023-11-14T22:13:20Z.
pub const START: Time = Time(1_700_000_000_000_000_000);

/// Options on a simulated clock that shows [`START`].
pub fn options(parallelism: usize) -> Options {
    Options { clock: Clock::simulated(START), ..Options::new("test", parallelism) }
}

/// Lets all tasks run until `condition` holds.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub const FORWARD: Exchange = Exchange::Forward;

pub fn by_key() -> Exchange {
    Exchange::Hash(vec![0])
}
