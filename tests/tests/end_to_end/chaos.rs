//! The pipeline is killed again and again, at random moments, and carried on at another parallelism each time: no row is lost,
//! none is there twice, and totals stay those of the timeline.
//!
//! `CHAOS_KILLS` is how often (5), `CHAOS_SEED` decides when and what comes after (random). The seed is printed first: with it
//! the moments are drawn again, though what the machine does meanwhile is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tickhouse_tests::{
    InfluencerJob, Output, Program, Random, Served, Stack, StackOptions, Tables, assert_none, eventually, settings,
};

const INFLUENCERS: u64 = 300;
/// In seconds. A window closes up to two seconds after its end, and its readings are stale when the next one has ended.
const WINDOW: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// How long after a window's end its fetches are under way for sure: a clean stop waits for those.
const FETCHED_AFTER: Millis = 4_000;

/// In milliseconds since 1970.
type Millis = i64;

/// What reproduces a run.
#[derive(Debug, Clone, Copy)]
struct Settings {
    seed: u64,
    kills: u64,
}

impl Settings {
    fn from_environment() -> Self {
        Self { seed: settings::seed("CHAOS_SEED"), kills: settings::number("CHAOS_KILLS").unwrap_or(5) }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CHAOS_SEED={} CHAOS_KILLS={}", self.seed, self.kills)
    }
}

/// A time during which the pipeline was up.
#[derive(Debug, Clone, Copy)]
struct Up {
    /// When it said that it runs.
    from: Millis,
    /// Right before it was killed or asked to stop.
    until: Millis,
    was_killed: bool,
}

impl Up {
    /// Whether the window that ends at `end` may not be missed: the pipeline was up throughout. All shards have a beat a second
    /// after the window's start, and the rest of the window is time enough for a checkpoint, from which they are carried on
    /// after a kill. Nothing is carried on after the stop at the end.
    fn owes(&self, end: Millis) -> bool {
        let after = if self.was_killed { 0 } else { FETCHED_AFTER };
        self.from <= end - Millis::from(WINDOW) * 1_000 && end + after <= self.until
    }
}

#[tokio::test]
async fn however_often_it_is_killed_nothing_is_lost_and_nothing_is_doubled() {
    let settings = Settings::from_environment();
    println!("chaos: {settings}");
    let mut random = Random::new(settings.seed);
    let stack =
        Stack::start(&StackOptions { mockstagram: vec!["--seed".into(), random.between(1, 1_000_000).to_string()] });
    assert_clean(&stack.bootstrap(INFLUENCERS), settings);
    stack
        .set(json!({
            "error_rate": 0.03, "malformed_rate": 0.02, "reset_rate": 0.01,
            "latency": "log-normal", "latency_ms": 20,
        }))
        .await;

    let job = InfluencerJob::every(&format!("{WINDOW} seconds"))
        .checkpoint_interval("500ms")
        .state_dir(stack.folder().join("state"));
    let mut ups = Vec::new();
    for number in 1..=settings.kills {
        let parallelism = random.between(1, 4) as usize;
        // One in three comes while the pipeline starts and takes up what was left over.
        let longest = if random.between(1, 3) == 1 { 1_000 } else { 9_000 };
        let after = Duration::from_millis(random.between(0, longest));
        let pipeline = job.clone().parallelism(parallelism).start(&stack);
        tokio::time::sleep(after).await;
        ups.extend(kill(pipeline, settings));
        // Most restarts come at once. One in four comes late, so that minutes are missed, and what was carried over is stale.
        let down = Duration::from_millis(if random.between(1, 4) == 1 { random.between(0, 6_000) } else { 0 });
        println!("chaos: kill {number} at parallelism {parallelism} after {after:?}, down for {down:?}");
        tokio::time::sleep(down).await;
    }
    let last = job.parallelism(random.between(1, 4) as usize).start(&stack);
    ups.push(finish(&stack, last, settings).await);
    verify(&stack, &ups, settings).await;
}

/// Kills the pipeline, which must not have ended by itself; gives the time in which it was up, if it ever was.
fn kill(mut pipeline: Program, settings: Settings) -> Option<Up> {
    let from = pipeline.said(InfluencerJob::RUNS);
    let until = millis(SystemTime::now());
    if !pipeline.runs() {
        let output = pipeline.ended();
        panic!("{settings}: the pipeline ended by itself with code {:?}:\n{}", output.code, output.stderr);
    }
    pipeline.signal("KILL");
    pipeline.ended();
    from.map(|from| Up { from: millis(from), until, was_killed: true })
}

/// Lets the last run go on until it has caught up, and stops it cleanly.
async fn finish(stack: &Stack, pipeline: Program, settings: Settings) -> Up {
    let Some(from) = pipeline.wait_for(InfluencerJob::RUNS, PATIENCE) else {
        panic!("{settings}: the last run does not start:\n{}", pipeline.stop().stderr);
    };
    let from = millis(from);
    // Three windows that begin in this run, seen from outside; whether they are whole is looked at later.
    let third = from / 1_000 + i64::from(4 * WINDOW);
    let seen = format!(
        "SELECT count() FROM (SELECT minute FROM follower_timeline UNION ALL SELECT minute FROM fetch_dead_letters) \
         WHERE toUnixTimestamp(minute) >= {third}"
    );
    let meaning = format!("{settings}: the last run writes rows for the minute {third}");
    eventually(&meaning, PATIENCE, || async { stack.value::<u64>(&seen).await > 0 }).await;
    let until = millis(SystemTime::now());
    assert_clean(&pipeline.stop(), settings);
    Up { from, until, was_killed: false }
}

async fn verify(stack: &Stack, ups: &[Up], settings: Settings) {
    let tables = Tables::read(stack).await;
    let served = Served::ask(stack).await;
    let registry = "SELECT pk FROM active_influencers FINAL WHERE active ORDER BY pk";
    let registry: Vec<i64> = stack.client().query(registry).fetch_all().await.expect("the registry can be read");
    assert_eq!(registry.len() as u64, INFLUENCERS);

    let outcomes: BTreeSet<(i64, u32)> = tables.outcomes().collect();
    let (doubled, lost) = (tables.doubled(), lost(&registry, &outcomes, ups));
    let (unserved, strangers) = (served.not_served(&tables), strangers(&registry, &outcomes));
    let problems =
        [&doubled[..], &tables.unequal(), &tables.out_of_time(WINDOW), &unserved, &strangers, &lost].concat();

    let stale = tables.dead_letters.iter().filter(|letter| letter.reason == "stale").count();
    let (minutes, missed, in_part) = minutes(&outcomes);
    println!(
        "chaos: {settings}: {} kills, {} of them before it was up; {} rows in {minutes} minutes, {} readings and {} dead \
         letters, {stale} of these stale; {} duplicates, {} lost, {missed} minutes missed while it was down and {in_part} in part",
        settings.kills,
        settings.kills + 1 - ups.len() as u64,
        tables.timeline.len() + tables.dead_letters.len(),
        tables.timeline.len(),
        tables.dead_letters.len(),
        doubled.len(),
        lost.len(),
    );
    assert_none(&problems, &settings.to_string());
    assert!(!tables.timeline.is_empty() && tables.dead_letters.len() > stale, "{settings}: the run proves nothing");
}

/// Influencers without a row for a minute that the pipeline owes.
fn lost(registry: &[i64], outcomes: &BTreeSet<(i64, u32)>, ups: &[Up]) -> Vec<String> {
    let mut problems = Vec::new();
    for up in ups {
        for minute in windows(up.from, up.until).filter(|minute| up.owes(Millis::from(*minute) * 1_000)) {
            for pk in registry.iter().filter(|pk| !outcomes.contains(&(**pk, minute))) {
                problems.push(format!(
                    "influencer {pk}, minute {minute}: no row, though the pipeline was up from {} to {} ms",
                    up.from, up.until
                ));
            }
        }
    }
    problems
}

/// Rows of influencers or minutes that there are not.
fn strangers(registry: &[i64], outcomes: &BTreeSet<(i64, u32)>) -> Vec<String> {
    let known: BTreeSet<_> = registry.iter().collect();
    let strange = outcomes.iter().filter(|(pk, minute)| !known.contains(pk) || !minute.is_multiple_of(WINDOW));
    strange.map(|(pk, minute)| format!("influencer {pk}, minute {minute}: nobody asked for this row")).collect()
}

/// How many minutes there are from the first that has rows to the last, how many of them have none, and how many have rows of
/// some influencers only.
fn minutes(outcomes: &BTreeSet<(i64, u32)>) -> (usize, usize, usize) {
    let mut rows = BTreeMap::<u32, u64>::new();
    for (_, minute) in outcomes {
        *rows.entry(*minute).or_default() += 1;
    }
    let (Some((first, _)), Some((last, _))) = (rows.first_key_value(), rows.last_key_value()) else {
        return (0, 0, 0);
    };
    let all = ((last - first) / WINDOW + 1) as usize;
    (all, all - rows.len(), rows.values().filter(|rows| **rows < INFLUENCERS).count())
}

/// The ends of the windows that end between two times.
fn windows(from: Millis, until: Millis) -> impl Iterator<Item = u32> {
    let window = Millis::from(WINDOW) * 1_000;
    ((from + window - 1) / window..=until / window).map(|number| number as u32 * WINDOW)
}

fn assert_clean(output: &Output, settings: Settings) {
    assert_eq!(output.code, Some(0), "{settings}: it does not stop cleanly:\n{}", output.stderr);
}

fn millis(time: SystemTime) -> Millis {
    let since = time.duration_since(UNIX_EPOCH).expect("a clock that is past 1970");
    Millis::try_from(since.as_millis()).expect("a clock of this age of the universe")
}

#[test]
fn a_minute_is_owed_when_nothing_could_take_it_away() {
    let up = |from, until, was_killed| Up { from, until, was_killed };
    let owed =
        |up: Up| windows(up.from, up.until).filter(|end| up.owes(Millis::from(*end) * 1_000)).collect::<Vec<_>>();
    assert_eq!(owed(up(3_000, 12_000, true)), [6, 9, 12], "from the first whole one to the last whole one");
    assert_eq!(owed(up(3_001, 11_999, true)), [9], "neither one that had begun nor one that had not ended");
    assert_eq!(owed(up(3_000, 13_000, false)), [6, 9], "nobody carries on what a stop cuts off");
    let outcomes = [(1, 6), (2, 6), (1, 15)].into();
    assert_eq!(lost(&[1, 2], &outcomes, &[up(3_000, 10_500, true)]).len(), 2, "both in minute 9");
    assert_eq!(minutes(&outcomes), (4, 2, 2));
    assert_eq!(strangers(&[1], &[(1, 6), (1, 7), (2, 6)].into()).len(), 2);
}
