//! The cost of streaming: the same SQL over the same batches, streaming with checkpoints and in DataFusion's batch engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::Int64Type;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;

use super::batches::{Timed, timed};
use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::Failure;

const BATCH_ROWS: u64 = 8_192;

/// Time between checkpoints where a run takes less than a second: 0.4 at the least.
const OFTEN: Duration = Duration::from_millis(100);

/// Time between checkpoints where the rows are read again and again, for one to three seconds.
const EACH_HALF_SECOND: Duration = Duration::from_millis(500);

/// Time between checkpoints of a million keys, each of some ten million bytes.
const EACH_SECOND: Duration = Duration::from_secs(1);

/// How often each side of a comparison is run, in turns; the middle one counts.
const RUNS: usize = 5;

/// How often the rows of a query without groups are read.
const PASSES: usize = 5;

/// One comparison.
struct Case {
    name: &'static str,
    pipeline: &'static str,
    batch: &'static str,
    /// The same with the event time in its result: a pipeline carries it along whatever the query names.
    with_time: Option<&'static str>,
    rows: u64,
    /// How often all batches are read, one time after the other: runs of seconds out of memory for a part of one. Not where rows
    /// are grouped by windows: event time would go back.
    passes: usize,
    keys: u64,
    interval: Duration,
    is_grouped: bool,
    has_text: bool,
    /// The least ratio to the batch engine that is aimed at.
    aim: f64,
}

const TUMBLE: &str = "SELECT k, w.start, n, total FROM (SELECT k, tumble(interval '10 second') AS w, count(*) AS n, sum(v) AS total \
                      FROM events GROUP BY k, w)";
const TUMBLE_OF_BATCH: &str = "SELECT k, date_bin(interval '10 second', t, to_timestamp(0)) AS start, count(*), sum(v) \
                               FROM events GROUP BY k, start";

fn cases(bench: &Bench<'_>) -> Vec<Case> {
    let case = |name, pipeline, batch, rows, keys| Case {
        name,
        pipeline,
        batch,
        with_time: None,
        rows,
        passes: 1,
        keys,
        interval: if keys < 1_000_000 { OFTEN } else { EACH_SECOND },
        is_grouped: true,
        has_text: false,
        aim: 0.7,
    };
    // The same query on both sides, over rows that nothing brings together.
    let ungrouped = |name, query, rows| Case {
        aim: 0.9,
        is_grouped: false,
        passes: PASSES,
        interval: EACH_HALF_SECOND,
        ..case(name, query, query, rows, 10_000)
    };
    vec![
        Case {
            with_time: Some("SELECT k, v * 2 + 1 AS w, t FROM events WHERE v % 3 <> 0"),
            ..ungrouped(
                "projection and filter",
                "SELECT k, v * 2 + 1 AS w FROM events WHERE v % 3 <> 0",
                bench.size(100_000_000, 20_000_000),
            )
        },
        Case {
            has_text: true,
            ..ungrouped(
                "JSON decoding",
                "SELECT json_get_int(body, 'followers') AS f, json_get_str(body, 'name') AS n FROM events",
                bench.size(4_000_000, 1_000_000),
            )
        },
        case(
            "tumble, count and sum by 10,000 keys",
            TUMBLE,
            TUMBLE_OF_BATCH,
            bench.size(100_000_000, 20_000_000),
            10_000,
        ),
        case(
            "tumble, count and sum by 1,000,000 keys",
            TUMBLE,
            TUMBLE_OF_BATCH,
            bench.size(60_000_000, 20_000_000),
            1_000_000,
        ),
        case(
            "updating sum and count by 1,000,000 keys",
            "SELECT k, sum(v), count(*) FROM events GROUP BY k",
            "SELECT k, sum(v), count(*) FROM events GROUP BY k",
            bench.size(60_000_000, 20_000_000),
            1_000_000,
        ),
    ]
}

/// A number that looks random, another one for each `n` (the finalizer of SplitMix64, Steele, Lea and Flood, 2014). Anything
/// simpler goes through the keys in the same order again and again, which makes all state but the first look-up sequential.
fn scattered(n: u64) -> u64 {
    let mut bits = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The rows of a comparison.
struct Rows {
    batches: Vec<RecordBatch>,
    /// The number of each row's key, where rows are grouped.
    numbers: Vec<Vec<u32>>,
}

/// Rows over 30 seconds of event time, with keys in no order. The keys are no numbers in a row either: a hash that multiplies
/// spreads those evenly, so that they hardly meet in a table, until some of them go to another subtask.
fn events(case: &Case) -> Result<Rows, Failure> {
    let (mut batches, mut numbers) = (Vec::new(), Vec::new());
    let step = 30_000_000_000 / case.rows.max(1);
    for from in (0..case.rows).step_by(BATCH_ROWS as usize) {
        let rows = from..(from + BATCH_ROWS).min(case.rows);
        let number = |row: u64| scattered(row) % case.keys;
        let key = |row: u64| Some((scattered(number(row)) >> 1) as i64);
        let text = |row: u64| {
            format!(r#"{{"name":"influencer {row}","followers":{},"posts":[1,2,3],"verified":true}}"#, row * 7)
        };
        let body: StringArray = match case.has_text {
            true => rows.clone().map(|row| Some(text(row))).collect(),
            false => rows.clone().map(|_| None::<&str>).collect(),
        };
        let columns: [(&str, ArrayRef); 4] = [
            ("k", Arc::new(rows.clone().map(key).collect::<Int64Array>())),
            ("v", Arc::new(rows.clone().map(|row| Some((row % 1_000) as i64)).collect::<Int64Array>())),
            ("body", Arc::new(body)),
            ("t", Arc::new(rows.clone().map(|row| Some((row * step) as i64)).collect::<TimestampNanosecondArray>())),
        ];
        batches.push(RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))?);
        if case.is_grouped {
            numbers.push(rows.map(|row| number(row) as u32).collect());
        }
    }
    Ok(Rows { batches: vec![batches; case.passes].concat(), numbers })
}

/// The pipeline's way through all rows.
async fn streaming(
    query: &str,
    batches: &[RecordBatch],
    parallelism: usize,
    interval: Duration,
) -> Result<Timed, Failure> {
    let sql = format!(
        "CREATE TABLE events (k BIGINT, v BIGINT, body TEXT, t TIMESTAMP NOT NULL, WATERMARK FOR t) WITH (connector = 'batches');
         CREATE TABLE out WITH (connector = 'blackhole');
         INSERT INTO out {query};"
    );
    timed(&sql, batches, parallelism, interval).await
}

/// Seconds that the batch engine takes for all rows; the result is thrown away as it comes.
async fn batch(query: &str, batches: &[RecordBatch], parallelism: usize) -> Result<f64, Failure> {
    let mut partitions = vec![Vec::new(); parallelism];
    for (at, batch) in batches.iter().enumerate() {
        if let Some(partition) = partitions.get_mut(at % parallelism) {
            partition.push(batch.clone());
        }
    }
    let Some(first) = batches.first() else { return Err("there are no batches".into()) };
    let mut context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(parallelism));
    datafusion_functions_json::register_all(&mut context)?;
    context.register_table("events", Arc::new(MemTable::try_new(first.schema(), partitions)?))?;
    let begun = Instant::now();
    let streams = context.sql(query).await?.execute_stream_partitioned().await?;
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                while let Some(batch) = stream.next().await {
                    batch?;
                }
                Ok::<_, datafusion::error::DataFusionError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// What `work` gives, on threads of its own, one per subtask: neither side of a comparison has cores that the other has not.
async fn on_threads<F, T>(threads: usize, work: impl FnOnce() -> F + Send + 'static) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
    T: Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    // The thread that waits here only plans: what it starts runs on the workers.
    tokio::task::spawn_blocking(move || runtime.block_on(work())).await?
}

/// Seconds that `threads` threads take to read every byte of the batches once: the memory's share of any query over them.
fn read_all(batches: &[RecordBatch], threads: usize) -> f64 {
    let read = |first: usize| {
        let mut sum = 0_u64;
        for batch in batches.iter().skip(first).step_by(threads) {
            let buffers = batch.columns().iter().flat_map(|column| column.to_data().buffers().to_vec());
            for buffer in buffers {
                let (words, rest) = buffer.as_slice().as_chunks();
                sum = words.iter().map(|word| u64::from_le_bytes(*word)).fold(sum, u64::wrapping_add);
                sum = rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
            }
        }
        std::hint::black_box(sum)
    };
    let begun = Instant::now();
    std::thread::scope(|scope| (0..threads).for_each(|first| drop(scope.spawn(move || read(first)))));
    begun.elapsed().as_secs_f64()
}

/// Seconds that `threads` threads take to add every row to the sum and the count of its key, which has its place in an array by its
/// number: the memory's share of a grouping by keys in no order, which cannot be had for less. Each thread has its share of
/// the keys, as if rows found their way by themselves.
fn count_all(rows: &Rows, keys: u64, threads: usize) -> f64 {
    let count = |first: usize| {
        let mut states = vec![(0_i64, 0_i64); keys as usize / threads + 1];
        for (batch, numbers) in rows.batches.iter().zip(&rows.numbers).skip(first).step_by(threads) {
            let values = batch.column(1).as_primitive::<Int64Type>().values();
            for (number, value) in numbers.iter().zip(values) {
                if let Some((sum, count)) = states.get_mut(*number as usize / threads) {
                    *sum = sum.wrapping_add(*value);
                    *count += 1;
                }
            }
        }
        std::hint::black_box(states)
    };
    let begun = Instant::now();
    std::thread::scope(|scope| (0..threads).for_each(|first| drop(scope.spawn(move || count(first)))));
    begun.elapsed().as_secs_f64()
}

/// Million rows per second of each side of a comparison.
#[derive(Debug, Clone, Copy)]
struct Rates {
    streaming: f64,
    batch: f64,
    /// The batch engine's with the event time in its result.
    with_time: Option<f64>,
    /// Of what memory allows.
    limit: f64,
    /// The fewest checkpoints of a run.
    checkpoints: u64,
}

/// Runs all sides of a comparison, in turns.
async fn compare(case: &Case, rows: &Arc<Rows>, parallelism: usize) -> Result<Rates, Failure> {
    let in_batch = async |query| {
        let rows = Arc::clone(rows);
        on_threads(parallelism, move || async move { batch(query, &rows.batches, parallelism).await }).await
    };
    let mut checkpoints = u64::MAX;
    let (mut stream, mut whole, mut timed, mut least) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        least.push(match case.is_grouped {
            true => count_all(rows, case.keys, parallelism),
            false => read_all(&rows.batches, parallelism),
        });
        let (rows, query, interval) = (Arc::clone(rows), case.pipeline, case.interval);
        let work = move || async move { streaming(query, &rows.batches, parallelism, interval).await };
        let run = on_threads(parallelism, work).await?;
        checkpoints = checkpoints.min(run.checkpoints);
        stream.push(run.seconds);
        whole.push(in_batch(case.batch).await?);
        if let Some(query) = case.with_time {
            timed.push(in_batch(query).await?);
        }
    }
    let read = case.rows as f64 * case.passes as f64;
    let rate = |seconds: Vec<f64>| read / median(seconds) / 1e6;
    let with_time = case.with_time.map(|_| rate(timed));
    Ok(Rates { streaming: rate(stream), batch: rate(whole), with_time, limit: rate(least), checkpoints })
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("The cost of streaming");
    for case in cases(bench) {
        let name = |parallelism: usize| format!("{}, parallelism {parallelism}", case.name);
        let asked_for: Vec<usize> = [1, 2].into_iter().filter(|n| bench.is_asked_for(&name(*n))).collect();
        if asked_for.is_empty() {
            continue;
        }
        let rows = Arc::new(events(&case)?);
        let limit = if case.is_grouped { "adding to an array" } else { "reading the bytes" };
        let mut all: Vec<Rates> = Vec::new();
        for parallelism in asked_for {
            let rates = compare(&case, &rows, parallelism).await?;
            let figure = Figure::new(name(parallelism), rates.streaming, "million rows/s")
                .against("DataFusion's batch engine", rates.batch)
                .ratio_at_least(case.aim)
                .limit(limit, rates.limit);
            section.tell(figure);
            if let Some(rate) = rates.with_time {
                let figure = Figure::new(name(parallelism), rates.streaming, "million rows/s");
                section.tell(figure.against("the batch engine, with the event time in its result", rate));
            }
            all.push(rates);
        }
        let fewest = all.iter().map(|rates| rates.checkpoints).min().unwrap_or_default();
        let interval = humantime::format_duration(case.interval);
        section.note(format!("{}: a checkpoint each {interval}, {fewest} or more in a run.", case.name));
        if let [one, two] = all.as_slice() {
            let name = format!("{}, from 1 subtask to 2", case.name);
            let figure = Figure::new(name, two.streaming / one.streaming, "times as fast")
                .against("DataFusion's batch engine, from 1 partition to 2", two.batch / one.batch)
                .limit(limit, two.limit / one.limit);
            section.tell(figure);
        }
    }
    if let (true, Some(text)) = (section.figures.is_empty(), &bench.args.only) {
        return Err(format!("no comparison has `{text}` in its name: `bench streaming --short` tells them all").into());
    }
    section.note(format!(
        "Streaming takes checkpoints into a folder, and its time has the start and the last checkpoint in it. Medians of {RUNS} runs, \
         in turns. The batch engine sees all rows before it answers, and its result is the last row of each key; the updating query tells changes as well. Both run on as many threads as they have subtasks or partitions."
    ));
    Ok(section)
}
