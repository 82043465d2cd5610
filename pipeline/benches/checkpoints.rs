//! What checkpoints cost: throughput with and without, bytes when few keys change, and how long a restart takes.
//!
//! `cargo bench -p tickhouse --bench checkpoints`

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use tickhouse::run::{PlanOptions, RunOptions, Started, plan, start};
use tickhouse::runtime::Metrics;
use tickhouse::sql::Pipeline;
use tickhouse::state::StartFrom;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Keys of the state.
const KEYS: u64 = 1_000_000;

/// Rows per run of the throughput benchmark.
const ROWS: u64 = 100_000_000;

/// The keyed aggregate over rows of `impulse`, whose key is `key` of the row's `counter`.
fn aggregate(folder: &Path, impulse: &str, key: &str) -> Result<Pipeline> {
    let file = folder.join("aggregate.sql");
    let text = format!(
        "CREATE TABLE numbers WITH (connector = 'impulse', {impulse});
         CREATE TABLE out WITH (connector = 'blackhole');
         INSERT INTO out SELECT {key} AS k, count(*), sum(counter) FROM numbers GROUP BY 1;"
    );
    std::fs::write(&file, text)?;
    Ok(plan(&file, &PlanOptions::default())?)
}

async fn begin(pipeline: &Pipeline, parallelism: usize, interval: Duration, state: Option<&Path>) -> Result<Started> {
    let options = RunOptions {
        name: "bench".to_owned(),
        state_dir: state.map(|path| path.display().to_string()),
        from: StartFrom::Newest,
        parallelism,
        checkpoint_interval: interval,
    };
    Ok(start(pipeline, &options).await?)
}

/// Seconds for all rows.
async fn throughput(parallelism: usize, saved: bool) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let pipeline = aggregate(folder.path(), &format!("message_count = '{ROWS}'"), &format!("counter % {KEYS}"))?;
    let state = folder.path().join("state");
    let begun = Instant::now();
    let started = begin(&pipeline, parallelism, Duration::from_secs(1), saved.then_some(state.as_path())).await?;
    started.running.wait().await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The bytes of a checkpoint of all keys, and the median of those in which a hundredth of the keys have changed.
async fn bytes_of_changes() -> Result<(u64, u64)> {
    let folder = tempfile::tempdir()?;
    let key = format!("CASE WHEN counter < {KEYS} THEN counter ELSE counter % {} END", KEYS / 100);
    let pipeline = aggregate(folder.path(), "event_rate = '1000000'", &key)?;
    let state = folder.path().join("state");
    let started = begin(&pipeline, 2, Duration::from_secs(1), Some(&state)).await?;
    let metrics = started.running.metrics();
    let (mut sizes, mut last) = (Vec::new(), None);
    while sizes.len() < 12 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let seen = metrics.snapshot();
        if seen.last_epoch != last {
            last = seen.last_epoch;
            sizes.push(seen.last_checkpoint_bytes);
        }
    }
    started.running.stop();
    started.running.wait().await?;
    let all: u64 = sizes.iter().copied().max().unwrap_or(0);
    let mut few: Vec<u64> = sizes.split_off(4);
    few.sort_unstable();
    Ok((all, few.get(few.len() / 2).copied().unwrap_or(0)))
}

/// Seconds from the start of a pipeline with all keys in its state to the first row that it sends, and the rows of state.
async fn restart() -> Result<(f64, u64)> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let pipeline = || aggregate(folder.path(), "event_rate = '2000000'", &format!("counter % {KEYS}"));
    {
        // With its end it gives the state directory back.
        let first = begin(&pipeline()?, 2, Duration::from_secs(1), Some(&state)).await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        first.running.stop();
        first.running.wait().await?;
    }

    let begun = Instant::now();
    let again = begin(&pipeline()?, 2, Duration::from_secs(1), Some(&state)).await?;
    let rows = again.resumed.as_ref().map_or(0, |resumed| resumed.rows);
    let metrics = again.running.metrics();
    while arrived(&metrics) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    again.running.stop();
    again.running.wait().await?;
    Ok((took, rows))
}

/// Rows that have arrived at the sink.
fn arrived(metrics: &Metrics) -> u64 {
    let snapshot = metrics.snapshot();
    snapshot.nodes.last().map_or(0, |sink| sink.subtasks.iter().map(|subtask| subtask.rows_in).sum())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main]
async fn main() -> Result<()> {
    for parallelism in [1, 2] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            without.push(throughput(parallelism, false).await?);
            with.push(throughput(parallelism, true).await?);
        }
        let (with, without) = (median(with), median(without));
        println!(
            "sum and count of {KEYS} keys, parallelism {parallelism}: {:.2} million rows/s without checkpoints, {:.2} with one a \
             second; ratio {:.2}",
            ROWS as f64 / without / 1e6,
            ROWS as f64 / with / 1e6,
            without / with
        );
    }
    let (all, few) = bytes_of_changes().await?;
    println!(
        "checkpoint of {KEYS} keys: {all} bytes; when 1% of them have changed: {few} bytes; ratio {:.4}",
        few as f64 / all as f64
    );
    let (took, rows) = restart().await?;
    println!("restart with {rows} rows of state: {took:.2} s to the first row sent");
    Ok(())
}
