//! What can be changed while the stand-in runs: fault rates and latency.
//!
//! [`Settings`] is the one declaration of each: its flag, its environment variable, its name in `/admin/settings`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A number from 0 to `MAX`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct UpTo<const MAX: u32>(f64);

/// A share of the requests.
pub type Rate = UpTo<1>;

/// A number that is none, or out of its range.
#[derive(Debug, thiserror::Error)]
#[error("{given} is not a number from 0 to {max}")]
pub struct OutOfRange {
    given: String,
    max: u32,
}

impl<const MAX: u32> TryFrom<f64> for UpTo<MAX> {
    type Error = OutOfRange;

    fn try_from(number: f64) -> Result<Self, OutOfRange> {
        if (0.0..=f64::from(MAX)).contains(&number) {
            Ok(Self(number))
        } else {
            Err(OutOfRange { given: number.to_string(), max: MAX })
        }
    }
}

impl<const MAX: u32> FromStr for UpTo<MAX> {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let number = text.parse::<f64>().map_err(|_| OutOfRange { given: text.to_owned(), max: MAX })?;
        Self::try_from(number)
    }
}

impl<const MAX: u32> From<UpTo<MAX>> for f64 {
    fn from(number: UpTo<MAX>) -> Self {
        number.0
    }
}

impl<const MAX: u32> fmt::Display for UpTo<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long an answer is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Latency {
    /// Not at all
    None,
    /// For --latency-ms each time
    Constant,
    /// Log-normal: --latency-ms is the median, --latency-sigma the spread
    LogNormal,
}

/// Fault rates and latency, all off by default. A request meets at most one fault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Settings {
    /// Share of requests answered with status 500
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_ERROR_RATE", default_value = "0")]
    pub error_rate: Rate,

    /// Share of requests that are never answered
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_TIMEOUT_RATE", default_value = "0")]
    pub timeout_rate: Rate,

    /// Share of requests whose connection is reset
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_RESET_RATE", default_value = "0")]
    pub reset_rate: Rate,

    /// Share of requests answered with status 200 and a body cut off
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_MALFORMED_RATE", default_value = "0")]
    pub malformed_rate: Rate,

    /// Share of requests answered with status 429
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_THROTTLE_RATE", default_value = "0")]
    pub throttle_rate: Rate,

    /// Retry-After of a status 429
    #[arg(long, value_name = "SECONDS", env = "MOCKSTAGRAM_RETRY_AFTER_SECONDS", default_value_t = 1)]
    pub retry_after_seconds: u32,

    /// How long answers are held back
    #[arg(long, value_name = "KIND", env = "MOCKSTAGRAM_LATENCY", value_enum, default_value_t = Latency::None)]
    pub latency: Latency,

    /// The constant latency, or the log-normal one's median
    #[arg(long, value_name = "MS", env = "MOCKSTAGRAM_LATENCY_MS", default_value = "20")]
    pub latency_ms: UpTo<3_600_000>,

    /// Standard deviation of the log-normal latency's logarithm
    #[arg(long, value_name = "SIGMA", env = "MOCKSTAGRAM_LATENCY_SIGMA", default_value = "0.5")]
    pub latency_sigma: UpTo<10>,

    /// Share of answers that are held back
    #[arg(long, value_name = "RATE", env = "MOCKSTAGRAM_LATENCY_RATE", default_value = "1")]
    pub latency_rate: Rate,
}

/// Why settings are refused; each names the field at fault.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("not a JSON object: {0}")]
    NotAnObject(serde_json::Error),
    #[error("unknown field \"{field}\"; there are {known}")]
    UnknownField { field: String, known: String },
    #[error("field \"{field}\": {reason}")]
    Field { field: String, reason: serde_json::Error },
    #[error(
        "error_rate, timeout_rate, reset_rate, malformed_rate and throttle_rate add up to {sum}; a request meets at \
         most one fault, so their sum is at most 1"
    )]
    RatesAboveOne { sum: f64 },
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Status 500.
    Error,
    /// Never answered.
    Timeout,
    /// The connection is reset.
    Reset,
    /// Status 200 with a body that stops before its end.
    Malformed,
    /// Status 429 with `Retry-After`.
    Throttled,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fate {
    /// What goes wrong, if anything does.
    pub fault: Option<Fault>,
    /// How long the answer is held back.
    pub latency: Duration,
    /// Where a malformed body stops, as a share of its length: in [0, 1).
    pub cut: f64,
}

impl Settings {
    /// Whether nothing happens to any request.
    pub fn is_quiet(&self) -> bool {
        self.latency == Latency::None && self.fault_rates().iter().all(|(rate, _)| rate.0 == 0.0)
    }

    /// Refuses rates that add up to more than 1.
    pub fn check(&self) -> Result<(), SettingsError> {
        let sum: f64 = self.fault_rates().iter().map(|(rate, _)| rate.0).sum();
        // Rates such as ten times 0.1 miss 1 by a rounding error.
        if sum > 1.0 + 1e-9 { Err(SettingsError::RatesAboveOne { sum }) } else { Ok(()) }
    }

    /// These settings with those fields changed that the JSON object `patch` names. All of them, or an error.
    pub fn patched(self, patch: &[u8]) -> Result<Self, SettingsError> {
        let patch: Map<String, Value> = serde_json::from_slice(patch).map_err(SettingsError::NotAnObject)?;
        let mut settings = self;
        for (field, value) in patch {
            settings = settings.with(field, value)?;
        }
        settings.check()?;
        Ok(settings)
    }

    fn with(self, field: String, value: Value) -> Result<Self, SettingsError> {
        let refused = |field: &str, reason| SettingsError::Field { field: field.to_owned(), reason };
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => Map::new(),
            Err(reason) => return Err(refused(&field, reason)),
        };
        match fields.get_mut(&field) {
            Some(place) => *place = value,
            None => {
                let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(SettingsError::UnknownField { field, known });
            }
        }
        serde_json::from_value(Value::Object(fields)).map_err(|reason| refused(&field, reason))
    }

    /// Draws what happens to a request. How many numbers it takes from `rng` does not depend on the settings, so with
    /// the same seed a rate that is raised adds faults and, if it is the first that is not 0, keeps those there were.
    pub fn fate(&self, rng: &mut impl Rng) -> Fate {
        let (fault, late, cut): (f64, f64, f64) = (rng.random(), rng.random(), rng.random());
        let normal: f64 = StandardNormal.sample(rng);
        let milliseconds = match self.latency {
            _ if late >= self.latency_rate.0 => 0.0,
            Latency::None => 0.0,
            Latency::Constant => self.latency_ms.0,
            Latency::LogNormal => self.latency_ms.0 * (self.latency_sigma.0 * normal).exp(),
        };
        let latency = Duration::try_from_secs_f64(milliseconds / 1_000.0).unwrap_or(Duration::MAX);
        Fate { fault: self.fault_at(fault), latency, cut }
    }

    fn fault_at(&self, drawn: f64) -> Option<Fault> {
        let mut upper = 0.0;
        self.fault_rates().into_iter().find_map(|(rate, fault)| {
            upper += rate.0;
            (drawn < upper).then_some(fault)
        })
    }

    fn fault_rates(&self) -> [(Rate, Fault); 5] {
        [
            (self.error_rate, Fault::Error),
            (self.timeout_rate, Fault::Timeout),
            (self.reset_rate, Fault::Reset),
            (self.malformed_rate, Fault::Malformed),
            (self.throttle_rate, Fault::Throttled),
        ]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::draws::Draws;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(flags: &str) -> Settings {
        Flags::parse_from(std::iter::once("test").chain(flags.split_whitespace())).settings
    }

    fn fates(settings: Settings) -> impl Iterator<Item = Fate> {
        (0..100_000).map(move |number| settings.fate(&mut Draws::new(6).influencer_fate(1_000_000, number)))
    }

    #[test]
    fn faults_come_at_their_rates() {
        let settings = settings(
            "--error-rate 0.1 --timeout-rate 0.02 --reset-rate 0.03 --malformed-rate 0.04 --throttle-rate 0.3",
        );
        let faults: Vec<_> = fates(settings).map(|fate| fate.fault).collect();
        let share = |fault| faults.iter().filter(|met| **met == fault).count() as f64 / faults.len() as f64;
        for (fault, expected) in [
            (Some(Fault::Error), 0.1),
            (Some(Fault::Timeout), 0.02),
            (Some(Fault::Reset), 0.03),
            (Some(Fault::Malformed), 0.04),
            (Some(Fault::Throttled), 0.3),
            (None, 0.51),
        ] {
            // Four deviations of a binomial distribution are 0.0063 at most.
            assert!((share(fault) - expected).abs() < 0.0064, "{fault:?}: {} not {expected}", share(fault));
        }
    }

    #[test]
    fn rates_of_0_and_1_are_never_and_always() {
        assert!(fates(settings("")).all(|fate| fate.fault.is_none() && fate.latency.is_zero()));
        assert!(fates(settings("--timeout-rate 1")).all(|fate| fate.fault == Some(Fault::Timeout)));
    }

    #[test]
    fn a_log_normal_latency_has_median_and_sigma() {
        let settings = settings("--latency log-normal --latency-ms 40 --latency-sigma 0.5");
        let logarithms: Vec<f64> = fates(settings).map(|fate| (fate.latency.as_secs_f64() * 1_000.0).ln()).collect();
        let n = logarithms.len() as f64;
        let mean = logarithms.iter().sum::<f64>() / n;
        let sigma = (logarithms.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean.exp() - 40.0).abs() < 0.3, "median {}", mean.exp());
        assert!((sigma - 0.5).abs() < 0.005, "sigma {sigma}");
    }

    #[test]
    fn a_latency_rate_spares_the_rest() {
        let held: Vec<_> = fates(settings("--latency constant --latency-ms 7 --latency-rate 0.25"))
            .map(|fate| fate.latency.as_millis())
            .collect();
        assert!(held.iter().all(|ms| [0, 7].contains(ms)));
        let share = held.iter().filter(|ms| **ms == 7).count() as f64 / held.len() as f64;
        assert!((share - 0.25).abs() < 0.0056, "{share}");
    }

    #[test]
    fn other_settings_leave_the_draws_as_they_are() {
        let latency = |flags| fates(settings(flags)).map(|fate| fate.latency).collect::<Vec<_>>();
        assert!(latency("--latency log-normal") == latency("--latency log-normal --error-rate 0.5"));
    }

    #[test]
    fn rates_may_add_up_to_1_in_floating_point() {
        let full = "--error-rate 0.1 --timeout-rate 0.2 --reset-rate 0.3 --malformed-rate 0.1 --throttle-rate 0.3";
        assert!(settings(full).check().is_ok());
        assert!(settings("--error-rate 0.9 --reset-rate 0.11").check().is_err());
    }
}
