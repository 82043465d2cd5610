//! What the stand-in has served.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::stack::Stack;
use crate::tables::{Tables, assert_none, by_pk};

/// The answers that the stand-in gave to each influencer, in order: followers and following.
#[derive(Debug, Clone, Default)]
pub struct Served(BTreeMap<i64, Vec<(i64, i64)>>);

impl Served {
    /// Asks the stand-in.
    pub async fn ask(stack: &Stack) -> Self {
        #[derive(Deserialize)]
        struct Sequence {
            values: Vec<(i64, i64)>,
        }
        let mut served = BTreeMap::new();
        for line in stack.text("/admin/requests/all").await.lines() {
            let numbers: Vec<i64> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            let [pk, _requests, count] = numbers[..] else {
                panic!("the stand-in's line is not as documented: {line}")
            };
            let values = if count == 0 {
                Vec::new()
            } else {
                stack.ask::<Sequence>(&format!("/admin/sequence?pk={pk}&n={count}")).await.values
            };
            served.insert(pk, values);
        }
        Self(served)
    }

    /// Readings in `tables` that were never served, or were served before one of an earlier minute.
    ///
    /// The fetch of a minute begins after its end, and a reading in the timeline came before the next minute's end: so an
    /// influencer's readings were served in the order of their minutes, at positions that grow.
    pub fn not_served(&self, tables: &Tables) -> Vec<String> {
        let mut problems = Vec::new();
        for (pk, readings) in by_pk(&tables.timeline) {
            // Each reading takes the first position that is left: when that fails, no other choice succeeds.
            let mut left = self.0.get(&pk).map(Vec::as_slice).unwrap_or_default();
            for reading in readings {
                let stored = (reading.follower_count, reading.following_count);
                match left.iter().position(|served| *served == stored) {
                    Some(at) => left = &left[at + 1..],
                    None => problems.push(format!(
                        "influencer {pk}, minute {}: the reading {stored:?} is not among the {} that the API served after the \
                         one before",
                        reading.minute,
                        left.len()
                    )),
                }
            }
        }
        problems
    }

    /// Influencers of whom an answer that was served is missing in `tables`, or is there more often than served.
    ///
    /// Where nothing crashes, each answer is a reading, or a dead letter because it came past its minute.
    pub fn not_stored(&self, tables: &Tables) -> Vec<String> {
        let mut stored = BTreeMap::<i64, usize>::new();
        let stale = tables.dead_letters.iter().filter(|letter| letter.reason == "stale").map(|letter| letter.pk);
        for pk in tables.timeline.iter().map(|reading| reading.pk).chain(stale) {
            *stored.entry(pk).or_default() += 1;
        }
        let mut problems = Vec::new();
        for pk in self.0.keys().chain(stored.keys().filter(|pk| !self.0.contains_key(pk))) {
            let (served, stored) = (self.0.get(pk).map_or(0, Vec::len), stored.get(pk).copied().unwrap_or(0));
            if served != stored {
                problems.push(format!("influencer {pk}: the API served {served} readings, and {stored} are stored"));
            }
        }
        problems
    }
}

/// Asserts all that must hold after the clean stop of a pipeline that never crashed, and gives the rows.
pub async fn assert_books_balance(stack: &Stack) -> Tables {
    let (tables, served) = (Tables::read(stack).await, Served::ask(stack).await);
    let mut problems = tables.problems();
    problems.extend(served.not_served(&tables));
    problems.extend(served.not_stored(&tables));
    assert_none(&problems, "after a clean stop");
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Reading;

    fn timeline(readings: &[(i64, u32, i64)]) -> Tables {
        let reading = |(pk, minute, follower_count): &(i64, u32, i64)| Reading {
            pk: *pk,
            minute: *minute,
            follower_count: *follower_count,
            following_count: 50,
            fetched_at: i64::from(*minute) * 1_000,
        };
        Tables { timeline: readings.iter().map(reading).collect(), ..Tables::default() }
    }

    #[test]
    fn readings_are_looked_for_in_order() {
        let served = Served([(1, vec![(10, 50), (5, 50), (5, 50), (20, 50)])].into());
        let fits = |readings: &[(i64, u32, i64)]| served.not_served(&timeline(readings)).is_empty();
        assert!(fits(&[(1, 60, 10), (1, 120, 5), (1, 180, 20)]));
        assert!(fits(&[(1, 60, 5), (1, 120, 5), (1, 180, 20)]), "the same counts may be served twice");
        assert!(!fits(&[(1, 60, 5), (1, 120, 5), (1, 180, 5)]), "and not three times");
        assert!(!fits(&[(1, 60, 20), (1, 120, 10)]), "the wrong order");
        assert!(!fits(&[(1, 60, 11)]), "never served");
        assert!(!fits(&[(2, 60, 10)]), "served to somebody else");
    }

    #[test]
    fn every_answer_is_stored_once() {
        let served = Served([(1, vec![(10, 50), (5, 50)])].into());
        assert!(served.not_stored(&timeline(&[(1, 60, 10), (1, 120, 5)])).is_empty());
        assert_eq!(served.not_stored(&timeline(&[(1, 60, 10)])).len(), 1);
        assert_eq!(served.not_stored(&timeline(&[(1, 60, 10), (1, 120, 5), (2, 60, 1)])).len(), 1);
    }
}
