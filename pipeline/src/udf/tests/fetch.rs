//! `fetch_influencer` against a server with every fault it has a word for.

use std::time::Duration;

use serde_json::{Value, json};

use super::child::{Outcome, call};
use super::server::{Act, Request, Server, response};

fn pk(request: &Request) -> i64 {
    let path = request.head.split(' ').nth(1).unwrap();
    path.strip_prefix("/api/v1/influencers/").expect("the path of the API").parse().unwrap()
}

fn reading(pk: i64) -> String {
    let body = format!(r#"{{"pk":{pk},"username":"näme \"{pk}\"","followerCount":103412,"followingCount":978}}"#);
    response("200 OK", "content-type: application/json\r\n", &body)
}

/// The API. What it does hangs on the pk and on how often it was asked for it.
fn api(request: &Request, before: usize) -> Act {
    let pk = pk(request);
    let error = |name: &str| format!(r#"{{"error":{{"name":"{name}"}}}}"#);
    Act::Answer(match pk {
        1 => response("500 Internal Server Error", "", &error("InfluencerNotFoundError")),
        2 => response("500 Internal Server Error", "", &error("DatabaseError")),
        3 if before < 2 => response("503 Service Unavailable", "", "busy"),
        4 if before < 1 => response("429 Too Many Requests", "Retry-After: 1\r\n", ""),
        5 => response("429 Too Many Requests", "Retry-After: 3600\r\n", ""),
        6 if before < 3 => return Act::Cut(String::new()),
        7 => return Act::Hang,
        8 => response("200 OK", "", r#"{"pk":8,"username":"#),
        9 => reading(10),
        10 => response("404 Not Found", "", "no such page"),
        11 => return Act::Cut("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"pk\"".to_owned()),
        12 => response("200 OK", "", &"x".repeat(100_000)),
        13 => reading(13).replace("103412", "1034.2"),
        14 if before < 1 => response("429 Too Many Requests", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n", ""),
        15 => reading(15).replace("103412", "-03412").replace("-0", "-9"),
        // More seconds than the clock can tell, and the most that the header can say.
        16 => response("429 Too Many Requests", "Retry-After: 9223372036854775807\r\n", ""),
        17 => response("404 Not Found", "Retry-After: 18446744073709551615\r\n", ""),
        _ => reading(pk),
    })
}

async fn fetch(server: &Server, pks: &[i64], environment: &[(&str, &str)]) -> (Vec<Value>, Outcome) {
    let rows: Vec<[i64; 1]> = pks.iter().map(|pk| [*pk]).collect();
    let rows: Vec<&[i64]> = rows.iter().map(|row| row.as_slice()).collect();
    let base = format!("{}/", server.url);
    let environment: Vec<_> =
        [("MOCKSTAGRAM_URL", base.as_str())].into_iter().chain(environment.iter().copied()).collect();
    let outcome = call("fetch_influencer", &rows, &environment).await;
    assert_eq!(outcome.answers.len(), pks.len(), "{}", outcome.errors);
    (outcome.answers.iter().map(|answer| serde_json::from_str(answer).unwrap()).collect(), outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_comes_back_whole() {
    let server = Server::start(api).await;
    let (answers, _) = fetch(&server, &[1_000_000], &[]).await;
    let mut answer = answers[0].clone();
    let micros = answer.as_object_mut().unwrap().remove("fetched_at_micros").unwrap().as_u64().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    assert!(now - micros < 60_000_000, "{micros} is about now");
    let expected = json!({
        "pk": 1_000_000, "ok": true, "attempts": 1, "status": 200,
        "username": "näme \"1000000\"", "follower_count": 103_412, "following_count": 978,
    });
    assert_eq!(answer, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_its_word_and_its_number_of_attempts() {
    let server = Server::start(api).await;
    let pks = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let fast = [("FETCH_ATTEMPT_TIMEOUT_MS", "200"), ("FETCH_BACKOFF_MS", "20")];
    let (answers, _) = fetch(&server, &pks, &fast).await;
    let expected = [
        (1, json!(500), json!("not_found"), 1),
        (2, json!(500), json!("server_error"), 4),
        (3, json!(200), Value::Null, 3),
        (5, json!(429), json!("rate_limited"), 1),
        (6, json!(200), Value::Null, 4),
        (7, Value::Null, json!("timeout"), 4),
        (8, json!(200), json!("bad_body"), 1),
        (9, json!(200), json!("bad_body"), 1),
        (10, json!(404), json!("unexpected_status"), 1),
        (11, Value::Null, json!("connection"), 4),
        (12, json!(200), json!("bad_body"), 1),
        (13, json!(200), json!("bad_body"), 1),
        (14, json!(200), Value::Null, 2),
        (15, json!(200), json!("bad_body"), 1),
    ];
    for (answer, (pk, status, error, attempts)) in answers.iter().zip(&expected) {
        let got = (&answer["pk"], &answer["status"], &answer["error"], &answer["attempts"], &answer["ok"]);
        assert_eq!(got, (&json!(pk), status, error, &json!(attempts), &json!(error.is_null())), "{answer}");
        let words = answer["message"].as_str().unwrap_or_default();
        assert_eq!(words.is_empty(), error.is_null(), "{answer}");
        assert!(words.chars().count() <= 300, "{answer}");
        let asked = server.requests().iter().filter(|request| self::pk(request) == *pk).count();
        assert_eq!(asked, *attempts, "requests for pk {pk}");
    }
    assert!(answers[1]["message"].as_str().unwrap().contains("DatabaseError"), "{}", answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for_within_the_budget() {
    let server = Server::start(api).await;
    let (answers, outcome) = fetch(&server, &[4], &[]).await;
    assert_eq!((&answers[0]["ok"], &answers[0]["attempts"]), (&json!(true), &json!(2)));
    assert!(outcome.took >= Duration::from_secs(1) && outcome.took < Duration::from_secs(3), "{:?}", outcome.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_beyond_the_clock_ends_the_call_and_not_the_instance() {
    let server = Server::start(api).await;
    let (answers, outcome) = fetch(&server, &[16, 17, 1_000_000], &[]).await;
    for (answer, error) in answers.iter().zip(["rate_limited", "unexpected_status"]) {
        assert_eq!((&answer["error"], &answer["attempts"]), (&json!(error), &json!(1)), "{answer}");
    }
    assert!(answers[2]["ok"] == true, "{}", answers[2]);
    assert!(outcome.took < Duration::from_secs(10), "a pause was waited for: {:?}", outcome.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_with_its_budget() {
    let server = Server::start(api).await;
    let short = [("FETCH_BUDGET_MS", "400"), ("FETCH_ATTEMPT_TIMEOUT_MS", "10000"), ("FETCH_MAX_CONNECTIONS", "1")];
    let (answers, outcome) = fetch(&server, &[7, 7, 7], &short).await;
    let errors: Vec<_> = answers.iter().map(|answer| answer["error"].as_str().unwrap()).collect();
    assert_eq!(errors, ["timeout"; 3]);
    assert!(answers.iter().any(|answer| answer["attempts"] == 0), "one connection cannot serve three: {answers:?}");
    assert!(outcome.took < Duration::from_secs(10), "an attempt was waited for to its own end: {:?}", outcome.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_does_not_outlive_its_window() {
    let server = Server::start(api).await;
    let windows = [("FETCH_WINDOW_MS", "700"), ("FETCH_ATTEMPT_TIMEOUT_MS", "10000")];
    let (answers, outcome) = fetch(&server, &[7, 1_000_000], &windows).await;
    assert_eq!(answers[0]["error"], "timeout", "{}", answers[0]);
    assert!(outcome.took < Duration::from_secs(10), "an attempt was waited for to its own end: {:?}", outcome.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_bounded() {
    let server = Server::start(api).await;
    let pks: Vec<i64> = (1_000_000..1_000_500).collect();
    let (answers, _) = fetch(&server, &pks, &[("FETCH_MAX_CONNECTIONS", "8")]).await;
    assert!(answers.iter().zip(&pks).all(|(answer, pk)| answer["ok"] == true && answer["pk"] == *pk));
    // At most 8 at once; one that is handed back in the very moment in which another is wanted may be opened anew.
    assert!(server.connections() <= 16, "{} connections for 500 requests", server.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cap_on_requests_holds_and_throttles_what_has_no_room() {
    let server = Server::start(api).await;
    let pks: Vec<i64> = (1_000_000..1_000_060).collect();
    let (answers, outcome) = fetch(&server, &pks, &[("FETCH_MAX_RPS", "50")]).await;
    assert!(answers.iter().all(|answer| answer["ok"] == true));
    assert!(outcome.took >= Duration::from_millis(1100), "60 requests at 50 a second took {:?}", outcome.took);
    let tight = [("FETCH_MAX_RPS", "50"), ("FETCH_BUDGET_MS", "200")];
    let (answers, _) = fetch(&server, &pks, &tight).await;
    let throttled = answers.iter().filter(|answer| answer["error"] == "throttled" && answer["attempts"] == 0).count();
    assert!((40..=55).contains(&throttled), "{throttled} of 60 throttled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_away_is_a_failed_fetch() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let outcome = call("fetch_influencer", &[&[1]], &[("MOCKSTAGRAM_URL", &url), ("FETCH_BACKOFF_MS", "10")]).await;
    let answer: Value = serde_json::from_str(&outcome.answers[0]).unwrap();
    assert_eq!((&answer["error"], &answer["attempts"]), (&json!("connection"), &json!(4)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong_end_the_instance_by_name() {
    let good = ("MOCKSTAGRAM_URL", "http://127.0.0.1:1");
    for (environment, words) in [
        (
            vec![("MOCKSTAGRAM_URL", "localhost:3000")],
            "MOCKSTAGRAM_URL is not an http or https URL: \"localhost:3000\"",
        ),
        (
            vec![("MOCKSTAGRAM_URL", "http://me:secret@127.0.0.1:1")],
            "MOCKSTAGRAM_URL has a user name or password in it, which the API does not take",
        ),
        (
            vec![("MOCKSTAGRAM_URL", "http://127.0.0.1:1/?key=1")],
            "MOCKSTAGRAM_URL must end with its path, without `?` or `#`",
        ),
        (vec![good, ("FETCH_RETRIES", "many")], "FETCH_RETRIES must be a number from 0 to 10, not \"many\""),
        (vec![good, ("FETCH_WINDOW_MS", "1")], "FETCH_WINDOW_MS must be a number from 100 to 86400000"),
        (vec![good, ("FETCH_BUDGET_MS", "600000")], "FETCH_BUDGET_MS must be a number from 1 to 60000"),
        (vec![good, ("FETCH_MAX_RPS", "0")], "FETCH_MAX_RPS must be a number from 0.001"),
        (vec![], "MOCKSTAGRAM_URL is not set"),
    ] {
        let outcome = call("fetch_influencer", &[&[1]], &environment).await;
        assert!(outcome.answers.is_empty());
        assert!(outcome.errors.contains(words), "{words}: {}", outcome.errors);
    }
}
