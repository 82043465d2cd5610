//! Starting, stopping and dying, in a process of its own for each server.

mod common;

use std::process::Command;

use common::process::{ANY, Process, ask, example, program, refusal};
use common::{at, failure, scratch, text};
use reqwest::Client;

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_stop_and_after_a_kill() {
    let path = scratch("kept");
    let server = Process::start(&path, &[ANY]);
    ask(&server.url, "CREATE DATABASE d").await;
    ask(&server.url, "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    ask(&server.url, "CREATE TABLE in_default (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    ask(&server.url, "CREATE VIEW d.v AS SELECT count() AS c, sum(a) AS s FROM d.t").await;
    ask(&server.url, "INSERT INTO in_default VALUES (7)").await;
    ask(&server.url, "INSERT INTO d.t SELECT number FROM numbers(1000)").await;
    server.stop();

    let server = Process::start(&path, &[ANY]);
    assert_eq!(ask(&server.url, "SELECT * FROM d.v").await, "1000\t499500\n");
    // Killed while rows keep coming: all that was acknowledged is there, and nothing in part.
    let (url, acknowledged) = (server.url.clone(), std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)));
    let counter = std::sync::Arc::clone(&acknowledged);
    let writer = tokio::spawn(async move {
        let http = Client::new();
        for n in 0..100_000_u64 {
            let rows: String = (0..100).map(|row| format!("{}\n", 1_000_000 + n * 100 + row)).collect();
            let sent = http.post(at(&url, &[("query", "INSERT INTO d.t FORMAT TSV")])).body(rows).send().await;
            if !sent.is_ok_and(|response| response.status() == 200) {
                return;
            }
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    while acknowledged.load(std::sync::atomic::Ordering::SeqCst) < 50 {
        tokio::task::yield_now().await;
    }
    server.kill();
    writer.await.unwrap();
    let acknowledged = acknowledged.load(std::sync::atomic::Ordering::SeqCst);

    let server = Process::start(&path, &[ANY]);
    let found: u64 = ask(&server.url, "SELECT count() FROM d.t WHERE a >= 1000000").await.trim().parse().unwrap();
    assert!(found == acknowledged * 100 || found == (acknowledged + 1) * 100, "{found} of {acknowledged} inserts");
    assert_eq!(ask(&server.url, "SELECT * FROM in_default").await, "7\n");
    server.stop();
}

#[tokio::test]
async fn a_second_server_on_the_same_path_is_refused() {
    let path = scratch("twice");
    let server = Process::start(&path, &[ANY]);
    let said = refusal(&path, &[ANY]);
    assert!(said.contains("another ClickHouse is using the data directory") && said.contains("Code 76"), "{said}");
    let port = server.url.trim_start_matches("http://").to_owned();
    let said = refusal(&scratch("port"), &[&port]);
    assert!(said.contains(&format!("{port} is already in use")), "{said}");
    assert_eq!(ask(&server.url, "SELECT 1").await, "1\n");
}

#[test]
fn a_directory_that_is_not_ours_is_refused() {
    let path = scratch("theirs");
    std::fs::write(path.join("thesis.txt"), "x").unwrap();
    let said = refusal(&path, &[ANY]);
    assert!(said.contains("was not made by tickhouse"), "{said}");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
}

#[test]
fn a_missing_library_is_named_with_the_way_out() {
    let missing =
        Command::new(program()).arg(scratch("no_library")).arg(ANY).env("TICKHOUSE_CHDB", "/nowhere.so").output();
    let said = String::from_utf8(missing.unwrap().stderr).unwrap();
    assert!(said.contains("/nowhere.so") && said.contains("make build"), "{said}");
    let wrong =
        Command::new(program()).arg(scratch("no_library")).arg(ANY).env("TICKHOUSE_CHDB", "/etc/hostname").output();
    let said = String::from_utf8(wrong.unwrap().stderr).unwrap();
    assert!(said.contains("/etc/hostname cannot be loaded"), "{said}");
    let address = refusal(&scratch("address"), &["nonsense"]);
    assert!(address.contains("\"nonsense\" is not an address to listen on"), "{address}");
}

#[tokio::test]
async fn without_the_right_password_nothing_is_done() {
    let path = scratch("auth");
    let server = Process::start(&path, &[ANY, "analyst", "secret"]);
    let http = Client::new();
    let create = |request: reqwest::RequestBuilder| request.body("CREATE DATABASE made").send();
    for request in [
        http.post(&server.url),
        http.post(&server.url).basic_auth("analyst", Some("wrong")),
        http.post(&server.url).basic_auth("default", Some("secret")),
        http.post(&server.url).header("X-ClickHouse-User", "analyst").header("X-ClickHouse-Key", ""),
        http.post(at(&server.url, &[("user", "analyst"), ("password", "secret ")])),
    ] {
        let (status, code, _) = failure(create(request).await.unwrap()).await;
        assert_eq!((status, code), (403, 516));
    }
    let right = [
        http.post(&server.url).basic_auth("analyst", Some("secret")),
        http.post(&server.url).header("X-ClickHouse-User", "analyst").header("X-ClickHouse-Key", "secret"),
        http.post(at(&server.url, &[("user", "analyst"), ("password", "secret")])),
    ];
    for request in right {
        let databases = request.body("SELECT count() FROM system.databases WHERE name = 'made'").send().await.unwrap();
        assert_eq!(text(databases).await, "0\n");
    }
    assert_eq!(text(http.get(format!("{}/ping", server.url)).send().await.unwrap()).await, "Ok.\n");
    server.stop();
}

#[tokio::test]
async fn a_stop_lets_a_query_end() {
    let server = Process::start(&scratch("graceful"), &[ANY]);
    let url = server.url.clone();
    let slow =
        tokio::spawn(
            async move { ask(&url, "SELECT sleepEachRow(0.5) FROM numbers(4) SETTINGS max_block_size = 1").await },
        );
    while ask(&server.url, "SELECT count() FROM system.processes WHERE query LIKE '%sleepEach%'").await == "1\n" {}
    server.stop();
    assert_eq!(slow.await.unwrap(), "0\n0\n0\n0\n");
}

#[test]
fn a_program_that_ends_with_the_engine_at_work_ends_with_its_own_code() {
    for _ in 0..5 {
        let output = Command::new(example("leave")).arg(scratch("leave")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{}: {said}", output.status);
    }
}
