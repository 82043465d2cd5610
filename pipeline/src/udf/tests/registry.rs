//! `active_influencers` against a server that answers as ClickHouse does. The query itself is tested end to end.

use std::time::Duration;

use super::child::{Outcome, call};
use super::server::{Act, Request, Server, response};

async fn list(server: &Server, shard: i64, environment: &[(&str, &str)]) -> Outcome {
    let environment: Vec<_> =
        [("CLICKHOUSE_URL", server.url.as_str())].into_iter().chain(environment.iter().copied()).collect();
    call("active_influencers", &[&[shard, 64]], &environment).await
}

fn ok(body: &str) -> Act {
    Act::Answer(response("200 OK", "", body))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_clickhouses_array() {
    let server = Server::start(|_: &Request, _| ok("[1000000,1000003]\n")).await;
    let outcome = list(&server, 5, &[("CLICKHOUSE_USER", "reader"), ("CLICKHOUSE_PASSWORD", "secret")]).await;
    assert_eq!(outcome.answers, ["[1000000,1000003]"]);
    let request = &server.requests()[0];
    assert!(request.head.starts_with("POST /?param_shard=5&param_shards=64 "), "{}", request.head);
    let head = request.head.to_lowercase();
    assert!(head.contains("x-clickhouse-user: reader") && head.contains("x-clickhouse-key: secret"), "{head}");
    assert!(request.body.contains("FROM tickhouse.active_influencers FINAL WHERE active"), "{}", request.body);
    let server = Server::start(|_: &Request, _| ok("[]\n")).await;
    assert_eq!(list(&server, 0, &[]).await.answers, ["[]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_that_is_away_is_asked_again() {
    let server = Server::start(|_: &Request, before| match before {
        0 => Act::Cut(String::new()),
        1 => Act::Answer(response("503 Service Unavailable", "", "Code: 202. TOO_MANY_SIMULTANEOUS_QUERIES")),
        _ => ok("[7]\n"),
    })
    .await;
    let outcome = list(&server, 5, &[]).await;
    assert_eq!(outcome.answers, ["[7]"]);
    assert!(outcome.errors.contains("asking again, ClickHouse is away"), "{}", outcome.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asking_again_cannot_mend_ends_the_instance_with_its_reason() {
    let refused = Server::start(|_: &Request, _| {
        Act::Answer(response("404 Not Found", "", "Code: 60. DB::Exception: Unknown table (UNKNOWN_TABLE)"))
    })
    .await;
    let strange = Server::start(|_: &Request, _| ok("<html>[1]</html>")).await;
    let away =
        Server::start(|_: &Request, _| Act::Answer(response("500 Internal Server Error", "", "no memory"))).await;
    for (server, shard, words) in [
        (&refused, 5, "active_influencers(5, 64): ClickHouse refuses the query: 404 Not Found: Code: 60."),
        (&strange, 5, "the answer is not a list of pks: 200 OK: <html>"),
        (&away, 5, "ClickHouse stayed away for 300ms: 500 Internal Server Error: no memory"),
        (&refused, 64, "active_influencers(64, 64): the shard must be from 0 to shards - 1"),
        (&refused, -1, "the shard must be from 0"),
    ] {
        let outcome = list(server, shard, &[("REGISTRY_WAIT_MS", "300")]).await;
        assert!(outcome.answers.is_empty());
        assert!(outcome.errors.contains(words), "{words}: {}", outcome.errors);
        assert!(
            outcome.errors.contains("the UDF active_influencers has stopped") || outcome.errors.contains("Stopped")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong_end_the_instance_by_name() {
    for (environment, words) in [
        (vec![], "CLICKHOUSE_URL is not set"),
        (vec![("CLICKHOUSE_URL", "ftp://a")], "CLICKHOUSE_URL is not an http or https URL: \"ftp://a\""),
        (
            vec![("CLICKHOUSE_URL", "http://127.0.0.1:1"), ("REGISTRY_WAIT_MS", "1h")],
            "REGISTRY_WAIT_MS must be a number from 1 to 3300000, not \"1h\"",
        ),
    ] {
        let outcome = call("active_influencers", &[&[0, 1]], &environment).await;
        assert!(outcome.errors.contains(words), "{words}: {}", outcome.errors);
        assert!(outcome.took < Duration::from_secs(1));
    }
}
