//! What there is when the minutes are over, and whether that is what should be.

use std::collections::BTreeSet;

use clickhouse::Row;
use serde::Deserialize;

use super::{Outcome, PerProcess, Scene, Settings, Span, clock};
use crate::cli::Failure;
use crate::cli::bench::median;

/// One minute of the timeline.
#[derive(Debug, Clone, Row, Deserialize)]
struct Minute {
    /// Its end, in seconds since 1970.
    time: u32,
    readings: u64,
    influencers: u64,
    last: f64,
    half: f64,
    most: f64,
}

impl Minute {
    fn is_whole(&self, influencers: u64) -> bool {
        self.readings == influencers && self.influencers == influencers
    }
}

/// What ClickHouse and the stand-in have counted when the minutes are over.
#[derive(Debug)]
pub struct Counted {
    minutes: Vec<Minute>,
    failed_fetches: u64,
    stored: u64,
    summary_disagrees: u64,
    bytes_per_row: f64,
    uncompressed_bytes_per_row: f64,
    served: u64,
    /// How often influencers were read, each number once.
    times_read: BTreeSet<u64>,
}

impl Counted {
    /// Asks both.
    pub async fn of(scene: &Scene, span: Span) -> Result<Self, Failure> {
        let sql = "SELECT toUnixTimestamp(minute) AS time, count() AS readings, uniqExact(pk) AS influencers, \
                   toFloat64(max(fetched_at) - minute) AS last, toFloat64(quantile(0.5)(fetched_at - minute)) AS half, \
                   toFloat64(quantile(0.99)(fetched_at - minute)) AS most \
                   FROM follower_timeline WHERE minute >= toDateTime(?) AND minute < toDateTime(?) GROUP BY minute ORDER BY minute";
        let minutes: Vec<Minute> =
            scene.client.query(sql).bind(span.begin as u32).bind(span.end as u32).fetch_all().await?;
        let failed_fetches: u64 = scene.client.query("SELECT count() FROM fetch_dead_letters").fetch_one().await?;
        let agreed = "SELECT toUInt64(sum(t.n)), countIf(t.n != s.readings_count OR t.total != s.total_follower_sum) FROM \
                      (SELECT pk, count() AS n, sum(follower_count) AS total FROM follower_timeline GROUP BY pk) AS t \
                      FULL JOIN influencers AS s ON s.pk = t.pk";
        let (stored, summary_disagrees): (u64, u64) = scene.client.query(agreed).fetch_one().await?;
        let disk = "SELECT sum(bytes_on_disk) / greatest(sum(rows), 1), sum(data_uncompressed_bytes) / greatest(sum(rows), 1) \
                    FROM system.parts WHERE active AND table = 'follower_timeline'";
        let (bytes_per_row, uncompressed_bytes_per_row): (f64, f64) = scene.client.query(disk).fetch_one().await?;
        let requests = reqwest::get(format!("{}/admin/requests/all", scene.stand_in.url())).await?;
        let requests = requests.error_for_status()?.text().await?;
        let served = requests.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        let (served, times_read): (u64, BTreeSet<u64>) = (served.clone().sum(), served.collect());
        Ok(Self {
            minutes,
            failed_fetches,
            stored,
            summary_disagrees,
            bytes_per_row,
            uncompressed_bytes_per_row,
            served,
            times_read,
        })
    }

    /// What is wrong, in words: not every influencer was read once for each minute, or the counts do not agree.
    pub fn flaws(&self, influencers: u64, span: Span) -> Vec<String> {
        let mut flaws = Vec::new();
        for time in span.minutes() {
            let minute = self.minutes.iter().find(|minute| minute.time == time);
            if minute.is_none_or(|minute| !minute.is_whole(influencers)) {
                let (rows, read) = minute.map_or((0, 0), |minute| (minute.readings, minute.influencers));
                let minute = clock(time.into());
                flaws.push(format!(
                    "for the minute until {minute}, {read} influencers of {influencers} were read, in {rows} rows"
                ));
            }
        }
        let mut unless = |is_right: bool, flaw: String| flaws.extend((!is_right).then_some(flaw));
        let Self { failed_fetches, stored, summary_disagrees, served, times_read, .. } = self;
        unless(served == stored, format!("the stand-in has served {served} readings, the timeline has {stored} rows"));
        unless(times_read.len() <= 1, format!("influencers were read so many times, not all as often: {times_read:?}"));
        unless(
            *summary_disagrees == 0,
            format!("for {summary_disagrees} influencers timeline and summary do not agree"),
        );
        unless(*failed_fetches == 0, format!("{failed_fetches} fetches failed"));
        flaws
    }

    /// What follows from the counts alone; the rest is as if nothing had been seen.
    pub fn outcome(&self, settings: &Settings, span: Span) -> Outcome {
        let middle = |of: fn(&Minute) -> f64| median(self.minutes.iter().map(of).collect());
        let readings: u64 = self.minutes.iter().map(|minute| minute.readings).sum();
        Outcome {
            influencers: settings.influencers,
            minutes: settings.minutes,
            whole_minutes: self.minutes.iter().filter(|minute| minute.is_whole(settings.influencers)).count(),
            whole: false,
            flaws: Vec::new(),
            folder: None,
            failed_fetches: self.failed_fetches,
            fetches_per_second: readings as f64 / span.seconds(),
            fetches_per_second_while_reading: middle(|minute| minute.readings as f64 / minute.last),
            served: self.served,
            stored: self.stored,
            read_unequally_often: self.times_read.len().saturating_sub(1),
            summary_disagrees: self.summary_disagrees,
            seconds_to_last_reading: self.minutes.iter().map(|minute| minute.last).collect(),
            seconds_to_half: middle(|minute| minute.half),
            seconds_to_99_percent: middle(|minute| minute.most),
            seconds_to_last_row_visible: None,
            fetch_p50_seconds: None,
            fetch_p99_seconds: None,
            cpu_cores: PerProcess::default(),
            peak_memory_mib: PerProcess::default(),
            timeline_bytes_per_row: self.bytes_per_row,
            timeline_uncompressed_bytes_per_row: self.uncompressed_bytes_per_row,
            state_bytes: None,
            clean_stop: false,
            flame_graph: Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(readings: &[(u32, u64)], served: u64) -> Counted {
        let minute = |(time, readings): &(u32, u64)| Minute {
            time: *time,
            readings: *readings,
            influencers: 10,
            last: 4.0,
            half: 2.0,
            most: 3.0,
        };
        Counted {
            minutes: readings.iter().map(minute).collect(),
            failed_fetches: 0,
            stored: readings.iter().map(|(_, readings)| readings).sum(),
            summary_disagrees: 0,
            bytes_per_row: 7.0,
            uncompressed_bytes_per_row: 36.0,
            served,
            times_read: [2].into(),
        }
    }

    #[test]
    fn whatever_does_not_agree_is_told_with_its_minute_and_its_numbers() {
        let span = Span { begin: 60.0, end: 180.0 };
        assert_eq!(counted(&[(60, 10), (120, 10)], 20).flaws(10, span), [""; 0]);
        let wrong = Counted { times_read: [1, 2].into(), ..counted(&[(120, 11)], 10) };
        assert_eq!(
            wrong.flaws(10, span),
            [
                "for the minute until 1970-01-01T00:01:00Z, 0 influencers of 10 were read, in 0 rows",
                "for the minute until 1970-01-01T00:02:00Z, 10 influencers of 10 were read, in 11 rows",
                "the stand-in has served 10 readings, the timeline has 11 rows",
                "influencers were read so many times, not all as often: {1, 2}",
            ]
        );
        let wrong = Counted { failed_fetches: 3, summary_disagrees: 2, ..counted(&[(60, 10), (120, 10)], 20) };
        assert_eq!(wrong.flaws(10, span), ["for 2 influencers timeline and summary do not agree", "3 fetches failed"]);
    }
}
