//! A source that gives fixed batches and remembers which it has given.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;
use tickhouse::connectors::{Connector, OptionError, Options, SourceTable, TableDefinition};
use tickhouse::plan::{NodePlan, StreamKind, StreamSchema};
use tickhouse::runtime::{Body, OperatorError, Source, SourceContext, SourceEvent, Stage, Subtask, Time};
use tickhouse::state::{Restored, Snapshot};

/// The time between two batches of a subtask.
const PAUSE: Duration = Duration::from_millis(7);

/// `connector = 'replay'`.
pub struct Replay {
    batches: Arc<[RecordBatch]>,
}

impl Replay {
    pub fn new(batches: Vec<RecordBatch>) -> Self {
        Self { batches: batches.into() }
    }
}

impl Connector for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn source(&self, table: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        let output = StreamSchema::new(table.columns.clone(), StreamKind::Append)
            .map_err(|error| OptionError::table(error.to_string()))?;
        Ok(SourceTable { stage: Arc::new(ReplayNode { batches: Arc::clone(&self.batches), output }) })
    }

    fn sink(&self, _: &TableDefinition, _: &mut Options, _: &StreamSchema) -> Result<Arc<dyn Stage>, OptionError> {
        Err(OptionError::table("only read"))
    }
}

#[derive(Debug)]
struct ReplayNode {
    batches: Arc<[RecordBatch]>,
    output: StreamSchema,
}

impl NodePlan for ReplayNode {
    fn kind(&self) -> &'static str {
        "replay_source"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for ReplayNode {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok(Body::Source(Box::new(ReplaySource {
            batches: Arc::clone(&self.batches),
            left: (subtask.index..self.batches.len()).step_by(subtask.parallelism).collect(),
            schema: Arc::clone(self.output.schema()),
            due: None,
        })))
    }
}

struct ReplaySource {
    batches: Arc<[RecordBatch]>,
    /// The numbers of the batches that are to be given: in order, so that event time does not go back.
    left: BTreeSet<usize>,
    schema: SchemaRef,
    due: Option<Time>,
}

impl Source for ReplaySource {
    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            let Some(next) = self.left.first().copied() else { return Ok(SourceEvent::End) };
            let due = *self.due.get_or_insert_with(|| cx.now().after(PAUSE));
            cx.clock.sleep_until(due).await;
            self.due = None;
            self.left.remove(&next);
            let batch = &self.batches[next];
            let times: ArrayRef = Arc::clone(batch.column(batch.num_columns() - 1));
            let mut columns = batch.columns().to_vec();
            columns.push(times.slice(0, times.len()));
            Ok(SourceEvent::Batch(RecordBatch::try_new(Arc::clone(&self.schema), columns)?))
        }
        .boxed()
    }

    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        let left: BTreeSet<usize> = state.values::<Vec<usize>>("left")?.into_iter().flatten().collect();
        let (index, parallelism) = state.place();
        self.left = left.into_iter().skip(index).step_by(parallelism).collect();
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value("left", self.left.iter().copied().collect::<Vec<_>>());
        Ok(())
    }
}
