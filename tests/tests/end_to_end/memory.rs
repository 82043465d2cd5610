//! A sink that is slower than its source makes the source wait: memory stays where it is.
//!
//! What is staged for a checkpoint grows until the checkpoint is complete and shrinks as it is inserted, so that memory goes up
//! and down: highest values are compared, not means.
//!
//! `MEMORY_SECONDS` says for how long memory is watched in each test; 20 when it is not set.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tickhouse_tests::proxy::{Fault, Proxy};
use tickhouse_tests::{Program, Stack, StackOptions, settings};

/// How many times as fast as the sink the source is.
const TIMES: f64 = 10.0;

/// What a row takes on its way to ClickHouse, compressed.
const BYTES_PER_ROW: f64 = 44.0;

/// Between two looks at the pipeline's memory.
const STEP: Duration = Duration::from_millis(100);

/// How much higher memory may be in the second half of the time than in the first: by a tenth, and this. Rows that pile up would
/// take more within a second.
const GROWTH_MIB: f64 = 24.0;

/// Subtasks of each operator.
const PARALLELISM: i64 = 2;

/// A row per number, as fast as the source can make them, with a text that compression does not make much smaller.
fn sql(source: &str, sink: &str) -> String {
    format!(
        "CREATE TABLE beats WITH (connector = 'impulse', {source});
         CREATE TABLE numbers (n BIGINT NOT NULL, text TEXT NOT NULL) WITH ({sink});
         INSERT INTO numbers SELECT CAST(counter AS BIGINT), md5(CAST(counter AS TEXT)) FROM beats;"
    )
}

fn run(stack: &Stack, sql: &str) -> Command {
    let file = stack.write("numbers.sql", sql);
    let mut command = stack.tickhouse(&["run", "--parallelism"]);
    command.arg(PARALLELISM.to_string()).arg(file);
    command
}

/// Rows per second when nothing holds the source back.
fn free_rate(stack: &Stack) -> f64 {
    const ROWS: u32 = 4_000_000;
    let sql = sql(&format!("message_count = '{ROWS}'"), "connector = 'blackhole'");
    let started = Instant::now();
    let output = Program::output(&mut run(stack, &sql));
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    f64::from(ROWS) / started.elapsed().as_secs_f64()
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

fn highest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
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

/// Watches a pipeline whose sink, with `delivery`, is [`TIMES`] times slower than its source, and that may take `most` MiB.
async fn stays_where_it_is(delivery: &str, most: f64) {
    let seconds = settings::number("MEMORY_SECONDS").unwrap_or(20);
    let stack = Stack::start(&StackOptions::default());
    stack
        .execute(
            "CREATE TABLE numbers (n Int64, text String) ENGINE = MergeTree ORDER BY n \
             SETTINGS non_replicated_deduplication_window = 1000",
        )
        .await;
    let free = free_rate(&stack);
    let proxy = Proxy::start(stack.url());
    proxy.fail(Fault::Slow { bytes_per_second: (free / TIMES * BYTES_PER_ROW) as u32 }, 1);
    let state = stack.folder().join("state");
    let sink =
        format!("connector = 'clickhouse', url = '{}', delivery = '{delivery}', 'batch.rows' = '10000'", proxy.url());
    // As many rows as nobody waits for.
    let mut command = run(&stack, &sql("message_count = '1000000000000'", &sink));
    command.arg("--state-dir").arg(&state);
    let mut pipeline = Program::start(command);

    let samples = watch(&mut pipeline, Duration::from_secs(seconds)).await;
    let delivered: u64 = stack.value("SELECT count() FROM numbers").await;
    let kept = folder_size(&state);
    proxy.pass();
    let output = pipeline.stop();
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    let (first, second) = samples.split_at(samples.len() / 2);
    let (highest_first, highest_second) = (highest(first), highest(second));
    println!(
        "{delivery}, {seconds} s, {free:.0} rows/s made and {:.0} delivered when free and when slow: resident at most \
         {highest_first:.1} MiB in the first half and {highest_second:.1} in the second, medians {:.1} and {:.1}; {kept:.1} MiB of \
         state",
        delivered as f64 / seconds as f64,
        median(first),
        median(second)
    );
    assert!(proxy.faults() > 0, "nothing passed the proxy");
    assert!((delivered as f64) < free * seconds as f64 / 5.0, "the sink kept up: the test proves nothing");
    let allowed = highest_first * 1.1 + GROWTH_MIB;
    assert!(highest_second <= allowed, "more than {allowed:.1} MiB in the second half: {samples:.0?}");
    assert!(highest(&samples) <= most, "more than {most:.1} MiB: {samples:.0?}");
    assert_whole(&stack).await;
}

/// What was read was delivered, once: each subtask has counted without a gap.
async fn assert_whole(stack: &Stack) {
    let sql = format!(
        "SELECT toInt64(n % {PARALLELISM}) AS subtask, count(), uniqExact(n), min(n), max(n) \
         FROM numbers GROUP BY subtask ORDER BY subtask"
    );
    let subtasks: Vec<(i64, u64, u64, i64, i64)> = stack.client().query(&sql).fetch_all().await.expect("the numbers");
    assert_eq!(subtasks.len() as i64, PARALLELISM, "{subtasks:?}");
    for (subtask, rows, distinct, first, last) in subtasks {
        let expected = ((last - subtask) / PARALLELISM + 1) as u64;
        assert_eq!((rows, distinct, first), (expected, expected, subtask), "subtask {subtask} up to {last}");
    }
    let wrong: u64 = stack.value("SELECT countIf(text != lower(hex(MD5(toString(n))))) FROM numbers").await;
    assert_eq!(wrong, 0, "texts that do not belong to their number");
}

/// Two subtasks hold two epochs each, of up to 16 MiB, beside some 80 MiB that the pipeline takes with nothing to do; the rest is
/// what the allocator has not given back.
#[tokio::test]
async fn memory_stays_where_it_is_behind_a_slow_clickhouse() {
    stays_where_it_is("exactly_once", 350.0).await;
}

/// Nothing is staged: two subtasks hold two batches each.
#[tokio::test]
async fn memory_stays_where_it_is_when_nothing_is_staged() {
    stays_where_it_is("at_least_once", 120.0).await;
}
