//! The main job, end to end: registry, tick, fetch, tables.

use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use serde_json::json;
use tickhouse_tests::{Output, Program, Stack, StackOptions, assert_books_balance, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: i64 = 1_000_000;

/// A window closes up to two seconds after its end, and a reading that comes when the next one has ended is stale.
const WINDOW: &str = "3 seconds";

/// Waits until at least `count` whole minutes with `readings` readings each are in the timeline.
async fn whole_minutes(stack: &Stack, count: u64, readings: u64) {
    eventually(&format!("{count} minutes of {readings} readings"), PATIENCE, || async {
        stack.minutes("follower_timeline", readings).await >= count
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

        let pipeline = stack.influencers(WINDOW, parallelism);
        whole_minutes(&stack, 1, 200).await;
        // One more, and one less: the count stays, the set does not.
        let (retired, added) = (FIRST + 3, FIRST + 500_000);
        stack.execute(&format!("INSERT INTO active_influencers (pk, active) VALUES ({retired}, false)")).await;
        stack.execute(&format!("INSERT INTO active_influencers (pk) VALUES ({added})")).await;
        let seen = format!("SELECT count() FROM follower_timeline WHERE pk = {added}");
        eventually("the added influencer is read", PATIENCE, || async { stack.value::<u64>(&seen).await >= 2 }).await;
        stop(pipeline);

        assert_books_balance(&stack).await;
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

        let pipeline = stack.influencers(WINDOW, parallelism);
        // Each of the 301 has a reading or a dead letter: a minute that has only begun to arrive does not count.
        let whole = "SELECT countIf(n = 301) FROM (SELECT minute, count() AS n FROM ( \
                     SELECT minute FROM follower_timeline UNION ALL SELECT minute FROM fetch_dead_letters) GROUP BY minute)";
        eventually("four whole minutes", PATIENCE, || async { stack.value::<u64>(whole).await >= 4 }).await;
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
    let tables = assert_books_balance(stack).await;
    let mut reasons = BTreeMap::<&str, u64>::new();
    for letter in &tables.dead_letters {
        *reasons.entry(&letter.reason).or_default() += 1;
    }
    let served: serde_json::Value = stack.ask("/admin/requests").await;
    // A malformed body is not asked for again, so each is a dead letter; a 500 is, so few are.
    assert_eq!(reasons.get("bad_body").copied(), served["malformed"].as_u64(), "{served}");
    assert!(reasons["bad_body"] > 0, "no body was malformed: the test proves nothing");
    assert_eq!(reasons.get("not_found").copied(), served["not_found"].as_u64(), "{served}");
    assert!(served["500"].as_u64() > Some(0), "no call failed: the test proves nothing");
    let unexplained = tables.dead_letters.iter().filter(|letter| letter.message.is_empty() || letter.attempts == 0);
    assert_eq!(unexplained.count(), 0);
}
