//! The main job, end to end: registry, tick, fetch, tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use serde_json::json;
use tickhouse_tests::{Output, Program, Stack, StackOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: i64 = 1_000_000;

#[derive(Debug, Row, Deserialize, PartialEq, Eq)]
struct Reading {
    pk: i64,
    minute: u32,
    follower_count: i64,
    following_count: i64,
}

#[derive(Debug, Row, Deserialize, PartialEq, Eq)]
struct Summary {
    pk: i64,
    username: String,
    follower_count: i64,
    following_count: i64,
    total_follower_sum: i64,
    readings_count: i64,
}

#[derive(Deserialize)]
struct Sequence {
    values: Vec<(i64, i64)>,
}

async fn timeline(stack: &Stack) -> Vec<Reading> {
    let sql = "SELECT pk, toUnixTimestamp(minute) AS minute, follower_count, following_count \
               FROM follower_timeline ORDER BY pk, minute";
    stack.client().query(sql).fetch_all().await.expect("the timeline can be read")
}

async fn summary(stack: &Stack) -> Vec<Summary> {
    let sql = "SELECT pk, username, follower_count, following_count, total_follower_sum, readings_count \
               FROM influencers ORDER BY pk";
    stack.client().query(sql).fetch_all().await.expect("the summary can be read")
}

/// The readings of each influencer, in time.
fn by_pk(timeline: &[Reading]) -> BTreeMap<i64, Vec<&Reading>> {
    let mut map = BTreeMap::<_, Vec<_>>::new();
    for reading in timeline {
        map.entry(reading.pk).or_default().push(reading);
    }
    map
}

/// The invariant that ties the tables together, checked row by row, and every reading against what the API says it served.
async fn assert_consistent(stack: &Stack) {
    let timeline = timeline(stack).await;
    let readings = by_pk(&timeline);
    let summaries = summary(stack).await;
    assert_eq!(readings.keys().copied().collect::<Vec<_>>(), summaries.iter().map(|s| s.pk).collect::<Vec<_>>());
    for summary in &summaries {
        let readings = &readings[&summary.pk];
        let minutes: BTreeSet<_> = readings.iter().map(|r| r.minute).collect();
        assert_eq!(minutes.len(), readings.len(), "{} was read twice in a minute", summary.pk);
        let last = readings.last().expect("a key of the map has readings");
        assert_eq!(
            *summary,
            Summary {
                pk: last.pk,
                username: format!("influencer-{}", last.pk),
                follower_count: last.follower_count,
                following_count: last.following_count,
                total_follower_sum: readings.iter().map(|r| r.follower_count).sum(),
                readings_count: i64::try_from(readings.len()).expect("few readings"),
            }
        );
    }
    for (pk, readings) in readings.iter().step_by(17) {
        let path = format!("/admin/sequence?pk={pk}&n={}", readings.len());
        let served: Sequence = stack.ask(&path).await;
        let stored: Vec<_> = readings.iter().map(|r| (r.follower_count, r.following_count)).collect();
        assert_eq!(stored, served.values, "what the API served to {pk} and what was stored");
    }
}

/// Waits until at least `count` whole minutes with `readings` readings each are in the timeline.
async fn whole_minutes(stack: &Stack, count: u64, readings: u64) {
    let sql = format!(
        "SELECT countIf(n = {readings}) FROM (SELECT minute, count() AS n FROM follower_timeline GROUP BY minute)"
    );
    eventually(&format!("{count} minutes of {readings} readings"), PATIENCE, || async {
        stack.value::<u64>(&sql).await >= count
    })
    .await;
}

fn assert_clean(output: &Output) {
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

fn stop(pipeline: Program) {
    assert_clean(&pipeline.stop());
}

#[tokio::test]
async fn the_next_minute_follows_the_registry() {
    for parallelism in [1, 3] {
        let stack = Stack::start(&StackOptions { mockstagram: vec!["--seed".into(), "7".into()] });
        assert_clean(&stack.bootstrap(200));
        assert_eq!(stack.value::<u64>("SELECT count() FROM active_influencers FINAL WHERE active").await, 200);

        let pipeline = stack.influencers("2 seconds", parallelism);
        whole_minutes(&stack, 1, 200).await;
        // One more, and one less: the count stays, the set does not.
        let (retired, added) = (FIRST + 3, FIRST + 500_000);
        stack.execute(&format!("INSERT INTO active_influencers (pk, active) VALUES ({retired}, false)")).await;
        stack.execute(&format!("INSERT INTO active_influencers (pk) VALUES ({added})")).await;
        let seen = format!("SELECT count() FROM follower_timeline WHERE pk = {added}");
        eventually("the added influencer is read", PATIENCE, || async { stack.value::<u64>(&seen).await >= 2 }).await;
        stop(pipeline);

        assert_consistent(&stack).await;
        let last_of = |pk: i64| format!("SELECT toUnixTimestamp(max(minute)) FROM follower_timeline WHERE pk = {pk}");
        let (last_retired, last_added) =
            (stack.value::<u32>(&last_of(retired)).await, stack.value::<u32>(&last_of(added)).await);
        assert!(last_retired < last_added, "the retired influencer is still read");
        assert_eq!(stack.value::<u64>("SELECT count() FROM fetch_dead_letters").await, 0);
    }
}

#[tokio::test]
async fn dead_letters_hold_exactly_the_failures() {
    let mut runs = Vec::new();
    for parallelism in [1, 3] {
        let stack = Stack::start(&StackOptions { mockstagram: vec!["--seed".into(), "11".into()] });
        stack.set(json!({"error_rate": 0.05, "malformed_rate": 0.01})).await;
        assert_clean(&stack.bootstrap(300));
        // One that the API does not know.
        stack.execute("INSERT INTO active_influencers (pk) VALUES (5)").await;

        let pipeline = stack.influencers("2 seconds", parallelism);
        let minutes = "SELECT uniqExact(minute) FROM follower_timeline";
        eventually("four minutes", PATIENCE, || async { stack.value::<u64>(minutes).await >= 4 }).await;
        stop(pipeline);
        assert_consistent_with_failures(&stack).await;
        runs.push(by_ordinal(&stack).await);
    }
    // The stand-in draws by seed, influencer and request: what the k-th minute of an influencer brought must not depend on
    // the parallelism. The runs may differ in how many minutes they had.
    let (one, three) = (&runs[0], &runs[1]);
    let mut compared = 0;
    for (pk, outcomes) in one {
        for (a, b) in outcomes.iter().zip(&three[pk]) {
            assert_eq!(a, b, "influencer {pk}");
            compared += 1;
        }
    }
    assert!(compared >= 1200, "only {compared} outcomes could be compared");
}

/// Per influencer, in time: the reading, or the reason why there is none.
async fn by_ordinal(stack: &Stack) -> BTreeMap<i64, Vec<(i64, i64, String)>> {
    #[derive(Row, Deserialize)]
    struct Outcome {
        pk: i64,
        follower_count: i64,
        following_count: i64,
        reason: String,
    }
    let sql = "SELECT pk, follower_count, following_count, reason FROM ( \
                 SELECT pk, minute, follower_count, following_count, '' AS reason FROM follower_timeline \
                 UNION ALL SELECT pk, minute, 0, 0, toString(reason) FROM fetch_dead_letters) ORDER BY pk, minute";
    let rows: Vec<Outcome> = stack.client().query(sql).fetch_all().await.expect("both tables can be read");
    let mut map = BTreeMap::<_, Vec<_>>::new();
    for row in rows {
        map.entry(row.pk).or_default().push((row.follower_count, row.following_count, row.reason));
    }
    map
}

async fn assert_consistent_with_failures(stack: &Stack) {
    let timeline = timeline(stack).await;
    let readings = by_pk(&timeline);
    let counts = "SELECT pk, readings_count, total_follower_sum FROM influencers ORDER BY pk";
    let summaries: Vec<(i64, i64, i64)> = stack.client().query(counts).fetch_all().await.expect("the summary");
    let expected: Vec<_> =
        readings.iter().map(|(pk, r)| (*pk, r.len() as i64, r.iter().map(|r| r.follower_count).sum::<i64>())).collect();
    assert_eq!(summaries, expected);

    let reasons = "SELECT toString(reason), count() FROM fetch_dead_letters GROUP BY reason ORDER BY 1";
    let reasons: BTreeMap<String, u64> =
        stack.client().query(reasons).fetch_all::<(String, u64)>().await.expect("dead letters").into_iter().collect();
    let served: serde_json::Value = stack.ask("/admin/requests").await;
    // A malformed body is not asked for again, so each is a dead letter; a 500 is, so few are.
    assert_eq!(reasons.get("bad_body").copied(), served["malformed"].as_u64(), "{served}");
    assert!(reasons["bad_body"] > 0, "no body was malformed: the test proves nothing");
    assert_eq!(reasons.get("not_found").copied(), served["not_found"].as_u64(), "{served}");
    assert!(served["500"].as_u64() > Some(0), "no call failed: the test proves nothing");
    let both: u64 = stack
        .value(
            "SELECT count() FROM follower_timeline AS t \
             INNER JOIN fetch_dead_letters AS d ON t.pk = d.pk AND t.minute = d.minute",
        )
        .await;
    assert_eq!(both, 0, "a fetch gave a reading and a dead letter");
    assert_eq!(served["ok"].as_u64(), Some(timeline.len() as u64), "every body that was served is stored: {served}");
    let unexplained: u64 =
        stack.value("SELECT count() FROM fetch_dead_letters WHERE message = '' OR attempts = 0").await;
    assert_eq!(unexplained, 0);
}
