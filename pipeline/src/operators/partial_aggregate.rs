//! Aggregates in front of an exchange: rows become fewer before they travel.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, TimestampNanosecondArray};
use arrow::datatypes::{SchemaRef, TimestampNanosecondType};
use arrow::record_batch::RecordBatch;

use super::aggregate::{Accumulators, Aggregation, Functions, Groups};
use super::held::HeldWatermarks;
use super::latest::LatestTimes;
use super::reduction::Reduction;
use super::windows::Windows;
use super::{AggregateCall, AggregateInput, BATCH_ROWS, NodeError};
use crate::plan::{NodePlan, StreamKind, StreamSchema};
use crate::runtime::{Barrier, Body, Context, Operator, OperatorError, Stage, Subtask, Time, Watermark};
use crate::state::{Restored, Snapshot};

const KIND: &str = "partial_aggregate";

/// The saved value that holds the watermark.
const WATERMARK: &str = "watermark";

/// How long groups without a window are kept before they are sent: short beside the second for which the updating aggregate
/// behind gathers them.
const PERIOD: Duration = Duration::from_millis(100);

/// How many groups are kept before they are sent.
const MOST_GROUPS: usize = 1 << 18;

/// Groups rows by key (and by the window their event time falls into) as far as it sees them, and sends the functions'
/// states in place of the rows, for the aggregate behind the exchange to merge. Keys need not be divided among its
/// subtasks.
///
/// Nothing is lost or saved: what it keeps leaves at every barrier, with the watermark that ends its window, and when there
/// is much of it. Rows that are late by its own watermark pass one by one, so that the aggregate behind judges and counts
/// each; and so does every row while aggregating would not make them much fewer. (Rows that are late only by the watermark of
/// other subtasks, which went on while this one was idle, are counted once for each key.)
#[derive(Debug)]
pub struct PartialAggregate {
    aggregation: Aggregation,
    windows: Option<Windows>,
    output: StreamSchema,
}

impl PartialAggregate {
    /// Whether all of `calls` can be computed of states: functions without an order, DISTINCT, or state that grows.
    ///
    /// # Errors
    /// A function that does not fit its arguments.
    pub fn supports(calls: &[AggregateCall]) -> Result<bool, NodeError> {
        for call in calls {
            if !call.can_be_split()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Aggregates append-only `input` by columns `group` and, where a `width` is given, by windows of it.
    ///
    /// The output has the group columns in order, then the functions' states. Event time is a moment in the group's window,
    /// the last one where rows were aggregated; without windows the latest of the group's rows.
    pub fn try_new(
        input: &StreamSchema,
        width: Option<Duration>,
        group: Vec<usize>,
        aggregates: Vec<AggregateCall>,
    ) -> Result<Self, NodeError> {
        let aggregation = Aggregation::try_new(KIND, input, AggregateInput::Rows, group, aggregates)?;
        let windows = width.map(|width| Windows::try_new(KIND, width)).transpose()?;
        let mut fields = aggregation.keys.clone();
        for call in &aggregation.calls {
            fields.extend(call.state_fields()?);
        }
        let output = StreamSchema::new(fields, StreamKind::Append)?;
        Ok(Self { aggregation, windows, output })
    }
}

impl NodePlan for PartialAggregate {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let width = |windows: Windows| ("windows", humantime::format_duration(windows.width()).to_string());
        self.windows.map(width).into_iter().chain(self.aggregation.details()).collect()
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for PartialAggregate {
    fn build(&self, _subtask: &Subtask) -> Result<Body, OperatorError> {
        let functions = Functions::try_new(&self.aggregation.calls)?;
        Ok(Body::Operator(Box::new(PartialAggregateOperator {
            aggregation: self.aggregation.clone(),
            single: functions.accumulators()?,
            functions,
            windows: self.windows,
            output: Arc::clone(self.output.schema()),
            open: BTreeMap::new(),
            groups: 0,
            reduction: Reduction::default(),
            watermark: Time::MIN,
            idle: false,
            send_at: None,
            held: HeldWatermarks::default(),
        })))
    }
}

/// Some of the rows of one window.
struct Window {
    groups: Groups,
    /// Empty where there are windows: their end is the groups' time.
    latest: LatestTimes,
}

/// One subtask of a [`PartialAggregate`].
struct PartialAggregateOperator {
    aggregation: Aggregation,
    functions: Functions,
    /// Makes the states of single rows; has none itself.
    single: Accumulators,
    windows: Option<Windows>,
    output: SchemaRef,
    /// By the windows' start; where there are no windows, one without an end.
    open: BTreeMap<i64, Window>,
    /// How many groups all of them have.
    groups: usize,
    reduction: Reduction,
    watermark: Time,
    /// Whether the last watermark was idle: the reader's may have passed ours, and rows be late that are not by ours.
    idle: bool,
    /// When what is kept must leave; only where there are no windows.
    send_at: Option<Time>,
    /// Watermarks that came while something was kept, where there are no windows.
    held: HeldWatermarks,
}

impl PartialAggregateOperator {
    /// Sends the rows of `batch` one by one.
    fn pass(&self, batch: &RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let mut columns = self.aggregation.keys_of(batch);
        columns.extend(self.functions.states_of_rows(&self.single, batch)?);
        columns.push(Arc::clone(batch.column(self.aggregation.timestamp)));
        cx.emit(RecordBatch::try_new(Arc::clone(&self.output), columns)?);
        Ok(())
    }

    /// The rows of `batch` by window.
    fn cut(&self, batch: RecordBatch) -> Result<Vec<(i64, RecordBatch)>, OperatorError> {
        match self.windows {
            Some(windows) => Ok(windows.cut(batch, self.aggregation.timestamp)?),
            None => Ok(vec![(i64::MIN, batch)]),
        }
    }

    /// Adds rows of one window.
    fn add(&mut self, start: i64, rows: &RecordBatch) -> Result<(), OperatorError> {
        let window = match self.open.entry(start) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => {
                let groups = Groups::try_new(&self.aggregation, &self.functions)?;
                new.insert(Window { groups, latest: LatestTimes::default() })
            }
        };
        let before = window.groups.len();
        let (numbers, count) = window.groups.add(&self.aggregation, &self.functions, rows)?;
        if self.windows.is_none() {
            let times = rows.column(self.aggregation.timestamp).as_primitive::<TimestampNanosecondType>();
            window.latest.add(&numbers, count, times.values());
        }
        let new = count - before;
        self.groups += new;
        self.reduction.aggregated(rows.num_rows(), new);
        Ok(())
    }

    /// Sends the groups of one window.
    fn send(&mut self, start: i64, mut window: Window, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let rows = window.groups.len();
        let (mut columns, states) = window.groups.take_states()?;
        columns.extend(states);
        columns.push(Arc::new(match self.windows {
            Some(windows) => TimestampNanosecondArray::from_value(windows.last(start), rows),
            None => window.latest.take(),
        }));
        let batch = RecordBatch::try_new(Arc::clone(&self.output), columns)?;
        for offset in (0..rows).step_by(BATCH_ROWS) {
            cx.emit(batch.slice(offset, BATCH_ROWS.min(rows - offset)));
        }
        self.groups -= rows;
        Ok(())
    }

    /// Sends everything.
    fn send_all(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        while let Some((start, window)) = self.open.pop_first() {
            self.send(start, window, cx)?;
        }
        self.reduction.judge();
        self.send_at = None;
        self.held.release(cx);
        Ok(())
    }

    /// Sends the windows that end by `time`.
    fn send_ended(&mut self, time: Time, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let kept = self.groups;
        while let Some(open) = self.open.first_entry() {
            if self.windows.is_none_or(|windows| windows.end(*open.key()) > time.0) {
                break;
            }
            let (start, window) = open.remove_entry();
            self.send(start, window, cx)?;
        }
        if self.groups < kept {
            self.reduction.judge();
        }
        Ok(())
    }
}

impl Operator for PartialAggregateOperator {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        self.watermark = state.values(WATERMARK)?.into_iter().max().map_or(Time::MIN, Time);
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(WATERMARK, self.watermark.0);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.idle || self.reduction.passes_by(batch.num_rows()) {
            return self.pass(&batch, cx);
        }
        for (start, rows) in self.cut(batch)? {
            match self.windows {
                Some(windows) if windows.end(start) <= self.watermark.0 => self.pass(&rows, cx)?,
                _ => self.add(start, &rows)?,
            }
        }
        if self.groups >= MOST_GROUPS || self.reduction.is_hopeless() {
            return self.send_all(cx);
        }
        if self.windows.is_none() && self.send_at.is_none() {
            let moment = cx.now().after(PERIOD);
            self.send_at = Some(moment);
            cx.wake_at(moment);
        }
        Ok(())
    }

    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.idle = watermark == Watermark::Idle;
        // The end of the input is no time: later rows may come when the pipeline is run again.
        if let Watermark::At(time) = watermark
            && time < Time::MAX
        {
            self.watermark = self.watermark.max(time);
        }
        match (watermark, self.windows) {
            (Watermark::At(time), Some(_)) if time < Time::MAX => self.send_ended(time, cx)?,
            (Watermark::At(time), None) if time < Time::MAX && self.groups > 0 => {
                self.held.hold(watermark);
                return Ok(());
            }
            _ => self.send_all(cx)?,
        }
        cx.emit_watermark(watermark);
        Ok(())
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match self.send_at {
            Some(moment) if moment <= cx.now() => self.send_all(cx),
            Some(moment) => {
                cx.wake_at(moment);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn barrier(&mut self, _barrier: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.send_all(cx)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Int64Type;
    use datafusion::functions_aggregate::array_agg::array_agg_udaf;
    use datafusion::functions_aggregate::average::avg_udaf;
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::first_last::last_value_udaf;
    use datafusion::functions_aggregate::median::median_udaf;
    use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
    use datafusion::functions_aggregate::sum::sum_udaf;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::lit;
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{
        Driver, Event, batch_of, call, cut, distinct, event, events, lengths, lines, oracle, random_events, sorted,
    };
    use crate::operators::{TumblingAggregate, UpdatingAggregate};
    use crate::runtime::Output;

    const WIDTH: Duration = Duration::from_nanos(10);
    const DAY: Duration = Duration::from_secs(86_400);

    fn sum_and_count() -> Vec<AggregateCall> {
        vec![call(&events(), sum_udaf(), &["v"], "total"), call(&events(), count_udaf(), &["v"], "n")]
    }

    fn partial(width: Option<Duration>) -> PartialAggregate {
        PartialAggregate::try_new(&events(), width, vec![0], sum_and_count()).unwrap()
    }

    /// Passes what `partial` has sent on to `whole`.
    fn forward(partial: &mut Driver, whole: &mut Driver) {
        for output in partial.sent() {
            match output {
                Output::Batch(batch) => whole.rows(batch).unwrap(),
                Output::Watermark(watermark) => whole.watermark(watermark),
            }
        }
    }

    #[test]
    fn a_window_leaves_with_the_watermark_that_ends_it() {
        let mut driver = Driver::new(&partial(Some(WIDTH)));
        driver.rows(batch_of(&[event(1, 5, 3), event(2, 6, 4), event(1, 7, 12), event(1, 1, 9)])).unwrap();
        driver.pass(Duration::from_secs(10));
        driver.watermark(Watermark::At(Time(9)));
        assert_eq!(driver.trace(), ["at 9"]);
        driver.watermark(Watermark::At(Time(10)));
        let sent = driver.sent_rows();
        assert_eq!(lines(&sent.project(&[0, 1, 2]).unwrap()), ["1|6|2", "2|6|1"]);
        assert_eq!(sent.column(3).as_primitive::<TimestampNanosecondType>().values().to_vec(), [9, 9]);
        driver.finish();
        assert_eq!(driver.trace(), ["1 rows", "end"]);
    }

    #[test]
    fn without_windows_groups_leave_soon_and_watermarks_wait_for_them() {
        let mut driver = Driver::new(&partial(None));
        driver.watermark(Watermark::At(Time(1)));
        driver.rows(batch_of(&[event(1, 5, 13), event(2, 6, 4), event(1, 7, 12)])).unwrap();
        driver.watermark(Watermark::At(Time(2)));
        driver.watermark(Watermark::At(Time(3)));
        driver.pass(PERIOD - Duration::from_nanos(1));
        assert_eq!(driver.trace(), ["at 1"]);
        driver.pass(Duration::from_nanos(1));
        let sent = driver.sent();
        assert!(matches!(sent.as_slice(), [Output::Batch(_), Output::Watermark(Watermark::At(Time(3)))]), "{sent:?}");
        let [Output::Batch(rows), _] = sent.as_slice() else { return };
        assert_eq!(lines(&rows.project(&[0, 1, 2]).unwrap()), ["1|12|2", "2|6|1"]);
        assert_eq!(rows.column(3).as_primitive::<TimestampNanosecondType>().values().to_vec(), [13, 4]);
    }

    #[test]
    fn nothing_is_kept_over_a_barrier_or_while_the_stream_is_idle() {
        for width in [None, Some(WIDTH)] {
            let mut driver = Driver::new(&partial(width));
            driver.rows(batch_of(&[event(1, 5, 3), event(1, 6, 4)])).unwrap();
            driver.barrier();
            assert_eq!(driver.trace(), ["1 rows"]);
            driver.rows(batch_of(&[event(1, 5, 3), event(1, 6, 4)])).unwrap();
            driver.watermark(Watermark::Idle);
            assert_eq!(driver.trace(), ["1 rows", "idle"]);
            driver.rows(batch_of(&[event(1, 5, 3), event(1, 6, 4)])).unwrap();
            assert_eq!(driver.trace(), ["2 rows"], "one by one, since the reader may take some for late");
            driver.watermark(Watermark::At(Time(1)));
            driver.rows(batch_of(&[event(1, 5, 3), event(1, 6, 4)])).unwrap();
            driver.finish();
            assert_eq!(driver.trace(), ["at 1", "1 rows", "end"]);
        }
    }

    #[test]
    fn late_rows_are_counted_one_by_one_behind_it() {
        let mut first = Driver::new(&partial(Some(WIDTH)));
        let first_output = partial(Some(WIDTH));
        let input = first_output.output().unwrap();
        let calls = sum_and_count();
        let whole =
            TumblingAggregate::try_new(input, AggregateInput::States, WIDTH, vec![0], 0, "w".into(), calls).unwrap();
        let mut whole = Driver::new(&whole);
        first.watermark(Watermark::At(Time(25)));
        first.rows(batch_of(&[event(1, 1, 5), event(1, 2, 21), event(1, 4, 19), event(1, 1, 5)])).unwrap();
        first.finish();
        forward(&mut first, &mut whole);
        assert_eq!(whole.late, 3);
        assert_eq!(lines(&whole.sent_rows().project(&[1, 2, 3]).unwrap()), ["1|2|1"]);
    }

    #[test]
    fn each_row_that_passes_counts_once_whatever_is_counted() {
        let zero = AggregateExprBuilder::new(count_udaf(), vec![lit(0_i64)]).schema(Arc::clone(events().schema()));
        let call = AggregateCall { expr: Arc::new(zero.alias("n").build().unwrap()), filter: None };
        let mut driver = Driver::new(&PartialAggregate::try_new(&events(), Some(WIDTH), vec![0], vec![call]).unwrap());
        driver.watermark(Watermark::At(Time(25)));
        let late: Vec<Event> = (0..BATCH_ROWS as i64 + 1).map(|key| event(key, 1, 1)).collect();
        driver.rows(batch_of(&late)).unwrap();
        let states = driver.sent_rows();
        assert_eq!(states.num_rows(), BATCH_ROWS + 1);
        assert!(states.column(1).as_primitive::<Int64Type>().values().iter().all(|count| *count == 1));
    }

    #[test]
    fn rows_that_were_late_before_a_restart_are_late_after_it() {
        let node = partial(Some(WIDTH));
        let mut driver = Driver::new(&node);
        driver.watermark(Watermark::At(Time(25)));
        driver.restart(&node);
        driver.rows(batch_of(&[event(1, 1, 5), event(1, 2, 21), event(1, 4, 5), event(1, 1, 22)])).unwrap();
        assert_eq!(driver.trace(), ["at 25", "2 rows"], "one by one, for the reader to count");
        driver.finish();
        assert_eq!(driver.trace(), ["1 rows", "end"]);
    }

    #[test]
    fn rows_of_too_many_keys_pass_one_by_one_and_count_all_the_same() {
        let (first, count) = (partial(Some(WIDTH)), BATCH_ROWS * 6);
        let states = first.output().unwrap();
        let (mut first, reads) = (Driver::new(&first), AggregateInput::States);
        let whole = TumblingAggregate::try_new(states, reads, WIDTH, vec![0], 0, "w".into(), sum_and_count()).unwrap();
        let mut whole = Driver::new(&whole);
        let rows: Vec<Event> = (0..count as i64).map(|key| event(key, key, 1)).collect();
        for _ in 0..2 {
            rows.chunks(BATCH_ROWS).for_each(|rows| first.rows(batch_of(rows)).unwrap());
            let sent = first.sent_batches();
            assert_eq!(sent.iter().map(RecordBatch::num_rows).sum::<usize>(), count, "nothing is kept");
            sent.into_iter().for_each(|states| whole.rows(states).unwrap());
        }
        whole.finish();
        let expected = (0..count).map(|key| format!("{key}|{}|2", key * 2)).collect();
        assert_eq!(sorted(lines(&whole.sent_rows().project(&[1, 2, 3]).unwrap())), sorted(expected));
    }

    #[test]
    fn watermarks_that_end_no_window_say_nothing_of_the_keys() {
        let mut driver = Driver::new(&partial(Some(WIDTH)));
        let rows: Vec<Event> = (0..BATCH_ROWS as i64).map(|key| event(key, 1, 1)).collect();
        for time in 1..=8 {
            driver.rows(batch_of(&rows)).unwrap();
            driver.watermark(Watermark::At(Time(time)));
        }
        driver.watermark(Watermark::At(Time(10)));
        let sent = driver.sent_rows();
        assert_eq!(sent.num_rows(), BATCH_ROWS, "each key once");
        driver.rows(batch_of(&[event(1, 1, 11), event(1, 1, 12)])).unwrap();
        driver.finish();
        assert_eq!(driver.trace(), ["1 rows", "end"]);
    }

    #[test]
    fn only_what_can_be_made_of_states_is_supported() {
        let input = events();
        let supports = |call| PartialAggregate::supports(&[call]).unwrap();
        for function in [sum_udaf(), count_udaf(), avg_udaf(), min_udaf(), max_udaf()] {
            assert!(supports(call(&input, function, &["v"], "x")));
        }
        assert!(supports(call(&input, max_udaf(), &["s"], "x")));
        assert!(PartialAggregate::supports(&[]).unwrap(), "the keys alone");
        for function in [array_agg_udaf(), median_udaf(), last_value_udaf()] {
            assert!(!supports(call(&input, function, &["v"], "x")));
        }
        assert!(!supports(distinct(&input, count_udaf(), "v", "x")));
        let mixed = [call(&input, sum_udaf(), &["v"], "x"), call(&input, median_udaf(), &["v"], "y")];
        assert!(!PartialAggregate::supports(&mixed).unwrap());
    }

    fn calls(input: &StreamSchema) -> Vec<AggregateCall> {
        let mut filtered = call(input, sum_udaf(), &["v"], "kept");
        filtered.filter = Some(3);
        let (total, average) = (call(input, sum_udaf(), &["v"], "total"), call(input, avg_udaf(), &["v"], "average"));
        let (least, last) = (call(input, min_udaf(), &["v"], "least"), call(input, max_udaf(), &["s"], "last"));
        vec![total, average, least, last, call(input, count_udaf(), &["v"], "n"), filtered]
    }

    const VALUES: &str = "sum(v), avg(v), min(v), max(s), count(v), sum(v) FILTER (WHERE keep)";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Two subtasks in front of one, each with some of the rows, sent on and passed by at random.
        #[test]
        fn the_whole_of_its_parts_is_what_the_batch_engine_gives(
            mut events in random_events(100),
            lengths in lengths(),
            steps in proptest::collection::vec((0..2usize, 0..5u8), 1..10),
            width in proptest::option::of(Just(WIDTH)),
            disorder in 1..30i64,
        ) {
            // In order but for `disorder`, which the watermark stays behind by: no row is late.
            events.sort_by_key(|event| event.time / disorder);
            let input = self::events();
            let part = PartialAggregate::try_new(&input, width, vec![0, 1], calls(&input)).unwrap();
            let (states, reads) = (part.output().unwrap(), AggregateInput::States);
            let mut whole = match width {
                Some(width) => Driver::new(
                    &TumblingAggregate::try_new(states, reads, width, vec![0, 1], 2, "w".into(), calls(&input)).unwrap(),
                ),
                None => Driver::new(&UpdatingAggregate::try_new(states, reads, vec![0, 1], calls(&input), DAY).unwrap()),
            };
            let mut parts = [Driver::new(&part), Driver::new(&part)];
            for (run, (at, then)) in cut(&events, &lengths).into_iter().zip(steps.iter().cycle()) {
                parts[*at].rows(batch_of(run)).unwrap();
                let latest = run.last().map_or(0, |event| event.time);
                match then {
                    0 => parts[*at].barrier(),
                    1 => parts[*at].watermark(Watermark::Idle),
                    2 => parts[*at].pass(PERIOD),
                    3 => parts[*at].restart(&part),
                    _ => parts[*at].watermark(Watermark::At(Time((latest / disorder) * disorder))),
                }
                // The runtime merges the watermarks of senders; here only the last one is passed on.
                for batch in parts[*at].sent_batches() {
                    whole.rows(batch).unwrap();
                }
            }
            for part in &mut parts {
                part.finish();
                part.sent_batches().into_iter().try_for_each(|batch| whole.rows(batch)).unwrap();
            }
            whole.finish();
            prop_assert_eq!(whole.late, 0);
            let rows = whole.sent_rows();
            let (visible, sql) = match width {
                Some(_) => ((0..rows.num_columns() - 1).collect::<Vec<_>>(), format!(
                    "SELECT k, s, named_struct('start', start, 'end', start + interval '10 nanosecond'), {VALUES}
                     FROM (SELECT *, arrow_cast(arrow_cast(_timestamp, 'Int64') / 10 * 10, 'Timestamp(Nanosecond, None)')
                        AS start FROM events) GROUP BY k, s, start")),
                None => ((0..rows.num_columns() - 2).collect(), format!("SELECT k, s, {VALUES} FROM events GROUP BY k, s")),
            };
            prop_assert_eq!(sorted(lines(&rows.project(&visible).unwrap())), oracle(batch_of(&events), &sql));
        }
    }
}
