//! Checkpoints: time and bytes by size of the state and by the share that has changed, throughput with and without, a restart.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tickhouse::run::{PlanOptions, Started, plan};
use tickhouse::runtime::Metrics;
use tickhouse::sql::Pipeline;
use tickhouse::state::{Manifest, Store, epochs, read_manifest};
use tickhouse::state_dir::StateDir;

use super::batches::started;
use super::chart::{Line, draw};
use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::Failure;

const KEYS: u64 = 1_000_000;

const RUNS: usize = 3;

/// The time between checkpoints.
const INTERVAL: Duration = Duration::from_secs(1);

/// Checkpoints that are looked at once those of the first rows are over.
const LOOKED_AT: usize = 6;

/// The number of a row. `counter` is unsigned: arithmetic with a signed number would go through decimals.
const NUMBER: &str = "CAST(counter AS BIGINT)";

/// Makes keys of numbers: times this, modulo that prime. Numbers below the prime stay apart, and are scattered; in a row they would
/// compress as no user's keys do. Below 6,900,000,000 no product is too large.
const SCATTER: &str = "* 1327217885 % 2147483647";

/// Numbers below a power of ten, times this modulo that power, are the same ones in another order.
const SHUFFLE: u64 = 7_368_787;

/// A key, a count and a sum as they are.
const BYTES_OF_A_ROW: f64 = 24.0;

/// A sum and a count per key of `impulse`'s rows; `key` is an expression of the row's [`NUMBER`].
fn aggregate(folder: &Path, impulse: &str, key: &str) -> Result<Pipeline, Failure> {
    let file = folder.join("aggregate.sql");
    let text = format!(
        "CREATE TABLE numbers WITH (connector = 'impulse', {impulse});
         CREATE TABLE out WITH (connector = 'blackhole');
         INSERT INTO out SELECT {key} AS k, count(*), sum({NUMBER}) FROM numbers GROUP BY 1;"
    );
    std::fs::write(&file, text)?;
    Ok(plan(&file, &PlanOptions::default())?)
}

/// One of [`KEYS`] keys, in no order.
fn any_key() -> String {
    format!("{NUMBER} {SCATTER} % {KEYS}")
}

/// Each of `keys` keys once, and from then on `few` of them, one after the other, from all over the state.
fn few_of(keys: u64, few: u64) -> String {
    format!("(CASE WHEN {NUMBER} < {keys} THEN {NUMBER} ELSE {NUMBER} % {few} * {SHUFFLE} % {keys} END) {SCATTER}")
}

/// What `look` finds while the pipeline runs, which is stopped then. One that ends before is an error.
async fn while_it_runs<T>(started: Started, look: impl Future<Output = T>) -> Result<T, Failure> {
    let control = started.running.control();
    let ended = started.running.wait();
    tokio::pin!(ended);
    let found = tokio::select! {
        finished = &mut ended => {
            let reason = finished?.reason;
            return Err(format!("the pipeline ended before all was seen ({reason:?})").into());
        }
        found = look => found,
    };
    control.stop();
    ended.await?;
    Ok(found)
}

/// Million rows per second.
async fn throughput(rows: u64, parallelism: usize, saved: bool) -> Result<f64, Failure> {
    let folder = tempfile::tempdir()?;
    let pipeline = aggregate(folder.path(), &format!("message_count = '{rows}'"), &any_key())?;
    let state = folder.path().join("state");
    let begun = Instant::now();
    let running = started(&pipeline, parallelism, saved.then_some(state.as_path()), INTERVAL).await?;
    running.running.wait().await?;
    Ok(rows as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

/// One checkpoint.
#[derive(Debug, Clone, Copy)]
struct Taken {
    bytes: u64,
    seconds: f64,
    /// Rows made since the one before.
    rows: u64,
}

/// The next `count` checkpoints of a running pipeline.
async fn checkpoints(metrics: &Metrics, count: usize) -> Vec<Taken> {
    let (mut taken, mut last, mut made_before) = (Vec::new(), metrics.snapshot().last_epoch, made(metrics));
    while taken.len() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let seen = metrics.snapshot();
        if seen.last_epoch != last {
            last = seen.last_epoch;
            let made = made(metrics);
            taken.push(Taken {
                bytes: seen.last_checkpoint_bytes,
                seconds: seen.last_epoch_duration.as_secs_f64(),
                rows: made.saturating_sub(made_before),
            });
            made_before = made;
        }
    }
    taken
}

/// Rows that the source has made.
fn made(metrics: &Metrics) -> u64 {
    metrics.snapshot().nodes.first().map_or(0, |source| source.total(|subtask| subtask.rows_out))
}

/// Rows that have arrived at the sink.
fn arrived(metrics: &Metrics) -> u64 {
    metrics.snapshot().nodes.last().map_or(0, |sink| sink.total(|subtask| subtask.rows_in))
}

/// A checkpoint of all of `keys`, and the median of those in which `share` of them has changed since the last.
async fn by_change(keys: u64, share: f64) -> Result<(Taken, Taken), Failure> {
    let folder = tempfile::tempdir()?;
    let few = ((keys as f64 * share).round() as u64).max(1);
    // Every key that changes does so within a second.
    let rate = keys.max(100_000);
    let pipeline = aggregate(folder.path(), &format!("event_rate = '{rate}'"), &few_of(keys, few))?;
    let state = folder.path().join("state");
    let started = started(&pipeline, 2, Some(&state), INTERVAL).await?;
    let metrics = started.running.metrics();
    // The first ones take in the keys. A file of all of them may come later too, when logs are compacted: the median is none.
    let look = async { (checkpoints(&metrics, 3).await, checkpoints(&metrics, LOOKED_AT).await) };
    let (first, later) = while_it_runs(started, look).await?;
    let all = first.into_iter().max_by_key(|taken| taken.bytes).ok_or("no checkpoint was taken")?;
    let middle = |of: fn(&Taken) -> f64| median(later.iter().map(of).collect());
    let bytes = middle(|taken| taken.bytes as f64) as u64;
    let rows = middle(|taken| taken.rows as f64) as u64;
    Ok((all, Taken { bytes, seconds: middle(|taken| taken.seconds), rows }))
}

/// The newest checkpoint in a state directory, and where its files lie.
pub async fn newest_checkpoint(state: &Path) -> Result<(Store, Manifest), Failure> {
    let store = StateDir::look(&state.display().to_string())?;
    let epoch = epochs(&store).await?.last().copied().ok_or("no checkpoint was taken")?;
    let manifest = read_manifest(&store, epoch).await?;
    Ok((store, manifest))
}

/// Seconds until a pipeline that goes on from `state`, or begins there, sends its first row, and the rows of state that it had.
async fn first_row(folder: &Path, state: &Path) -> Result<(f64, u64), Failure> {
    let begun = Instant::now();
    let pipeline = aggregate(folder, "event_rate = '2000000'", &any_key())?;
    let started = started(&pipeline, 2, Some(state), INTERVAL).await?;
    let rows = started.resumed.as_ref().map_or(0, |resumed| resumed.rows);
    let metrics = started.running.metrics();
    let look = async {
        while arrived(&metrics) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed().as_secs_f64()
    };
    Ok((while_it_runs(started, look).await?, rows))
}

/// What a restart with all keys in the state takes, beside a start without any, and the bare files.
async fn tell_restart(section: &mut Section) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let pipeline = aggregate(folder.path(), "event_rate = '2000000'", &any_key())?;
    let first = started(&pipeline, 2, Some(&state), INTERVAL).await?;
    while_it_runs(first, tokio::time::sleep(Duration::from_secs(4))).await?;
    let (store, manifest) = newest_checkpoint(&state).await?;
    let begun = Instant::now();
    for file in manifest.files() {
        store.read(&file.path).await?;
    }
    let read = begun.elapsed().as_secs_f64();
    let (took, rows) = first_row(folder.path(), &state).await?;
    let (anew, _) = first_row(folder.path(), &folder.path().join("anew")).await?;
    let figure = Figure::new(format!("restart with {rows} rows of state, to the first row sent"), took, "s");
    section.tell(figure.against("a start without state", anew).at_most(2.0).limit("reading its files", read));
    section.note("Of a restart's time, and of a start's, one second is the aggregate's: it gathers changes for so long before it sends them.");
    Ok(())
}

/// Seconds that so many bytes take to a file that is then on the disk, as those of a checkpoint are: the median of some times.
fn written(bytes: u64) -> Result<f64, Failure> {
    let folder = tempfile::tempdir()?;
    let bytes: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
    let mut took = Vec::new();
    for run in 0..RUNS {
        let begun = Instant::now();
        let mut file = std::fs::File::create(folder.path().join(run.to_string()))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        took.push(begun.elapsed().as_secs_f64());
    }
    Ok(median(took))
}

/// Rows per second with a checkpoint each second, and without.
async fn tell_throughput(bench: &Bench<'_>, section: &mut Section) -> Result<(), Failure> {
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
    Ok(())
}

/// Checkpoints in which every key has changed, by how many there are.
async fn tell_by_size(bench: &Bench<'_>, section: &mut Section) -> Result<(), Failure> {
    let (mut time, mut bytes) = (Vec::new(), Vec::new());
    let sizes: &[u64] =
        if bench.args.short { &[10_000, 100_000, 1_000_000] } else { &[10_000, 100_000, 1_000_000, 10_000_000] };
    for keys in sizes.iter().copied() {
        let (_, taken) = by_change(keys, 1.0).await?;
        let changed = taken.rows.min(keys);
        let name = format!("checkpoint of {keys} keys, all changed");
        if changed < keys / 10 * 9 {
            section.note(format!("Of {keys} keys only {changed} have changed: no more rows were made in the time."));
        }
        time.push((keys as f64, taken.seconds * 1e3));
        bytes.push((keys as f64, taken.bytes as f64 / 1e6));
        let figure = Figure::new(format!("{name}: time"), taken.seconds * 1e3, "ms");
        section.tell(figure.limit("writing the bytes", written(taken.bytes)? * 1e3));
        let figure = Figure::new(format!("{name}: size"), taken.bytes as f64 / changed as f64, "bytes per key");
        section.tell(figure.against("its key, count and sum", BYTES_OF_A_ROW));
    }
    let lines = [Line { name: "time, ms".into(), points: time }, Line { name: "size, MB".into(), points: bytes }];
    let title = "A checkpoint in which every key has changed";
    draw(&bench.args.out, "checkpoints-size.svg", title, ("keys", "ms, MB"), &lines)?;
    section.chart("checkpoints-size.svg");
    Ok(())
}

/// Checkpoints of as many keys, by the share that has changed.
async fn tell_by_share(bench: &Bench<'_>, section: &mut Section) -> Result<(), Failure> {
    let (mut time, mut bytes) = (Vec::new(), Vec::new());
    let shares: &[f64] = if bench.args.short { &[0.01, 1.0] } else { &[0.001, 0.01, 0.1, 1.0] };
    for share in shares.iter().copied() {
        let (all, taken) = by_change(KEYS, share).await?;
        let name = format!("checkpoint of 1,000,000 keys, {}% changed", share * 100.0);
        let figure = Figure::new(format!("{name}: time"), taken.seconds * 1e3, "ms");
        let figure = figure.against("all keys", all.seconds * 1e3);
        section.tell(figure.limit("writing the bytes", written(taken.bytes)? * 1e3));
        let figure = Figure::new(format!("{name}: size"), taken.bytes as f64 / 1e3, "kB");
        let mut figure = figure.against("all keys", all.bytes as f64 / 1e3);
        if share <= 0.01 {
            figure = figure.ratio_at_most(0.05);
        }
        section.tell(figure);
        time.push((share * 100.0, taken.seconds * 1e3));
        bytes.push((share * 100.0, taken.bytes as f64 / 1e6));
    }
    let lines = [Line { name: "time, ms".into(), points: time }, Line { name: "size, MB".into(), points: bytes }];
    draw(&bench.args.out, "checkpoints-share.svg", "A checkpoint of 1,000,000 keys", ("% changed", "ms, MB"), &lines)?;
    section.chart("checkpoints-share.svg");
    Ok(())
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("Checkpoints");
    tell_throughput(bench, &mut section).await?;
    tell_restart(&mut section).await?;
    tell_by_size(bench, &mut section).await?;
    tell_by_share(bench, &mut section).await?;
    Ok(section)
}
