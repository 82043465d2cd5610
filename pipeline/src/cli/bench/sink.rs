//! Rows into a ClickHouse table of five columns, exactly once, against what ClickHouse does by itself and a plain client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::ipc::writer::StreamWriter;
use clickhouse::Client;
use tickhouse::connectors::clickhouse::Endpoint;
use tokio::task::JoinSet;

use super::batches::timed;
use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::Failure;
use crate::cli::service::Service;

const BATCH_ROWS: i64 = 8_192;

/// The rows of one insert of the plain client: as many as the sink's.
const INSERT_ROWS: usize = 100_000;

const RUNS: usize = 3;

const COLUMNS: &str =
    "pk Int64, minute DateTime64(9, 'UTC'), followers Int64, following Int64, fetched_at DateTime64(9, 'UTC')";

fn readings(rows: i64) -> Result<Vec<RecordBatch>, Failure> {
    let batch = |from: i64| {
        let numbers = from..(from + BATCH_ROWS).min(rows);
        let int =
            |of: fn(i64) -> i64| -> ArrayRef { Arc::new(numbers.clone().map(|n| Some(of(n))).collect::<Int64Array>()) };
        let time = |of: fn(i64) -> i64| -> ArrayRef {
            Arc::new(numbers.clone().map(|n| Some(of(n))).collect::<TimestampNanosecondArray>())
        };
        RecordBatch::try_from_iter_with_nullable([
            ("pk", int(|n| n % 1_000_000), false),
            ("minute", time(|n| n / 1_000_000 * 60_000_000_000), false),
            ("followers", int(|n| n * 7_919 % 10_000_000), false),
            ("following", int(|n| n * 31 % 5_000), false),
            ("fetched_at", time(|n| n / 1_000_000 * 60_000_000_000 + n % 1_000_000 * 30_000), false),
        ])
    };
    Ok((0..rows).step_by(BATCH_ROWS as usize).map(batch).collect::<Result<_, _>>()?)
}

/// A ClickHouse with an empty table, and a way to ask it.
struct Target {
    client: Client,
    url: String,
}

impl Target {
    async fn empty_table(&self) -> Result<(), Failure> {
        self.client.query("DROP TABLE IF EXISTS readings SYNC").execute().await?;
        let create = format!(
            "CREATE TABLE readings ({COLUMNS}) ENGINE = MergeTree ORDER BY (pk, minute) \
             SETTINGS non_replicated_deduplication_window = 10000"
        );
        Ok(self.client.query(&create).execute().await?)
    }

    /// What it took, once all rows are seen to be there.
    async fn measured(&self, way: &str, table: &str, took: f64, rows: i64) -> Result<f64, Failure> {
        let there: u64 = self.client.query(&format!("SELECT count() FROM {table}")).fetch_one().await?;
        if there == rows as u64 {
            Ok(took)
        } else {
            Err(format!("{way}: {there} rows of {rows} are in the table").into())
        }
    }

    async fn pipeline(&self, batches: &[RecordBatch], rows: i64, parallelism: usize) -> Result<f64, Failure> {
        self.empty_table().await?;
        let sql = format!(
            "CREATE TABLE events (pk BIGINT NOT NULL, minute TIMESTAMP NOT NULL, followers BIGINT NOT NULL, \
                                  following BIGINT NOT NULL, fetched_at TIMESTAMP NOT NULL) WITH (connector = 'batches');
             CREATE TABLE readings WITH (connector = 'clickhouse', url = '{}', database = 'default');
             INSERT INTO readings SELECT pk, minute, followers, following, fetched_at FROM events;",
            self.url
        );
        let took = timed(&sql, batches, parallelism, Duration::from_secs(1)).await?.seconds;
        self.measured("the sink", "readings", took, rows).await
    }

    /// One insert after the other, by two tasks.
    async fn plain_client(&self, batches: &[RecordBatch], rows: i64) -> Result<f64, Failure> {
        self.empty_table().await?;
        let (first, second) = batches.split_at(batches.len() / 2);
        let begun = Instant::now();
        // Tasks of their own, so that both may run at once as the sink's subtasks do.
        let mut tasks = JoinSet::new();
        for half in [first, second] {
            tasks.spawn(insert_all(self.client.clone(), half.to_vec()));
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        self.measured("the plain client", "readings", begun.elapsed().as_secs_f64(), rows).await
    }

    /// The rows that are in the table, into another one of its kind.
    async fn inside(&self, rows: i64) -> Result<f64, Failure> {
        self.client.query("DROP TABLE IF EXISTS copied SYNC").execute().await?;
        self.client.query("CREATE TABLE copied AS readings").execute().await?;
        let begun = Instant::now();
        self.client.query("INSERT INTO copied SELECT * FROM readings").execute().await?;
        self.measured("INSERT SELECT", "copied", begun.elapsed().as_secs_f64(), rows).await
    }
}

/// Inserts batches as a plain client does.
async fn insert_all(client: Client, batches: Vec<RecordBatch>) -> Result<(), Failure> {
    let per_insert = INSERT_ROWS / BATCH_ROWS as usize;
    for some in batches.chunks(per_insert.max(1)) {
        let mut insert = client.insert_formatted_with("INSERT INTO readings FORMAT ArrowStream");
        insert.send(encoded(some)?.into()).await?;
        insert.end().await?;
    }
    Ok(())
}

/// Batches as an Arrow stream.
fn encoded(batches: &[RecordBatch]) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    if let Some(first) = batches.first() {
        let mut writer = StreamWriter::try_new(&mut body, first.schema_ref())?;
        for batch in batches {
            writer.write(batch)?;
        }
        writer.finish()?;
    }
    Ok(body)
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let rows = bench.size(10_000_000, 2_000_000) as i64;
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data").display().to_string();
    let program = std::env::current_exe()?;
    let serve = ["clickhouse", "serve", "--until-stdin-closes", "--http", "127.0.0.1:0", "--path", &data];
    let clickhouse = Service::new("clickhouse", &program).args(serve).start(folder.path()).await?;
    let client = Endpoint::parse(clickhouse.url())?.with_database("default").client();
    let target = Target { client, url: clickhouse.url().to_owned() };
    let batches = readings(rows)?;
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();

    let (mut one, mut two, mut plain, mut inside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        one.push(target.pipeline(&batches, rows, 1).await?);
        two.push(target.pipeline(&batches, rows, 2).await?);
        plain.push(target.plain_client(&batches, rows).await?);
        inside.push(target.inside(rows).await?);
    }
    clickhouse.stop().await?;
    let rate = |seconds: &[f64]| rows as f64 / median(seconds.to_vec());
    let mut section = Section::new("The ClickHouse sink");
    for (parallelism, seconds) in [(1, &one), (2, &two)] {
        let name = format!("exactly once into a MergeTree of five columns, parallelism {parallelism}");
        let figure =
            Figure::new(name, rate(seconds), "rows/s").against("a plain client, two inserts at once", rate(&plain));
        section.tell(figure.at_least(1_000_000.0).limit("INSERT SELECT inside ClickHouse", rate(&inside)));
    }
    let megabytes = bytes as f64 / median(two) / 1e6;
    section.tell(Figure::new("the same, parallelism 2", megabytes, "MB/s of Arrow"));
    section.note("ClickHouse runs on the same cores and takes most of the time. The plain client saves nothing.");
    Ok(section)
}
