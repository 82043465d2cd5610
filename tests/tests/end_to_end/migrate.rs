//! The migrator against a real ClickHouse.

use std::path::Path;
use std::time::Duration;

use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate::{self, MigrateError, Options, Report};
use tickhouse_tests::clickhouse::fresh_database;

const BUILT_IN: usize = 5;

async fn run(endpoint: &Endpoint, dir: &Path) -> Result<Report, MigrateError> {
    migrate::run(endpoint, &Options { dir: Some(dir.to_owned()), lock_wait: Duration::from_millis(300) }).await
}

async fn count(endpoint: &Endpoint, from: &str) -> u64 {
    endpoint.client().query_raw(&format!("SELECT count() FROM {from}")).fetch_one().await.unwrap()
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), files);
    dir
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

const A: (&str, &str) = ("0001_a.sql", "CREATE TABLE a (x UInt8) ENGINE = Memory;");
const B: (&str, &str) = ("0002_b.sql", "CREATE TABLE b (x UInt8) ENGINE = Memory;\nINSERT INTO b VALUES (1), (2);");

#[tokio::test]
async fn a_new_database_is_created_and_filled_once() {
    let endpoint = fresh_database();
    let first = migrate::run(&endpoint, &Options::default()).await.unwrap();
    assert!(first.database_created);
    assert_eq!((first.applied.len(), first.already_applied), (BUILT_IN, 0));
    for table in ["active_influencers", "follower_timeline", "influencer_summary", "fetch_dead_letters", "influencers"]
    {
        assert_eq!(count(&endpoint, table).await, 0);
    }

    let second = migrate::run(&endpoint, &Options::default()).await.unwrap();
    assert!(!second.database_created);
    assert_eq!((second.applied.len(), second.already_applied), (0, BUILT_IN));
    assert_eq!(count(&endpoint, "schema_migrations").await, BUILT_IN as u64);
}

#[tokio::test]
async fn several_at_once_take_turns() {
    let endpoint = fresh_database();
    let options = Options::default();
    let run = || migrate::run(&endpoint, &options);
    let (a, b, c, d) = tokio::join!(run(), run(), run(), run());
    let reports = [a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap()];
    assert_eq!(reports.iter().map(|report| report.applied.len()).sum::<usize>(), BUILT_IN, "{reports:?}");
    assert_eq!(count(&endpoint, "schema_migrations").await, BUILT_IN as u64);
    assert_eq!(count(&endpoint, "system.tables WHERE database = currentDatabase() AND name LIKE '%lock'").await, 0);
}

#[tokio::test]
async fn new_files_are_applied_after_the_old_ones() {
    let (endpoint, dir) = (fresh_database(), folder(&[A]));
    assert_eq!(run(&endpoint, dir.path()).await.unwrap().applied, ["0001_a.sql"]);
    write(dir.path(), &[B]);
    let report = run(&endpoint, dir.path()).await.unwrap();
    assert_eq!((report.applied, report.already_applied), (vec!["0002_b.sql".to_owned()], 1));
    assert_eq!(count(&endpoint, "b").await, 2);
}

#[tokio::test]
async fn a_changed_file_is_refused_before_anything_is_done() {
    let (endpoint, dir) = (fresh_database(), folder(&[A]));
    run(&endpoint, dir.path()).await.unwrap();
    write(dir.path(), &[("0001_a.sql", "CREATE TABLE a (x UInt16) ENGINE = Memory;"), B]);
    let error = run(&endpoint, dir.path()).await.unwrap_err();
    assert!(matches!(&error, MigrateError::Changed { file, .. } if file == "0001_a.sql"), "{error}");
    assert!(error.to_string().contains("0003_"), "{error}");
    assert_eq!(count(&endpoint, "schema_migrations").await, 1);
}

#[tokio::test]
async fn a_database_ahead_of_the_files_is_refused() {
    let endpoint = fresh_database();
    run(&endpoint, folder(&[A, B]).path()).await.unwrap();
    let error = run(&endpoint, folder(&[A]).path()).await.unwrap_err();
    assert!(matches!(error, MigrateError::Unknown { version: 2, .. }), "{error}");
}

#[tokio::test]
async fn a_failing_statement_names_its_place_and_what_took_effect_and_can_be_mended() {
    let endpoint = fresh_database();
    let broken =
        "-- two\nCREATE TABLE IF NOT EXISTS b (x UInt8) ENGINE = Memory;\n\nINSERT INTO nowhere SELECT 'a;b?';";
    let dir = folder(&[A, ("0002_b.sql", broken)]);
    let error = run(&endpoint, dir.path()).await.unwrap_err();
    let text = error.to_string();
    for part in [
        "0002_b.sql, line 4: statement 2 of 2",
        "UNKNOWN_TABLE",
        "before it: 0001_a.sql",
        "first statement took effect",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(count(&endpoint, "schema_migrations").await, 1);

    // The lock is free again, and what had taken effect does no harm.
    write(dir.path(), &[("0002_b.sql", &broken.replace("nowhere SELECT 'a;b?'", "b SELECT length('a;b?')"))]);
    assert_eq!(run(&endpoint, dir.path()).await.unwrap().applied, ["0002_b.sql"]);
    assert_eq!(count(&endpoint, "b WHERE x = 4").await, 1);
}

#[tokio::test]
async fn a_lock_left_behind_is_named_with_the_way_to_free_it() {
    let (endpoint, dir) = (fresh_database(), folder(&[A]));
    run(&endpoint, dir.path()).await.unwrap();
    let lock = "CREATE TABLE schema_migrations_lock (x UInt8) ENGINE = Memory COMMENT 'held by process 7 on elsewhere'";
    endpoint.client().query_raw(lock).execute().await.unwrap();

    // Nothing to do: nobody is waited for.
    assert!(run(&endpoint, dir.path()).await.unwrap().applied.is_empty());

    write(dir.path(), &[B]);
    let error = run(&endpoint, dir.path()).await.unwrap_err().to_string();
    let way_out = format!("DROP TABLE `{}`.schema_migrations_lock", endpoint.database());
    assert!(error.contains("process 7 on elsewhere") && error.contains(&way_out), "{error}");

    endpoint.client().query_raw(&way_out).execute().await.unwrap();
    assert_eq!(run(&endpoint, dir.path()).await.unwrap().applied, ["0002_b.sql"]);
}
