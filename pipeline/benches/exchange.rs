//! What the runtime itself costs: rows through source, exchange and a counting sink, and the price of one hop.
//!
//! `cargo bench -p tickhouse --bench exchange`

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tickhouse::plan::{Exchange, NodeId, NodePlan, StreamKind, StreamSchema};
use tickhouse::runtime::{
    self, Body, Context, Job, Operator, OperatorError, Options, Source, SourceContext, SourceEvent, Stage, Subtask,
};

/// What a node of the benchmark does.
#[derive(Debug, Clone)]
enum Role {
    /// Sends this batch so many times, divided over its subtasks.
    Source(RecordBatch, usize),
    Pass,
    Count(Arc<AtomicU64>),
}

struct Node {
    role: Role,
    output: Option<StreamSchema>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl NodePlan for Node {
    fn kind(&self) -> &'static str {
        match self.role {
            Role::Source(..) => "source",
            Role::Pass => "pass",
            Role::Count(_) => "count",
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn output(&self) -> Option<&StreamSchema> {
        self.output.as_ref()
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for Node {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok(match &self.role {
            Role::Source(batch, times) => {
                Body::Source(Box::new(Repeat { batch: batch.clone(), left: times / subtask.parallelism }))
            }
            Role::Pass => Body::Operator(Box::new(Pass)),
            Role::Count(rows) => Body::Operator(Box::new(Count(Arc::clone(rows)))),
        })
    }
}

struct Repeat {
    batch: RecordBatch,
    left: usize,
}

impl Source for Repeat {
    fn next<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            if self.left == 0 {
                return Ok(SourceEvent::End);
            }
            self.left -= 1;
            Ok(SourceEvent::Batch(self.batch.clone()))
        }
        .boxed()
    }
}

struct Pass;

impl Operator for Pass {
    fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.emit(batch);
        Ok(())
    }
}

struct Count(Arc<AtomicU64>);

impl Operator for Count {
    fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.0.fetch_add(batch.num_rows() as u64, Relaxed);
        Ok(())
    }
}

fn stream() -> Result<StreamSchema, Box<dyn Error>> {
    let column = |name| Arc::new(Field::new(name, DataType::Int64, false));
    Ok(StreamSchema::new([column("key"), column("value")], StreamKind::Append)?)
}

/// `rows` rows with keys that spread, 24 bytes each.
fn batch(rows: usize) -> Result<RecordBatch, Box<dyn Error>> {
    let numbers = || (0..rows as i64).map(|n| n * 7919);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(numbers())),
        Arc::new(Int64Array::from_iter_values(numbers())),
        Arc::new(TimestampNanosecondArray::from_iter_values(numbers())),
    ];
    Ok(RecordBatch::try_new(Arc::clone(stream()?.schema()), columns)?)
}

/// Seconds that `batches` batches of `rows` rows take through a source, `hops` passing operators joined by `exchange`, and
/// a counting sink behind another `exchange`.
async fn run(
    rows: usize,
    batches: usize,
    hops: usize,
    exchange: &Exchange,
    parallelism: usize,
) -> Result<f64, Box<dyn Error>> {
    let counted = Arc::new(AtomicU64::new(0));
    let mut job = Job::default();
    let mut add =
        |role, output, inputs: Vec<(NodeId, Exchange)>| job.add(None, Arc::new(Node { role, output }), inputs);
    let mut last = add(Role::Source(batch(rows)?, batches), Some(stream()?), Vec::new())?;
    for _ in 0..hops {
        last = add(Role::Pass, Some(stream()?), vec![(last, exchange.clone())])?;
    }
    add(Role::Count(Arc::clone(&counted)), None, vec![(last, exchange.clone())])?;
    let started = Instant::now();
    runtime::start(&job, Options::new("bench", parallelism))?.wait().await?;
    let took = started.elapsed().as_secs_f64();
    assert_eq!(counted.load(Relaxed), (rows * batches) as u64);
    Ok(took)
}

/// The best of three: what the machine does besides only adds.
async fn best(
    rows: usize,
    batches: usize,
    hops: usize,
    exchange: &Exchange,
    parallelism: usize,
) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        best = best.min(run(rows, batches, hops, exchange, parallelism).await?);
    }
    Ok(best)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let hash = Exchange::Hash(vec![0]);
    for (name, exchange) in [("forward", &Exchange::Forward), ("hash", &hash)] {
        for parallelism in [1, 2, 4] {
            let (rows, batches) = (8192, 20_000);
            let seconds = best(rows, batches, 0, exchange, parallelism).await?;
            let rate = (rows * batches) as f64 / seconds / 1e6;
            println!(
                "source -> {name} -> count, 8,192 rows a batch, parallelism {parallelism}: {rate:.1} million rows/s"
            );
        }
    }
    for parallelism in [1, 2] {
        let batches = 200_000;
        let (short, long) = (
            best(1, batches, 0, &Exchange::Forward, parallelism).await?,
            best(1, batches, 8, &Exchange::Forward, parallelism).await?,
        );
        let hop = (long - short) / 8.0 / batches as f64 * 1e9;
        println!("one more operator on the way, parallelism {parallelism}: {hop:.0} ns a batch");
    }
    Ok(())
}
