//! Large results and large bodies pass through; neither is ever held whole.

mod common;

use common::process::{ANY, Process, ask};
use common::{at, scratch, text};
use futures::{StreamExt, stream};
use reqwest::{Body, Client};

/// What a server may take while it handles a gigabyte, in MB. Idle it takes about 250.
const MOST: u64 = 700;

#[tokio::test]
async fn a_large_result_takes_little_memory() {
    let server = Process::start(&scratch("large_result"), &[ANY]);
    for parameters in [&[] as &[_], &[("compress", "1")], &[("wait_end_of_query", "1")]] {
        // JSON, which the engine's own chunks cannot give.
        let query = "SELECT repeat('x', 100) FROM numbers(7000000) FORMAT JSONCompact";
        let response = Client::new().post(at(&server.url, parameters)).body(query).send().await.unwrap();
        let (mut length, mut most) = (0, 0);
        let mut body = response.bytes_stream();
        while let Some(bytes) = body.next().await {
            length += bytes.unwrap().len();
            most = most.max(server.resident());
        }
        assert!(length > if parameters == [("compress", "1")] { 3_000_000 } else { 700_000_000 }, "{length}");
        assert!(most < MOST, "{parameters:?}: {most} MB");
    }
}

#[tokio::test]
async fn rows_are_inserted_while_they_come() {
    let server = Process::start(&scratch("large_body"), &[ANY]);
    ask(&server.url, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a").await;
    // 880 MB of text that exists nowhere as a whole.
    let pieces = (0..800_u64).map(|piece| {
        let row = |n: u64| format!("{}\t{}\n", piece * 10_000 + n, "x".repeat(100));
        Ok::<_, std::io::Error>((0..10_000).map(row).collect::<String>())
    });
    let insert = Client::new()
        .post(at(&server.url, &[("query", "INSERT INTO t FORMAT TSV")]))
        .body(Body::wrap_stream(stream::iter(pieces)));
    text(insert.send().await.unwrap()).await;
    assert_eq!(ask(&server.url, "SELECT count(), sum(length(s)) FROM t").await, "8000000\t800000000\n");
    let most = server.resident();
    assert!(most < MOST, "{most} MB");
}
