//! Crashes at any moment, restarts at any parallelism: what has been committed in the end is what DataFusion's batch engine
//! computes from the same rows.

mod collect;
mod later;
mod replay;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use tickhouse::runtime::{self, Clock, Options, Reason, SavedState, Time};
use tickhouse::sql::{Functions, Pipeline, Planner};
use tickhouse::state::{Checkpoints, StartFrom, Store};

use collect::Committed;

/// A query as the pipeline has it, and as the batch engine has it over a table `events` of the same rows.
struct Query {
    pipeline: &'static str,
    batch: &'static str,
}

/// Every operator that there is, alone and behind others.
const QUERIES: &[Query] = &[
    Query {
        pipeline: "INSERT INTO out SELECT k, s, v * 2 FROM events WHERE v % 3 <> 0",
        batch: "SELECT k, s, v * 2 FROM events WHERE v % 3 <> 0",
    },
    Query {
        pipeline: "INSERT INTO out SELECT k, w.start, n, total, last FROM (
            SELECT k, tumble(interval '10 second') AS w, count(*) AS n, sum(v) AS total, max(s) AS last FROM events GROUP BY k, w)",
        batch: "SELECT k, date_bin(interval '10 second', t, to_timestamp(0)) AS start, count(*), sum(v), max(s) FROM events GROUP BY k, start",
    },
    Query {
        pipeline: "INSERT INTO out SELECT w.end, n, average FROM (
            SELECT tumble(interval '7 second') AS w, count(DISTINCT k) AS n, avg(v) AS average FROM events GROUP BY w)",
        batch: "SELECT date_bin(interval '7 second', t, to_timestamp(0)) + interval '7 second' AS e, count(DISTINCT k), avg(v)
            FROM events GROUP BY e",
    },
    Query {
        pipeline: "INSERT INTO out SELECT k, count(*), sum(v), min(v), max(s), count(DISTINCT v) FROM events GROUP BY k",
        batch: "SELECT k, count(*), sum(v), min(v), max(s), count(DISTINCT v) FROM events GROUP BY k",
    },
    Query {
        pipeline: "INSERT INTO out SELECT s, avg(v) FROM events GROUP BY s HAVING count(*) > 3",
        batch: "SELECT s, avg(v) FROM events GROUP BY s HAVING count(*) > 3",
    },
    Query { pipeline: "INSERT INTO out SELECT DISTINCT k, s FROM events", batch: "SELECT DISTINCT k, s FROM events" },
    Query { pipeline: "INSERT INTO out SELECT count(*), sum(v) FROM events", batch: "SELECT count(*), sum(v) FROM events" },
    Query {
        pipeline: "INSERT INTO out SELECT k, v, later(v) FROM events",
        batch: "SELECT k, v, v * 2 FROM events",
    },
    Query {
        pipeline: "CREATE TABLE answers (k BIGINT, v BIGINT, doubled BIGINT);
            INSERT INTO answers SELECT k, v, later(v) FROM events WHERE v > 0;
            INSERT INTO out SELECT k, sum(doubled), count(*) FROM answers GROUP BY k",
        batch: "SELECT k, sum(v * 2), count(*) FROM events WHERE v > 0 GROUP BY k",
    },
    Query {
        pipeline: "CREATE VIEW ticks AS SELECT k, w.end AS minute, n FROM (
                SELECT k, tumble(interval '5 second') AS w, count(*) AS n FROM events GROUP BY k, w);
            CREATE VIEW lists AS SELECT k, minute, n, make_array(n, n + 1) AS list FROM ticks;
            CREATE VIEW due AS SELECT k, minute, unnest(list) AS item FROM lists;
            CREATE TABLE replies (k BIGINT, item BIGINT, doubled BIGINT);
            INSERT INTO replies SELECT k, item, later(item) FROM due;
            INSERT INTO out SELECT k, item, sum(doubled), count(*) FROM replies GROUP BY k, item",
        batch: "SELECT k, item, sum(item * 2), count(*) FROM (
            SELECT k, unnest(make_array(n, n + 1)) AS item FROM (
                SELECT k, date_bin(interval '5 second', t, to_timestamp(0)) AS w, count(*) AS n FROM events GROUP BY k, w))
            GROUP BY k, item",
    },
];

#[derive(Debug, Clone)]
struct Event {
    k: Option<i64>,
    s: Option<String>,
    v: i64,
    /// Milliseconds.
    t: i64,
}

/// One life of the pipeline.
#[derive(Debug, Clone)]
struct Life {
    parallelism: usize,
    /// Milliseconds until it is killed.
    length: u64,
    checkpoint_millis: u64,
}

#[derive(Debug, Clone)]
struct Case {
    query: usize,
    events: Vec<Event>,
    lengths: Vec<usize>,
    lives: Vec<Life>,
    /// Milliseconds that each write of a file takes.
    write_millis: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let key = proptest::option::weighted(0.9, 0..9_i64);
    let text = proptest::option::weighted(0.9, "[a-c]{0,2}");
    let event = (key, text, -50..50_i64, 0..60_000_i64).prop_map(|(k, s, v, t)| Event { k, s, v, t });
    let life = (1..=4_usize, 0..400_u64, 1..120_u64).prop_map(|(parallelism, length, checkpoint_millis)| Life {
        parallelism,
        length,
        checkpoint_millis,
    });
    let events = proptest::collection::vec(event, 1..200);
    let lives = proptest::collection::vec(life, 0..6);
    (0..QUERIES.len(), events, proptest::collection::vec(1..12_usize, 1..6), lives, 0..15_u64).prop_map(
        |(query, mut events, lengths, lives, write_millis)| {
            // In order, so that no row is late in one run and not in another.
            events.sort_by_key(|event| event.t);
            Case { query, events, lengths, lives, write_millis }
        },
    )
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

/// Each row as text.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> =
        batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

async fn oracle(events: &[Event], sql: &str) -> Vec<String> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    context.register_batch("events", batch(events)).unwrap();
    let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut lines: Vec<String> = rows.iter().flat_map(lines).collect();
    lines.sort_unstable();
    lines
}

fn plan(query: &Query, batches: Vec<RecordBatch>, committed: &Committed) -> Pipeline {
    let connectors: Vec<Box<dyn tickhouse::connectors::Connector>> =
        vec![Box::new(replay::Replay::new(batches)), Box::new(collect::Collect::new(committed.clone()))];
    let functions = Functions { asynchronous: vec![Arc::new(later::Later)], ..Functions::default() };
    let text = format!(
        "CREATE TABLE events (k BIGINT, s TEXT, v BIGINT, t TIMESTAMP NOT NULL, WATERMARK FOR t) WITH (connector = 'replay');
         CREATE TABLE out WITH (connector = 'collect');
         {}",
        query.pipeline
    );
    Planner::new(connectors, functions).plan("case.sql", &text, &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

/// How a life began and ended.
struct Lived {
    /// The checkpoint that it went on from.
    from: Option<u64>,
    /// Whether the pipeline came to its end.
    ended: bool,
}

/// Runs the pipeline for one life.
async fn live(pipeline: &Pipeline, store: &Store, clock: Clock, life: &Life, is_last: bool) -> Lived {
    let nodes = runtime::identities(&pipeline.job);
    let (checkpoints, resumed) = Checkpoints::open(store.clone(), "case", nodes, StartFrom::Newest, true)
        .await
        .expect("no checkpoint is damaged");
    let from = resumed.as_ref().map(|resumed| resumed.epoch);
    let options = Options {
        clock,
        checkpoint_interval: Duration::from_millis(life.checkpoint_millis),
        channel_rows: 50,
        ..Options::new("case", life.parallelism)
    };
    let saved = SavedState { id: "case".to_owned(), checkpoints, resumed };
    let running = runtime::start_saving(&pipeline.job, options, Some(saved)).unwrap();
    let control = running.control();
    let ended = running.wait();
    tokio::pin!(ended);
    if !is_last {
        tokio::select! {
            finished = &mut ended => return Lived { from, ended: finished.unwrap().reason == Reason::SourcesEnded },
            () = tokio::time::sleep(Duration::from_millis(life.length)) => {}
        }
        // A kill leaves no time for anything.
        control.abort();
        let _ = ended.await;
        return Lived { from, ended: false };
    }
    let finished = tokio::time::timeout(Duration::from_secs(3_600), ended).await.expect("it ends").unwrap();
    Lived { from, ended: finished.reason == Reason::SourcesEnded }
}

/// Runs a case to its end; returns the checkpoints that its lives went on from.
async fn check(case: &Case) -> Vec<Option<u64>> {
    let config =
        ThrottleConfig { wait_put_per_call: Duration::from_millis(case.write_millis), ..ThrottleConfig::default() };
    let store = Store::new("memory", Arc::new(ThrottledStore::new(InMemory::new(), config)));
    let clock = Clock::simulated(Time(1_700_000_000_000_000_000));
    let committed = Committed::default();
    let query = &QUERIES[case.query];
    let last = Life { parallelism: 2, length: 0, checkpoint_millis: 50 };
    let mut from = Vec::new();
    let mut lives = case.lives.iter().map(|life| (life, false)).chain([(&last, true)]);
    loop {
        let Some((life, is_last)) = lives.next() else { panic!("the last life does not come to its end") };
        let pipeline = plan(query, cut(&case.events, &case.lengths), &committed);
        let lived = live(&pipeline, &store, clock, life, is_last).await;
        from.push(lived.from);
        if lived.ended {
            break;
        }
    }
    assert_eq!(committed.standing(), oracle(&case.events, query.batch).await, "{}", query.pipeline);
    // Once more, when all is done: nothing is left to be done.
    let before = committed.chunks();
    let pipeline = plan(query, cut(&case.events, &case.lengths), &committed);
    assert!(live(&pipeline, &store, clock, &last, true).await.ended);
    assert_eq!(committed.chunks(), before, "a pipeline that had ended has written more");
    from
}

fn run(case: &Case) -> Vec<Option<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(check(case))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_committed_is_what_the_batch_engine_gives(case in case()) {
        run(&case);
    }
}

fn some_events() -> Vec<Event> {
    let event = |n: i64| Event { k: Some(n % 7), s: Some(format!("s{}", n % 4)), v: n * 37 % 101 - 50, t: n * 400 };
    (0..150).map(event).collect()
}

#[test]
fn each_life_goes_on_from_where_the_one_before_had_come_to() {
    let life = |parallelism| Life { parallelism, length: 60, checkpoint_millis: 10 };
    for query in 0..QUERIES.len() {
        let lives = vec![life(2), life(3), life(1)];
        let from = run(&Case { query, events: some_events(), lengths: vec![1], lives, write_millis: 1 });
        assert_eq!((from.len(), from[0]), (4, None), "{from:?}: killed three times");
        assert!(from.is_sorted_by(|a, b| a < b), "{from:?}: each goes on from a later checkpoint");
    }
}

#[test]
fn every_query_gives_the_batch_engines_rows_without_a_crash() {
    for query in 0..QUERIES.len() {
        run(&Case { query, events: some_events(), lengths: vec![5], lives: Vec::new(), write_millis: 1 });
    }
}

/// Found by the property test.
#[test]
fn a_restart_at_the_first_checkpoints() {
    let events = vec![Event { k: None, s: None, v: 0, t: 0 }; 34];
    let lives = vec![Life { parallelism: 2, length: 45, checkpoint_millis: 1 }];
    run(&Case { query: 6, events, lengths: vec![3], lives, write_millis: 14 });
}
