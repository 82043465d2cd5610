//! Checkpoints: time and bytes by size of the state and by the share that has changed, throughput with and without, a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use tickhouse::run::{PlanOptions, plan};
use tickhouse::runtime::Metrics;
use tickhouse::sql::Pipeline;

use super::batches::started;
use super::chart::{Line, draw};
use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::Failure;

const KEYS: u64 = 1_000_000;

const RUNS: usize = 3;

/// Checkpoints that are looked at once those of the first rows are over.
const LOOKED_AT: usize = 6;

/// A sum and a count per key of `impulse`'s rows; `key` is an expression of `counter`, which is unsigned: arithmetic with a signed
/// number would go through decimals.
fn aggregate(folder: &Path, impulse: &str, key: &str) -> Result<Pipeline, Failure> {
    let file = folder.join("aggregate.sql");
    let text = format!(
        "CREATE TABLE numbers WITH (connector = 'impulse', {impulse});
         CREATE TABLE out WITH (connector = 'blackhole');
         INSERT INTO out SELECT {key} AS k, count(*), sum(CAST(counter AS BIGINT)) FROM numbers GROUP BY 1;"
    );
    std::fs::write(&file, text)?;
    Ok(plan(&file, &PlanOptions::default())?)
}

/// Million rows per second.
async fn throughput(rows: u64, parallelism: usize, saved: bool) -> Result<f64, Failure> {
    let folder = tempfile::tempdir()?;
    let pipeline =
        aggregate(folder.path(), &format!("message_count = '{rows}'"), &format!("CAST(counter AS BIGINT) % {KEYS}"))?;
    let state = folder.path().join("state");
    let begun = Instant::now();
    let running = started(&pipeline, parallelism, saved.then_some(state.as_path())).await?;
    running.running.wait().await?;
    Ok(rows as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

/// One checkpoint.
#[derive(Debug, Clone, Copy)]
struct Taken {
    bytes: u64,
    seconds: f64,
}

/// The next `count` checkpoints of a running pipeline.
async fn checkpoints(metrics: &Metrics, count: usize) -> Vec<Taken> {
    let (mut taken, mut last) = (Vec::new(), metrics.snapshot().last_epoch);
    while taken.len() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let seen = metrics.snapshot();
        if seen.last_epoch != last {
            last = seen.last_epoch;
            let seconds = seen.last_epoch_duration.as_secs_f64();
            taken.push(Taken { bytes: seen.last_checkpoint_bytes, seconds });
        }
    }
    taken
}

/// Rows that have arrived at the sink.
fn arrived(metrics: &Metrics) -> u64 {
    let snapshot = metrics.snapshot();
    snapshot.nodes.last().map_or(0, |sink| sink.subtasks.iter().map(|subtask| subtask.rows_in).sum())
}

/// A checkpoint of all of `keys`, and the median of those in which `share` of them has changed since the last.
async fn by_change(keys: u64, share: f64) -> Result<(Taken, Taken), Failure> {
    let folder = tempfile::tempdir()?;
    let few = ((keys as f64 * share) as u64).max(1);
    let key =
        format!("CASE WHEN counter < {keys} THEN CAST(counter AS BIGINT) ELSE CAST(counter AS BIGINT) % {few} END");
    // Every key that changes does so within a second.
    let rate = keys.max(100_000);
    let pipeline = aggregate(folder.path(), &format!("event_rate = '{rate}'"), &key)?;
    let state = folder.path().join("state");
    let running = started(&pipeline, 2, Some(&state)).await?;
    let metrics = running.running.metrics();
    // The first ones take in the keys. A file of all of them may come later too, when logs are compacted: the median is none.
    let first = checkpoints(&metrics, 3).await;
    let later = checkpoints(&metrics, LOOKED_AT).await;
    running.running.stop();
    running.running.wait().await?;
    let all = first.into_iter().max_by_key(|taken| taken.bytes).ok_or("no checkpoint was taken")?;
    let middle = |of: fn(&Taken) -> f64| median(later.iter().map(of).collect());
    Ok((all, Taken { bytes: middle(|taken| taken.bytes as f64) as u64, seconds: middle(|taken| taken.seconds) }))
}

/// Seconds from the start of a pipeline with all keys in its state to the first row that it sends, and its rows of state.
async fn restart() -> Result<(f64, u64), Failure> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let pipeline = || aggregate(folder.path(), "event_rate = '2000000'", &format!("CAST(counter AS BIGINT) % {KEYS}"));
    {
        // With its end it gives the state directory back.
        let first = started(&pipeline()?, 2, Some(&state)).await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        first.running.stop();
        first.running.wait().await?;
    }
    let begun = Instant::now();
    let again = started(&pipeline()?, 2, Some(&state)).await?;
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

/// Seconds that so many bytes take to a file, the fastest of some times.
fn written(bytes: u64) -> Result<f64, Failure> {
    let folder = tempfile::tempdir()?;
    let bytes: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
    let mut fastest = f64::INFINITY;
    for _ in 0..RUNS {
        let begun = Instant::now();
        std::fs::write(folder.path().join("state"), &bytes)?;
        fastest = fastest.min(begun.elapsed().as_secs_f64());
    }
    Ok(fastest)
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("Checkpoints");
    let rows = bench.size(200_000_000, 20_000_000);
    for parallelism in [1, 2] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            without.push(throughput(rows, parallelism, false).await?);
            with.push(throughput(rows, parallelism, true).await?);
        }
        let name = format!("sum and count of 1,000,000 keys, a checkpoint each second, parallelism {parallelism}");
        let figure = Figure::new(name, median(with), "million rows/s").against("without checkpoints", median(without));
        section.tell(figure.ratio_at_least(0.9));
    }

    let (took, rows) = restart().await?;
    let figure = Figure::new(format!("restart with {rows} rows of state, to the first row sent"), took, "s");
    section.tell(figure.at_most(2.0));
    section.note(
        "Of a restart's time, one second is the aggregate's: it gathers changes for so long before it sends them.",
    );

    let mut time = Vec::new();
    let mut bytes = Vec::new();
    let sizes: &[u64] =
        if bench.args.short { &[10_000, 100_000, 1_000_000] } else { &[10_000, 100_000, 1_000_000, 10_000_000] };
    for keys in sizes {
        let (_, taken) = by_change(*keys, 1.0).await?;
        time.push((*keys as f64, taken.seconds * 1e3));
        bytes.push((*keys as f64, taken.bytes as f64 / 1e6));
        let per_key = taken.bytes as f64 / *keys as f64;
        let figure = Figure::new(format!("checkpoint of {keys} keys, all changed: time"), taken.seconds * 1e3, "ms");
        section.tell(figure.limit("writing the bytes", written(taken.bytes)? * 1e3));
        section.tell(Figure::new(format!("checkpoint of {keys} keys, all changed: size"), per_key, "bytes per key"));
    }
    let lines = [Line { name: "time, ms".into(), points: time }, Line { name: "size, MB".into(), points: bytes }];
    draw(
        &bench.args.out,
        "checkpoints-size.svg",
        "A checkpoint in which every key has changed",
        ("keys", "ms, MB"),
        &lines,
    )?;
    section.chart("checkpoints-size.svg");

    let (mut time, mut bytes) = (Vec::new(), Vec::new());
    let shares: &[f64] = if bench.args.short { &[0.01, 1.0] } else { &[0.001, 0.01, 0.1, 1.0] };
    for share in shares {
        let (all, taken) = by_change(KEYS, *share).await?;
        let name = format!("checkpoint of 1,000,000 keys, {}% changed: size", share * 100.0);
        let mut figure = Figure::new(name, taken.bytes as f64 / 1e3, "kB").against("all keys", all.bytes as f64 / 1e3);
        if *share <= 0.01 {
            figure = figure.ratio_at_most(0.05);
        }
        section.tell(figure);
        time.push((share * 100.0, taken.seconds * 1e3));
        bytes.push((share * 100.0, taken.bytes as f64 / 1e6));
    }
    let lines = [Line { name: "time, ms".into(), points: time }, Line { name: "size, MB".into(), points: bytes }];
    draw(&bench.args.out, "checkpoints-share.svg", "A checkpoint of 1,000,000 keys", ("% changed", "ms, MB"), &lines)?;
    section.chart("checkpoints-share.svg");
    Ok(section)
}
