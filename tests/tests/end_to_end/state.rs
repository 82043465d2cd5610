//! What a user does with saved state: goes on, looks at it, starts anew, changes the query.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tickhouse_tests::{Output, Program, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// A pipeline that writes numbers into a file, and its state.
struct Job {
    folder: TempDir,
}

impl Job {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> String {
        self.path("state").display().to_string()
    }

    /// The command that runs `SELECT ... FROM numbers`, of which there are `count`.
    fn command(&self, select: &str, count: u64, more: &[&str]) -> std::process::Command {
        let (file, out) = (self.path("job.sql"), self.path("out.json"));
        let sql = format!(
            "CREATE TABLE numbers WITH (connector = 'impulse', event_rate = '20000', message_count = '{count}');
             CREATE TABLE out WITH (connector = 'single_file', path = '{}', format = 'json');
             INSERT INTO out {select};",
            out.display()
        );
        fs::write(&file, sql).expect("a temporary file");
        let mut command = Program::command("tickhouse");
        command.arg("run").arg(file).args(["--state-dir", &self.state(), "--checkpoint-interval", "100ms"]).args(more);
        command
    }

    fn run(&self, select: &str, count: u64, more: &[&str]) -> Output {
        Program::output(&mut self.command(select, count, more))
    }

    fn look(&self, args: &[&str]) -> Output {
        Program::output(Program::command("tickhouse").arg("state").args(args))
    }

    fn newest_epoch(&self) -> u64 {
        let listed = self.look(&["list", &self.state(), "--format", "json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
        listed.as_array().and_then(|all| all.last()?.get("epoch")?.as_u64()).expect("a checkpoint")
    }

    fn lines(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.path("out.json")).unwrap_or_default();
        let number =
            |line: &str| serde_json::from_str::<Value>(line).expect("whole lines")["n"].as_u64().expect("a number");
        text.lines().map(number).collect()
    }
}

const NUMBERS: &str = "SELECT counter AS n FROM numbers";
const SUMS: &str = "SELECT w.end AS at, n, total FROM (
    SELECT tumble(interval '1 second') AS w, counter % 3 AS n, sum(counter) AS total FROM numbers GROUP BY w, n)";

fn assert_refused(output: &Output, parts: &[&str]) {
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
    for part in parts {
        assert!(output.stderr.contains(part), "`{part}` is not in: {}", output.stderr);
    }
}

fn newest_data(state: &Path) -> PathBuf {
    let files =
        fs::read_dir(state.join("data")).expect("the folder of data").map(|entry| entry.expect("an entry").path());
    files.max().expect("there is state")
}

#[tokio::test]
async fn a_file_has_every_line_once_however_often_the_pipeline_is_killed() {
    let job = Job::new();
    for (kill, parallelism) in ["1", "3", "2"].into_iter().enumerate() {
        let before = job.lines().len();
        let pipeline = Program::start(job.command(NUMBERS, 60_000, &["--parallelism", parallelism]));
        let seen =
            || async { fs::metadata(job.path("out.json")).is_ok_and(|file| file.len() > 11 * before as u64 + 50_000) };
        eventually(&format!("more lines before kill {kill}"), PATIENCE, seen).await;
        pipeline.signal("KILL");
        pipeline.ended();
        // The last line may be cut: the next run cuts the file back to its checkpoint.
        let text = fs::read_to_string(job.path("out.json")).expect("the file");
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        fs::write(job.path("out.json"), &text[..whole]).expect("the file");
    }
    let last = job.run(NUMBERS, 60_000, &[]);
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    let mut lines = job.lines();
    lines.sort_unstable();
    assert!(lines.into_iter().eq(0..60_000), "a line is missing or doubled");
    let again = job.run(NUMBERS, 60_000, &[]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(job.lines().len(), 60_000, "a pipeline that had ended has written more");
}

#[test]
fn state_is_listed_shown_and_verified() {
    let job = Job::new();
    assert_refused(&job.look(&["list", &job.state()]), &[&job.state(), "is not a state directory"]);
    assert_eq!(job.run(SUMS, 30_000, &["--parallelism", "2"]).code, Some(0));

    let listed = job.look(&["list", &job.state(), "--format", "json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let newest = listed.as_array().and_then(|all| all.last()).expect("a checkpoint").clone();
    let epoch = newest["epoch"].as_u64().expect("a number");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "the newest and the one before");
    assert!(job.look(&["list", &job.state()]).stdout.lines().count() == 3, "a head and two lines");

    let shown = job.look(&["show", &job.state()]).stdout;
    for part in [
        "numbers (",
        "lanes = ",
        "tumbling_aggregate_1",
        "watermark = ",
        "table groups: ",
        &format!("checkpoint {epoch} "),
    ] {
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
    }
    let shown = job.look(&["show", &job.state(), "--format", "json", "--epoch", &epoch.to_string()]);
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!((&shown["epoch"], shown["nodes"].as_array().map(Vec::len).unwrap_or(0) > 3), (&newest["epoch"], true));
    assert_refused(&job.look(&["show", &job.state(), "--epoch", "999999"]), &["999999", &epoch.to_string()]);

    let verified = job.look(&["verify", &job.state()]);
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    let damaged = newest_data(&job.path("state"));
    let mut bytes = fs::read(&damaged).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("the file");
    let verified = job.look(&["verify", &job.state()]);
    assert_eq!(verified.code, Some(1));
    assert!(verified.stdout.contains(&damaged.display().to_string()), "{}", verified.stdout);
}

#[test]
fn a_damaged_checkpoint_of_a_pipeline_that_commits_nothing_is_passed_over_with_a_warning() {
    let job = Job::new();
    // The last checkpoint may come so soon behind the one before that no row is between them: then both name the newest file.
    let has_own_file = ["1500ms", "350ms", "450ms", "550ms", "650ms"].into_iter().any(|time| {
        assert_eq!(job.run(SUMS, 1_000_000, &["--stop-after", time]).code, Some(0));
        let newest = newest_data(&job.path("state"));
        let name = newest.file_name().and_then(|name| name.to_str()).expect("a name");
        let epoch: u64 = name.split('-').next().and_then(|epoch| epoch.parse().ok()).expect("a file's epoch");
        epoch == job.newest_epoch()
    });
    assert!(has_own_file, "five times no row came before the last checkpoint");
    let damaged = newest_data(&job.path("state"));
    fs::write(&damaged, "x").expect("the file");
    let next = job.run(SUMS, 1_000_000, &["--stop-after", "500ms"]);
    assert_eq!(next.code, Some(0), "{}", next.stderr);
    assert!(next.stderr.contains("WARN") && next.stderr.contains(&damaged.display().to_string()), "{}", next.stderr);
}

#[test]
fn a_changed_query_is_refused_by_node_and_may_start_anew() {
    let job = Job::new();
    assert_eq!(job.run(SUMS, 1_000_000, &["--stop-after", "500ms"]).code, Some(0));
    let changed = SUMS.replace("counter % 3", "counter % 4");
    let refused = job.run(&changed, 1_000_000, &["--stop-after", "500ms"]);
    assert_refused(&refused, &["tumbling_aggregate_1", "--fresh", "--state-dir"]);
    assert_eq!(job.run(SUMS, 1_000_000, &["--stop-after", "300ms"]).code, Some(0), "the state is still there");
    let fresh = job.run(&changed, 1_000_000, &["--stop-after", "500ms", "--fresh"]);
    assert_eq!(fresh.code, Some(0), "{}", fresh.stderr);
    assert!(!fresh.stderr.contains("going on"), "{}", fresh.stderr);
    let next = job.run(&changed, 1_000_000, &["--stop-after", "300ms"]);
    assert!(next.code == Some(0) && next.stderr.contains("going on from the checkpoint"), "{}", next.stderr);
    assert_refused(&job.run(&changed, 1_000_000, &["--resume-from", "1"]), &["no checkpoint 1 "]);
}

#[test]
fn wrong_usage_of_state_is_told() {
    let job = Job::new();
    let both = job.run(NUMBERS, 1, &["--fresh", "--resume-from", "3"]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
    let mut without = Program::command("tickhouse");
    let without = Program::output(without.args(["run", "x.sql", "--fresh"]).env_remove("TICKHOUSE_STATE_DIR"));
    assert!(without.code == Some(2) && without.stderr.contains("--state-dir"), "{}", without.stderr);
}
