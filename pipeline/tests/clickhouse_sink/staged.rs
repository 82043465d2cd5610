//! Rows are staged with the checkpoint, inserted when it is complete, and inserted again after a crash: once.

use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use tickhouse::plan::StreamSchema;

use crate::driver::{Driver, Target, changes, column, rows};
use crate::server::Database;

fn target<'a>(database: &'a Database, primary_key: &'a [&'a str]) -> Target<'a> {
    let Database { name, url } = database;
    let wait = Duration::from_secs(5);
    Target { url, database: name, table: "t", primary_key, options: &[("batch.rows", "200000")], wait }
}

fn numbers(from: i64, count: i64) -> (StreamSchema, RecordBatch) {
    rows(vec![column("n", Int64Array::from_iter_values(from..from + count))])
}

async fn counts(database: &Database) -> String {
    database.run("SELECT count(), uniqExact(n) FROM t").await
}

/// A table of three partitions, each of which an insert has a block of.
async fn partitioned() -> Database {
    let database = Database::new().await;
    let create = "CREATE TABLE t (n Int64) ENGINE = MergeTree PARTITION BY n % 3 ORDER BY n \
                  SETTINGS non_replicated_deduplication_window = 100";
    database.run(create).await;
    database
}

async fn give(sink: &mut Driver, from: i64, count: i64) {
    for at in (from..from + count).step_by(8_192) {
        sink.give(numbers(at, 8_192.min(from + count - at)).1).await.unwrap();
    }
}

#[tokio::test]
async fn rows_are_visible_when_their_checkpoint_is_complete() {
    let database = partitioned().await;
    let mut sink = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some("visible-1"));
    give(&mut sink, 0, 1_000).await;
    let share = sink.barrier().await.unwrap();
    assert_eq!((share.staged.len(), counts(&database).await.as_str()), (1, "0\t0"));
    sink.complete().await.unwrap();
    assert_eq!(counts(&database).await, "1000\t1000");
    give(&mut sink, 1_000, 10).await;
    assert_eq!(sink.barrier().await.unwrap().staged.len(), 1, "what is in is no longer staged");
}

#[tokio::test]
async fn what_was_staged_is_inserted_once_however_often_it_is_repeated() {
    let database = partitioned().await;
    let mut sink = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some("repeat-1"));
    // More than one insert, each larger than the blocks that ClickHouse reads by default (65,409 rows).
    give(&mut sink, 0, 500_000).await;
    let share = sink.barrier().await.unwrap();
    assert_eq!(share.staged.len(), 3);
    sink.complete().await.unwrap();
    for run in ["repeat-2", "repeat-3"] {
        let mut again = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some(run));
        again.resume(share.clone()).await.unwrap();
        assert_eq!(counts(&database).await, "500000\t500000", "{run}");
    }
    let mut last = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some("repeat-4"));
    last.resume(share).await.unwrap();
    // The same rows under another token are other rows.
    give(&mut last, 0, 1_000).await;
    last.barrier().await.unwrap();
    last.complete().await.unwrap();
    assert_eq!(counts(&database).await, "501000\t500000");
}

#[tokio::test]
async fn what_was_staged_and_not_inserted_is_inserted_by_the_next_run() {
    let database = partitioned().await;
    let mut sink = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some("next-1"));
    give(&mut sink, 0, 1_000).await;
    let share = sink.barrier().await.unwrap();
    // Killed before it learns that the checkpoint is complete.
    drop(sink);
    let mut next = target(&database, &[]).sink_of_run(&numbers(0, 1).0, Some("next-2"));
    next.resume(share).await.unwrap();
    assert_eq!(counts(&database).await, "1000\t1000");
}

#[tokio::test]
async fn a_later_run_gives_higher_versions() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE t (k Int64, n Int64, version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY k")
        .await;
    let change = |n: i64| {
        changes(vec![column("k", Int64Array::from(vec![1])), column("n", Int64Array::from(vec![n]))], vec![false])
    };
    let mut sink = target(&database, &["k"]).sink_of_run(&change(0).0, Some("version-1"));
    sink.give(change(1).1).await.unwrap();
    let mut share = sink.barrier().await.unwrap();
    // As if the clock had been ahead by a year.
    let ahead = share.values["version"].as_i64().unwrap() + 365 * 86_400_000_000;
    share.values.insert("version".to_owned(), ahead.into());
    sink.complete().await.unwrap();
    let mut next = target(&database, &["k"]).sink_of_run(&change(0).0, Some("version-2"));
    next.resume(share).await.unwrap();
    next.give(change(2).1).await.unwrap();
    next.barrier().await.unwrap();
    next.complete().await.unwrap();
    assert_eq!(database.run("SELECT n, version > 0 FROM t FINAL").await, "2\t1");
    assert_eq!(database.run(&format!("SELECT max(version) > {ahead} FROM t")).await, "1");
}

#[tokio::test]
async fn rows_that_are_alike_are_all_written_at_least_once() {
    let database = partitioned().await;
    let Database { name, url } = &database;
    let options = [("batch.rows", "100"), ("delivery", "at_least_once")];
    let wait = Duration::from_secs(5);
    let target = Target { url, database: name, table: "t", primary_key: &[], options: &options, wait };
    let alike = rows(vec![column("n", Int64Array::from_value(1, 100))]);
    let mut sink = target.sink(&alike.0);
    sink.write(vec![alike.1.clone(), alike.1.clone(), alike.1]).await.unwrap();
    assert_eq!(counts(&database).await, "300\t1");
}
