//! The influencers: where each is in its sequence, and what was asked of it.
//!
//! 16 bytes each, in shards of neighbours with a lock of their own. Faults are counted beside, from a shard's first on.

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counters::{Outcome, Tally, Ticket};
use crate::draws::{Counts, Draws};

const SHARD_LEN: usize = 1_024;

/// All influencers, their counts and their counters.
pub struct Influencers {
    first_pk: u64,
    count: usize,
    draws: Draws,
    shards: Box<[Mutex<Shard>]>,
    /// Requests for a pk that does not exist.
    unknown: Mutex<Tally>,
}

/// The place of an influencer that exists.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose it is.
    pub pk: u64,
    index: usize,
}

#[derive(Default)]
struct Shard {
    entries: Box<[Entry]>,
    totals: Tally,
    /// What of each did not end well; empty while all did.
    failures: Box<[[u32; Outcome::COUNT]]>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// What was told last.
    counts: Counts,
    requests: u32,
    /// How often counts were told, which is how far the sequence has moved.
    served: u32,
}

/// The pk that exist, as `FIRST to LAST`.
pub struct PkRange(Range<u64>);

impl fmt::Display for PkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.0.start, self.0.end.saturating_sub(1))
    }
}

impl Influencers {
    /// `count` influencers from `first_pk` on, none of which was asked for yet.
    pub fn new(first_pk: u64, count: u32, draws: Draws) -> Self {
        let count = count as usize;
        let shards = (0..count)
            .step_by(SHARD_LEN)
            .map(|start| {
                let entries = vec![Entry::default(); SHARD_LEN.min(count - start)].into_boxed_slice();
                Mutex::new(Shard { entries, ..Shard::default() })
            })
            .collect();
        Self { first_pk, count, draws, shards, unknown: Mutex::default() }
    }

    /// Where counts come from.
    pub fn draws(&self) -> Draws {
        self.draws
    }

    /// The pk that exist.
    pub fn range(&self) -> PkRange {
        PkRange(self.first_pk..self.first_pk + self.count as u64)
    }

    /// Where `pk` is, or `None` if there is no such influencer.
    pub fn find(&self, pk: u64) -> Option<Place> {
        let index = usize::try_from(pk.checked_sub(self.first_pk)?).ok()?;
        (index < self.count).then_some(Place { pk, index })
    }

    /// Counts a request and answers it: moves the sequence on.
    pub fn serve(&self, place: Place) -> Counts {
        let mut shard = self.shard(place);
        let ticket = shard.arrive(place);
        shard.serve(place, ticket, self.draws)
    }

    /// Counts a request; the ticket's number is that of the requests for this pk. Its end is to be counted by one of
    /// the functions below.
    pub fn arrive(&self, place: Place) -> Ticket {
        self.shard(place).arrive(place)
    }

    /// Ends a request by answering it: moves the sequence on.
    pub fn end_served(&self, place: Place, ticket: Ticket) -> Counts {
        self.shard(place).serve(place, ticket, self.draws)
    }

    /// Ends a request otherwise. The sequence stays where it is.
    pub fn end(&self, place: Place, ticket: Ticket, outcome: Outcome) {
        self.shard(place).end(place, ticket, outcome);
    }

    /// What the next request that is answered will be told.
    pub fn next(&self, place: Place) -> Counts {
        self.shard(place).entry(place).next(place.pk, self.draws)
    }

    /// Counts a request for a pk that does not exist.
    pub fn count_unknown(&self) {
        let mut unknown = lock(&self.unknown);
        let ticket = unknown.arrive();
        unknown.end(ticket, Outcome::NotFound);
    }

    /// The requests for one pk.
    pub fn tally(&self, place: Place) -> Tally {
        let mut shard = self.shard(place);
        let entry = *shard.entry(place);
        let mut outcomes = shard.failures.get(slot(place)).map_or_else(Default::default, |row| row.map(u64::from));
        outcomes[Outcome::Ok as usize] = u64::from(entry.served);
        Tally::new(u64::from(entry.requests), outcomes)
    }

    /// All requests for influencers, those for unknown ones too.
    pub fn totals(&self) -> Tally {
        let mut totals = lock(&self.unknown).clone();
        for shard in &self.shards {
            totals.add(&lock(shard).totals);
        }
        totals
    }

    /// How many parts [`Influencers::lines`] comes in.
    pub fn parts(&self) -> usize {
        self.shards.len()
    }

    /// Part number `part` of the lines `pk requests served`, one for each pk that was asked for.
    pub fn lines(&self, part: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        let Some(shard) = self.shards.get(part) else {
            return lines;
        };
        let first_pk = self.first_pk + (part * SHARD_LEN) as u64;
        for (pk, entry) in (first_pk..).zip(&lock(shard).entries) {
            if entry.requests > 0 {
                // Writing into memory does not fail.
                let _ = writeln!(lines, "{pk} {} {}", entry.requests, entry.served);
            }
        }
        lines
    }

    /// Puts every influencer back to where it was at the start: counters at 0, sequences at their beginning.
    pub fn reset(&self) {
        lock(&self.unknown).reset();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.entries.fill(Entry::default());
            shard.failures = Box::default();
            shard.totals.reset();
        }
    }

    fn shard(&self, place: Place) -> MutexGuard<'_, Shard> {
        // In bounds: only `find` makes a place.
        lock(&self.shards[place.index / SHARD_LEN])
    }
}

impl Entry {
    fn next(&self, pk: u64, draws: Draws) -> Counts {
        draws.counts(pk, u64::from(self.served), self.counts)
    }
}

impl Shard {
    fn entry(&mut self, place: Place) -> &mut Entry {
        // In bounds: only `find` makes a place.
        &mut self.entries[slot(place)]
    }

    fn arrive(&mut self, place: Place) -> Ticket {
        let entry = self.entry(place);
        let number = u64::from(entry.requests);
        entry.requests += 1;
        let mut ticket = self.totals.arrive();
        ticket.number = number;
        ticket
    }

    fn serve(&mut self, place: Place, ticket: Ticket, draws: Draws) -> Counts {
        let overtaken = self.totals.end(ticket, Outcome::Ok);
        let entry = self.entry(place);
        entry.requests += u32::from(overtaken);
        entry.counts = entry.next(place.pk, draws);
        entry.served += 1;
        entry.counts
    }

    fn end(&mut self, place: Place, ticket: Ticket, outcome: Outcome) {
        let overtaken = self.totals.end(ticket, outcome);
        self.entry(place).requests += u32::from(overtaken);
        if self.failures.is_empty() {
            self.failures = vec![Default::default(); self.entries.len()].into_boxed_slice();
        }
        self.failures[slot(place)][outcome as usize] += 1;
    }
}

fn slot(place: Place) -> usize {
    place.index % SHARD_LEN
}

/// A panic while it was locked leaves no half-done change behind, so what it held is used as it is.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 1_000_000;

    fn influencers(count: u32) -> Influencers {
        Influencers::new(FIRST, count, Draws::new(5))
    }

    fn json(tally: &Tally) -> serde_json::Value {
        serde_json::to_value(tally).unwrap()
    }

    #[test]
    fn exactly_those_in_the_range_exist() {
        let influencers = influencers(1_500);
        for (pk, exists) in
            [(0, false), (FIRST - 1, false), (FIRST, true), (FIRST + 1_499, true), (FIRST + 1_500, false)]
        {
            assert_eq!(influencers.find(pk).is_some(), exists, "{pk}");
        }
        assert!(influencers.find(u64::MAX).is_none());
        assert_eq!(influencers.range().to_string(), "1000000 to 1001499");
        influencers.serve(influencers.find(FIRST + 1_499).unwrap());
    }

    #[test]
    fn only_an_answer_moves_the_sequence() {
        let influencers = influencers(10);
        let place = influencers.find(FIRST + 3).unwrap();
        let mut expected = influencers.draws().sequence(place.pk);
        assert_eq!(influencers.serve(place), expected.next().unwrap());
        for outcome in [Outcome::Error, Outcome::Malformed, Outcome::Abandoned] {
            let ticket = influencers.arrive(place);
            influencers.end(place, ticket, outcome);
        }
        let ticket = influencers.arrive(place);
        assert_eq!(ticket.number, 4);
        let second = expected.next().unwrap();
        assert_eq!(influencers.next(place), second);
        assert_eq!(influencers.end_served(place, ticket), second);

        let tally = json(&influencers.tally(place));
        assert_eq!([&tally["total"], &tally["ok"], &tally["500"], &tally["malformed"]], [5, 2, 1, 1]);
        assert_eq!(json(&influencers.totals()), tally);
        assert_eq!(influencers.lines(0), b"1000003 5 2\n");
    }

    #[test]
    fn reset_starts_over_even_for_requests_under_way() {
        let influencers = influencers(10);
        let place = influencers.find(FIRST).unwrap();
        let first = influencers.serve(place);
        let under_way = influencers.arrive(place);
        influencers.reset();
        assert_eq!(influencers.lines(0), b"");
        assert_eq!(influencers.end_served(place, under_way), first);
        assert_eq!(influencers.lines(0), b"1000000 1 1\n");
        assert_eq!(json(&influencers.totals())["in_flight"], 0);
    }

    #[test]
    fn threads_do_not_lose_or_repeat_an_answer() {
        let influencers = influencers(2);
        let place = influencers.find(FIRST + 1).unwrap();
        let mut served: Vec<Counts> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1_000).map(|_| influencers.serve(place)).collect::<Vec<_>>()))
                .collect();
            asking.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut expected: Vec<Counts> = influencers.draws().sequence(place.pk).take(4_000).collect();
        served.sort_by_key(|c| (c.follower, c.following));
        expected.sort_by_key(|c| (c.follower, c.following));
        assert_eq!(served, expected);
    }
}
