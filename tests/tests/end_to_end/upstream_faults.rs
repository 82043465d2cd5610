//! The upstream API has a bad day: what fails is written down once with the reason, what comes too late is no reading of its
//! minute, and when the API is well again so is the pipeline, without anyone's help.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tickhouse_tests::{InfluencerJob, Program, Stack, StackOptions, Tables, assert_books_balance, eventually};

const INFLUENCERS: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(40);

/// A pipeline that runs, and calls the API once for each influencer and minute: so every call has one row.
struct Running {
    stack: Stack,
    pipeline: Program,
}

impl Running {
    /// Starts it with windows of `window` seconds and waits until one of them is whole.
    async fn start(window: u32, environment: &[(&str, &str)]) -> Self {
        let stack = Stack::start(&StackOptions { mockstagram: vec!["--seed".into(), "23".into()] });
        let bootstrap = stack.bootstrap(INFLUENCERS);
        assert_eq!(bootstrap.code, Some(0), "{}", bootstrap.stderr);
        let mut job = InfluencerJob::every(&format!("{window} seconds"))
            .parallelism(2)
            .checkpoint_interval("500ms")
            .state_dir(stack.folder().join("state"))
            .env("FETCH_RETRIES", "0");
        for (name, value) in environment {
            job = job.env(name, value);
        }
        let running = Self { pipeline: job.start(&stack), stack };
        running.whole("follower_timeline", 1).await;
        running
    }

    /// Waits for `count` minutes that have a row of every influencer in `from`.
    async fn whole(&self, from: &str, count: u64) {
        let meaning = format!("{count} minutes with {INFLUENCERS} rows in {from}");
        eventually(&meaning, PATIENCE, || async { self.stack.minutes(from, INFLUENCERS).await >= count }).await;
    }

    /// Takes all faults away, waits for a later minute in which everybody is read, and stops.
    async fn recover(self) -> (Stack, Tables) {
        self.stack.set(json!({"error_rate": 0.0, "timeout_rate": 0.0, "malformed_rate": 0.0, "latency": "none"})).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is past 1970").as_secs();
        self.whole(&format!("follower_timeline WHERE minute > toDateTime({now}, 'UTC')"), 1).await;
        let stopped = self.pipeline.stop();
        assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
        let tables = assert_books_balance(&self.stack).await;
        assert_every_call_has_a_row(&self.stack, &tables).await;
        assert_no_minute_is_missed(&tables);
        (self.stack, tables)
    }
}

/// The stand-in's counts and the rows, by how a call ended.
async fn assert_every_call_has_a_row(stack: &Stack, tables: &Tables) {
    let mut reasons = BTreeMap::<&str, u64>::new();
    for letter in &tables.dead_letters {
        *reasons.entry(&letter.reason).or_default() += 1;
    }
    let requests: Value = stack.ask("/admin/requests").await;
    let kinds = [("500", "server_error"), ("timeout", "timeout"), ("malformed", "bad_body")];
    for (ended, reason) in kinds {
        let rows = reasons.remove(reason).unwrap_or(0);
        assert_eq!(requests[ended].as_u64(), Some(rows), "`{ended}` and `{reason}`: {requests}, left {reasons:?}");
    }
    let stale = reasons.remove("stale").unwrap_or(0);
    assert_eq!(requests["ok"].as_u64(), Some(tables.timeline.len() as u64 + stale), "{requests}");
    assert!(reasons.is_empty(), "dead letters that no call explains: {reasons:?}");
}

/// Every influencer has a row for every minute: a reading or a dead letter. The first minute had begun before the pipeline.
fn assert_no_minute_is_missed(tables: &Tables) {
    let outcomes: BTreeSet<(i64, u32)> = tables.outcomes().collect();
    let minutes: BTreeSet<u32> = outcomes.iter().map(|(_, minute)| *minute).collect();
    let pks: BTreeSet<i64> = outcomes.iter().map(|(pk, _)| *pk).collect();
    assert_eq!(pks.len() as u64, INFLUENCERS);
    let steps: BTreeSet<u32> = minutes.iter().zip(minutes.iter().skip(1)).map(|(a, b)| b - a).collect();
    assert_eq!(steps.len(), 1, "a minute has no row at all: {minutes:?}");
    for minute in minutes.iter().skip(1) {
        let missing: Vec<_> = pks.iter().filter(|pk| !outcomes.contains(&(**pk, *minute))).collect();
        assert!(missing.is_empty(), "minute {minute} has no row of {missing:?}");
    }
}

#[tokio::test]
async fn an_api_that_fails_for_everybody_costs_those_minutes_and_no_more() {
    let running = Running::start(3, &[]).await;
    running.stack.set(json!({"error_rate": 1.0})).await;
    running.whole("fetch_dead_letters WHERE reason = 'server_error'", 2).await;
    let (_, tables) = running.recover().await;
    for letter in &tables.dead_letters {
        assert_eq!((letter.status, letter.attempts), (500, 1), "{letter:?}");
        assert!(letter.message.contains("500"), "{letter:?}");
    }
}

#[tokio::test]
async fn connections_that_hang_are_given_up() {
    // Well above what a busy machine needs for an answer, and well below the window.
    let running = Running::start(3, &[("FETCH_ATTEMPT_TIMEOUT_MS", "800")]).await;
    running.stack.set(json!({"timeout_rate": 0.3})).await;
    let minutes = "SELECT uniqExact(minute) FROM fetch_dead_letters WHERE reason = 'timeout'";
    eventually("three minutes with hanging connections", PATIENCE, || async {
        running.stack.value::<u64>(minutes).await >= 3
    })
    .await;
    let (_, tables) = running.recover().await;
    let hung: Vec<_> = tables.dead_letters.iter().filter(|letter| letter.reason == "timeout").collect();
    assert!(hung.len() >= 40, "only {} calls hung", hung.len());
    for letter in hung {
        assert_eq!((letter.status, letter.attempts), (0, 1), "{letter:?}");
        assert!(letter.message.contains("800ms"), "{letter:?}");
    }
}

#[tokio::test]
async fn readings_that_come_past_their_minute_are_dead_letters() {
    // Held back for longer than a window, and not for as long as a call waits.
    const WINDOW: u32 = 4;
    let running = Running::start(WINDOW, &[]).await;
    running.stack.set(json!({"latency": "constant", "latency_ms": 4200, "latency_rate": 0.5})).await;
    let minutes = "SELECT uniqExact(minute) FROM fetch_dead_letters WHERE reason = 'stale'";
    eventually("two minutes with late answers", PATIENCE, || async { running.stack.value::<u64>(minutes).await >= 2 })
        .await;
    let (_, tables) = running.recover().await;
    assert_eq!(tables.out_of_time(WINDOW), [""; 0], "readings that came late are in the timeline");
    let stale: Vec<_> = tables.dead_letters.iter().filter(|letter| letter.reason == "stale").collect();
    for letter in &stale {
        let reply: Value = serde_json::from_str(&letter.reply).expect("the reply as it came");
        let fetched_at = reply["fetched_at_micros"].as_i64().expect("the reply tells when it came");
        let end = i64::from(letter.minute + WINDOW) * 1_000_000;
        assert!(reply["ok"] == true && fetched_at >= end, "in time, or no reading: {letter:?}");
    }
    // Half of the answers came at once, and the late ones took nobody else's place.
    let late: BTreeSet<u32> = stale.iter().map(|letter| letter.minute).collect();
    let in_time = tables.timeline.iter().filter(|reading| late.contains(&reading.minute)).count();
    assert!(in_time > 0, "no reading of {late:?} is in the timeline");
}
