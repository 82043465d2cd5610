//! A source that gives batches from memory, as fast as they are taken, and pipelines over it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;
use tickhouse::connectors::{self, Connector, OptionError, Options, SourceTable, TableDefinition};
use tickhouse::plan::{NodePlan, StreamKind, StreamSchema};
use tickhouse::run::{RunOptions, Started, start};
use tickhouse::runtime::{Body, OperatorError, Source, SourceContext, SourceEvent, Stage, Subtask};
use tickhouse::sql::{Functions, Pipeline, Planner};
use tickhouse::state::{Restored, Snapshot, StartFrom};

use crate::cli::Failure;

/// How a pipeline over batches went.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// From its start to its end.
    pub seconds: f64,
    /// Those that were completed, the last one at its end among them.
    pub checkpoints: u64,
}

/// Runs a pipeline over `batches` to its end, with a checkpoint each `interval` into a folder.
pub async fn timed(
    sql: &str,
    batches: &[RecordBatch],
    parallelism: usize,
    interval: Duration,
) -> Result<Timed, Failure> {
    let mut all = connectors::all(&connectors::Settings { wait: Duration::from_secs(10) });
    all.push(Box::new(Batches(batches.into())));
    let pipeline = Planner::new(all, Functions::default()).plan("bench.sql", sql, &|_| None)?;
    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let state = folder.path().join("state");
    let finished = started(&pipeline, parallelism, Some(&state), interval).await?.running.wait().await?;
    let checkpoints = finished.last_epoch.map_or(0, |epoch| epoch.0);
    Ok(Timed { seconds: begun.elapsed().as_secs_f64(), checkpoints })
}

/// Starts a pipeline, with a checkpoint each `interval` where it has a folder for its state.
pub async fn started(
    pipeline: &Pipeline,
    parallelism: usize,
    state: Option<&Path>,
    interval: Duration,
) -> Result<Started, Failure> {
    let options = RunOptions {
        name: "bench".to_owned(),
        state_dir: state.map(|path| path.display().to_string()),
        from: StartFrom::Newest,
        parallelism,
        checkpoint_interval: interval,
    };
    Ok(start(pipeline, &options).await?)
}

/// `connector = 'batches'`: batches with the visible columns of the table, the last of which is the event time.
///
/// Subtask i of n gives every n-th batch from the i-th on.
struct Batches(Arc<[RecordBatch]>);

impl Connector for Batches {
    fn name(&self) -> &'static str {
        "batches"
    }

    fn source(&self, table: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        let output = StreamSchema::new(table.columns.clone(), StreamKind::Append)
            .map_err(|error| OptionError::table(error.to_string()))?;
        Ok(SourceTable { stage: Arc::new(BatchesNode { batches: Arc::clone(&self.0), output }) })
    }

    fn sink(&self, _: &TableDefinition, _: &mut Options, _: &StreamSchema) -> Result<Arc<dyn Stage>, OptionError> {
        Err(OptionError::table("`batches` is only read"))
    }
}

#[derive(Debug)]
struct BatchesNode {
    batches: Arc<[RecordBatch]>,
    output: StreamSchema,
}

impl NodePlan for BatchesNode {
    fn kind(&self) -> &'static str {
        "batches_source"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for BatchesNode {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok(Body::Source(Box::new(BatchesSource {
            batches: Arc::clone(&self.batches),
            schema: Arc::clone(self.output.schema()),
            next: subtask.index,
            step: subtask.parallelism,
        })))
    }
}

struct BatchesSource {
    batches: Arc<[RecordBatch]>,
    schema: SchemaRef,
    next: usize,
    step: usize,
}

impl BatchesSource {
    fn give(&mut self) -> Result<SourceEvent, OperatorError> {
        let Some(batch) = self.batches.get(self.next) else { return Ok(SourceEvent::End) };
        self.next += self.step;
        let mut columns = batch.columns().to_vec();
        let times = columns.last().map(|last: &ArrayRef| last.slice(0, last.len()));
        columns.extend(times);
        Ok(SourceEvent::Batch(RecordBatch::try_new(Arc::clone(&self.schema), columns)?))
    }
}

impl Source for BatchesSource {
    fn next<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        // Only when it is polled: a barrier may come first, and the future is dropped.
        async move { self.give() }.boxed()
    }

    fn restore(&mut self, _: &Restored) -> Result<(), OperatorError> {
        Err(OperatorError::internal("a benchmark does not go on from a checkpoint"))
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value("next", self.next);
        Ok(())
    }
}
