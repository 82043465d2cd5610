//! Bad input, through the command: one clear message on stderr, exit code 1 (2 for wrong usage), nothing half done.

use std::fs;
use std::net::TcpListener;

use tickhouse_tests::{Output, Program, Stack, StackOptions, programs};

/// Runs `tickhouse` on a pipeline in a folder of its own.
fn tickhouse(sql: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("pipeline.sql");
    fs::write(&file, sql).expect("a temporary file");
    let mut command = Program::command("tickhouse");
    command.current_dir(folder.path()).env_remove("CLICKHOUSE_URL").args(args).arg("pipeline.sql");
    Program::output(&mut command)
}

/// Asserts exit code 1, one message that holds all of `parts`, and nothing on stdout.
fn assert_refused(output: &Output, parts: &[&str]) {
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert_eq!(output.stdout, "");
    assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", output.stderr);
    assert!(!output.stderr.contains("error: error: "), "{}", output.stderr);
    for part in parts {
        assert!(output.stderr.contains(part), "`{part}` is not in:\n{}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

const IMPULSE: &str = "CREATE TABLE beats WITH (connector = 'impulse', event_rate = '10', message_count = '3');\n";

#[test]
fn sql_that_is_wrong_is_refused_with_its_place() {
    let cases: &[(&str, &[&str])] = &[
        (
            "CREATE TABLE t (a INT) WITH (connector = 'kafak');\nSELECT a FROM t;",
            &["pipeline.sql:1:", "kafak", "impulse"],
        ),
        (
            "CREATE TABLE t WITH (connector = 'impulse', event_rat = '1');\nSELECT counter FROM t;",
            &["pipeline.sql:1:", "event_rat", "event_rate"],
        ),
        (&format!("{IMPULSE}SELECT shuffle_it(counter) FROM beats;"), &["pipeline.sql:2:8", "shuffle_it"]),
        (&format!("{IMPULSE}SELECT\n  countr FROM beats;"), &["pipeline.sql:3:3", "countr", "counter"]),
        (
            "CREATE TABLE t WITH (connector = 'impulse', event_rate = '{{ NO_SUCH_RATE }}');\nSELECT counter FROM t;",
            &["pipeline.sql:1:", "NO_SUCH_RATE"],
        ),
        (
            &format!(
                "{IMPULSE}CREATE TABLE m (a BIGINT);\nINSERT INTO m SELECT counter FROM beats;\nINSERT INTO m SELECT counter FROM beats;\nSELECT a FROM m;"
            ),
            &["pipeline.sql:4:", "`m`"],
        ),
        (&format!("{IMPULSE}SELECT counter FROM beats ORDER BY counter;"), &["pipeline.sql:2:", "ORDER BY"]),
        ("SELEC 1;", &["pipeline.sql:1:1"]),
    ];
    for (sql, parts) in cases {
        for command in ["check", "explain", "run"] {
            assert_refused(&tickhouse(sql, &[command]), parts);
        }
    }
}

#[test]
fn a_right_pipeline_is_checked_explained_and_run() {
    let sql = format!("{IMPULSE}SELECT counter * 2 AS twice FROM beats;");
    let checked = tickhouse(&sql, &["check"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let explained = tickhouse(&sql, &["explain", "--format", "json"]);
    let graph: serde_json::Value = serde_json::from_str(&explained.stdout).expect("explain prints JSON");
    assert!(graph["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|n| n["name"] == "beats")), "{graph}");
    let run = tickhouse(&sql, &["run", "--parallelism", "2"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let mut rows: Vec<_> = run.stdout.lines().collect();
    rows.sort_unstable();
    assert_eq!(rows, [r#"{"twice":0}"#, r#"{"twice":2}"#, r#"{"twice":4}"#]);
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in
        [&["run"][..], &["run", "x.sql", "--parallelism", "0"], &["dance"], &["explain", "x.sql", "--format", "svg"]]
    {
        let output = Program::output(Program::command("tickhouse").args(args));
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn files_and_folders_that_are_not_there_or_not_ours() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = Program::output(Program::command("tickhouse").args(["run", "/nowhere/at/all.sql"]));
    assert_refused(&missing, &["/nowhere/at/all.sql"]);

    fs::write(folder.path().join("letter.txt"), "dear").expect("a temporary file");
    let state = folder.path().display().to_string();
    let sql = format!("{IMPULSE}SELECT counter FROM beats;");
    assert_refused(&tickhouse(&sql, &["run", "--state-dir", &state]), &[&state, "--state-dir"]);

    let mut serve = Program::command("tickhouse");
    let served = Program::output(serve.args(["clickhouse", "serve", "--http", "127.0.0.1:0", "--path", &state]));
    assert_refused(&served, &[&state]);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is there").count(), 1, "something was written");
}

#[test]
fn udf_libraries_that_are_missing_or_broken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().display().to_string();
    let sql = format!("{IMPULSE}SELECT test_describe(counter) FROM beats;");
    assert_refused(&tickhouse(&sql, &["check", "--udf", "/nowhere/udfs"]), &["/nowhere/udfs"]);

    let built = programs().parent().expect("target").join("udfs/testing");
    fs::copy(built.join("test_scale.rs"), folder.path().join("test_scale.rs")).expect("the test UDFs are built");
    assert_refused(&tickhouse(&sql, &["check", "--udf", &dir]), &["libtest_scale", "make build"]);

    // A library that is one, but no UDF.
    let library = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/usr/lib64/libm.so.6"];
    let library = library.iter().find(|path| fs::exists(path).is_ok_and(|e| e)).expect("a C library");
    fs::copy(library, folder.path().join("libtest_scale.so")).expect("a copy");
    assert_refused(&tickhouse(&sql, &["check", "--udf", &dir]), &["libtest_scale.so", "__run"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let sql = format!("{IMPULSE}SELECT counter FROM beats;");
    assert_refused(&tickhouse(&sql, &["run", "--http", &address]), &[&address, "--http"]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut serve = Program::command("tickhouse");
    let path = folder.path().join("data").display().to_string();
    let served = Program::output(serve.args(["clickhouse", "serve", "--http", &address, "--path", &path]));
    assert_refused(&served, &[&address]);
}

#[tokio::test]
async fn tables_that_do_not_fit_are_refused_before_anything_is_written() {
    let stack = Stack::start(&StackOptions::default());
    stack
        .execute(
            "CREATE TABLE events (a Int64, b String) ENGINE = MergeTree ORDER BY a \
                   SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    stack
        .execute(
            "CREATE TABLE plain (k Int64, n Int64) ENGINE = MergeTree ORDER BY k \
                   SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let sink = |columns: &str, table: &str| {
        format!("{IMPULSE}CREATE TABLE {table} ({columns}) WITH (connector = 'clickhouse', url = '{}');\n", stack.url())
    };
    let cases: [(String, &[&str]); 4] = [
        (sink("a BIGINT", "absent") + "INSERT INTO absent SELECT counter FROM beats;", &["absent", "CREATE TABLE"]),
        (
            sink("a BIGINT, z TEXT", "events") + "INSERT INTO events SELECT counter, 'x' FROM beats;",
            &["events", "`z`", "ALTER TABLE"],
        ),
        (sink("a TEXT", "events") + "INSERT INTO events SELECT 'x' FROM beats;", &["events", "`a`", "Int64"]),
        (
            sink("k BIGINT PRIMARY KEY, n BIGINT", "plain")
                + "INSERT INTO plain SELECT counter % 2, count(*) FROM beats GROUP BY 1;",
            &["plain", "ReplacingMergeTree"],
        ),
    ];
    for (sql, parts) in &cases {
        assert_refused(&tickhouse(sql, &["run", "--wait", "2s"]), parts);
    }
    assert_eq!(stack.value::<u64>("SELECT count() FROM (SELECT a FROM events UNION ALL SELECT k FROM plain)").await, 0);
}

#[test]
fn clickhouse_away_at_start_is_waited_for_and_then_told() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", taken.local_addr().expect("it is bound"));
    drop(taken);
    let sql = format!(
        "{IMPULSE}CREATE TABLE t (a BIGINT) WITH (connector = 'clickhouse', url = '{url}');\nINSERT INTO t SELECT counter FROM beats;"
    );
    assert_refused(&tickhouse(&sql, &["run", "--wait", "2s"]), &[url.trim_start_matches("http://"), "--wait"]);
}
