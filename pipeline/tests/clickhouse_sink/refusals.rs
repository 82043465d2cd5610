//! What cannot be written is refused with the way out, and the way out works.

use std::time::Duration;

use arrow::array::{Date32Array, Int64Array, StringArray, TimestampNanosecondArray};
use tickhouse::runtime::{Fault, OperatorError};

use crate::driver::{Target, changes, column, rows};
use crate::server::{Database, free_address};

fn target<'a>(database: &'a Database, primary_key: &'a [&'a str]) -> Target<'a> {
    let Database { name, url } = database;
    Target { url, database: name, table: "t", primary_key, options: &[], wait: Duration::from_secs(5) }
}

/// Writes one batch of an append-only stream.
async fn append(
    database: &Database,
    columns: Vec<(arrow::datatypes::FieldRef, arrow::array::ArrayRef)>,
) -> Result<(), OperatorError> {
    let (input, batch) = rows(columns);
    target(database, &[]).sink(&input).write(vec![batch]).await
}

/// The statement in a message, from `word` on, up to where the message goes on.
fn statement(message: &str, word: &str) -> String {
    let from = &message[message.find(word).unwrap()..];
    from.split("; or").next().unwrap().to_owned()
}

#[tokio::test]
async fn the_statements_in_the_messages_mend_what_they_are_about() {
    let database = Database::new().await;
    let columns = || vec![column("pk", Int64Array::from(vec![1])), column("name", StringArray::from(vec!["x"]))];

    let error = append(&database, columns()).await.unwrap_err();
    assert_eq!(error.fault, Fault::User);
    database.run(&statement(&error.to_string(), "CREATE TABLE")).await;
    append(&database, columns()).await.unwrap();

    database.run("ALTER TABLE t DROP COLUMN name").await;
    let error = append(&database, columns()).await.unwrap_err().to_string();
    assert!(error.contains("has no column `name`"), "{error}");
    database.run(&statement(&error, "ALTER TABLE")).await;
    append(&database, columns()).await.unwrap();

    // The table that was proposed takes NULL, as the query may give it.
    database.run("ALTER TABLE t MODIFY COLUMN pk Nullable(String)").await;
    let error = append(&database, columns()).await.unwrap_err().to_string();
    assert!(error.contains("`pk`") && error.contains("is Nullable(String)"), "{error}");
    database.run(&statement(&error, "ALTER TABLE")).await;
    append(&database, columns()).await.unwrap();
    assert_eq!(database.run("SELECT count() FROM t").await, "3");
}

#[tokio::test]
async fn an_updating_query_is_refused_by_a_plain_table_and_taken_by_the_one_proposed() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (k Int64, n Int64) ENGINE = MergeTree ORDER BY k SETTINGS non_replicated_deduplication_window = 100").await;
    let (input, batch) = changes(
        vec![column("k", Int64Array::from(vec![1, 1])), column("n", Int64Array::from(vec![5, 6]))],
        vec![true, false],
    );
    let write = async || target(&database, &["k"]).sink(&input).write(vec![batch.clone()]).await;
    let error = write().await.unwrap_err().to_string();
    assert!(error.contains("is a MergeTree"), "{error}");
    database.run("DROP TABLE t").await;
    database.run(&statement(&error, "CREATE TABLE")).await;
    write().await.unwrap();
    assert_eq!(database.run("SELECT k, n, is_deleted FROM t FINAL").await, "1\t6\t0");
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_named_and_nothing_is_written() {
    let database = Database::new().await;
    let create = "CREATE TABLE t (i32 Int32 DEFAULT 0, d Date DEFAULT 0, dt DateTime DEFAULT 0, n Int64 DEFAULT 0, e Enum8('a' = 1) DEFAULT 'a',
        dt64 DateTime64(3) DEFAULT 0) ENGINE = MergeTree ORDER BY () SETTINGS non_replicated_deduplication_window = 100";
    database.run(create).await;
    let overflow = column("i32", Int64Array::from(vec![1, 1 << 40, 2]));
    let early = column("d", Date32Array::from(vec![0, -1]));
    let late = column("dt", TimestampNanosecondArray::from(vec![0, 5_000_000_000_000_000_000]));
    let old = column("dt64", TimestampNanosecondArray::from(vec![0, -5_000_000_000_000_000_000]));
    let null = column("n", Int64Array::from(vec![Some(1), None]));
    for (bad, says) in [
        (overflow, ["1099511627776", "`i32` (Int32)", "does not fit"]),
        (early, ["1969-12-31", "`d` (Date)", "does not fit"]),
        (late, ["2128-06-11", "`dt` (DateTime)", "does not fit"]),
        (old, ["1811-07-23", "`dt64` (DateTime64(3))", "does not fit"]),
        (null, ["NULL", "`n` (Int64)", "not Nullable"]),
    ] {
        let error = append(&database, vec![bad]).await.unwrap_err();
        assert_eq!(error.fault, Fault::User);
        let message = error.to_string();
        assert!(message.contains(&format!("{}.t", database.name)), "{message}");
        assert!(says.iter().all(|part| message.contains(part)), "{message}");
    }
    // What only ClickHouse can tell, it tells.
    let error = append(&database, vec![column("e", StringArray::from(vec!["a", "z"]))]).await.unwrap_err().to_string();
    assert!(error.contains("refuses rows") && error.contains("'z'") && error.contains('e'), "{error}");
    assert_eq!(database.run("SELECT count() FROM t").await, "0");
}

#[tokio::test]
async fn a_row_that_goes_needs_a_column_that_says_so() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (k Int64, version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY k").await;
    let (input, batch) = changes(vec![column("k", Int64Array::from(vec![7]))], vec![true]);
    let error = target(&database, &["k"]).sink(&input).write(vec![batch]).await.unwrap_err().to_string();
    assert!(error.contains("k = 7") && error.contains("is_deleted"), "{error}");
}

#[tokio::test]
async fn a_key_finer_than_its_column_is_refused_and_another_time_is_cut() {
    let database = Database::new().await;
    let create =
        "CREATE TABLE t (k DateTime, at DateTime, version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY k";
    database.run(create).await;
    let times = |nanos: i64| TimestampNanosecondArray::from(vec![nanos]);
    let (input, batch) =
        changes(vec![column("k", times(5_000_000_000)), column("at", times(5_900_000_000))], vec![false]);
    target(&database, &["k"]).sink(&input).write(vec![batch]).await.unwrap();
    assert_eq!(database.run("SELECT toUnixTimestamp(k), toUnixTimestamp(at) FROM t").await, "5\t5");
    let (input, batch) = changes(vec![column("k", times(5_900_000_000)), column("at", times(0))], vec![false]);
    let error = target(&database, &["k"]).sink(&input).write(vec![batch]).await.unwrap_err().to_string();
    assert!(error.contains("`k` (DateTime) is finer than the column"), "{error}");
}

#[tokio::test]
async fn clickhouse_that_stays_away_is_given_up_after_the_wait() {
    let address = free_address();
    let (input, _) = rows(vec![column("n", Int64Array::from(vec![1]))]);
    let url = format!("http://me:secret@{address}");
    let wait = Duration::from_millis(300);
    let target = Target { url: &url, database: "d", table: "t", primary_key: &[], options: &[], wait };
    let error = target.sink(&input).finish().await.unwrap_err();
    assert_eq!(error.fault, Fault::External);
    let message = error.to_string();
    assert!(message.contains(&address) && message.contains("300ms") && message.contains("--wait"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}
