//! What `up` tells after every minute: whether every influencer was read, and how soon the last reading was visible.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::progress::{grouped, say};

/// How often ClickHouse is asked while a minute's readings arrive.
const LOOK: Duration = Duration::from_millis(200);
/// When a minute that is still not whole is given up.
const PATIENCE: Duration = Duration::from_secs(50);

/// What ClickHouse has of one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
struct Minute {
    readings: u64,
    failures: u64,
    active: u64,
}

/// Watches minute after minute, until it is dropped.
pub async fn watch(client: Client) {
    loop {
        let end = next_minute(now());
        tokio::time::sleep(end.saturating_sub(now())).await;
        match until_whole(&client, end).await {
            Ok(line) => say(line),
            Err(error) => tracing::warn!("cannot look at the minute: {error}"),
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The end of the minute that `now` lies in.
fn next_minute(now: Duration) -> Duration {
    Duration::from_secs((now.as_secs() / 60 + 1) * 60)
}

async fn until_whole(client: &Client, end: Duration) -> Result<String, clickhouse::error::Error> {
    loop {
        let minute = look(client, end).await?;
        let since = now().saturating_sub(end);
        if minute.readings + minute.failures >= minute.active || since > PATIENCE {
            return Ok(line(end, minute, since));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(client: &Client, end: Duration) -> Result<Minute, clickhouse::error::Error> {
    // A scalar subquery may be NULL as far as ClickHouse knows.
    let query = "SELECT assumeNotNull((SELECT count() FROM follower_timeline WHERE minute = fromUnixTimestamp(?))) AS readings, \
                        assumeNotNull((SELECT count() FROM fetch_dead_letters WHERE minute = fromUnixTimestamp(?))) AS failures, \
                        assumeNotNull((SELECT count() FROM active_influencers FINAL WHERE active)) AS active";
    client.query(query).bind(end.as_secs()).bind(end.as_secs()).fetch_one().await
}

fn line(end: Duration, minute: Minute, since: Duration) -> String {
    let clock = end.as_secs() % 86_400;
    let (hours, minutes) = (clock / 3600, clock / 60 % 60);
    let Minute { readings, failures, active } = minute;
    let verdict = match active.saturating_sub(readings + failures) {
        0 => format!("all visible {:.1} s after the minute's end", since.as_secs_f64()),
        missing => format!("{} MISSING after {:.0} s", grouped(missing), since.as_secs_f64()),
    };
    format!(
        "{hours:02}:{minutes:02} UTC  {} readings, {} failed fetches: {verdict}",
        grouped(readings),
        grouped(failures)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_a_whole_minute_from_one_with_gaps() {
        let end = Duration::from_secs(13 * 3600 + 5 * 60);
        let whole = Minute { readings: 9_990, failures: 10, active: 10_000 };
        assert_eq!(
            line(end, whole, Duration::from_millis(1840)),
            "13:05 UTC  9,990 readings, 10 failed fetches: all visible 1.8 s after the minute's end"
        );
        let gaps = Minute { failures: 0, ..whole };
        assert!(line(end, gaps, Duration::from_secs(50)).ends_with("10 MISSING after 50 s"));
    }

    #[test]
    fn minutes_end_on_the_minute() {
        assert_eq!(next_minute(Duration::from_secs(120)), Duration::from_secs(180));
        assert_eq!(next_minute(Duration::from_millis(179_999)), Duration::from_secs(180));
    }
}
