//! Everything that is left to chance.
//!
//! No generator is shared: each draw has a short-lived one of its own, made from the seed, what is drawn, whose it is
//! and how many came before. So what a pk gets does not depend on other pks, on threads or on who was faster.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, StandardNormal};
use twox_hash::XxHash64;

const LEAST_FOLLOWERS: f64 = 5_000.0;
const LEAST_FOLLOWING: f64 = 50.0;

/// What one request was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// At least 5,000.
    pub follower: u32,
    /// At least 50.
    pub following: u32,
}

/// What a draw is for.
#[derive(Clone, Copy)]
enum Stream {
    Counts = 0,
    InfluencerFate = 1,
    SuspiciousFate = 2,
    SuspiciousDelay = 3,
}

/// All draws under one seed.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    seed: u64,
}

impl Draws {
    /// Draws that are the same for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// What they were made with.
    pub fn seed(self) -> u64 {
        self.seed
    }

    /// The counts number `number` (from 0) of `pk`, which follow on `before`; there is nothing before the first.
    pub fn counts(self, pk: u64, number: u64, before: Counts) -> Counts {
        let mut rng = self.rng(Stream::Counts, pk, number);
        let (a, b): (f64, f64) = (StandardNormal.sample(&mut rng), StandardNormal.sample(&mut rng));
        let (follower, following) = if number == 0 {
            (100_000.0 * (1.0 + a), 1_000.0 * (1.0 + b))
        } else {
            (f64::from(before.follower) + 10_000.0 * a, f64::from(before.following) + 100.0 * b)
        };
        // `as` stops at the largest u32, which is hundreds of billions of requests away.
        Counts {
            follower: follower.max(LEAST_FOLLOWERS).round() as u32,
            following: following.max(LEAST_FOLLOWING).round() as u32,
        }
    }

    /// All counts of `pk`, from the first on.
    pub fn sequence(self, pk: u64) -> impl Iterator<Item = Counts> {
        let mut counts = Counts::default();
        (0..).map(move |number| {
            counts = self.counts(pk, number, counts);
            counts
        })
    }

    /// What decides the fate of request number `number` (from 0) for `pk`.
    pub fn influencer_fate(self, pk: u64, number: u64) -> Xoshiro256PlusPlus {
        self.rng(Stream::InfluencerFate, pk, number)
    }

    /// What decides the fate of call number `number` (from 0) of `is_suspicious`.
    pub fn suspicious_fate(self, number: u64) -> Xoshiro256PlusPlus {
        self.rng(Stream::SuspiciousFate, 0, number)
    }

    /// How long call number `number` (from 0) of `is_suspicious` takes: normal, mean and deviation 1 s, never below 0.
    pub fn suspicious_delay(self, number: u64) -> Duration {
        let normal: f64 = StandardNormal.sample(&mut self.rng(Stream::SuspiciousDelay, 0, number));
        Duration::try_from_secs_f64(1.0 + normal).unwrap_or(Duration::ZERO)
    }

    fn rng(self, stream: Stream, pk: u64, number: u64) -> Xoshiro256PlusPlus {
        let mut key = [0; 17];
        key[0] = stream as u8;
        key[1..9].copy_from_slice(&pk.to_le_bytes());
        key[9..].copy_from_slice(&number.to_le_bytes());
        Xoshiro256PlusPlus::seed_from_u64(XxHash64::oneshot(self.seed, &key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
    }

    fn assert_near(what: &str, value: f64, expected: f64, tolerance: f64) {
        assert!((value - expected).abs() <= tolerance, "{what} is {value}, not {expected} +- {tolerance}");
    }

    #[test]
    fn steps_are_normal_and_floored_and_independent() {
        let draws = Draws::new(7);
        // Far above the floors, so that no step is cut.
        let before = Counts { follower: 1_000_000, following: 10_000 };
        let steps = |number: u64| {
            (0..200_000u64).map(move |pk| {
                let after = draws.counts(pk, number, before);
                (f64::from(after.follower) - 1e6, f64::from(after.following) - 1e4)
            })
        };
        let (a, b): (Vec<f64>, Vec<f64>) = steps(1).unzip();
        // The mean of n draws has a deviation of sd / sqrt(n), their deviation one of sd / sqrt(2n): four of each.
        let (mean, deviation) = mean_and_deviation(&a);
        assert_near("mean of follower steps", mean, 0.0, 90.0);
        assert_near("deviation of follower steps", deviation, 10_000.0, 64.0);
        let (mean, deviation) = mean_and_deviation(&b);
        assert_near("mean of following steps", mean, 0.0, 0.9);
        assert_near("deviation of following steps", deviation, 100.0, 0.64);

        let correlation = |x: &[f64], y: &[f64]| {
            let ((mx, sx), (my, sy)) = (mean_and_deviation(x), mean_and_deviation(y));
            x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>() / (x.len() as f64 * sx * sy)
        };
        let (next, _): (Vec<f64>, Vec<f64>) = steps(2).unzip();
        assert_near("follower and following", correlation(&a, &b), 0.0, 0.009);
        assert_near("one step and the next", correlation(&a, &next), 0.0, 0.009);
        assert_near("one pk and its neighbour", correlation(&a[1..], &a[..a.len() - 1]), 0.0, 0.009);

        let beyond = a.iter().filter(|step| step.abs() > 19_600.0).count() as f64 / a.len() as f64;
        assert_near("share beyond 1.96 deviations", beyond, 0.05, 0.002);
    }

    #[test]
    fn first_values_are_normal_with_floors() {
        let draws = Draws::new(7);
        let first: Vec<Counts> = (0..200_000).filter_map(|pk| draws.sequence(pk).next()).collect();
        assert!(first.iter().all(|counts| counts.follower >= 5_000 && counts.following >= 50));
        // P(100,000 (1 + z) <= 5,000) = P(z <= -0.95) = 0.1711, and the same for following.
        let share = |hits: usize| hits as f64 / first.len() as f64;
        assert_near("at 5,000", share(first.iter().filter(|c| c.follower == 5_000).count()), 0.1711, 0.004);
        assert_near("at 50", share(first.iter().filter(|c| c.following == 50).count()), 0.1711, 0.004);
        let above: Vec<f64> = first.iter().map(|c| f64::from(c.follower)).filter(|&f| f > 100_000.0).collect();
        assert_near("above the mean", share(above.len()), 0.5, 0.005);
        // The mean of a half normal distribution is sqrt(2 / pi).
        assert_near("mean above the mean", mean_and_deviation(&above).0, 179_788.0, 800.0);
    }

    #[test]
    fn floors_hold_on_long_walks() {
        let draws = Draws::new(1);
        let mut at_floor = (0, 0);
        for counts in (0..100).flat_map(|pk| draws.sequence(pk).take(1_000)) {
            assert!(counts.follower >= 5_000 && counts.following >= 50, "{counts:?}");
            at_floor.0 += u32::from(counts.follower == 5_000);
            at_floor.1 += u32::from(counts.following == 50);
        }
        assert!(at_floor.0 > 0 && at_floor.1 > 0, "the walks never reached a floor: {at_floor:?}");
    }

    #[test]
    fn a_sequence_depends_on_seed_and_pk_alone() {
        let first = |seed, pk| Draws::new(seed).sequence(pk).take(50).collect::<Vec<_>>();
        assert_eq!(first(1, 1_000_000), first(1, 1_000_000));
        assert_ne!(first(1, 1_000_000), first(2, 1_000_000));
        assert_ne!(first(1, 1_000_000), first(1, 1_000_001));
    }

    /// A saved seed must mean the same tomorrow, whatever becomes of the libraries below.
    #[test]
    fn a_seed_keeps_its_meaning() {
        let counts: Vec<_> = Draws::new(42).sequence(1_234_567).take(4).map(|c| (c.follower, c.following)).collect();
        assert_eq!(counts, [(165_774, 113), (155_097, 216), (161_801, 227), (150_500, 272)]);
    }

    #[test]
    fn delays_of_is_suspicious_are_normal_about_one_second() {
        let draws = Draws::new(3);
        let delays: Vec<f64> = (0..100_000).map(|number| draws.suspicious_delay(number).as_secs_f64()).collect();
        let share = |hits: usize| hits as f64 / delays.len() as f64;
        assert_near("at 0", share(delays.iter().filter(|&&d| d == 0.0).count()), 0.1587, 0.005);
        assert_near("below 1 s", share(delays.iter().filter(|&&d| d < 1.0).count()), 0.5, 0.007);
        assert_near("below 2 s", share(delays.iter().filter(|&&d| d < 2.0).count()), 0.8413, 0.005);
    }
}
