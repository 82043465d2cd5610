//! Ten queries that together have every operator, alone and behind others.

use proptest::prelude::*;

use super::run::{Event, Life, Run, events, in_order, lengths, lives};
use super::script::{Output, Script};

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

impl Query {
    fn script(&self) -> Script {
        let tables = "CREATE TABLE events (k BIGINT, s TEXT, v BIGINT, t TIMESTAMP NOT NULL, WATERMARK FOR t) WITH (connector = 'replay');
            CREATE TABLE out WITH (connector = 'collect');";
        let output = Output { sink: "out".to_owned(), batch: vec![self.batch.to_owned()] };
        Script { pipeline: format!("{tables}\n{}", self.pipeline), tables: Vec::new(), outputs: vec![output] }
    }
}

/// Runs a query; returns the checkpoints that its lives went on from.
fn run(query: usize, run: &Run) -> Vec<Option<u64>> {
    let script = QUERIES[query].script();
    match run.check(&script) {
        Ok(agreed) => agreed.from,
        Err(difference) => panic!("{difference}\n{}\n{run}", script.pipeline),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_committed_is_what_the_batch_engine_gives(
        query in 0..QUERIES.len(),
        (events, lengths, lives, write_millis) in (events(), lengths(), lives(), 0..15_u64),
    ) {
        run(query, &Run { events: in_order(events, 1), lengths, lives, write_millis });
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
        let from = run(query, &Run { events: some_events(), lengths: vec![1], lives, write_millis: 1 });
        assert_eq!((from.len(), from[0]), (4, None), "{from:?}: killed three times");
        assert!(from.is_sorted_by(|a, b| a < b), "{from:?}: each goes on from a later checkpoint");
    }
}

#[test]
fn every_query_gives_the_batch_engines_rows_without_a_crash() {
    for query in 0..QUERIES.len() {
        run(query, &Run { events: some_events(), lengths: vec![5], lives: Vec::new(), write_millis: 1 });
    }
}

/// Found by the property test.
#[test]
fn a_restart_at_the_first_checkpoints() {
    let events = vec![Event { k: None, s: None, v: 0, t: 0 }; 34];
    let lives = vec![Life { parallelism: 2, length: 45, checkpoint_millis: 1 }];
    run(6, &Run { events, lengths: vec![3], lives, write_millis: 14 });
}
