//! The schema against a real ClickHouse: what the tables promise, and how small the timeline is.

use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;
use tickhouse_tests::clickhouse::fresh_database;

async fn migrated() -> Endpoint {
    let endpoint = fresh_database();
    migrate::run(&endpoint, &migrate::Options::default()).await.unwrap();
    endpoint
}

async fn execute(endpoint: &Endpoint, sql: &str) {
    endpoint.client().query_raw(sql).execute().await.unwrap();
}

async fn rows<T>(endpoint: &Endpoint, sql: &str) -> Vec<T>
where
    T: clickhouse::RowOwned + clickhouse::RowRead,
{
    endpoint.client().query_raw(sql).fetch_all().await.unwrap()
}

async fn active(endpoint: &Endpoint) -> Vec<i64> {
    rows(endpoint, "SELECT pk FROM active_influencers FINAL WHERE active ORDER BY pk").await
}

#[tokio::test]
async fn an_influencer_is_added_retired_and_added_again_by_plain_inserts() {
    let endpoint = migrated().await;
    execute(&endpoint, "INSERT INTO active_influencers (pk) VALUES (1), (2), (3)").await;
    assert_eq!(active(&endpoint).await, [1, 2, 3]);
    execute(&endpoint, "INSERT INTO active_influencers (pk, active) VALUES (2, false)").await;
    assert_eq!(active(&endpoint).await, [1, 3]);
    execute(&endpoint, "INSERT INTO active_influencers (pk) VALUES (1), (2), (3)").await;
    assert_eq!(active(&endpoint).await, [1, 2, 3]);
    execute(&endpoint, "INSERT INTO active_influencers (pk, active) VALUES (2, false)").await;
    assert_eq!(active(&endpoint).await, [1, 3]);
}

#[tokio::test]
async fn a_repeat_under_the_same_token_is_dropped_where_rows_are_appended() {
    let endpoint = migrated().await;
    for (table, columns, values) in [
        ("follower_timeline", "pk, minute, follower_count, following_count, fetched_at", "(1, 60, 100, 10, 61.5)"),
        (
            "fetch_dead_letters",
            "minute, pk, reason, status, attempts, message, reply",
            "(60, 1, 'timeout', 0, 4, 'm', '{}')",
        ),
    ] {
        let insert = format!("INSERT INTO {table} ({columns}) VALUES {values}");
        for (token, expected) in [("a", 1), ("a", 1), ("b", 2), ("a", 2)] {
            let query = endpoint.client().query_raw(&insert).with_setting("insert_deduplication_token", token);
            query.with_setting("async_insert", "0").execute().await.unwrap();
            assert_eq!(
                rows::<u64>(&endpoint, &format!("SELECT count() FROM {table}")).await,
                [expected],
                "{table} {token}"
            );
        }
    }
}

#[tokio::test]
async fn the_highest_version_wins_and_the_views_show_nothing_else() {
    let endpoint = migrated().await;
    for values in [
        "(1, 'a', 100, 10, 100, 1, 61, 1), (2, 'b', 300, 0, 500, 2, 61, 1), (3, 'c', 300, 5, 300, 1, 61, 1)",
        "(1, 'a', 140, 10, 240, 2, 121, 2)",
    ] {
        let columns =
            "pk, username, follower_count, following_count, total_follower_sum, readings_count, last_updated, version";
        execute(&endpoint, &format!("INSERT INTO influencer_summary ({columns}) VALUES {values}")).await;
    }
    execute(&endpoint, "INSERT INTO active_influencers (pk, active) VALUES (1, true), (2, false)").await;

    let influencers = "SELECT pk, average_followers, follower_ratio, active = 1 FROM influencers ORDER BY pk";
    let expected = [(1, 120.0, 14.0, 1), (2, 250.0, 300.0, 0), (3, 300.0, 60.0, 0)];
    assert_eq!(rows::<(i64, f64, f64, u8)>(&endpoint, influencers).await, expected);
    let ranking = "SELECT follower_rank, pk FROM influencer_ranking";
    assert_eq!(rows::<(u64, i64)>(&endpoint, ranking).await, [(1, 2), (1, 3), (3, 1)]);
    let averages = "SELECT influencers, readings, average_followers, average_current_followers FROM global_averages";
    assert_eq!(rows::<(u64, i64, f64, f64)>(&endpoint, averages).await, [(3, 5, 208.0, 740.0 / 3.0)]);
}

#[tokio::test]
async fn the_views_over_time_count_readings_and_failures_by_minute() {
    let endpoint = migrated().await;
    let timeline = "INSERT INTO follower_timeline VALUES (1, 60, 100, 10, 61.5), (2, 60, 300, 10, 62.25), (1, 120, 110, 10, 121.0)";
    execute(&endpoint, timeline).await;
    let failures = "INSERT INTO fetch_dead_letters (minute, pk, reason, status, attempts, message, reply) \
                    VALUES (60, 3, 'timeout', 0, 4, '', ''), (180, 1, 'bad_body', 200, 1, '', ''), (180, 2, 'bad_body', 200, 2, '', '')";
    execute(&endpoint, failures).await;

    let minutes = "SELECT toUnixTimestamp(minute), readings, failures, failure_share, average_followers, seconds_to_last_reading \
                   FROM fetches_per_minute ORDER BY minute";
    let expected = [(60, 2, 1, 1.0 / 3.0, 200.0, 2.25), (120, 1, 0, 0.0, 110.0, 1.0), (180, 0, 2, 1.0, 0.0, 0.0)];
    assert_eq!(rows::<(u32, u64, u64, f64, f64, f64)>(&endpoint, minutes).await, expected);
    let reasons = "SELECT toUnixTimestamp(minute), toString(reason), failures, most_attempts FROM failures_per_minute ORDER BY minute";
    let expected = [(60, "timeout".to_owned(), 1, 4), (180, "bad_body".to_owned(), 2, 2)];
    assert_eq!(rows::<(u32, String, u64, i64)>(&endpoint, reasons).await, expected);
    assert_eq!(rows::<i64>(&endpoint, "SELECT pk FROM current_readings").await, [1]);
}

#[tokio::test]
async fn views_over_empty_tables_are_empty_not_wrong() {
    let endpoint = migrated().await;
    for view in ["influencers", "influencer_ranking", "current_readings", "fetches_per_minute", "failures_per_minute"] {
        assert_eq!(rows::<u64>(&endpoint, &format!("SELECT count() FROM {view}")).await, [0], "{view}");
    }
    let averages = "SELECT influencers, average_followers, average_current_followers FROM global_averages";
    assert_eq!(rows::<(u64, f64, f64)>(&endpoint, averages).await, [(0, 0.0, 0.0)]);
}

/// Readings as the upstream gives them: a random walk with steps of 10,000 x N(0, 1) and a floor of 5,000, likewise 100 and 50;
/// the answers spread over half a minute. A walk with a floor is the free walk plus the furthest it was ever below the floor.
const WALK: &str = "
INSERT INTO follower_timeline
SELECT
    pk,
    toDateTime(1793491200 + 60 * tick) AS minute,
    toInt64(walk + greatest(0, max(5000 - walk) OVER past)) AS follower_count,
    toInt64(other + greatest(0, max(50 - other) OVER past)) AS following_count,
    toDateTime64(minute, 3, 'UTC') + toIntervalMillisecond(rand32(3) % 30000) AS fetched_at
FROM
(
    SELECT
        pk,
        tick,
        round(sum(if(tick = 0, 100000 * (1 + n), 10000 * n)) OVER steps) AS walk,
        round(sum(if(tick = 0, 1000 * (1 + m), 100 * m)) OVER steps) AS other
    FROM
    (
        SELECT
            toInt64(1000000 + intDiv(number, {minutes})) AS pk,
            number % {minutes} AS tick,
            randNormal(0, 1, 1) AS n,
            randNormal(0, 1, 2) AS m
        FROM numbers({influencers} * {minutes})
    )
    WINDOW steps AS (PARTITION BY pk ORDER BY tick ROWS UNBOUNDED PRECEDING)
)
WINDOW past AS (PARTITION BY pk ORDER BY tick ROWS UNBOUNDED PRECEDING)";

/// Prints the figure; INFLUENCERS and MINUTES change the size.
#[tokio::test]
async fn the_timeline_takes_less_than_8_bytes_a_row_after_merges() {
    let size = |name: &str, default| std::env::var(name).ok().map_or(default, |text| text.parse::<u64>().unwrap());
    let (influencers, minutes) = (size("INFLUENCERS", 5_000), size("MINUTES", 120));
    let endpoint = migrated().await;
    let walk = WALK.replace("{influencers}", &influencers.to_string()).replace("{minutes}", &minutes.to_string());
    execute(&endpoint, &walk).await;
    let walked = "SELECT count(), min(follower_count), stddevPop(follower_count - previous) FROM (SELECT follower_count, \
                  lagInFrame(follower_count) OVER (PARTITION BY pk ORDER BY minute) AS previous, minute FROM follower_timeline) \
                  WHERE minute > toDateTime(1793491200)";
    let (steps, least, deviation) = rows::<(u64, i64, f64)>(&endpoint, walked).await.remove(0);
    assert_eq!((steps, least), (influencers * (minutes - 1), 5_000));
    assert!((6_000.0..11_000.0).contains(&deviation), "the walk's steps are not those of the upstream: {deviation}");

    execute(&endpoint, "OPTIMIZE TABLE follower_timeline FINAL").await;
    let size = "SELECT count(), sum(rows), sum(bytes_on_disk) / sum(rows) FROM system.parts \
                WHERE active AND database = currentDatabase() AND table = 'follower_timeline'";
    let (parts, stored, bytes) = rows::<(u64, u64, f64)>(&endpoint, size).await.remove(0);
    println!(
        "follower_timeline: {influencers} influencers x {minutes} minutes, {parts} part(s): {bytes:.2} bytes a row on disk"
    );
    assert_eq!(stored, influencers * minutes);
    assert!(bytes < 8.0, "{bytes} bytes a row");
}
