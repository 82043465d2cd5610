//! Runs a pipeline through crashes to its end, and compares what it has committed with what the batch engine gives.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use tickhouse::runtime::{self, Clock, Options, Reason, SavedState, Time};
use tickhouse::sql::{Functions, Pipeline, Planner};
use tickhouse::state::{Checkpoints, StartFrom, Store};

use super::collect::{Collect, Committed};
use super::later::Later;
use super::lines;
use super::replay::Replay;
use super::script::{EVENTS, Script};

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub k: Option<i64>,
    pub s: Option<String>,
    pub v: i64,
    /// Milliseconds.
    pub t: i64,
}

/// One life of the pipeline.
#[derive(Debug, Clone)]
pub struct Life {
    pub parallelism: usize,
    /// Milliseconds until it is killed.
    pub length: u64,
    pub checkpoint_millis: u64,
}

/// What a pipeline reads, and what happens to it meanwhile.
#[derive(Debug, Clone)]
pub struct Run {
    pub events: Vec<Event>,
    /// The lengths of the batches, over and over.
    pub lengths: Vec<usize>,
    /// Each ends with a kill; one more comes to its end.
    pub lives: Vec<Life>,
    /// Milliseconds that each write of a file takes.
    pub write_millis: u64,
}

/// Events of a minute, each with how far it is behind its time, in thousandths of what it may be.
pub fn events() -> impl Strategy<Value = Vec<(Event, i64)>> {
    let key = proptest::option::weighted(0.9, 0..9_i64);
    let text = proptest::option::weighted(0.9, "[a-c]{0,2}");
    let event = (key, text, -50..50_i64, 0..60_000_i64).prop_map(|(k, s, v, t)| Event { k, s, v, t });
    proptest::collection::vec((event, 0..1000_i64), 1..EVENTS)
}

/// Events in an order in which none comes `delay` seconds or more after a later one: so that no row is late in one run
/// and not in another.
pub fn in_order(mut events: Vec<(Event, i64)>, delay: u32) -> Vec<Event> {
    events.sort_by_key(|(event, behind)| event.t + behind * i64::from(delay));
    events.into_iter().map(|(event, _)| event).collect()
}

pub fn lengths() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..8_usize, 1..6)
}

/// Lives that mostly end before the pipeline does, and behind a checkpoint.
pub fn lives() -> impl Strategy<Value = Vec<Life>> {
    let length = prop_oneof![3 => 0..100_u64, 1 => 0..400_u64];
    let interval = prop_oneof![3 => 1..20_u64, 1 => 1..120_u64];
    let life = (1..=4_usize, length, interval).prop_map(|(parallelism, length, checkpoint_millis)| Life {
        parallelism,
        length,
        checkpoint_millis,
    });
    proptest::collection::vec(life, 0..6)
}

fn batch(events: &[Event]) -> RecordBatch {
    let columns: [(&str, ArrayRef); 4] = [
        ("k", Arc::new(events.iter().map(|event| event.k).collect::<Int64Array>())),
        ("s", Arc::new(events.iter().map(|event| event.s.clone()).collect::<StringArray>())),
        ("v", Arc::new(Int64Array::from_iter_values(events.iter().map(|event| event.v)))),
        ("t", Arc::new(TimestampNanosecondArray::from_iter_values(events.iter().map(|event| event.t * 1_000_000)))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// The rows in batches of these lengths, over and over.
fn cut(events: &[Event], lengths: &[usize]) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    let mut rest = events;
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (first, others) = rest.split_at((*length).min(rest.len()));
        batches.push(batch(first));
        rest = others;
    }
    batches
}

/// What each sink is to have, by the batch engine: its rows, sorted.
async fn oracle(events: &[Event], script: &Script) -> Result<Vec<Vec<String>>, String> {
    let mut config = SessionConfig::new().with_target_partitions(1);
    // Fails where two aggregates of a query are the same: "Schema contains duplicate unqualified field name".
    config.options_mut().optimizer.enable_leaf_expression_pushdown = false;
    let context = SessionContext::new_with_config(config);
    context.register_batch("events", batch(events)).unwrap();
    for (name, query) in &script.tables {
        let (schema, rows) = answer(&context, query).await?;
        context.register_table(name, Arc::new(MemTable::try_new(schema, vec![rows]).unwrap())).unwrap();
    }
    let mut sinks = Vec::new();
    for output in &script.outputs {
        let mut rows = Vec::new();
        for query in &output.batch {
            rows.extend(answer(&context, query).await?.1.iter().flat_map(lines));
        }
        rows.sort_unstable();
        sinks.push(rows);
    }
    Ok(sinks)
}

/// All columns of the answer may be null: CREATE TABLE AS takes the planner's word, which is not always right.
async fn answer(context: &SessionContext, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let failed = |error: DataFusionError| format!("the batch engine: {error}\n{sql}");
    let plan = context.sql(sql).await.map_err(failed)?.create_physical_plan().await.map_err(failed)?;
    let fields: Vec<_> =
        plan.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let rows = datafusion::physical_plan::collect(plan, context.task_ctx()).await.map_err(failed)?;
    let nullable = |rows: &RecordBatch| RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec()).unwrap();
    Ok((Arc::clone(&schema), rows.iter().map(nullable).collect()))
}

/// Plans a pipeline over these batches.
pub fn plan(text: &str, batches: Vec<RecordBatch>, committed: &Committed) -> Result<Pipeline, String> {
    let connectors: Vec<Box<dyn tickhouse::connectors::Connector>> =
        vec![Box::new(Replay::new(batches)), Box::new(Collect::new(committed.clone()))];
    let functions = Functions { asynchronous: vec![Arc::new(Later)], ..Functions::default() };
    Planner::new(connectors, functions).plan("case.sql", text, &|_| None).map_err(|error| error.to_string())
}

/// How a life began and ended.
struct Lived {
    /// The checkpoint that it went on from.
    from: Option<u64>,
    /// Whether the pipeline came to its end.
    ended: bool,
}

/// Runs the pipeline for one life.
async fn live(pipeline: &Pipeline, store: &Store, clock: Clock, life: &Life, is_last: bool) -> Result<Lived, String> {
    let nodes = runtime::identities(&pipeline.job);
    let opened = Checkpoints::open(store.clone(), "case", nodes, StartFrom::Newest, true).await;
    let (checkpoints, resumed) = opened.map_err(|error| error.to_string())?;
    let from = resumed.as_ref().map(|resumed| resumed.epoch);
    let options = Options {
        clock,
        checkpoint_interval: Duration::from_millis(life.checkpoint_millis),
        channel_rows: 50,
        ..Options::new("case", life.parallelism)
    };
    let saved = SavedState { id: "case".to_owned(), checkpoints, resumed };
    let running = runtime::start_saving(&pipeline.job, options, Some(saved)).map_err(|error| error.to_string())?;
    let control = running.control();
    // A kill leaves no time for anything.
    let length = if is_last { Duration::from_secs(3_600) } else { Duration::from_millis(life.length) };
    let ended = running.wait();
    tokio::pin!(ended);
    let Ok(finished) = tokio::time::timeout(length, &mut ended).await else {
        control.abort();
        let _ = ended.await;
        return Ok(Lived { from, ended: false });
    };
    let finished = finished.map_err(|error| error.to_string())?;
    Ok(Lived { from, ended: finished.reason == Reason::SourcesEnded })
}

/// What differs between two sorted lists of rows; nothing when they are equal.
fn difference(sink: &str, found: &[String], wanted: &[String]) -> Option<String> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    found.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    wanted.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    let rows = |sign: i64| {
        counts.iter().filter(move |(_, n)| n.signum() == sign).map(|(row, n)| format!("{row} ({})", n.abs()))
    };
    let (extra, missing): (Vec<_>, Vec<_>) = (rows(1).collect(), rows(-1).collect());
    let differs = !extra.is_empty() || !missing.is_empty();
    differs.then(|| format!("{sink} has rows (times) too many {extra:?} and misses {missing:?}"))
}

/// How a pipeline came to its end: as the batch engine says.
pub struct Agreed {
    /// The checkpoints that its lives went on from.
    pub from: Vec<Option<u64>>,
    /// How many rows each sink has.
    pub rows: Vec<usize>,
}

impl Run {
    /// Runs the pipeline to its end, or says what differs from what the batch engine gives.
    pub fn check(&self, script: &Script) -> Result<Agreed, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let committed = Committed::default();
            let from = self.live(script, &committed).await?;
            let wanted = oracle(&self.events, script).await?;
            for (output, wanted) in script.outputs.iter().zip(&wanted) {
                if let Some(difference) = difference(&output.sink, &committed.standing(&output.sink)?, wanted) {
                    return Err(difference);
                }
            }
            let rows = wanted.iter().map(Vec::len).collect();
            Ok(Agreed { from, rows })
        })
    }

    fn plan(&self, script: &Script, committed: &Committed) -> Result<Pipeline, String> {
        plan(&script.pipeline, cut(&self.events, &self.lengths), committed)
    }

    /// Runs the pipeline through its lives; returns the checkpoints that they went on from.
    async fn live(&self, script: &Script, committed: &Committed) -> Result<Vec<Option<u64>>, String> {
        let config =
            ThrottleConfig { wait_put_per_call: Duration::from_millis(self.write_millis), ..ThrottleConfig::default() };
        let store = Store::new("memory", Arc::new(ThrottledStore::new(InMemory::new(), config)));
        let clock = Clock::simulated(Time(1_700_000_000_000_000_000));
        let last = Life { parallelism: 2, length: 0, checkpoint_millis: 50 };
        let mut from = Vec::new();
        for (life, is_last) in self.lives.iter().map(|life| (life, false)).chain([(&last, true)]) {
            let lived = live(&self.plan(script, committed)?, &store, clock, life, is_last).await?;
            from.push(lived.from);
            match lived.ended {
                true => break,
                false if is_last => return Err("the last life has not come to its end".into()),
                false => {}
            }
        }
        // Once more, when all is done: nothing is left to be done.
        let before = committed.chunks();
        let again = live(&self.plan(script, committed)?, &store, clock, &last, true).await?;
        match again.ended && committed.chunks() == before {
            true => Ok(from),
            false => Err("a pipeline that had ended does not end again, or has written more".into()),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "-- events: k, s, v, t in ms; in batches of {:?}, over and over", self.lengths)?;
        for same in self.events.chunk_by(|a, b| a == b) {
            let Event { k, s, v, t } = &same[0];
            let k = k.map_or("null".to_owned(), |k| k.to_string());
            let s = s.as_ref().map_or("null".to_owned(), |s| format!("'{s}'"));
            let times = if same.len() == 1 { String::new() } else { format!(" ({} times)", same.len()) };
            writeln!(f, "{k:>4} {s:>4} {v:>3} {t:>5}{times}")?;
        }
        writeln!(f, "-- lives; each write of a file takes {} ms", self.write_millis)?;
        for Life { parallelism, length, checkpoint_millis } in &self.lives {
            writeln!(
                f,
                "parallelism {parallelism}, a checkpoint each {checkpoint_millis} ms, killed after {length} ms"
            )?;
        }
        write!(f, "parallelism 2, a checkpoint each 50 ms, to the end")
    }
}
