//! Delivery into ClickHouse under faults of the network and of ClickHouse: every row is there once, whatever happened.
//!
//! A source counts. Each number is appended to a plain MergeTree, in several partitions, so that an INSERT is
//! several blocks of which some may be in and others not; and a sum and a count per key go into a ReplacingMergeTree. Each fault
//! meets the pipeline in the middle, once as it runs on, and once with the pipeline killed meanwhile and started again.
//!
//! `AWAY_SECONDS` says how long ClickHouse is away in the test of that, 10 when it is not set; `CLICKHOUSE_KILLS` how often it is
//! killed at any moment, 6 when it is not set; `CLICKHOUSE_KILLS_SEED` repeats the moments of a run.

use std::time::{Duration, Instant};

use tickhouse_tests::proxy::{Fault, Proxy};
use tickhouse_tests::{Program, Random, Stack, StackOptions, settings};

/// How many numbers there are in most tests; they take ten seconds when nothing goes wrong.
const ROWS: u64 = 100_000;

/// How many of them are in an INSERT at most, in most tests.
const BATCH_ROWS: u64 = 2_000;

/// How long a step may take, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than the pipeline waits for the answer to an INSERT in [`Answers::within_a_second`].
const TOO_LONG: Duration = Duration::from_secs(3);

/// A ClickHouse with the two tables, a proxy in front of it, and a pipeline that writes through the proxy.
struct Scene {
    stack: Stack,
    proxy: Proxy,
    file: String,
    rows: u64,
}

/// How long the pipeline waits for the answer to an INSERT.
#[derive(Clone, Copy)]
struct Answers {
    within: Duration,
}

impl Answers {
    /// For faults that are about late answers.
    fn within_a_second() -> Self {
        Self { within: Duration::from_secs(1) }
    }

    /// For the others: no answer is late.
    fn in_time() -> Self {
        Self { within: Duration::from_secs(60) }
    }
}

impl Scene {
    async fn new(answers: Answers) -> Self {
        Self::of(ROWS, BATCH_ROWS, answers).await
    }

    /// With so many numbers, in INSERTs of so many.
    async fn of(rows: u64, batch_rows: u64, answers: Answers) -> Self {
        let stack = Stack::start(&StackOptions::default());
        stack
            .execute(
                "CREATE TABLE numbers (n Int64, at DateTime64(6, 'UTC')) ENGINE = MergeTree PARTITION BY n % 3 ORDER BY n \
                 SETTINGS non_replicated_deduplication_window = 1000",
            )
            .await;
        stack
            .execute(
                "CREATE TABLE totals (key Int64, total Int64, numbers Int64, version UInt64) \
                 ENGINE = ReplacingMergeTree(version) ORDER BY key",
            )
            .await;
        let sink = format!(
            "connector = 'clickhouse', url = '{{{{ CLICKHOUSE_URL }}}}', 'batch.rows' = '{batch_rows}', 'insert.timeout_ms' = '{}'",
            answers.within.as_millis()
        );
        let sql = format!(
            "CREATE TABLE beats WITH (connector = 'impulse', event_rate = '10000', event_time_interval = '1000', \
                                      message_count = '{rows}');
             CREATE TABLE numbers (n BIGINT NOT NULL, at TIMESTAMP NOT NULL) WITH ({sink});
             CREATE TABLE totals (key BIGINT PRIMARY KEY, total BIGINT NOT NULL, numbers BIGINT NOT NULL) WITH ({sink});
             INSERT INTO numbers SELECT CAST(counter AS BIGINT), row_time() FROM beats;
             INSERT INTO totals
             SELECT CAST(counter % 97 AS BIGINT) AS key, sum(CAST(counter AS BIGINT)), count(*) FROM beats GROUP BY key;"
        );
        let file = stack.write("numbers.sql", &sql).display().to_string();
        let proxy = Proxy::start(stack.url());
        Self { stack, proxy, file, rows }
    }

    /// Starts the pipeline, from its last checkpoint when there is one.
    fn run(&self) -> Program {
        self.run_with(self.proxy.url())
    }

    /// Starts the pipeline with ClickHouse at `url`.
    fn run_with(&self, url: &str) -> Program {
        let state = self.stack.folder().join("state").display().to_string();
        let args = ["run", &self.file, "--state-dir", &state, "--parallelism", "2", "--checkpoint-interval", "300ms"];
        let mut command = self.stack.tickhouse(&args);
        command.env("CLICKHOUSE_URL", url);
        Program::start(command)
    }

    /// Waits until some rows are in.
    async fn delivers(&self, pipeline: &mut Program) {
        let started = Instant::now();
        while self.stack.value::<u64>("SELECT count() FROM numbers").await == 0 {
            self.pause(pipeline, started, "rows in ClickHouse").await;
        }
    }

    /// Waits for `more` faults than there have been.
    async fn suffers(&self, pipeline: &mut Program, more: u64) {
        let (started, enough) = (Instant::now(), self.proxy.faults() + more);
        while self.proxy.faults() < enough {
            self.pause(pipeline, started, "a fault that the pipeline meets").await;
        }
    }

    /// Waits until an INSERT is on its way.
    async fn inserts(&self, pipeline: &mut Program) {
        let started = Instant::now();
        while self.proxy.under_way() == 0 {
            self.pause(pipeline, started, "an INSERT under way").await;
        }
    }

    async fn pause(&self, pipeline: &mut Program, started: Instant, waiting_for: &str) {
        assert!(pipeline.runs(), "the pipeline ended, waiting for {waiting_for}");
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {waiting_for}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    /// Waits until the source has ended and all is delivered, and checks every row.
    async fn ends_exactly(&self, mut pipeline: Program) {
        // The source takes its time, however often it was held up.
        let (started, patience) = (Instant::now(), PATIENCE + Duration::from_millis(self.rows / 2));
        while pipeline.runs() {
            assert!(started.elapsed() < patience, "it does not end within {patience:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let output = pipeline.ended();
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        // What was given up on may still come, and must change nothing.
        let started = Instant::now();
        while self.proxy.under_way() > 0 {
            assert!(started.elapsed() < PATIENCE, "INSERTs are still under way");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.assert_exact(&output.stderr).await;
    }

    async fn assert_exact(&self, stderr: &str) {
        let (rows, last) = (self.rows, self.rows as i64 - 1);
        let counts = "SELECT count(), uniqExact(n), min(n), max(n), sum(n) FROM numbers";
        let counts: (u64, u64, i64, i64, i64) = self.stack.value(counts).await;
        assert_eq!(counts, (rows, rows, 0, last, last * (last + 1) / 2), "the numbers; the pipeline said:\n{stderr}");
        // A subtask's rows are a millisecond apart, in numbers and in time, whenever it was restarted.
        let starts = "SELECT uniqExact(n % 2, toUnixTimestamp64Micro(at) - 1000 * n) FROM numbers";
        assert_eq!(self.stack.value::<u64>(starts).await, 2, "event times moved; the pipeline said:\n{stderr}");

        let kept = "SELECT key, total, numbers FROM totals FINAL ORDER BY key";
        let computed = "SELECT toInt64(n % 97) AS key, sum(n), toInt64(count()) FROM numbers GROUP BY key ORDER BY key";
        let (kept, computed) = (self.totals(kept).await, self.totals(computed).await);
        assert_eq!(kept, computed, "the totals and the numbers; the pipeline said:\n{stderr}");
    }

    /// Key, sum and count.
    async fn totals(&self, sql: &str) -> Vec<(i64, i64, i64)> {
        self.stack.client().query(sql).fetch_all().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// No row is there twice, at any time.
    async fn assert_no_row_twice(&self) {
        let (rows, distinct): (u64, u64) = self.stack.value("SELECT count(), uniqExact(n) FROM numbers").await;
        assert_eq!(rows, distinct, "rows are there twice");
    }
}

/// Kills the pipeline; nothing of it is left when this returns.
fn kill(pipeline: Program) {
    pipeline.signal("KILL");
    pipeline.ended();
}

/// Runs the pipeline through `faults`, one after the other, each met `times` times, by every `every`-th INSERT; then again,
/// with the pipeline killed under each of them.
async fn survives(answers: Answers, faults: &[Fault], every: u64, times: u64) {
    for killed in [false, true] {
        let scene = Scene::new(answers).await;
        let mut pipeline = scene.run();
        scene.delivers(&mut pipeline).await;
        for fault in faults {
            scene.proxy.fail(fault.clone(), every);
            scene.suffers(&mut pipeline, times).await;
            if killed {
                kill(pipeline);
                scene.assert_no_row_twice().await;
                pipeline = scene.run();
                scene.suffers(&mut pipeline, times).await;
            }
        }
        scene.proxy.pass();
        scene.ends_exactly(pipeline).await;
    }
}

#[tokio::test]
async fn connections_that_are_refused() {
    survives(Answers::in_time(), &[Fault::Refuse], 1, 8).await;
}

#[tokio::test]
async fn requests_that_break_off() {
    // Within the head of the data, in the middle, and right before its end.
    let faults = [100, 4_000, usize::MAX].map(|after| Fault::Cut { after });
    survives(Answers::in_time(), &faults, 2, 3).await;
}

#[tokio::test]
async fn answers_that_are_lost() {
    survives(Answers::in_time(), &[Fault::Swallow], 2, 6).await;
}

#[tokio::test]
async fn answers_that_come_too_late() {
    survives(Answers::within_a_second(), &[Fault::Hold(TOO_LONG)], 3, 4).await;
}

#[tokio::test]
async fn requests_that_arrive_after_their_repetition() {
    survives(Answers::within_a_second(), &[Fault::Late(TOO_LONG)], 3, 4).await;
}

#[tokio::test]
async fn a_slow_network() {
    survives(Answers::in_time(), &[Fault::Slow { bytes_per_second: 40_000 }], 1, 10).await;
}

#[tokio::test]
async fn a_clickhouse_that_is_overloaded_or_read_only() {
    let faults = [
        Fault::exception(252, "TOO_MANY_PARTS", "Too many parts (300 with average size of 1.00 MiB) in table"),
        Fault::exception(242, "TABLE_IS_READ_ONLY", "Table is in readonly mode"),
        Fault::exception(201, "QUOTA_EXCEEDED", "Quota for user `default` for 3600s has been exceeded"),
        Fault::exception(241, "MEMORY_LIMIT_EXCEEDED", "Memory limit (total) exceeded: would use 10.00 GiB"),
        Fault::bad_gateway(),
    ];
    survives(Answers::in_time(), &faults, 2, 2).await;
}

#[tokio::test]
async fn a_refusal_stops_the_pipeline_and_nothing_is_lost_when_it_is_mended() {
    let scene = Scene::new(Answers::in_time()).await;
    let mut pipeline = scene.run();
    scene.delivers(&mut pipeline).await;
    scene.proxy.fail(Fault::exception(497, "ACCESS_DENIED", "default: Not enough privileges"), 1);
    // Started again it stops again: what it had staged is refused as well.
    for refused in [pipeline.ended(), scene.run().ended()] {
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        for part in ["error: ", "tickhouse.", "Not enough privileges"] {
            assert!(refused.stderr.contains(part), "`{part}` is not in:\n{}", refused.stderr);
        }
        scene.assert_no_row_twice().await;
    }
    assert!(scene.proxy.faults() >= 2, "the pipeline stopped without asking");
    scene.proxy.pass();
    scene.ends_exactly(scene.run()).await;
}

#[tokio::test]
async fn clickhouse_is_away_for_a_while() {
    let away = settings::number("AWAY_SECONDS").unwrap_or(10);
    let mut scene = Scene::new(Answers::in_time()).await;
    // Without the proxy: the system itself says that nobody listens.
    let mut pipeline = scene.run_with(scene.stack.url());
    scene.delivers(&mut pipeline).await;
    // Stopped, not killed: see the next test.
    let clickhouse = scene.stack.clickhouse.take().expect("it runs");
    assert_eq!(clickhouse.stop().code, Some(0));
    tokio::time::sleep(Duration::from_secs(away)).await;
    assert!(pipeline.runs(), "the pipeline did not wait: {}", pipeline.ended().stderr);
    scene.stack.restart_clickhouse();
    scene.ends_exactly(pipeline).await;
}

/// It is killed with bodies half way.
#[tokio::test]
async fn clickhouse_is_killed_while_it_takes_rows() {
    for killed in [false, true] {
        let mut scene = Scene::new(Answers::in_time()).await;
        let mut pipeline = scene.run();
        scene.delivers(&mut pipeline).await;
        // Slow enough that it is killed with bodies half way.
        scene.proxy.fail(Fault::Slow { bytes_per_second: 40_000 }, 1);
        for round in 0..4 {
            scene.suffers(&mut pipeline, 1).await;
            scene.inserts(&mut pipeline).await;
            // At different places of a body.
            tokio::time::sleep(Duration::from_millis(20 * round)).await;
            scene.stack.clickhouse = None;
            if killed {
                kill(pipeline);
                pipeline = scene.run();
            }
            scene.stack.restart_clickhouse();
            scene.assert_no_row_twice().await;
        }
        scene.proxy.pass();
        scene.ends_exactly(pipeline).await;
    }
}

/// It is killed while one small INSERT follows the other: before, within and after commits. ClickHouse notes the token of a block
/// before it keeps the block: killed in between it has lost the rows, and drops the repeat.
#[tokio::test]
async fn clickhouse_is_killed_at_any_moment() {
    let kills = settings::number("CLICKHOUSE_KILLS").unwrap_or(6);
    let seed = settings::seed("CLICKHOUSE_KILLS_SEED");
    println!("CLICKHOUSE_KILLS={kills} CLICKHOUSE_KILLS_SEED={seed}");
    let mut random = Random::new(seed);
    // More rows than there is time for before the last kill: what is left is the end.
    let mut scene = Scene::of(30_000 + kills * 6_000, 100, Answers::in_time()).await;
    let mut pipeline = scene.run();
    for round in 0..kills {
        scene.inserts(&mut pipeline).await;
        tokio::time::sleep(Duration::from_millis(random.between(0, 60))).await;
        scene.stack.clickhouse = None;
        // The pipeline as well, every third time.
        if round % 3 == 2 {
            kill(pipeline);
            pipeline = scene.run();
        }
        scene.stack.restart_clickhouse();
        scene.assert_no_row_twice().await;
    }
    scene.ends_exactly(pipeline).await;
}
