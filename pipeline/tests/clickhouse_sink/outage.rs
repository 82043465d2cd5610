//! ClickHouse comes late, and is killed while rows are written: each of them arrives, once.

use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use tickhouse::plan::StreamSchema;

use crate::driver::{Target, column, rows};
use crate::server::{Database, Process, free_address};

const ROWS: i64 = 500;
const BATCHES: i64 = 200;

fn numbers(batch: i64) -> (StreamSchema, RecordBatch) {
    rows(vec![column("n", Int64Array::from_iter_values(batch * ROWS..(batch + 1) * ROWS))])
}

async fn start(data: &std::path::Path, address: &str) -> Process {
    let (data, address) = (data.to_owned(), address.to_owned());
    tokio::task::spawn_blocking(move || Process::start(&data, &address)).await.unwrap()
}

#[tokio::test]
async fn all_rows_arrive_although_clickhouse_comes_late_and_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    // The table is there before; then nobody listens when the sink starts.
    let first = start(&data, "127.0.0.1:0").await;
    let database = Database::on(&first.url, "d").await;
    database
        .run(
            "CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    first.kill();

    let address = free_address();
    let url = format!("http://{address}");
    let (written, mut progress) = tokio::sync::watch::channel(0);
    let write = async {
        let options = [("batch.rows", "1000")];
        let wait = Duration::from_secs(30);
        let target = Target { url: &url, database: "d", table: "t", primary_key: &[], options: &options, wait };
        let mut sink = target.sink(&numbers(0).0);
        for batch in 0..BATCHES {
            sink.give(numbers(batch).1).await?;
            written.send_replace(batch);
        }
        sink.finish().await
    };
    let interrupt = async {
        let late = start(&data, &address).await;
        progress.wait_for(|batch| *batch >= BATCHES / 4).await.unwrap();
        late.kill();
        start(&data, &address).await
    };
    let (written, again) = tokio::join!(write, interrupt);
    written.unwrap();

    let database = Database { name: "d".into(), url: again.url.clone() };
    let counts = database.run("SELECT uniqExact(n), min(n), max(n), count() = uniqExact(n) FROM t").await;
    assert_eq!(counts, format!("{}\t0\t{}\t1", ROWS * BATCHES, ROWS * BATCHES - 1));
}

/// A block that is gone although its token is remembered: what a ClickHouse leaves that is killed between the two.
#[tokio::test]
async fn rows_that_a_killed_clickhouse_has_lost_are_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let (data, address) = (directory.path().join("data"), free_address());
    let mut clickhouse = start(&data, &address).await;
    let database = Database::on(&clickhouse.url, "d").await;
    let create = "CREATE TABLE t (n Int64, text Nullable(String)) ENGINE = MergeTree PARTITION BY n % 3 ORDER BY n \
                  SETTINGS non_replicated_deduplication_window = 100";
    database.run(create).await;

    let wait = Duration::from_secs(30);
    let target = Target { url: &database.url, database: "d", table: "t", primary_key: &[], options: &[], wait };
    // Each number twice, and nulls beside texts.
    let input = |from: i64| {
        let texts = (0..2_000_i64).map(|row| (row % 5 != 0).then(|| format!("it's {}", row % 7)));
        rows(vec![
            column("n", Int64Array::from_iter_values((0..2_000).map(|row| from + row / 2))),
            column("text", StringArray::from_iter(texts)),
        ])
    };
    let all = "SELECT count(), sum(n), sum(cityHash64(tuple(n, text))) FROM t";
    let mut sink = target.sink_of_run(&input(0).0, Some("run-1"));
    // Rows that were in before, and are in no danger.
    sink.give(input(10_000).1).await.unwrap();
    sink.barrier().await.unwrap();
    sink.complete().await.unwrap();
    sink.give(input(0).1).await.unwrap();
    let share = sink.barrier().await.unwrap();
    sink.complete().await.unwrap();
    let whole = database.run(all).await;

    // The parts of the second insert: the three blocks of the first have the numbers before.
    for lost in [0, 1, 3] {
        let parts = format!(
            "SELECT path FROM system.parts WHERE database = 'd' AND table = 't' AND active AND min_block_number > 3 \
             ORDER BY name LIMIT {lost}"
        );
        let parts = database.run(&parts).await;
        assert_eq!(parts.lines().count(), lost);
        clickhouse.kill();
        for part in parts.lines() {
            std::fs::remove_dir_all(part).unwrap();
        }
        clickhouse = start(&data, &address).await;
        assert_eq!(database.run(all).await == whole, lost == 0, "parts were lost");
        let mut again = target.sink_of_run(&input(0).0, Some("run-2"));
        again.resume(share.clone()).await.unwrap();
        assert_eq!(database.run(all).await, whole, "{lost} parts were lost");
    }
}

/// Others write into the table meanwhile, so that its parts are merged while rows are looked for.
#[tokio::test]
async fn rows_that_are_there_are_not_written_again_while_parts_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let clickhouse = start(&directory.path().join("data"), &free_address()).await;
    let database = Database::on(&clickhouse.url, "d").await;
    let create = "CREATE TABLE t (n Int64) ENGINE = MergeTree PARTITION BY n % 3 ORDER BY n \
                  SETTINGS non_replicated_deduplication_window = 100";
    database.run(create).await;

    let wait = Duration::from_secs(30);
    let target = Target { url: &database.url, database: "d", table: "t", primary_key: &[], options: &[], wait };
    let mut sink = target.sink_of_run(&numbers(0).0, Some("run-1"));
    sink.give(numbers(0).1).await.unwrap();
    let share = sink.barrier().await.unwrap();
    sink.complete().await.unwrap();

    let others = async |first: i64| {
        for round in first.. {
            let insert = format!("INSERT INTO t SELECT 1000000 * {round} + number FROM numbers(100)");
            database.run(&insert).await;
        }
    };
    let resumed = async {
        for run in 2..8 {
            let mut again = target.sink_of_run(&numbers(0).0, Some(&format!("run-{run}")));
            again.resume(share.clone()).await.unwrap();
        }
    };
    tokio::select! {
        () = resumed => {}
        () = others(1_000) => {}
        () = others(2_000_000) => {}
        () = others(4_000_000) => {}
    }
    let counts = database.run(&format!("SELECT count(), uniqExact(n) FROM t WHERE n < {ROWS}")).await;
    assert_eq!(counts, format!("{ROWS}\t{ROWS}"));
}
