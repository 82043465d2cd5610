//! Whether it pays to aggregate in front of an exchange.

/// An aggregate in front of the exchange costs what the one behind it costs, row for row, and saves the exchange and the one
/// behind. It pays where it makes one row of this many at least.
const ROWS_PER_GROUP: usize = 4;

/// Of fewer rows nothing is concluded.
const ROWS_TO_JUDGE: usize = 8192;

/// From this many groups on, it is looked whether keys come twice at all. Where fewer than one row of eleven has a key that
/// was there, keys are some hundreds of thousands or more, and too far apart to meet.
const GROUPS_TO_DOUBT: usize = 1 << 15;

/// How many rows are passed by after the first look that did not pay, and after many in a row: twice as many each time.
const FIRST_REST: usize = 1 << 20;
const LONGEST_REST: usize = 1 << 24;

/// Watches how many groups rows make. While they make too many, the rows that follow are to be passed by; now and then some
/// are looked at again, since streams change.
#[derive(Debug, Default)]
pub(super) struct Reduction {
    rows: usize,
    groups: usize,
    /// How many rows are still to be passed by.
    rest: usize,
    /// How many the last look that did not pay was followed by; zero when the last one paid.
    last_rest: usize,
}

impl Reduction {
    /// Whether the next `rows` rows are to be passed by; asked once for each batch.
    pub(super) fn passes_by(&mut self, rows: usize) -> bool {
        let passes = self.rest > 0;
        self.rest = self.rest.saturating_sub(rows);
        passes
    }

    /// `rows` rows were aggregated, and made `groups` new groups.
    pub(super) fn aggregated(&mut self, rows: usize, groups: usize) {
        self.rows += rows;
        self.groups += groups;
    }

    /// Whether there is no use in going on, so that what is kept may as well be sent.
    pub(super) fn is_hopeless(&self) -> bool {
        self.groups >= GROUPS_TO_DOUBT && self.rows - self.groups < self.rows / 11
    }

    /// Groups are sent: judges the rows since the last call of this.
    pub(super) fn judge(&mut self) {
        if self.rows < ROWS_TO_JUDGE {
            return;
        }
        let pays = self.rows >= self.groups.saturating_mul(ROWS_PER_GROUP);
        self.last_rest = if pays { 0 } else { (self.last_rest * 2).clamp(FIRST_REST, LONGEST_REST) };
        (self.rest, self.rows, self.groups) = (self.last_rest, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(looks: &[(usize, usize)]) -> Reduction {
        let mut reduction = Reduction::default();
        for (rows, groups) in looks {
            reduction.rest = 0;
            reduction.aggregated(*rows, *groups);
            reduction.judge();
        }
        reduction
    }

    #[test]
    fn rows_are_aggregated_while_each_group_has_some() {
        assert_eq!(after(&[(100_000, 25_000)]).rest, 0);
        assert_eq!(after(&[(100_000, 25_001)]).rest, FIRST_REST);
        assert_eq!(after(&[(ROWS_TO_JUDGE - 1, ROWS_TO_JUDGE - 1)]).rest, 0, "too few to say");
    }

    #[test]
    fn few_rows_are_judged_with_those_that_follow() {
        let mut reduction = Reduction::default();
        for _ in 0..2 {
            reduction.aggregated(ROWS_TO_JUDGE / 2, ROWS_TO_JUDGE / 2);
            reduction.judge();
        }
        assert_eq!(reduction.rest, FIRST_REST);
    }

    #[test]
    fn a_rest_ends_and_is_longer_each_time_until_a_look_pays() {
        let poor = (10_000, 9_000);
        assert_eq!(after(&[poor, poor]).rest, FIRST_REST * 2);
        assert_eq!(after(&[poor; 20]).rest, LONGEST_REST);
        assert_eq!(after(&[poor, poor, (10_000, 10), poor]).rest, FIRST_REST);
        let mut reduction = after(&[poor]);
        assert!(reduction.passes_by(FIRST_REST - 1));
        assert!(reduction.passes_by(8192), "whole batches");
        assert!(!reduction.passes_by(1));
    }
}
