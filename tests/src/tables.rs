//! What the influencer pipeline has written, and what must hold of it whatever happened meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use ::clickhouse::{Row, RowOwned, RowRead};
use serde::Deserialize;

use crate::stack::Stack;

/// A row of `follower_timeline`.
#[derive(Debug, Clone, Row, Deserialize, PartialEq, Eq)]
pub struct Reading {
    /// The influencer.
    pub pk: i64,
    /// The end of its minute, in seconds since 1970.
    pub minute: u32,
    /// Followers.
    pub follower_count: i64,
    /// Following.
    pub following_count: i64,
    /// When it was fetched, in milliseconds since 1970.
    pub fetched_at: i64,
}

/// A row of `influencers`: the summary without superseded rows.
#[derive(Debug, Clone, Row, Deserialize, PartialEq, Eq)]
pub struct Summary {
    /// The influencer.
    pub pk: i64,
    /// The name.
    pub username: String,
    /// Followers at the last reading.
    pub follower_count: i64,
    /// Following at the last reading.
    pub following_count: i64,
    /// Followers of all readings together.
    pub total_follower_sum: i64,
    /// Readings.
    pub readings_count: i64,
    /// When the latest reading was fetched, in milliseconds since 1970.
    pub last_updated: i64,
}

/// A row of `fetch_dead_letters`.
#[derive(Debug, Clone, Row, Deserialize, PartialEq, Eq)]
pub struct DeadLetter {
    /// The influencer.
    pub pk: i64,
    /// The end of its minute, in seconds since 1970.
    pub minute: u32,
    /// The kind of failure.
    pub reason: String,
    /// HTTP status, 0 without an answer.
    pub status: i64,
    /// Attempts made.
    pub attempts: i64,
    /// The failure in words.
    pub message: String,
    /// What the fetch gave.
    pub reply: String,
}

/// All rows of the three tables, each in order of influencer and minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// `follower_timeline`.
    pub timeline: Vec<Reading>,
    /// `influencers`.
    pub summary: Vec<Summary>,
    /// `fetch_dead_letters`.
    pub dead_letters: Vec<DeadLetter>,
}

impl Tables {
    /// Reads all rows.
    pub async fn read(stack: &Stack) -> Self {
        Self {
            timeline: rows(
                stack,
                "SELECT pk, toUnixTimestamp(minute) AS minute, follower_count, following_count, \
                 toUnixTimestamp64Milli(fetched_at) AS fetched_at FROM follower_timeline AS t ORDER BY pk, t.minute",
            )
            .await,
            summary: rows(
                stack,
                "SELECT pk, username, follower_count, following_count, total_follower_sum, readings_count, \
                 toUnixTimestamp64Milli(last_updated) AS last_updated FROM influencers ORDER BY pk",
            )
            .await,
            dead_letters: rows(
                stack,
                "SELECT pk, toUnixTimestamp(minute) AS minute, toString(reason) AS reason, status, attempts, message, reply \
                 FROM fetch_dead_letters AS d ORDER BY pk, d.minute",
            )
            .await,
        }
    }

    /// Influencer and minute of every row of the timeline and of the dead letters.
    pub fn outcomes(&self) -> impl Iterator<Item = (i64, u32)> {
        let letters = self.dead_letters.iter().map(|letter| (letter.pk, letter.minute));
        self.timeline.iter().map(|reading| (reading.pk, reading.minute)).chain(letters)
    }

    /// Minutes of influencers that have more than one row in the timeline and the dead letters together: a fetch ends once.
    pub fn doubled(&self) -> Vec<String> {
        let mut times = BTreeMap::<(i64, u32), (u32, u32)>::new();
        for reading in &self.timeline {
            times.entry((reading.pk, reading.minute)).or_default().0 += 1;
        }
        for letter in &self.dead_letters {
            times.entry((letter.pk, letter.minute)).or_default().1 += 1;
        }
        times.retain(|_, (readings, letters)| *readings + *letters > 1);
        let told = times.into_iter().map(|((pk, minute), (readings, letters))| {
            format!("influencer {pk}, minute {minute}: {readings} readings and {letters} dead letters")
        });
        told.collect()
    }

    /// Influencers whose summary is not that of their timeline.
    pub fn unequal(&self) -> Vec<String> {
        let readings = by_pk(&self.timeline);
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for summary in &self.summary {
            let pk = summary.pk;
            if !seen.insert(pk) {
                problems.push(format!("influencer {pk} has more than one summary"));
            }
            match readings.get(&pk).and_then(|readings| summarised(readings)) {
                None => problems.push(format!("influencer {pk} has a summary and no reading: {summary:?}")),
                Some(expected) if expected != *summary => {
                    problems
                        .push(format!("influencer {pk}: the timeline gives {expected:?}, and there is {summary:?}"));
                }
                Some(_) => {}
            }
        }
        let silent = readings.keys().filter(|pk| !seen.contains(pk));
        problems.extend(silent.map(|pk| format!("influencer {pk} has readings and no summary")));
        problems
    }

    /// Readings that were fetched before their minute ended, or when the next one, `window` seconds later, had ended.
    pub fn out_of_time(&self, window: u32) -> Vec<String> {
        let wrong = self.timeline.iter().filter(|reading| {
            let end = i64::from(reading.minute) * 1_000;
            !(end..end + i64::from(window) * 1_000).contains(&reading.fetched_at)
        });
        wrong
            .map(|r| {
                format!("influencer {}, minute {}: its reading was fetched at {} ms", r.pk, r.minute, r.fetched_at)
            })
            .collect()
    }

    /// What must hold at every clean stop: [`Tables::doubled`] and [`Tables::unequal`].
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.doubled();
        problems.extend(self.unequal());
        problems
    }
}

async fn rows<T: RowOwned + RowRead>(stack: &Stack, sql: &str) -> Vec<T> {
    stack.client().query(sql).fetch_all().await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// The readings of each influencer, in time.
pub fn by_pk(timeline: &[Reading]) -> BTreeMap<i64, Vec<&Reading>> {
    let mut map = BTreeMap::<_, Vec<_>>::new();
    for reading in timeline {
        map.entry(reading.pk).or_default().push(reading);
    }
    map
}

/// The summary of an influencer's readings; `None` without any.
fn summarised(readings: &[&Reading]) -> Option<Summary> {
    let last = readings.last()?;
    Some(Summary {
        pk: last.pk,
        username: format!("influencer-{}", last.pk),
        follower_count: last.follower_count,
        following_count: last.following_count,
        total_follower_sum: readings.iter().map(|r| r.follower_count).sum(),
        readings_count: i64::try_from(readings.len()).ok()?,
        last_updated: readings.iter().map(|r| r.fetched_at).max()?,
    })
}

/// Fails when there are `problems`; `context` is what one needs to see them again.
pub fn assert_none(problems: &[String], context: &str) {
    const SHOWN: usize = 20;
    if problems.is_empty() {
        return;
    }
    let more = problems.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    let shown: Vec<_> = problems.iter().take(SHOWN).map(|problem| format!("\n  {problem}")).collect();
    panic!("{context}: {} problems:{}{more}", problems.len(), shown.concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(pk: i64, minute: u32, follower_count: i64) -> Reading {
        Reading { pk, minute, follower_count, following_count: 1, fetched_at: i64::from(minute) * 1_000 + 1_500 }
    }

    fn letter(pk: i64, minute: u32) -> DeadLetter {
        let (reason, message, reply) = ("timeout".into(), "late".into(), "{}".into());
        DeadLetter { pk, minute, reason, status: 0, attempts: 1, message, reply }
    }

    /// Two influencers, one of whom failed once.
    fn whole() -> Tables {
        let timeline = vec![reading(1, 60, 10), reading(1, 120, 30), reading(2, 120, 7)];
        let summary = by_pk(&timeline).values().filter_map(|readings| summarised(readings)).collect();
        Tables { timeline, summary, dead_letters: vec![letter(2, 60)] }
    }

    #[test]
    fn what_is_whole_has_no_problems() {
        let tables = whole();
        assert_none(&tables.problems(), "whole");
        assert_none(&tables.out_of_time(60), "whole");
        assert_eq!(tables.outcomes().count(), 4);
        assert_eq!((tables.summary[0].total_follower_sum, tables.summary[0].readings_count), (40, 2));
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_told_with_its_influencer() {
        type Spoil = fn(&mut Tables);
        let cases: [(&str, Spoil); 8] = [
            ("influencer 1, minute 60: 2 readings", |t| t.timeline.insert(0, reading(1, 60, 10))),
            ("influencer 2, minute 60: 0 readings and 2", |t| t.dead_letters.push(letter(2, 60))),
            ("influencer 1, minute 120: 1 readings and 1", |t| t.dead_letters.push(letter(1, 120))),
            ("influencer 1: the timeline gives", |t| t.summary[0].total_follower_sum += 1),
            ("influencer 1: the timeline gives", |t| t.summary[0].follower_count = 10),
            ("influencer 2 has readings and no summary", |t| t.summary.truncate(1)),
            ("influencer 2 has a summary and no reading", |t| t.timeline.truncate(2)),
            ("influencer 2 has more than one summary", |t| t.summary.push(t.summary[1].clone())),
        ];
        for (says, spoil) in cases {
            let mut tables = whole();
            spoil(&mut tables);
            let problems = tables.problems();
            assert!(problems.iter().any(|problem| problem.starts_with(says)), "{says}: {problems:?}");
        }
    }

    #[test]
    fn a_reading_belongs_to_the_minute_after_its_own() {
        assert_eq!(whole().out_of_time(1).len(), 3, "past the next one's end");
        let mut tables = whole();
        tables.timeline[0].fetched_at = 59_999;
        assert_eq!(tables.out_of_time(60).len(), 1, "before its own end");
    }
}
