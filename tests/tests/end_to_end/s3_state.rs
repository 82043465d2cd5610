//! State in a bucket, on a server that answers some requests with 503.

use std::process::Command;
use std::time::Duration;

use tickhouse_tests::proxy::{Fault, Proxy};
use tickhouse_tests::{Output, Program, S3, Stack, StackOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const STATE: &str = "s3://state/jobs/numbers";

struct Scene {
    stack: Stack,
    proxy: Proxy,
    server: S3,
}

impl Scene {
    async fn new() -> Self {
        let stack = Stack::start(&StackOptions::default());
        stack
            .execute(
                "CREATE TABLE numbers (n Int64) ENGINE = MergeTree ORDER BY n \
                 SETTINGS non_replicated_deduplication_window = 1000",
            )
            .await;
        stack
            .execute("CREATE TABLE sums (k Int64, n Int64, total Int64, version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY k")
            .await;
        let server = S3::start().await;
        let proxy = Proxy::start_for_all(server.url());
        Self { stack, proxy, server }
    }

    fn command(&self, args: &[&str], endpoint: &str) -> Command {
        let mut command = self.stack.tickhouse(args);
        command.envs(S3::environment(endpoint));
        command
    }

    fn run(&self, parallelism: &str, more: &[&str]) -> Command {
        let sql = "CREATE TABLE counters WITH (connector = 'impulse', event_rate = '20000', message_count = '200000');
            CREATE TABLE numbers (n BIGINT NOT NULL) WITH (connector = 'clickhouse', url = '{{ CLICKHOUSE_URL }}');
            CREATE TABLE sums (k BIGINT PRIMARY KEY, n BIGINT NOT NULL, total BIGINT NOT NULL)
            WITH (connector = 'clickhouse', url = '{{ CLICKHOUSE_URL }}');
            INSERT INTO numbers SELECT CAST(counter AS BIGINT) FROM counters;
            INSERT INTO sums SELECT CAST(counter % 1000 AS BIGINT), count(*), CAST(sum(counter) AS BIGINT) FROM counters GROUP BY 1;";
        let file = self.stack.write("numbers.sql", sql).display().to_string();
        let args = ["run", &file, "--name", "numbers", "--state-dir", STATE, "--checkpoint-interval", "200ms"];
        let mut command = self.command(&args, self.proxy.url());
        command.args(["--parallelism", parallelism]).args(more);
        command
    }

    async fn rows(&self) -> u64 {
        self.stack.value("SELECT count() FROM numbers").await
    }

    fn state(&self, what: &str) -> Output {
        Program::output(&mut self.command(&["state", what, STATE], self.server.url()))
    }
}

#[tokio::test]
async fn a_pipeline_is_killed_and_goes_on_from_a_bucket_that_fails_now_and_then() {
    let scene = Scene::new().await;
    let says = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>".to_owned();
    scene.proxy.fail(Fault::Answer { status: 503, code: None, body: says }, 7);
    for (parallelism, until) in [("2", 30_000), ("3", 80_000)] {
        let pipeline = Program::start(scene.run(parallelism, &[]));
        eventually(&format!("{until} rows"), PATIENCE, || async { scene.rows().await >= until }).await;
        pipeline.signal("KILL");
        pipeline.ended();
    }
    let last = Program::output(&mut scene.run("1", &[]));
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    assert!(last.stderr.contains("going on from the checkpoint"), "{}", last.stderr);
    assert!(scene.proxy.faults() > 10, "only {} requests failed: the test proves little", scene.proxy.faults());

    let numbers: (u64, u64, i64) = scene.stack.value("SELECT count(), uniqExact(n), max(n) FROM numbers").await;
    assert_eq!(numbers, (200_000, 200_000, 199_999));
    let sums: (u64, i64, i64) = scene.stack.value("SELECT count(), sum(n), sum(total) FROM sums FINAL").await;
    assert_eq!(sums, (1_000, 200_000, (0..200_000_i64).sum()));
    let verified = scene.state("verify");
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    assert!(verified.stdout.contains(" 0 damaged"), "{}", verified.stdout);
}

#[tokio::test]
async fn a_bucket_belongs_to_one_pipeline_and_a_bucket_that_is_not_there_is_named() {
    let scene = Scene::new().await;
    let first = Program::output(&mut scene.run("1", &["--stop-after", "1s"]));
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let file = scene
        .stack
        .write("other.sql", "CREATE TABLE c WITH (connector = 'impulse', event_rate = '1'); SELECT counter FROM c;");
    let file = file.display().to_string();
    let run = |state: &str, name: &str| {
        let args = ["run", &file, "--name", name, "--state-dir", state, "--stop-after", "1s"];
        Program::output(&mut scene.command(&args, scene.proxy.url()))
    };
    let other = run(STATE, "other");
    assert_eq!(other.code, Some(1));
    assert!(other.stderr.contains("`numbers`") && other.stderr.contains(STATE), "{}", other.stderr);
    let missing = run("s3://nowhere/x", "other");
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("s3://nowhere/x") && missing.stderr.contains("NoSuchBucket"), "{}", missing.stderr);
}
