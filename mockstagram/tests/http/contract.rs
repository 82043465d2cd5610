//! What the upstream contract says.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::Server;

const SUSPICIOUS: &str = "/api/v1/influencers/is_suspicious";

#[tokio::test]
async fn an_influencer_is_answered_to_the_letter() {
    let server = Server::start(&["--seed", "1"]);
    let [[follower, following], ..] = server.sequence(1_234_567, 1).await[..] else { panic!("no sequence") };
    let response = server.influencer(1_234_567).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.text().await.unwrap(),
        format!(
            r#"{{"pk":1234567,"username":"influencer-1234567","followerCount":{follower},"followingCount":{following}}}"#
        )
    );
}

#[tokio::test]
async fn every_read_moves_the_counts_and_floors_hold() {
    let server = Server::start(&["--seed", "1"]);
    for pk in 1_000_000..1_000_030 {
        let mut last = server.counts(pk).await;
        for _ in 0..10 {
            let next = server.counts(pk).await;
            assert!(next[0] >= 5_000 && next[1] >= 50, "{next:?}");
            // Ten deviations: further than any step goes.
            assert!(next[0].abs_diff(last[0]) < 100_000 && next[1].abs_diff(last[1]) < 1_000, "{last:?} {next:?}");
            let at_floors = last == [5_000, 50];
            assert!(next != last || at_floors, "{pk} stood still at {last:?}");
            last = next;
        }
    }
}

#[tokio::test]
async fn the_first_and_last_of_a_million_exist_and_no_others() {
    let server = Server::start(&[]);
    server.counts(1_000_000).await;
    server.counts(1_999_999).await;
    let others = [
        "999999",
        "2000000",
        "0",
        "-1",
        "abc",
        "1000000x",
        "1000000.0",
        "",
        "99999999999999999999999",
        "is_suspicious",
    ];
    for pk in others {
        let (status, body) = server.get(&format!("/api/v1/influencers/{pk}")).await;
        assert_eq!(status, 500, "{pk}");
        assert_eq!(body, json!({"error": {"name": "InfluencerNotFoundError"}}), "{pk}");
    }
    let (_, requests) = server.get("/admin/requests").await;
    assert_eq!([&requests["total"], &requests["ok"], &requests["not_found"]], [12, 2, 10]);
}

#[tokio::test]
async fn suspicious_is_a_low_ratio_told_after_about_a_second() {
    let server = Server::start(&["--seed", "1"]);
    let ask = async |follower: u64, following: u64| {
        let body = json!({
            "pk": 1_000_000, "username": "influencer-1000000", "followerCount": follower, "followingCount": following,
        });
        let start = Instant::now();
        let (status, body) = server.post(SUSPICIOUS, body).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body, json!({"pk": 1_000_000, "suspicious": follower <= 5_640}));
        start.elapsed()
    };
    let elapsed: [Duration; 6] = tokio::join!(
        ask(5_640, 1_000),
        ask(5_641, 1_000),
        ask(5_000, 1_000),
        ask(100_000, 1_000),
        ask(0, 1_000),
        ask(u64::from(u32::MAX), 1_000)
    )
    .into();
    // With this seed; that they are normal is tested where they are drawn.
    assert!(elapsed.iter().any(|time| *time > Duration::from_secs(1)), "{elapsed:?}");
    assert!(elapsed.iter().any(|time| *time < Duration::from_secs(1)), "{elapsed:?}");
}

#[tokio::test]
async fn a_body_that_is_no_reading_is_refused_by_name() {
    let server = Server::start(&[]);
    let cases = [
        ("", "EOF"),
        ("{", "EOF"),
        (r#"{"pk":1,"username":"a","followerCount":1}"#, "followingCount"),
        (r#"{"pk":1,"username":"a","followerCount":1.5,"followingCount":1}"#, "1.5"),
        (r#"{"pk":"1","username":"a","followerCount":1,"followingCount":1}"#, "string"),
    ];
    for (body, named) in cases {
        let (status, answer) = server.post(SUSPICIOUS, body).await;
        assert_eq!(status, 400, "{body}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(named), "{body}: {message}");
    }
    let (status, answer) = server.post(SUSPICIOUS, "x".repeat(100_000)).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("65536"), "{answer}");
    let (_, requests) = server.get("/admin/requests").await;
    assert_eq!([&requests["is_suspicious"]["total"], &requests["is_suspicious"]["400"], &requests["total"]], [6, 6, 0]);
}

#[tokio::test]
async fn other_methods_and_paths_say_what_there_is() {
    let server = Server::start(&[]);
    let (status, body) = server.post("/api/v1/influencers/1000000", "").await;
    assert_eq!((status.as_u16(), &body["error"]["message"]), (405, &json!("this path takes GET")));
    let (status, body) = server.put(SUSPICIOUS, "").await;
    assert_eq!((status.as_u16(), &body["error"]["message"]), (405, &json!("this path takes POST")));
    for path in ["/", "/api/v1/influencers", "/api/v1/influencers/1000000/x", "/admin"] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, 404, "{path}");
        assert!(body["error"]["message"].as_str().unwrap().contains("GET /api/v1/influencers/PK"), "{body}");
    }
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Server::start(&[]);
    let mut connection = TcpStream::connect(server.address()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..3 {
        connection.write_all(b"GET /api/v1/influencers/1000000 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut buffer = [0; 1_024];
            let read = connection.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the connection was closed");
            answer.extend_from_slice(&buffer[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}
