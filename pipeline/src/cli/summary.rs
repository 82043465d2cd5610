//! What `up` shows at its start and its end.

use std::fmt::Write as _;
use std::path::Path;

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;

use super::progress::grouped;

/// Where things are while they run.
pub fn ways_in(clickhouse: &str, api: &str, status_port: u16) -> String {
    format!(
        "\nWhile it runs:\n\
         \x20 curl '{clickhouse}/?database=tickhouse' --data-binary 'SELECT * FROM influencer_ranking LIMIT 5 FORMAT PrettyCompact'\n\
         \x20 curl {api}/api/v1/influencers/1000000\n\
         \x20 curl http://127.0.0.1:{status_port}/metrics\n"
    )
}

/// Where the data is afterwards, and how to see it again.
pub fn where_it_is(data: &Path, port: u16) -> String {
    let tickhouse = std::env::current_exe().map_or_else(|_| "tickhouse".to_owned(), |p| shown(&p));
    format!(
        "\nThe data is in {data}. To query it again:\n\
         \x20 {tickhouse} clickhouse serve --path {data} --http 127.0.0.1:{port}\n\
         \x20 curl 'http://127.0.0.1:{port}/?database=tickhouse' --data-binary 'SELECT * FROM influencers LIMIT 5 FORMAT PrettyCompact'",
        data = shown(data),
    )
}

/// A path as somebody in the current folder would write it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

#[derive(Debug, Row, Deserialize)]
struct MinuteRow {
    minute: String,
    readings: u64,
    failures: u64,
    average_followers: f64,
    seconds_to_last_reading: f64,
}

#[derive(Debug, Row, Deserialize)]
struct InfluencerRow {
    follower_rank: u64,
    username: String,
    follower_count: i64,
    average_followers: f64,
}

#[derive(Debug, Row, Deserialize)]
struct Totals {
    influencers: u64,
    readings: i64,
    bytes_per_row: f64,
    consistent: u64,
}

/// The last minutes, the largest influencers and the totals, as text.
pub async fn report(client: &Client) -> Result<String, Error> {
    let mut out = String::new();
    if last_minutes(client, &mut out).await? {
        largest_influencers(client, &mut out).await?;
        totals(client, &mut out).await?;
    }
    Ok(out)
}

/// Shows the last minutes, and says whether there are any.
async fn last_minutes(client: &Client, out: &mut String) -> Result<bool, Error> {
    out.push_str("\nLast minutes\n  minute (UTC)       readings    failed   average followers   last reading after\n");
    let minutes: Vec<MinuteRow> = client
        .query(
            "SELECT formatDateTime(minute, '%F %R') AS minute, readings, failures, average_followers, \
                toFloat64(seconds_to_last_reading) AS seconds_to_last_reading \
         FROM fetches_per_minute ORDER BY fetches_per_minute.minute DESC LIMIT 5",
        )
        .fetch_all()
        .await?;
    for row in &minutes {
        let _ = writeln!(
            out,
            "  {} {:>10} {:>9} {:>19.0} {:>18.2} s",
            row.minute,
            grouped(row.readings),
            grouped(row.failures),
            row.average_followers,
            row.seconds_to_last_reading
        );
    }
    if minutes.is_empty() {
        out.push_str("  none yet: the first comes a second or two after the first full minute\n");
    }
    Ok(!minutes.is_empty())
}

async fn largest_influencers(client: &Client, out: &mut String) -> Result<(), Error> {
    out.push_str("\nLargest influencers\n  rank  username               followers   average\n");
    let largest: Vec<InfluencerRow> = client
        .query("SELECT follower_rank, username, follower_count, average_followers FROM influencer_ranking LIMIT 5")
        .fetch_all()
        .await?;
    for row in largest {
        let followers = grouped(u64::try_from(row.follower_count).unwrap_or(0));
        let _ = writeln!(
            out,
            "  {:>4}  {:<20} {:>11} {:>9.0}",
            row.follower_rank, row.username, followers, row.average_followers
        );
    }
    Ok(())
}

/// Shows what there is in all, and whether the summary says the same as the timeline.
async fn totals(client: &Client, out: &mut String) -> Result<(), Error> {
    let totals: Totals = client
        .query(
            "SELECT a.influencers AS influencers, a.readings AS readings, \
                assumeNotNull((SELECT sum(data_compressed_bytes) / greatest(sum(rows), 1) FROM system.parts \
                 WHERE active AND database = currentDatabase() AND table = 'follower_timeline')) AS bytes_per_row, \
                assumeNotNull((SELECT toUInt64((count(), sum(follower_count)) \
                       = (SELECT (toUInt64(sum(readings_count)), sum(total_follower_sum)) FROM influencers)) \
                       FROM follower_timeline)) AS consistent \
         FROM global_averages AS a",
        )
        .fetch_one()
        .await?;
    let verdict = if totals.consistent == 1 { "agrees with the timeline" } else { "DOES NOT AGREE with the timeline" };
    let readings = grouped(u64::try_from(totals.readings).unwrap_or(0));
    let _ = write!(
        out,
        "\n{} influencers, {readings} readings, {:.1} bytes per reading on disk; the summary {verdict}",
        grouped(totals.influencers),
        totals.bytes_per_row
    );
    Ok(())
}
