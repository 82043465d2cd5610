//! A seed fixes what every pk is told and which of its requests fail, whatever else goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::server::{Server, influencer};

const PKS: [u64; 4] = [1_000_000, 1_000_001, 1_500_000, 1_999_999];

/// What each pk is told, asked by four tasks at once, each one pk.
async fn asked_at_once(server: &Arc<Server>, times: usize) -> BTreeMap<u64, Vec<[u64; 2]>> {
    let mut asking = tokio::task::JoinSet::new();
    for pk in PKS {
        let server = Arc::clone(server);
        asking.spawn(async move {
            let mut told = Vec::new();
            for _ in 0..times {
                told.push(server.counts(pk).await);
            }
            (pk, told)
        });
    }
    asking.join_all().await.into_iter().collect()
}

#[tokio::test]
async fn a_pk_is_told_the_same_in_any_interleaving_and_with_any_number_of_threads() {
    let at_once = Arc::new(Server::start(&["--seed", "9", "--threads", "2"]));
    let in_turn = Server::start(&["--seed", "9"]);
    let told = asked_at_once(&at_once, 50).await;
    for pk in PKS.into_iter().rev() {
        // Others come in between.
        in_turn.counts(1_700_000 + pk % 7).await;
        let mut again = Vec::new();
        for _ in 0..50 {
            again.push(in_turn.counts(pk).await);
        }
        assert_eq!(told[&pk], again);
        assert_eq!(in_turn.sequence(pk, 50).await, again);
    }
    let other = Server::start(&["--seed", "10"]);
    assert_ne!(other.sequence(PKS[0], 50).await, told[&PKS[0]]);
}

#[tokio::test]
async fn one_pk_asked_by_many_is_told_each_value_once() {
    let server = Arc::new(Server::start(&["--threads", "2"]));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let server = Arc::clone(&server);
        asking.spawn(async move { server.counts(1_000_000).await });
    }
    let mut told = asking.join_all().await;
    let mut expected = server.sequence(1_000_000, 200).await;
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_seed_drawn_at_random_is_printed_and_can_be_used_again() {
    let first = Server::start(&[]);
    let sequence = first.sequence(1_000_000, 5).await;
    let (_, _, stderr) = first.stop("-TERM");
    let seed = stderr.lines().next().and_then(|line| line.rsplit_once("seed ")).map(|(_, seed)| seed.to_owned());
    let second = Server::start(&["--seed", &seed.expect("no seed on standard error")]);
    assert_eq!(second.sequence(1_000_000, 5).await, sequence);
    assert_ne!(Server::start(&[]).sequence(1_000_000, 5).await, sequence);
}

#[tokio::test]
async fn the_same_requests_fail_in_any_interleaving() {
    let args = ["--seed", "4", "--error-rate", "0.2", "--malformed-rate", "0.2", "--throttle-rate", "0.1"];
    let (one, other) = (Server::start(&args), Server::start(&args));
    let mut fates = BTreeMap::<u64, Vec<String>>::new();
    for _ in 0..40 {
        for pk in PKS {
            fates.entry(pk).or_default().push(fate(&one, pk).await);
        }
    }
    for (pk, fates) in fates {
        for (number, expected) in fates.into_iter().enumerate() {
            assert_eq!(fate(&other, pk).await, expected, "request {number} for {pk}");
        }
    }
}

/// Status and body of one request, as text.
async fn fate(server: &Server, pk: u64) -> String {
    let response = server.influencer(pk).await.unwrap();
    format!("{} {}", response.status(), response.text().await.unwrap())
}

#[tokio::test]
async fn what_was_told_is_the_sequence_even_among_faults() {
    let server = Server::start(&["--error-rate", "0.3", "--malformed-rate", "0.3"]);
    let mut told = Vec::new();
    for _ in 0..60 {
        let response = server.influencer(1_000_000).await.unwrap();
        if let (200, Ok(body)) = (response.status().as_u16(), response.json::<Value>().await) {
            told.push(["followerCount", "followingCount"].map(|name| body[name].as_u64().unwrap()));
        }
    }
    assert!(!told.is_empty());
    assert_eq!(server.sequence(1_000_000, told.len()).await, told);
    let (_, requests) = server.get("/admin/requests?pk=1000000").await;
    assert_eq!((requests["total"].as_u64(), requests["ok"].as_u64()), (Some(60), Some(told.len() as u64)));
}

#[tokio::test]
async fn a_reset_begins_all_sequences_anew() {
    let server = Server::start(&[]);
    let first = server.counts(1_000_000).await;
    server.counts(1_000_000).await;
    assert_eq!(server.get(&influencer(1)).await.0, 500);
    server.set(serde_json::json!({"throttle_rate": 0.25})).await;
    assert_eq!(server.post("/admin/reset", "").await.0, 200);
    let (_, requests) = server.get("/admin/requests").await;
    assert_eq!([&requests["total"], &requests["ok"], &requests["not_found"]], [0, 0, 0]);
    let (_, settings) = server.get("/admin/settings").await;
    assert_eq!(settings["throttle_rate"], 0.25, "a reset leaves the settings");
    server.set(serde_json::json!({"throttle_rate": 0})).await;
    assert_eq!(server.counts(1_000_000).await, first);
}
