//! A sink that is slower than its source makes the source wait: memory stays where it is.
//!
//! `MEMORY_SECONDS` says for how long memory is watched; 20 when it is not set.

use std::path::Path;
use std::time::{Duration, Instant};

use tickhouse_tests::proxy::{Fault, Proxy};
use tickhouse_tests::{Program, Stack, StackOptions};

/// What a row takes on its way, compressed.
const BYTES_PER_ROW: f64 = 44.0;

/// How many times as fast as the sink the source is.
const TIMES: f64 = 10.0;

/// Between two looks at the pipeline's memory.
const STEP: Duration = Duration::from_millis(100);

/// How much more memory the last quarter of the time may take than the second: a tenth, and this. Rows that pile up would take
/// more within a second.
const GROWTH_MIB: f64 = 24.0;

/// The subtasks of the pipeline.
const PARALLELISM: u64 = 2;

/// A number per row, as fast as the source can, with a text that compression does not make much smaller.
fn sql(source: &str, sink: &str) -> String {
    format!(
        "CREATE TABLE beats WITH (connector = 'impulse', {source});
         CREATE TABLE numbers (n BIGINT NOT NULL, text TEXT NOT NULL) WITH ({sink});
         INSERT INTO numbers SELECT CAST(counter AS BIGINT), md5(CAST(counter AS TEXT)) FROM beats;"
    )
}

fn run(stack: &Stack, sql: &str, checkpoint_interval: &str) -> Command {
    let file = stack.write("numbers.sql", sql);
    let mut command = stack.tickhouse(&["run", "--checkpoint-interval", checkpoint_interval, "--parallelism"]);
    command.arg(PARALLELISM.to_string()).arg("--state-dir").arg(stack.folder().join("state")).arg(file);
    command
}

/// Rows per second when nothing holds the source back.
fn free_rate(stack: &Stack) -> f64 {
    const ROWS: u64 = 2_000_000;
    let sql = sql(&format!("message_count = '{ROWS}'"), "connector = 'blackhole'");
    let started = Instant::now();
    let output = Program::output(run(stack, &sql, "10s").env("TICKHOUSE_STATE_DIR", ""));
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    ROWS as f64 / started.elapsed().as_secs_f64()
}

/// The resident memory of a process, in MiB.
fn resident(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the pipeline runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib / 1024.0
}

/// Looks at the memory of `pipeline` for `time`.
async fn watch(pipeline: &mut Program, time: Duration) -> Vec<f64> {
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < time {
        assert!(pipeline.runs(), "the pipeline ended");
        samples.push(resident(pipeline.id()));
        tokio::time::sleep(STEP).await;
    }
    samples
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The bytes of all files below a folder, in MiB.
fn folder_size(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(of) if of.is_dir() => folder_size(&entry.path()),
        Ok(of) => of.len() as f64 / f64::from(1 << 20),
        // Removed in between.
        Err(_) => 0.0,
    };
    entries.map(size).sum()
}

#[tokio::test]
async fn memory_stays_where_it_is_behind_a_slow_clickhouse() {
    let seconds = std::env::var("MEMORY_SECONDS").map_or(20, |text| text.parse().expect("MEMORY_SECONDS is a number"));
    let stack = Stack::start(&StackOptions::default());
    let file = prepare(&stack).await;
    let proxy = Proxy::start(stack.url());
    proxy.fail(Fault::Slow { bytes_per_second: BYTES_PER_SECOND }, 1);
    let state = stack.folder().join("state");
    let mut command = stack.tickhouse(&["run", &file, "--parallelism", "2", "--checkpoint-interval", "1s"]);
    command.arg("--state-dir").arg(&state).env("CLICKHOUSE_URL", proxy.url());
    let mut pipeline = Program::start(command);

    let samples = watch(&mut pipeline, Duration::from_secs(seconds)).await;
    let delivered: u64 = stack.value("SELECT count() FROM numbers").await;
    let staged = folder_size(&state);
    proxy.pass();
    let output = pipeline.stop();
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let quarter = samples.len() / 4;
    let (early, late) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
    let most = samples.iter().copied().fold(0.0, f64::max);
    println!(
        "{seconds} s at {RATE} rows/s into a sink of {:.0} rows/s: resident {early:.1} MiB in the second quarter, {late:.1} MiB \
         in the last, {most:.1} MiB at most; {staged:.1} MiB of state",
        delivered as f64 / seconds as f64
    );
    assert!(proxy.faults() > 0 && delivered > 0, "nothing passed the proxy");
    assert!(delivered < seconds * RATE / 5, "the sink kept up: the test proves nothing");
    let allowed = early * 1.1 + GROWTH_MIB;
    assert!(
        late <= allowed,
        "memory grew from {early:.1} to {late:.1} MiB, and {allowed:.1} are allowed: {samples:.0?}"
    );

    assert_whole(&stack).await;
}

/// What was read was delivered, once: each of the two subtasks counted by twos without a gap.
async fn assert_whole(stack: &Stack) {
    let sql = "SELECT toInt64(n % 2) AS subtask, count(), uniqExact(n), min(n), max(n) FROM numbers GROUP BY subtask ORDER BY subtask";
    let subtasks: Vec<(i64, u64, u64, i64, i64)> = stack.client().query(sql).fetch_all().await.expect("the numbers");
    assert_eq!(subtasks.len(), 2, "{subtasks:?}");
    for (subtask, rows, distinct, first, last) in subtasks {
        let expected = (last - subtask) as u64 / 2 + 1;
        assert_eq!((rows, distinct, first), (expected, expected, subtask), "subtask {subtask} up to {last}");
    }
    let wrong: u64 = stack.value("SELECT countIf(text != lower(hex(MD5(toString(n))))) FROM numbers").await;
    assert_eq!(wrong, 0, "texts that do not belong to their number");
}
