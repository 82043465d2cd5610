//! ClickHouse comes late, and is killed while rows are written: each of them arrives, once.

use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
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
