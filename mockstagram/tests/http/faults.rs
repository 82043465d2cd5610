//! Each fault, the latencies, and what is counted of them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Server, influencer};

const PK: u64 = 1_000_000;
const REQUEST: &[u8] = b"GET /api/v1/influencers/1000000 HTTP/1.1\r\nhost: x\r\n\r\n";

async fn requests(server: &Server) -> Value {
    let (status, requests) = server.get("/admin/requests").await;
    assert_eq!(status, 200);
    requests
}

#[tokio::test]
async fn no_fault_moves_the_counts_and_all_can_be_switched_while_it_runs() {
    let server = Server::start(&["--seed", "1"]);
    let expected = server.sequence(PK, 3).await;
    assert_eq!(server.counts(PK).await, expected[0]);

    server.set(json!({"error_rate": 1})).await;
    let (status, body) = server.get(&influencer(PK)).await;
    assert_eq!((status.as_u16(), body), (500, json!({"error": {"name": "InternalServerError"}})));

    server.set(json!({"error_rate": 0, "throttle_rate": 1, "retry_after_seconds": 7})).await;
    let response = server.influencer(PK).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"7".parse().unwrap()));

    server.set(json!({"throttle_rate": 0, "malformed_rate": 1})).await;
    for _ in 0..200 {
        let response = server.influencer(PK).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.text().await.unwrap();
        assert!(serde_json::from_str::<Value>(&body).is_err(), "{body}");
        let whole = format!(
            r#"{{"pk":1000000,"username":"influencer-1000000","followerCount":{},"followingCount":{}}}"#,
            expected[1][0], expected[1][1]
        );
        assert!(whole.starts_with(&body), "{body}");
    }

    server.set(json!({"malformed_rate": 0})).await;
    assert_eq!(server.counts(PK).await, expected[1]);
    let requests = requests(&server).await;
    let counted = ["total", "ok", "500", "429", "malformed", "in_flight"].map(|name| requests[name].as_u64().unwrap());
    assert_eq!(counted, [204, 2, 1, 1, 200, 0]);
}

#[test]
fn a_reset_is_a_reset() {
    let server = Server::start(&["--reset-rate", "1"]);
    for _ in 0..20 {
        let mut connection = TcpStream::connect(server.address()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        connection.write_all(REQUEST).unwrap();
        let error = connection.read(&mut [0; 64]).expect_err("the connection was not reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn resets_are_counted_and_seen_by_a_client() {
    let server = Server::start(&["--reset-rate", "1"]);
    assert!(server.influencer(PK).await.is_err());
    server.wait_for("/admin/requests", "/reset", 1).await;
    server.set(json!({"reset_rate": 0})).await;
    assert_eq!(server.counts(PK).await, server.sequence(PK, 1).await[0]);
}

#[tokio::test]
async fn a_timeout_is_silence_until_the_client_leaves() {
    let server = Server::start(&["--timeout-rate", "1"]);
    let mut connection = TcpStream::connect(server.address()).unwrap();
    connection.write_all(REQUEST).unwrap();
    server.wait_for("/admin/requests", "/timeout", 1).await;
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = connection.read(&mut [0; 64]).expect_err("the request was answered");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    drop(connection);
    server.set(json!({"timeout_rate": 0})).await;
    assert_eq!(server.counts(PK).await, server.sequence(PK, 1).await[0]);
    let requests = requests(&server).await;
    assert_eq!([&requests["timeout"], &requests["abandoned"], &requests["total"]], [1, 0, 2]);
}

#[tokio::test]
async fn rates_are_shares_of_the_requests() {
    let server =
        Server::start(&["--seed", "1", "--error-rate", "0.05", "--malformed-rate", "0.01", "--throttle-rate", "0.3"]);
    let server = Arc::new(server);
    let mut asking = tokio::task::JoinSet::new();
    for task in 0..20 {
        let server = Arc::clone(&server);
        asking.spawn(async move {
            for number in 0..500 {
                let _ = server.influencer(PK + task * 500 + number).await.unwrap();
            }
        });
    }
    asking.join_all().await;
    let requests = requests(&server).await;
    let seen = |name: &str| requests[name].as_f64().unwrap();
    assert_eq!(seen("total"), 10_000.0);
    assert_eq!(seen("ok") + seen("500") + seen("malformed") + seen("429"), 10_000.0);
    // Five deviations of a binomial distribution each.
    for (name, expected, tolerance) in [("500", 500.0, 109.0), ("malformed", 100.0, 50.0), ("429", 3_000.0, 230.0)] {
        assert!((seen(name) - expected).abs() <= tolerance, "{name}: {} not {expected}", seen(name));
    }
}

/// How long each of `n` requests took that were made at once.
async fn times(server: &Arc<Server>, n: u64) -> Vec<Duration> {
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..n {
        let server = Arc::clone(server);
        asking.spawn(async move {
            let start = Instant::now();
            server.counts(PK + number).await;
            start.elapsed()
        });
    }
    let mut times = asking.join_all().await;
    times.sort_unstable();
    times
}

#[tokio::test]
async fn a_constant_latency_holds_every_answer_back() {
    let server = Arc::new(Server::start(&["--latency", "constant", "--latency-ms", "500"]));
    let slow = times(&server, 20).await;
    assert!(slow[0] >= Duration::from_millis(500), "{slow:?}");
    server.set(json!({"latency": "none"})).await;
    let fast = times(&server, 20).await;
    assert!(fast[10] < Duration::from_millis(500), "{fast:?}");
}

#[tokio::test]
async fn a_log_normal_latency_has_its_median_and_its_tail() {
    let args = ["--seed", "2", "--latency", "log-normal", "--latency-ms", "100", "--latency-sigma", "1"];
    let server = Arc::new(Server::start(&args));
    let times = times(&server, 200).await;
    let below = |ms: u64| times.iter().filter(|time| **time < Duration::from_millis(ms)).count();
    // 16% are below e^-1 medians, half below one, 16% above e. A busy machine adds to a time and takes nothing from it.
    assert!(below(37) <= 45, "{} below 37 ms", below(37));
    assert!(below(100) <= 120, "{} below 100 ms", below(100));
    assert!(below(272) <= 182, "{} below 272 ms", below(272));
    assert!(times[0] < times[199] / 4, "{:?} to {:?}", times[0], times[199]);
}

#[tokio::test]
async fn a_latency_rate_holds_back_that_share() {
    let args = ["--seed", "2", "--latency", "constant", "--latency-ms", "400", "--latency-rate", "0.5"];
    let server = Arc::new(Server::start(&args));
    let slow = times(&server, 100).await.into_iter().filter(|time| *time >= Duration::from_millis(400)).count();
    assert!((30..=70).contains(&slow), "{slow} of 100 were held back");
}

#[tokio::test]
async fn who_hangs_up_early_was_not_answered() {
    let server = Server::start(&["--latency", "constant", "--latency-ms", "60000"]);
    let mut connection = TcpStream::connect(server.address()).unwrap();
    connection.write_all(REQUEST).unwrap();
    server.wait_for("/admin/requests?pk=1000000", "/in_flight", 1).await;
    drop(connection);
    server.wait_for("/admin/requests?pk=1000000", "/abandoned", 1).await;
    server.set(json!({"latency": "none"})).await;
    assert_eq!(server.counts(PK).await, server.sequence(PK, 1).await[0]);
    let requests = requests(&server).await;
    assert_eq!([&requests["total"], &requests["ok"], &requests["in_flight"]], [2, 1, 0]);
}

#[tokio::test]
async fn is_suspicious_meets_faults_too() {
    let server = Server::start(&["--throttle-rate", "1"]);
    let reading = json!({"pk": 1, "username": "a", "followerCount": 1, "followingCount": 1});
    assert_eq!(server.post("/api/v1/influencers/is_suspicious", reading).await.0, 429);
    let requests = requests(&server).await;
    assert_eq!([&requests["is_suspicious"]["429"], &requests["429"]], [1, 0]);
}
