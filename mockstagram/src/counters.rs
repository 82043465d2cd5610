//! Counts of requests by how they ended.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with status 200 and a whole body.
    Ok,
    /// For a pk that does not exist.
    NotFound,
    /// Answered with status 400: the body of an `is_suspicious` call that does not parse.
    BadRequest,
    /// A fault: status 500.
    Error,
    /// A fault: never answered.
    Timeout,
    /// A fault: the connection was reset.
    Reset,
    /// A fault: a body cut off.
    Malformed,
    /// A fault: status 429.
    Throttled,
    /// The client hung up before an answer that was being held back.
    Abandoned,
}

impl Outcome {
    pub const COUNT: usize = 9;

    /// Every outcome, at the place that `as usize` gives, with its name in JSON.
    const NAMES: [&str; Self::COUNT] =
        ["ok", "not_found", "400", "500", "timeout", "reset", "malformed", "429", "abandoned"];
}

/// A request that was counted when it came, and is to be counted again when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// How many requests came before.
    pub number: u64,
    generation: u32,
}

/// Requests seen, and how those that ended did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    requests: u64,
    outcomes: [u64; Outcome::COUNT],
    /// How often the tally was set back.
    generation: u32,
}

impl Tally {
    /// With these counts, by [`Outcome`].
    pub fn new(requests: u64, outcomes: [u64; Outcome::COUNT]) -> Self {
        Self { requests, outcomes, generation: 0 }
    }

    /// Counts a request that came.
    pub fn arrive(&mut self) -> Ticket {
        let number = self.requests;
        self.requests += 1;
        Ticket { number, generation: self.generation }
    }

    /// Counts how it ended. A request from before a [`Tally::reset`] counts as one that came after it; says whether
    /// it was one.
    pub fn end(&mut self, ticket: Ticket, outcome: Outcome) -> bool {
        let overtaken = ticket.generation != self.generation;
        self.requests += u64::from(overtaken);
        self.outcomes[outcome as usize] += 1;
        overtaken
    }

    /// Sets all counts to 0.
    pub fn reset(&mut self) {
        *self = Self { generation: self.generation.wrapping_add(1), ..Self::default() };
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        for (sum, count) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum += count;
        }
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Outcome::COUNT + 2))?;
        map.serialize_entry("total", &self.requests)?;
        map.serialize_entry("in_flight", &self.requests.saturating_sub(self.outcomes.iter().sum()))?;
        for (name, count) in Outcome::NAMES.iter().zip(&self.outcomes) {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

/// Sees to it that a request's end is counted: once by [`Ending::settle`], or else as abandoned when it is dropped.
pub struct Ending<F: FnMut(Outcome)> {
    count: F,
    open: bool,
}

impl<F: FnMut(Outcome)> Ending<F> {
    /// `count` is called once.
    pub fn new(count: F) -> Self {
        Self { count, open: true }
    }

    /// Counts the end.
    pub fn settle(mut self, outcome: Outcome) {
        self.open = false;
        (self.count)(outcome);
    }

    /// Counts nothing: for one who counts the end otherwise.
    pub fn disarm(mut self) {
        self.open = false;
    }
}

impl<F: FnMut(Outcome)> Drop for Ending<F> {
    fn drop(&mut self) {
        if self.open {
            (self.count)(Outcome::Abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn json(tally: &Tally) -> serde_json::Value {
        serde_json::to_value(tally).unwrap()
    }

    #[test]
    fn a_request_from_before_a_reset_counts_after_it() {
        let mut tally = Tally::default();
        let (old, _) = (tally.arrive(), tally.arrive());
        tally.reset();
        let new = tally.arrive();
        assert!(tally.end(old, Outcome::Ok));
        assert_eq!(json(&tally)["in_flight"], 1);
        assert!(!tally.end(new, Outcome::Reset));
        let json = json(&tally);
        assert_eq!([&json["total"], &json["in_flight"], &json["ok"], &json["reset"]], [2, 0, 1, 1]);
    }

    #[test]
    fn an_ending_is_counted_once_whatever_happens() {
        let seen = RefCell::new(Vec::new());
        let ending = || Ending::new(|outcome| seen.borrow_mut().push(outcome));
        ending().settle(Outcome::Ok);
        drop(ending());
        ending().disarm();
        assert_eq!(*seen.borrow(), [Outcome::Ok, Outcome::Abandoned]);
    }
}
