//! Settings, counters, sequences: what is answered, and what is refused.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{Server, influencer};

fn message(answer: &(StatusCode, Value)) -> &str {
    assert_eq!(answer.0, 400, "{}", answer.1);
    answer.1["error"]["message"].as_str().unwrap()
}

#[tokio::test]
async fn settings_are_off_by_default_and_changed_one_by_one() {
    let server = Server::start(&[]);
    let mut expected = json!({
        "error_rate": 0.0, "timeout_rate": 0.0, "reset_rate": 0.0, "malformed_rate": 0.0, "throttle_rate": 0.0,
        "retry_after_seconds": 1, "latency": "none", "latency_ms": 20.0, "latency_sigma": 0.5, "latency_rate": 1.0,
    });
    assert_eq!(server.get("/admin/settings").await, (StatusCode::OK, expected.clone()));
    expected["error_rate"] = json!(0.25);
    expected["latency"] = json!("log-normal");
    let patch = json!({"error_rate": 0.25, "latency": "log-normal"});
    assert_eq!(server.put("/admin/settings", patch).await, (StatusCode::OK, expected.clone()));
    assert_eq!(server.put("/admin/settings", "{}").await, (StatusCode::OK, expected.clone()));
    assert_eq!(server.get("/admin/settings").await.1, expected);
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_by_name_and_change_nothing() {
    let server = Server::start(&["--error-rate", "0.5"]);
    let before = server.get("/admin/settings").await;
    let cases: [(&str, &[&str]); 12] = [
        (r#"{"reset_rate": 0.1, "eror_rate": 1}"#, &["\"eror_rate\"", "error_rate", "latency_sigma"]),
        (r#"{"error_rate": 1.5}"#, &["\"error_rate\"", "1.5", "from 0 to 1"]),
        (r#"{"error_rate": -0.1}"#, &["\"error_rate\"", "-0.1"]),
        (r#"{"timeout_rate": "high"}"#, &["\"timeout_rate\"", "high"]),
        (r#"{"reset_rate": null}"#, &["\"reset_rate\"", "null"]),
        (r#"{"retry_after_seconds": -1}"#, &["\"retry_after_seconds\"", "-1"]),
        (r#"{"latency": "slow"}"#, &["\"latency\"", "slow", "log-normal"]),
        (r#"{"latency_ms": 1e12}"#, &["\"latency_ms\"", "3600000"]),
        (r#"{"reset_rate": 0.3, "malformed_rate": 0.3}"#, &["add up to 1.1", "error_rate"]),
        ("", &["JSON"]),
        ("[1]", &["JSON", "map"]),
        (r#"{"error_rate": 0.1"#, &["JSON"]),
    ];
    for (patch, named) in cases {
        let answer = server.put("/admin/settings", patch).await;
        for part in named {
            assert!(message(&answer).contains(part), "{patch}: {}", message(&answer));
        }
    }
    assert_eq!(server.get("/admin/settings").await, before);
}

#[tokio::test]
async fn requests_are_counted_per_pk_and_as_a_whole() {
    let server = Server::start(&["--influencers", "3000"]);
    for (pk, times) in [(1_000_000, 1), (1_000_001, 3), (1_002_999, 2), (1_003_000, 1)] {
        for _ in 0..times {
            server.influencer(pk).await.unwrap();
        }
    }
    server.set(json!({"error_rate": 1})).await;
    assert_eq!(server.get(&influencer(1_000_001)).await.0, 500);

    let zeros = json!({
        "total": 0, "in_flight": 0, "ok": 0, "not_found": 0, "400": 0, "500": 0, "timeout": 0, "reset": 0,
        "malformed": 0, "429": 0, "abandoned": 0,
    });
    let mut one = zeros.clone();
    for (name, value) in [("pk", 1_000_001), ("total", 4), ("ok", 3), ("500", 1)] {
        one[name] = json!(value);
    }
    assert_eq!(server.get("/admin/requests?pk=1000001").await, (StatusCode::OK, one));
    let mut all = zeros.clone();
    for (name, value) in [("total", 8), ("ok", 6), ("not_found", 1), ("500", 1)] {
        all[name] = json!(value);
    }
    all["is_suspicious"] = zeros;
    assert_eq!(server.get("/admin/requests").await, (StatusCode::OK, all));

    let response = reqwest::get(server.url("/admin/requests/all")).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(response.text().await.unwrap(), "1000000 1 1\n1000001 4 3\n1002999 2 2\n");
}

#[tokio::test]
async fn a_sequence_is_known_before_it_is_served() {
    let server = Server::start(&["--seed", "8", "--first-pk", "5", "--influencers", "2"]);
    let (status, body) = server.get("/admin/sequence?n=3&pk=6").await;
    assert_eq!((status.as_u16(), &body["seed"], &body["pk"]), (200, &json!(8), &json!(6)));
    let values: Vec<[u64; 2]> = serde_json::from_value(body["values"].clone()).unwrap();
    let told = [server.counts(6).await, server.counts(6).await, server.counts(6).await];
    assert_eq!(values, told);
    assert_eq!(server.sequence(5, 0).await, Vec::<[u64; 2]>::new());
    assert_eq!(server.sequence(5, 100_000).await.len(), 100_000);
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused_by_name() {
    let server = Server::start(&[]);
    let cases: [(&str, &[&str]); 8] = [
        ("/admin/sequence", &["pk", "n"]),
        ("/admin/sequence?pk=1000000", &["n"]),
        ("/admin/sequence?pk=1000000&n=x", &["parameter n", "\"x\""]),
        ("/admin/sequence?pk=1000000&n=1000001", &["1000001", "at most 1000000"]),
        ("/admin/sequence?pk=1&n=1", &["pk 1", "1000000 to 1999999"]),
        ("/admin/requests?pk=", &["parameter pk"]),
        ("/admin/requests?pk=2000000", &["2000000", "1000000 to 1999999"]),
        ("/admin/requests?key=1", &["\"key\"", "pk"]),
    ];
    for (path, named) in cases {
        let answer = server.get(path).await;
        for part in named {
            assert!(message(&answer).contains(part), "{path}: {}", message(&answer));
        }
    }
    assert_eq!(server.get("/admin/reset").await.0, 405);
    assert_eq!(server.get("/health").await, (StatusCode::OK, json!({"status": "ok"})));
}
