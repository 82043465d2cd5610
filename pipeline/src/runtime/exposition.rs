//! A pipeline's counters in Prometheus' text format.
//!
//! Every metric starts with `tickhouse_` and has the labels `pipeline`, `node`, `kind` and `subtask`, those of the whole
//! pipeline only `pipeline`. The text is made anew from a [`Snapshot`] at each request.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{CounterVec, Encoder as _, Gauge, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use super::Watermark;
use super::call_times::CallTimesSnapshot;
use super::metrics::{Metrics, Snapshot, SubtaskSnapshot};

const LABELS: [&str; 3] = ["node", "kind", "subtask"];

/// The counters of `metrics` as a Prometheus server reads them.
///
/// # Errors
/// A name that Prometheus does not allow; the names are constants, so there is none.
pub fn render(metrics: &Metrics) -> Result<String, prometheus::Error> {
    let page = Page { snapshot: metrics.snapshot(), registry: Registry::new() };
    page.counters()?;
    page.times()?;
    page.gauges()?;
    page.epochs()?;
    let mut families = page.registry.gather();
    families.extend(page.calls());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

struct Page {
    snapshot: Snapshot,
    registry: Registry,
}

impl Page {
    fn counters(&self) -> Result<(), prometheus::Error> {
        self.counter("rows_in_total", "Rows taken from all inputs.", |s| s.rows_in)?;
        self.counter("batches_in_total", "Batches taken from all inputs.", |s| s.batches_in)?;
        self.counter("rows_out_total", "Rows sent, each counted once however many read it.", |s| s.rows_out)?;
        self.counter("batches_out_total", "Batches sent.", |s| s.batches_out)?;
        self.counter("late_rows_total", "Rows left out because they came behind the watermark.", |s| s.late_rows)?;
        self.counter("delivered_rows_total", "Rows that a sink has handed over for good.", |s| s.delivered_rows)
    }

    fn times(&self) -> Result<(), prometheus::Error> {
        self.time("busy_seconds_total", "Time spent in the operator.", |s| s.busy)?;
        self.time("blocked_seconds_total", "Time spent waiting for a reader: back-pressure.", |s| s.blocked)
    }

    fn gauges(&self) -> Result<(), prometheus::Error> {
        self.gauge("in_flight", "Calls or inserts under way.", |s| Some(s.in_flight as f64))?;
        self.gauge("queued_rows", "Rows that wait in front of the subtask.", |s| Some(s.queued_rows as f64))?;
        self.gauge("watermark_seconds", "The last watermark, in seconds since 1970.", |s| match s.watermark {
            // Without a lag it is the end of time.
            Some(Watermark::At(time)) if s.watermark_lag.is_some() => Some(time.0 as f64 / 1e9),
            _ => None,
        })?;
        self.gauge("watermark_lag_seconds", "How far the watermark is behind the clock.", |s| {
            s.watermark_lag.map(|lag| lag.as_secs_f64())
        })?;
        self.gauge("last_delivery_seconds", "When rows were last handed over, in seconds since 1970.", |s| {
            s.last_delivery.map(|time| time.0 as f64 / 1e9)
        })
    }

    /// The library's histograms count one by one; these are counted already. None before the first call.
    fn calls(&self) -> Option<MetricFamily> {
        let mut metrics = Vec::new();
        self.each(|labels, subtask| {
            if subtask.calls.count() > 0 {
                metrics.push(self.histogram(labels, &subtask.calls));
            }
        });
        if metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name("tickhouse_call_seconds".to_owned());
        family.set_help("How long calls of a function took.".to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics);
        Some(family)
    }

    fn histogram(&self, labels: &[&str; 3], calls: &CallTimesSnapshot) -> Metric {
        let named = LABELS.iter().zip(labels).map(|(name, value)| (*name, *value));
        let named = named.chain([("pipeline", self.snapshot.pipeline.as_str())]).map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name(name.to_owned());
            label.set_value(value.to_owned());
            label
        });
        let buckets = calls.cumulative().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(calls.count());
        histogram.set_sample_sum(calls.total.as_secs_f64());
        let mut metric = Metric::from_label(named.collect());
        metric.set_histogram(histogram);
        metric
    }

    fn epochs(&self) -> Result<(), prometheus::Error> {
        let Some(epoch) = self.snapshot.last_epoch else { return Ok(()) };
        let duration = self.snapshot.last_epoch_duration.as_secs_f64();
        for (name, help, value) in [
            ("last_epoch", "The last epoch that every subtask has completed.", epoch.0 as f64),
            ("last_epoch_duration_seconds", "How long it took to complete.", duration),
            ("last_checkpoint_bytes", "Bytes that its checkpoint wrote.", self.snapshot.last_checkpoint_bytes as f64),
        ] {
            let gauge = Gauge::with_opts(self.opts(name, help))?;
            gauge.set(value);
            self.registry.register(Box::new(gauge))?;
        }
        Ok(())
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        let pipeline = HashMap::from([("pipeline".to_owned(), self.snapshot.pipeline.clone())]);
        Opts::new(name, help).namespace("tickhouse").const_labels(pipeline)
    }

    fn counter(&self, name: &str, help: &str, of: fn(&SubtaskSnapshot) -> u64) -> Result<(), prometheus::Error> {
        let counters = IntCounterVec::new(self.opts(name, help), &LABELS)?;
        self.each(|labels, subtask| counters.with_label_values(labels).inc_by(of(subtask)));
        self.registry.register(Box::new(counters))
    }

    fn time(&self, name: &str, help: &str, of: fn(&SubtaskSnapshot) -> Duration) -> Result<(), prometheus::Error> {
        let counters = CounterVec::new(self.opts(name, help), &LABELS)?;
        self.each(|labels, subtask| counters.with_label_values(labels).inc_by(of(subtask).as_secs_f64()));
        self.registry.register(Box::new(counters))
    }

    fn gauge(&self, name: &str, help: &str, of: fn(&SubtaskSnapshot) -> Option<f64>) -> Result<(), prometheus::Error> {
        let gauges = GaugeVec::new(self.opts(name, help), &LABELS)?;
        self.each(|labels, subtask| {
            if let Some(value) = of(subtask) {
                gauges.with_label_values(labels).set(value);
            }
        });
        self.registry.register(Box::new(gauges))
    }

    /// Calls `tell` with the labels and counters of every subtask.
    fn each(&self, mut tell: impl FnMut(&[&str; 3], &SubtaskSnapshot)) {
        for node in &self.snapshot.nodes {
            for (index, subtask) in node.subtasks.iter().enumerate() {
                tell(&[&node.name, node.kind, &index.to_string()], subtask);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Clock, Context, Epoch, Outbox, Time};
    use crate::state::Written;

    #[tokio::test(start_paused = true)]
    async fn the_page_has_every_counter_with_its_labels() {
        let mut metrics = Metrics::new("influencers", Clock::simulated(Time(100_000_000_000)));
        let subtasks = metrics.add_node("follower_timeline", "clickhouse_sink", 2);
        subtasks[1].received(7);
        subtasks[1].set_watermark(Watermark::At(Time(97_500_000_000)));
        subtasks[0].set_watermark(Watermark::At(Time::MAX));
        let mut outbox = Outbox::default();
        Context::new(Time(0), &mut outbox).count_late(3);
        subtasks[0].count(outbox.take_counts(), Time(99));
        subtasks[0].called(Duration::from_millis(4));
        subtasks[0].called(Duration::from_millis(400));
        let written = Written { files: 2, bytes: 1_024, rows: 7 };
        metrics.complete_epoch(Epoch(12), Duration::from_millis(250), written);
        let page = render(&metrics).unwrap();
        for line in [
            "# TYPE tickhouse_rows_in_total counter",
            "# TYPE tickhouse_watermark_lag_seconds gauge",
            r#"tickhouse_rows_in_total{kind="clickhouse_sink",node="follower_timeline",pipeline="influencers",subtask="1"} 7"#,
            r#"tickhouse_late_rows_total{kind="clickhouse_sink",node="follower_timeline",pipeline="influencers",subtask="0"} 3"#,
            r#"tickhouse_watermark_lag_seconds{kind="clickhouse_sink",node="follower_timeline",pipeline="influencers",subtask="1"} 2.5"#,
            "# TYPE tickhouse_call_seconds histogram",
            r#"tickhouse_call_seconds_bucket{node="follower_timeline",kind="clickhouse_sink",subtask="0",pipeline="influencers",le="0.003"} 0"#,
            r#"tickhouse_call_seconds_bucket{node="follower_timeline",kind="clickhouse_sink",subtask="0",pipeline="influencers",le="0.5"} 2"#,
            r#"tickhouse_call_seconds_bucket{node="follower_timeline",kind="clickhouse_sink",subtask="0",pipeline="influencers",le="+Inf"} 2"#,
            r#"tickhouse_call_seconds_sum{node="follower_timeline",kind="clickhouse_sink",subtask="0",pipeline="influencers"} 0.404"#,
            r#"tickhouse_call_seconds_count{node="follower_timeline",kind="clickhouse_sink",subtask="0",pipeline="influencers"} 2"#,
            r#"tickhouse_last_epoch{pipeline="influencers"} 12"#,
            r#"tickhouse_last_epoch_duration_seconds{pipeline="influencers"} 0.25"#,
            r#"tickhouse_last_checkpoint_bytes{pipeline="influencers"} 1024"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        let lags = page.lines().filter(|line| line.starts_with("tickhouse_watermark_lag_seconds{"));
        assert_eq!(lags.count(), 1, "the end of time has no lag");
    }
}
