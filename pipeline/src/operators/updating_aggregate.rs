//! Aggregates without a window: each key has a row that changes as rows arrive.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::TimestampNanosecondType;
use arrow::record_batch::RecordBatch;

use super::aggregate::{Aggregation, Functions, Groups};
use super::held::HeldWatermarks;
use super::latest::LatestTimes;
use super::updating_rows::{Changes, UpdatingRows, cut};
use super::{AggregateCall, AggregateInput, BATCH_ROWS, NodeError};
use crate::plan::{NodePlan, StreamKind, StreamSchema};
use crate::runtime::{Barrier, Body, Context, Operator, OperatorError, Stage, Subtask, Time, Watermark};
use crate::state::{Restored, Snapshot};

const KIND: &str = "updating_aggregate";

/// The saved values that hold the watermark, and since when keys must have been touched not to be forgotten.
const WATERMARK: &str = "watermark";
const EXPIRED: &str = "expired";

/// How long changes are gathered before they are sent.
const PERIOD: Duration = Duration::from_secs(1);

/// How many keys are gathered at most before they are sent.
const DELTA_KEYS: usize = 1 << 20;

/// How many keys a flush merges at once.
const FLUSH_KEYS: usize = 1 << 16;

/// How often old keys are looked for, in relation to the time that they are kept.
const EXPIRIES_PER_TTL: u32 = 16;

/// Groups rows by key and keeps one row per key. Changes are gathered, and sent once a second, at each barrier and at the
/// end: for each key that has changed, the retraction of the row sent last, and the row now.
///
/// A key's state is kept until the watermark is `ttl` past its last row (a sixteenth of `ttl` later at most); then it is
/// forgotten without a retraction, and rows that come after that begin anew.
#[derive(Debug)]
pub struct UpdatingAggregate {
    aggregation: Aggregation,
    ttl: Duration,
    output: StreamSchema,
}

impl UpdatingAggregate {
    /// Aggregates append-only `input`, which `reads` says what it has, by columns `group`; without any, over all rows. A key's state is kept for `ttl`
    /// of event time after its last row.
    ///
    /// The output has the group columns in order, then the aggregates, and is updating.
    pub fn try_new(
        input: &StreamSchema,
        reads: AggregateInput,
        group: Vec<usize>,
        aggregates: Vec<AggregateCall>,
        ttl: Duration,
    ) -> Result<Self, NodeError> {
        let aggregation = Aggregation::try_new(KIND, input, reads, group, aggregates)?;
        if ttl.is_zero() {
            return Err(NodeError::Duration { node: KIND, what: "time to live" });
        }
        let mut fields = aggregation.keys.clone();
        fields.extend(aggregation.calls.iter().map(AggregateCall::field));
        let output = StreamSchema::new(fields, StreamKind::Updating)?;
        Ok(Self { aggregation, ttl, output })
    }
}

impl NodePlan for UpdatingAggregate {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = self.aggregation.details();
        details.push(("state kept for", humantime::format_duration(self.ttl).to_string()));
        details
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    /// One where there are no keys: all rows meet.
    fn max_parallelism(&self) -> Option<usize> {
        self.aggregation.group.is_empty().then_some(1)
    }
}

impl Stage for UpdatingAggregate {
    fn build(&self, _subtask: &Subtask) -> Result<Body, OperatorError> {
        let functions = Arc::new(Functions::try_new(&self.aggregation.calls)?);
        let output = Arc::clone(self.output.schema());
        Ok(Body::Operator(Box::new(UpdatingAggregateOperator {
            delta: Groups::try_new(&self.aggregation, &functions)?,
            rows: UpdatingRows::try_new(&self.aggregation, Arc::clone(&functions), output)?,
            retract: self.output.visible_len() + 1,
            aggregation: self.aggregation.clone(),
            functions,
            latest: LatestTimes::default(),
            flush_at: None,
            flushing: None,
            held: HeldWatermarks::default(),
            watermark: Time::MIN,
            ttl: self.ttl,
            expired: Time::MIN,
        })))
    }
}

/// One subtask of an [`UpdatingAggregate`].
///
/// Rows are aggregated into the delta: the keys touched since the last flush, without what was known of them before. A
/// flush merges the delta into the stored rows, some keys at a time, and no input is taken until it is done.
struct UpdatingAggregateOperator {
    aggregation: Aggregation,
    functions: Arc<Functions>,
    delta: Groups,
    /// The latest event time of each key of the delta.
    latest: LatestTimes,
    /// When the delta is due; `None` while it is empty.
    flush_at: Option<Time>,
    /// What is left of a flush.
    flushing: Option<Changes>,
    rows: UpdatingRows,
    /// The column of retractions in the output.
    retract: usize,
    /// Watermarks that came while the delta was not empty.
    held: HeldWatermarks,
    watermark: Time,
    ttl: Duration,
    /// Keys not touched since this were forgotten.
    expired: Time,
}

impl UpdatingAggregateOperator {
    /// Begins to merge the delta into the rows.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.flush_at = None;
        if self.delta.len() > 0 {
            let (keys, states) = self.delta.take_states()?;
            self.flushing = Some(Changes { keys, states, latest: self.latest.take() });
        }
        self.flush_more(cx)
    }

    fn flush_more(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if let Some(left) = self.flushing.take() {
            let count = left.len().min(FLUSH_KEYS);
            let changes = self.rows.apply(&left.slice(0, count), self.watermark)?;
            for batch in cut(&changes, self.retract, BATCH_ROWS) {
                cx.emit(batch);
            }
            if count < left.len() {
                self.flushing = Some(left.slice(count, left.len() - count));
                return Ok(());
            }
        }
        self.held.release(cx);
        self.expire()
    }

    /// Forgets old keys, when that has not been done for a while. Keys in the delta are to be merged before: they are
    /// not old, whatever their rows say.
    fn expire(&mut self) -> Result<(), OperatorError> {
        let moment = self.watermark.before(self.ttl);
        if moment.since(self.expired) >= (self.ttl / EXPIRIES_PER_TTL).max(Duration::from_secs(1)) {
            self.rows.expire(moment)?;
            self.expired = moment;
        }
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        self.flushing.is_none() && self.delta.len() == 0
    }
}

impl Operator for UpdatingAggregateOperator {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        for former in state.formers() {
            self.watermark = self.watermark.max(former.value(WATERMARK)?.map_or(Time::MIN, Time));
            self.expired = self.expired.max(former.value(EXPIRED)?.map_or(Time::MIN, Time));
        }
        self.rows.restore(state)?;
        // The log still has the rows of keys that were forgotten.
        self.rows.expire(self.expired)
    }

    /// The delta is empty: it was flushed for the barrier.
    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(WATERMARK, self.watermark.0);
        snapshot.value(EXPIRED, self.expired.0);
        self.rows.snapshot(snapshot)
    }

    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let times = batch.column(self.aggregation.timestamp).as_primitive::<TimestampNanosecondType>();
        let (groups, count) = self.delta.add(&self.aggregation, &self.functions, &batch)?;
        self.latest.add(&groups, count, times.values());
        if self.delta.len() >= DELTA_KEYS {
            return self.flush(cx);
        }
        if self.flush_at.is_none() {
            let moment = cx.now().after(PERIOD);
            self.flush_at = Some(moment);
            cx.wake_at(moment);
        }
        Ok(())
    }

    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.held.hold(watermark);
        match watermark {
            Watermark::At(Time::MAX) if self.flushing.is_none() => self.flush(cx),
            Watermark::At(time) if time < Time::MAX => {
                self.watermark = self.watermark.max(time);
                if self.is_flushed() { self.flush_more(cx) } else { Ok(()) }
            }
            _ if self.is_flushed() => self.flush_more(cx),
            _ => Ok(()),
        }
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match self.flush_at {
            Some(moment) if moment <= cx.now() => self.flush(cx),
            Some(moment) => {
                cx.wake_at(moment);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn poll_work(&mut self, _task: &mut task::Context<'_>, cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        match self.flushing {
            Some(_) if !cx.is_blocked() => Poll::Ready(self.flush_more(cx)),
            _ => Poll::Pending,
        }
    }

    fn accepts_input(&self) -> bool {
        self.flushing.is_none()
    }

    fn barrier(&mut self, _barrier: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.flushing.is_none() { self.flush(cx) } else { Ok(()) }
    }

    fn is_settled(&self) -> bool {
        self.is_flushed()
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.flushing.is_none() { self.flush(cx) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::RecordBatch;
    use datafusion::functions_aggregate::array_agg::array_agg_udaf;
    use datafusion::functions_aggregate::average::avg_udaf;
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::median::median_udaf;
    use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
    use datafusion::functions_aggregate::stddev::stddev_udaf;
    use datafusion::functions_aggregate::sum::sum_udaf;
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{
        Driver, Event, batch_of, call, cut, distinct, event, events, lengths, lines, oracle, random_events, sorted,
    };

    const DAY: Duration = Duration::from_secs(86_400);

    fn sum_and_count(ttl: Duration) -> UpdatingAggregate {
        let calls = vec![call(&events(), sum_udaf(), &["v"], "total"), call(&events(), count_udaf(), &["v"], "n")];
        UpdatingAggregate::try_new(&events(), AggregateInput::Rows, vec![0], calls, ttl).unwrap()
    }

    /// Rows as `key|aggregates`, with a sign in front; event time left out.
    fn changes(batch: &RecordBatch) -> Vec<String> {
        let visible: Vec<usize> = (0..batch.num_columns() - 2).collect();
        let rows = lines(&batch.project(&visible).unwrap());
        let retract = batch.column(batch.num_columns() - 1).as_boolean();
        rows.iter()
            .zip(retract)
            .map(|(row, retract)| format!("{}{row}", if retract == Some(true) { "-" } else { "+" }))
            .collect()
    }

    fn times(batch: &RecordBatch) -> Vec<i64> {
        batch.column(batch.num_columns() - 2).as_primitive::<TimestampNanosecondType>().values().to_vec()
    }

    #[test]
    fn changes_are_gathered_for_a_second() {
        let mut driver = Driver::new(&sum_and_count(DAY));
        driver.rows(batch_of(&[event(1, 10, 5), event(2, 20, 6), event(1, 1, 3)])).unwrap();
        driver.pass(Duration::from_millis(999));
        assert!(driver.trace().is_empty());
        driver.pass(Duration::from_millis(1));
        let first = driver.sent_rows();
        assert_eq!(changes(&first), ["+1|11|2", "+2|20|1"]);
        assert_eq!(times(&first), [5, 6]);

        driver.rows(batch_of(&[event(1, 5, 9), event(3, 1, 8)])).unwrap();
        driver.rows(batch_of(&[event(1, 5, 7)])).unwrap();
        driver.pass(Duration::from_secs(1));
        let second = driver.sent_rows();
        assert_eq!(changes(&second), ["-1|11|2", "+1|21|4", "+3|1|1"]);
        assert_eq!(times(&second), [9, 9, 8]);
        driver.pass(Duration::from_secs(10));
        assert!(driver.trace().is_empty(), "nothing has changed");
    }

    #[test]
    fn a_row_that_stays_the_same_is_not_sent_again() {
        let max = call(&events(), max_udaf(), &["v"], "most");
        let mut driver =
            Driver::new(&UpdatingAggregate::try_new(&events(), AggregateInput::Rows, vec![0], vec![max], DAY).unwrap());
        driver.rows(batch_of(&[event(1, 10, 1), event(2, 10, 1)])).unwrap();
        driver.barrier();
        driver.sent();
        driver.rows(batch_of(&[event(1, 9, 2), event(2, 11, 2)])).unwrap();
        driver.barrier();
        assert_eq!(changes(&driver.sent_rows()), ["-2|10", "+2|11"]);
    }

    #[test]
    fn a_barrier_and_the_end_send_what_is_gathered_before_the_watermark() {
        let mut driver = Driver::new(&sum_and_count(DAY));
        driver.watermark(Watermark::At(Time(1)));
        assert_eq!(driver.trace(), ["at 1"]);
        driver.rows(batch_of(&[event(1, 10, 5)])).unwrap();
        driver.watermark(Watermark::At(Time(4)));
        driver.watermark(Watermark::At(Time(5)));
        driver.watermark(Watermark::Idle);
        assert!(driver.trace().is_empty() && !driver.is_settled());
        driver.barrier();
        assert_eq!(driver.trace(), ["1 rows", "at 5", "idle"]);
        driver.rows(batch_of(&[event(1, 10, 5)])).unwrap();
        driver.finish();
        assert_eq!(driver.trace(), ["2 rows", "end"]);
    }

    #[test]
    fn large_flushes_go_step_by_step_and_keep_pairs_together() {
        let count = FLUSH_KEYS as i64 + 1000;
        let keys: Vec<Event> = (0..count).map(|key| event(key, 1, 1)).collect();
        let mut driver = Driver::new(&sum_and_count(DAY));
        for round in 0..2 {
            driver.rows(batch_of(&keys)).unwrap();
            driver.barrier();
            let batches = driver.sent_batches();
            assert!(batches.iter().all(|batch| batch.num_rows() <= BATCH_ROWS));
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows as i64, count * (1 + round));
            for batch in &batches {
                let signs: Vec<_> = batch.column(4).as_boolean().values().iter().collect();
                assert_ne!(signs.last(), Some(&true), "a retraction is parted from its row");
            }
        }
    }

    #[test]
    fn keys_are_forgotten_without_a_retraction_when_their_time_has_passed() {
        let second = 1_000_000_000;
        let mut driver = Driver::new(&sum_and_count(Duration::from_secs(16)));
        driver.watermark(Watermark::At(Time(0)));
        driver.rows(batch_of(&[event(1, 10, second), event(2, 10, 10 * second)])).unwrap();
        driver.barrier();
        driver.watermark(Watermark::At(Time(18 * second)));
        assert_eq!(driver.trace(), ["at 0", "2 rows", "at 18000000000"], "silently");
        driver.rows(batch_of(&[event(1, 1, 18 * second), event(2, 1, 18 * second)])).unwrap();
        driver.barrier();
        assert_eq!(changes(&driver.sent_rows()), ["+1|1|1", "-2|10|1", "+2|11|2"]);
    }

    #[test]
    fn a_key_that_waits_in_the_delta_is_not_forgotten() {
        let second = 1_000_000_000;
        let mut driver = Driver::new(&sum_and_count(Duration::from_secs(16)));
        driver.rows(batch_of(&[event(1, 10, second)])).unwrap();
        driver.barrier();
        driver.sent();
        driver.rows(batch_of(&[event(1, 1, 16 * second)])).unwrap();
        driver.watermark(Watermark::At(Time(30 * second)));
        driver.barrier();
        assert_eq!(changes(&driver.sent_rows()), ["-1|10|1", "+1|11|2"]);
    }

    #[test]
    fn without_keys_there_is_one_row_and_without_aggregates_one_per_key() {
        let count = vec![call(&events(), count_udaf(), &["v"], "n")];
        let global = UpdatingAggregate::try_new(&events(), AggregateInput::Rows, vec![], count, DAY).unwrap();
        assert_eq!(global.max_parallelism(), Some(1));
        let distinct = UpdatingAggregate::try_new(&events(), AggregateInput::Rows, vec![0], vec![], DAY).unwrap();
        for (node, expected) in [(global, vec!["+2", "-2", "+4"]), (distinct, vec!["+1", "+2", "+3"])] {
            let mut driver = Driver::new(&node);
            let mut seen = Vec::new();
            for batch in [[event(1, 1, 1), event(2, 1, 1)], [event(1, 1, 1), event(3, 1, 1)]] {
                driver.rows(batch_of(&batch)).unwrap();
                driver.barrier();
                seen.extend(changes(&driver.sent_rows()));
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn updating_input_is_refused() {
        let updating = StreamSchema::new(events().visible().to_vec(), StreamKind::Updating).unwrap();
        let refused = UpdatingAggregate::try_new(&updating, AggregateInput::Rows, vec![0], vec![], DAY);
        assert!(matches!(refused, Err(NodeError::Updating { .. })));
        assert!(UpdatingAggregate::try_new(&events(), AggregateInput::Rows, vec![0], vec![], Duration::ZERO).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_rows_that_stand_are_what_the_batch_engine_gives(
            events in random_events(100),
            lengths in lengths(),
            flushes in proptest::collection::vec(any::<bool>(), 1..20),
            restarts in proptest::collection::vec(any::<bool>(), 1..10),
        ) {
            let input = self::events();
            let mut filtered = call(&input, sum_udaf(), &["v"], "kept");
            filtered.filter = Some(3);
            let calls = vec![
                call(&input, sum_udaf(), &["v"], "total"),
                call(&input, avg_udaf(), &["v"], "average"),
                call(&input, min_udaf(), &["v"], "least"),
                call(&input, max_udaf(), &["s"], "last"),
                distinct(&input, count_udaf(), "v", "values"),
                call(&input, median_udaf(), &["v"], "middle"),
                call(&input, array_agg_udaf(), &["v"], "all"),
                distinct(&input, array_agg_udaf(), "v", "set"),
                filtered,
            ];
            let node = UpdatingAggregate::try_new(&input, AggregateInput::Rows, vec![0, 1], calls, DAY).unwrap();
            let mut driver = Driver::new(&node);
            // Rows by key, with the set's elements sorted once a row stands: their order is not defined.
            let mut standing: BTreeMap<String, String> = BTreeMap::new();
            let (mut flush, mut restart) = (flushes.iter().cycle(), restarts.iter().cycle());
            let runs = cut(&events, &lengths);
            for (i, run) in runs.iter().enumerate() {
                driver.rows(batch_of(run)).unwrap();
                if i + 1 < runs.len() && !flush.next().unwrap_or(&true) {
                    continue;
                }
                driver.barrier();
                if restart.next() == Some(&true) {
                    driver.restart(&node);
                }
                for change in changes(&driver.sent_rows()) {
                    let key: String = change[1..].splitn(3, '|').take(2).collect::<Vec<_>>().join("|");
                    if let Some(row) = change.strip_prefix('-') {
                        let sent = standing.remove(&key);
                        prop_assert_eq!(sent.as_deref(), Some(row), "what is withdrawn was sent");
                    } else {
                        prop_assert_eq!(standing.insert(key, change[1..].to_owned()), None, "one row per key");
                    }
                }
            }
            let sql = "SELECT k, s, sum(v), avg(v), min(v), max(s), count(DISTINCT v), median(v), array_agg(v),
                array_agg(DISTINCT v), sum(v) FILTER (WHERE keep) FROM events GROUP BY k, s";
            let rows = standing.into_values().map(|row| sort_set(&row)).collect();
            let expected = oracle(batch_of(&events), sql).iter().map(|row| sort_set(row)).collect();
            prop_assert_eq!(sorted(rows), sorted(expected));
        }

        #[test]
        fn sums_of_squares_do_not_drift(values in proptest::collection::vec(-1000..1000i64, 2..100), lengths in lengths()) {
            let stddev = call(&self::events(), stddev_udaf(), &["v"], "spread");
            let stage = UpdatingAggregate::try_new(&self::events(), AggregateInput::Rows, vec![], vec![stddev], DAY);
            prop_assert!(stage.is_ok());
            let mut driver = Driver::new(&stage.unwrap());
            let rows: Vec<_> = values.iter().map(|v| event(1, *v, 1)).collect();
            for run in cut(&rows, &lengths) {
                driver.rows(batch_of(run)).unwrap();
                driver.barrier();
            }
            let sent = driver.sent_rows();
            let last = sent.column(0).as_primitive::<arrow::datatypes::Float64Type>().values().last().copied().unwrap();
            let mean = values.iter().sum::<i64>() as f64 / values.len() as f64;
            let squares: f64 = values.iter().map(|v| (*v as f64 - mean).powi(2)).sum();
            let expected = (squares / (values.len() - 1) as f64).sqrt();
            prop_assert!((last - expected).abs() <= 1e-9 * expected.max(1.0), "{} is not {}", last, expected);
        }
    }

    /// Sorts the elements of the row's column before the last.
    fn sort_set(row: &str) -> String {
        let mut columns: Vec<String> = row.split('|').map(str::to_owned).collect();
        let at = columns.len() - 2;
        let set = columns[at].trim_matches(['[', ']']).split(", ").map(str::to_owned).collect();
        columns[at] = sorted(set).join(", ");
        columns.join("|")
    }
}
