//! How long the calls of a pipeline's async UDFs took, from its `/metrics`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::Failure;

/// What a pipeline says before the address of its status.
const STATUS: &str = "status at ";

/// How many calls took at most so many microseconds, over all nodes and subtasks; [`u64::MAX`] stands for no bound.
#[derive(Debug, Clone, Default)]
pub struct CallTimes(BTreeMap<u64, u64>);

impl CallTimes {
    /// So far, of the pipeline that serves its status (`--http`) and logs into the file `log`.
    ///
    /// # Errors
    /// The log names no address yet, or nobody answers there.
    pub async fn of(log: &Path) -> Result<Self, Failure> {
        let said = std::fs::read_to_string(log)?;
        let address = said.lines().find_map(|line| Some(line.split_once(STATUS)?.1.split_once("/health")?.0));
        let address = address.ok_or_else(|| format!("{} names no address of the status", log.display()))?;
        let page = reqwest::get(format!("{address}/metrics")).await?.error_for_status()?.text().await?;
        Ok(Self::parse(&page))
    }

    fn parse(page: &str) -> Self {
        let mut counts = BTreeMap::new();
        for line in page.lines().filter_map(|line| line.strip_prefix("tickhouse_call_seconds_bucket{")) {
            let found = line.split_once("le=\"").and_then(|(_, rest)| rest.split_once("\"} "));
            if let Some((bound, count)) = found
                && let (Ok(seconds), Ok(count)) = (bound.parse::<f64>(), count.parse::<u64>())
            {
                // An infinite bound becomes the largest number.
                *counts.entry((seconds * 1e6).round() as u64).or_default() += count;
            }
        }
        Self(counts)
    }

    /// The calls that ended after `earlier` was taken.
    pub fn since(mut self, earlier: &Self) -> Self {
        for (bound, count) in &mut self.0 {
            *count = count.saturating_sub(earlier.0.get(bound).copied().unwrap_or(0));
        }
        self
    }

    /// Seconds that the given share of the calls took at most; within a bucket as if they were spread evenly, as
    /// Prometheus' `histogram_quantile` has it. None without calls.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.0.last_key_value().map(|(_, all)| *all as f64 * share).filter(|wanted| *wanted > 0.0)?;
        let (mut low, mut before) = (0, 0);
        for (bound, count) in &self.0 {
            if *count as f64 >= wanted {
                let width = if *bound == u64::MAX { 0 } else { bound - low };
                let part = (wanted - before as f64) / (*count - before) as f64;
                return Some((low as f64 + width as f64 * part).round() / 1e6);
            }
            (low, before) = (*bound, *count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_from_the_buckets_of_all_subtasks() {
        let page = "tickhouse_rows_in_total{node=\"a\"} 3\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"0\",le=\"0.001\"} 5\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"0\",le=\"0.003\"} 30\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"0\",le=\"+Inf\"} 31\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"1\",le=\"0.001\"} 5\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"1\",le=\"0.003\"} 70\n\
                    tickhouse_call_seconds_bucket{node=\"a\",subtask=\"1\",le=\"+Inf\"} 70\n";
        let times = CallTimes::parse(page);
        assert_eq!(times.quantile(0.05), Some(0.000_505));
        assert_eq!(times.quantile(0.5), Some(0.0019));
        assert_eq!(times.quantile(1.0), Some(0.003), "beyond the last bound nothing is known");
        assert_eq!(times.clone().since(&times).quantile(0.5), None);
        assert_eq!(CallTimes::parse("").quantile(0.5), None);
    }
}
