//! How long the calls of a pipeline's async UDFs took, from its `/metrics`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::Failure;

/// What a pipeline says before the address of its status.
const STATUS: &str = "status at ";

/// By node: how many calls took at most so many microseconds, over all subtasks; [`u64::MAX`] stands for no bound.
#[derive(Debug, Clone, Default)]
pub struct CallTimes(BTreeMap<String, BTreeMap<u64, u64>>);

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
        fn label<'a>(line: &'a str, start: &str) -> Option<&'a str> {
            Some(line.split_once(start)?.1.split_once('"')?.0)
        }
        let mut nodes: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
        for line in page.lines().filter_map(|line| line.strip_prefix("tickhouse_call_seconds_bucket{")) {
            let node = label(line, "node=\"");
            let bound = label(line, "le=\"").and_then(|bound| bound.parse::<f64>().ok());
            let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok());
            if let (Some(node), Some(seconds), Some(count)) = (node, bound, count) {
                // An infinite bound becomes the largest number.
                *nodes.entry(node.to_owned()).or_default().entry((seconds * 1e6).round() as u64).or_default() += count;
            }
        }
        Self(nodes)
    }

    /// The calls that ended after `earlier` was taken.
    pub fn since(mut self, earlier: &Self) -> Self {
        for (node, counts) in &mut self.0 {
            for (bound, count) in counts {
                let before = earlier.0.get(node).and_then(|counts| counts.get(bound)).copied();
                *count = count.saturating_sub(before.unwrap_or(0));
            }
        }
        self
    }

    /// Seconds that the given share of the calls took at most, of the node with the most calls; within a bucket as if they
    /// were spread evenly, as Prometheus' `histogram_quantile` has it. None without calls.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let all = |counts: &BTreeMap<u64, u64>| counts.last_key_value().map_or(0, |(_, all)| *all);
        let counts = self.0.values().max_by_key(|counts| all(counts))?;
        let wanted = Some(all(counts) as f64 * share).filter(|wanted| *wanted > 0.0)?;
        let (mut low, mut before) = (0, 0);
        for (bound, count) in counts {
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
    fn quantiles_come_from_the_buckets_of_all_subtasks_of_the_busiest_node() {
        let page = "tickhouse_rows_in_total{node=\"a\"} 3\n\
                    tickhouse_call_seconds_bucket{node=\"b\",subtask=\"0\",le=\"0.001\"} 60\n\
                    tickhouse_call_seconds_bucket{node=\"b\",subtask=\"0\",le=\"+Inf\"} 60\n\
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
