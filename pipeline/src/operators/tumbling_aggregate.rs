//! Aggregates over windows of equal width that follow each other without a gap.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, StructArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;

use super::aggregate::{Aggregation, Functions};
use super::window_groups::{Piece, WindowGroups};
use super::windows::Windows;
use super::{AggregateCall, AggregateInput, BATCH_ROWS, NodeError};
use crate::plan::{NodePlan, StreamKind, StreamSchema};
use crate::runtime::{Body, Context, Operator, OperatorError, Stage, Subtask, Time, Watermark};
use crate::state::{Part, Restored, Snapshot};

const KIND: &str = "tumbling_aggregate";

/// The saved table of open windows: the window's start, the keys, the functions' states; any number of rows per key.
const GROUPS: &str = "groups";

/// The saved values that hold the watermark, and up to when windows have been sent: earlier than the watermark where a subtask
/// holds windows of one that had not come as far as others.
const WATERMARK: &str = "watermark";
const SENT: &str = "sent";

/// Groups rows by key and by the window their event time falls into, and sends a window's groups once, when the
/// watermark has reached its end. Windows begin at multiples of their width since the Unix epoch.
///
/// A row whose window was already sent is late: it is left out and counted.
#[derive(Debug)]
pub struct TumblingAggregate {
    aggregation: Aggregation,
    windows: Windows,
    window_position: usize,
    window: FieldRef,
    output: StreamSchema,
}

impl TumblingAggregate {
    /// Aggregates `input`, which `reads` says what it has, by columns `group` and by windows of `width`.
    ///
    /// The output has the group columns in order, with the window, a struct of `start` and `end` named `window_name`, put
    /// in at `window_position` (0 is first), then the aggregates. Event time is the window's end - 1 ns.
    pub fn try_new(
        input: &StreamSchema,
        reads: AggregateInput,
        width: Duration,
        group: Vec<usize>,
        window_position: usize,
        window_name: String,
        aggregates: Vec<AggregateCall>,
    ) -> Result<Self, NodeError> {
        let aggregation = Aggregation::try_new(KIND, input, reads, group, aggregates)?;
        let windows = Windows::try_new(KIND, width)?;
        let window = Arc::new(Field::new(window_name, DataType::Struct(bounds()), false));
        let mut fields = aggregation.keys.clone();
        if window_position > fields.len() {
            return Err(NodeError::NoColumn { node: KIND, index: window_position, columns: fields.len() });
        }
        fields.insert(window_position, Arc::clone(&window));
        fields.extend(aggregation.calls.iter().map(AggregateCall::field));
        let output = StreamSchema::new(fields, StreamKind::Append)?;
        Ok(Self { aggregation, windows, window_position, window, output })
    }
}

/// The fields of a window's struct.
fn bounds() -> Fields {
    let bound = |name| Field::new(name, DataType::Timestamp(TimeUnit::Nanosecond, None), false);
    Fields::from(vec![bound("start"), bound("end")])
}

impl NodePlan for TumblingAggregate {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let width = humantime::format_duration(self.windows.width());
        let mut details = vec![("window", format!("{} of {width} at {}", self.window.name(), self.window_position))];
        details.extend(self.aggregation.details());
        details
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    /// One where there are no keys: all rows of a window meet.
    fn max_parallelism(&self) -> Option<usize> {
        self.aggregation.group.is_empty().then_some(1)
    }
}

impl Stage for TumblingAggregate {
    fn build(&self, _subtask: &Subtask) -> Result<Body, OperatorError> {
        let functions = Functions::try_new(&self.aggregation.calls)?;
        Ok(Body::Operator(Box::new(TumblingAggregateOperator {
            aggregation: self.aggregation.clone(),
            windows: self.windows,
            window_position: self.window_position,
            output: Arc::clone(self.output.schema()),
            saved: saved_schema(&self.aggregation, &functions),
            functions,
            open: BTreeMap::new(),
            watermark: Time::MIN,
        })))
    }
}

/// The columns of [`GROUPS`].
fn saved_schema(aggregation: &Aggregation, functions: &Functions) -> SchemaRef {
    let start = Field::new("_start", DataType::Timestamp(TimeUnit::Nanosecond, None), false);
    let fields = aggregation.keys.iter().chain(functions.state_fields()).cloned();
    Arc::new(Schema::new(std::iter::once(Arc::new(start)).chain(fields).collect::<Vec<_>>()))
}

/// One subtask of a [`TumblingAggregate`].
struct TumblingAggregateOperator {
    aggregation: Aggregation,
    functions: Functions,
    windows: Windows,
    window_position: usize,
    output: SchemaRef,
    saved: SchemaRef,
    /// The open windows, by their start.
    open: BTreeMap<i64, WindowGroups>,
    watermark: Time,
}

impl TumblingAggregateOperator {
    /// Adds rows of one window, or drops them when it was sent.
    fn add(&mut self, start: i64, batch: &RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.windows.end(start) <= self.watermark.0 {
            cx.count_late(batch.num_rows());
            return Ok(());
        }
        let groups = match self.open.entry(start) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => new.insert(WindowGroups::try_new(&self.aggregation, &self.functions)?),
        };
        groups.add(&self.aggregation, &self.functions, batch)
    }

    fn send(&self, start: i64, groups: WindowGroups, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let end = self.windows.end(start);
        let (mut columns, values, rows) = groups.into_values(&self.aggregation, &self.functions)?;
        let constant = |time: i64| Arc::new(TimestampNanosecondArray::from_value(time, rows)) as ArrayRef;
        let window = StructArray::try_new(bounds(), vec![constant(start), constant(end)], None)?;
        columns.insert(self.window_position, Arc::new(window));
        columns.extend(values);
        columns.push(constant(self.windows.last(start)));
        let batch = RecordBatch::try_new(Arc::clone(&self.output), columns)?;
        for offset in (0..rows).step_by(BATCH_ROWS) {
            cx.emit(batch.slice(offset, BATCH_ROWS.min(rows - offset)));
        }
        Ok(())
    }
}

impl TumblingAggregateOperator {
    /// A piece of a window's groups as it is saved.
    fn saved(&self, start: i64, piece: &Piece) -> Result<RecordBatch, OperatorError> {
        let starts = Arc::new(TimestampNanosecondArray::from_value(start, piece.rows));
        Ok(RecordBatch::try_new(Arc::clone(&self.saved), piece.columns(starts))?)
    }

    /// Takes back a saved batch: pieces, one after the other, of windows of which those that end by `sent` have been sent.
    fn restore_batch(&mut self, batch: &RecordBatch, sent: i64) -> Result<(), OperatorError> {
        let Some(starts) = batch.columns().first().and_then(|column| column.as_primitive_opt()) else {
            return Err(OperatorError::internal("the saved groups have no windows"));
        };
        let starts: &TimestampNanosecondArray = starts;
        let mut offset = 0;
        for run in starts.values().chunk_by(|a, b| a == b) {
            let start = run.first().copied().unwrap_or_default();
            let rows = batch.slice(offset, run.len());
            offset += run.len();
            if self.windows.end(start) <= sent {
                continue;
            }
            let mut columns = rows.columns().iter().skip(1).cloned();
            let keys = columns.by_ref().take(self.aggregation.keys.len()).collect();
            let groups = match self.open.entry(start) {
                Entry::Occupied(open) => open.into_mut(),
                Entry::Vacant(new) => new.insert(WindowGroups::try_new(&self.aggregation, &self.functions)?),
            };
            groups.restore(keys, columns.collect(), rows.num_rows());
        }
        Ok(())
    }
}

impl Operator for TumblingAggregateOperator {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        let keys: Vec<usize> = (1..=self.aggregation.keys.len()).collect();
        for former in state.formers() {
            let watermark = former.value(WATERMARK)?.map_or(Time::MIN, Time);
            // Former subtasks need not have come equally far: what one has sent, another may still hold.
            self.watermark = self.watermark.max(watermark);
            let sent = former.value(SENT)?.unwrap_or(watermark.0);
            former.keyed(GROUPS, &keys)?.iter().try_for_each(|batch| self.restore_batch(batch, sent))?;
        }
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(WATERMARK, self.watermark.0);
        let first = self.open.keys().next().map(|start| self.windows.end(*start).saturating_sub(1));
        snapshot.value(SENT, first.map_or(self.watermark.0, |before| before.min(self.watermark.0)));
        let mut changes = Vec::new();
        for (start, groups) in &mut self.open {
            changes.extend(groups.save(&self.aggregation, &self.functions)?.map(|piece| (*start, piece)));
        }
        let live = self.open.values().flat_map(WindowGroups::pieces).map(|piece| piece.rows).sum();
        snapshot.log(GROUPS, live, |part| match part {
            Part::Changes => changes.iter().map(|(start, piece)| self.saved(*start, piece)).collect(),
            Part::Everything => {
                let pieces = self.open.iter().flat_map(|(start, groups)| groups.pieces().iter().map(|p| (*start, p)));
                pieces.map(|(start, piece)| self.saved(start, piece)).collect()
            }
        })
    }

    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let windows = self.windows.cut(batch, self.aggregation.timestamp)?;
        windows.iter().try_for_each(|(start, rows)| self.add(*start, rows, cx))
    }

    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if let Watermark::At(time) = watermark {
            // The end of the input is that of the windows that there are: later ones may come when the pipeline is run again.
            let last = || self.open.keys().next_back().map_or(Time::MIN, |start| Time(self.windows.end(*start)));
            self.watermark = self.watermark.max(if time == Time::MAX { last() } else { time });
            while let Some(open) = self.open.first_entry() {
                if self.windows.end(*open.key()) > time.0 {
                    break;
                }
                let (start, groups) = open.remove_entry();
                self.send(start, groups, cx)?;
            }
        }
        cx.emit_watermark(watermark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::functions_aggregate::average::avg_udaf;
    use datafusion::functions_aggregate::bit_and_or_xor::bit_xor_udaf;
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::median::median_udaf;
    use datafusion::functions_aggregate::min_max::max_udaf;
    use datafusion::functions_aggregate::sum::sum_udaf;
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{
        Driver, Event, batch_of, call, cut, distinct, event, events, lengths, lines, oracle, random_events, sorted,
    };
    use crate::state::Share;

    const WIDTH: Duration = Duration::from_nanos(10);

    fn sum_by_key() -> TumblingAggregate {
        let sum = call(&events(), sum_udaf(), &["v"], "total");
        TumblingAggregate::try_new(&events(), AggregateInput::Rows, WIDTH, vec![0], 1, "window".into(), vec![sum])
            .unwrap()
    }

    /// Rows as (key, start, end, total, event time).
    fn rows(driver: &mut Driver) -> Vec<(i64, i64, i64, i64, i64)> {
        use arrow::datatypes::{Int64Type, TimestampNanosecondType};
        let batch = driver.sent_rows();
        let ints = |column: &ArrayRef| column.as_primitive::<Int64Type>().values().to_vec();
        let times = |column: &ArrayRef| column.as_primitive::<TimestampNanosecondType>().values().to_vec();
        let window = batch.column(1).as_struct();
        let (keys, totals) = (ints(batch.column(0)), ints(batch.column(2)));
        let (starts, ends, at) = (times(window.column(0)), times(window.column(1)), times(batch.column(3)));
        let mut rows: Vec<_> = (0..keys.len()).map(|i| (keys[i], starts[i], ends[i], totals[i], at[i])).collect();
        rows.sort_by_key(|row| (row.1, row.0));
        rows
    }

    #[test]
    fn a_window_is_sent_once_when_the_watermark_reaches_its_end() {
        let mut driver = Driver::new(&sum_by_key());
        driver.rows(batch_of(&[event(1, 5, 10), event(2, 6, 19), event(1, 7, 20), event(1, 1, 12)])).unwrap();
        driver.watermark(Watermark::At(Time(19)));
        assert_eq!(driver.trace(), ["at 19"]);
        driver.watermark(Watermark::At(Time(20)));
        assert_eq!(rows(&mut driver), [(1, 10, 20, 6, 19), (2, 10, 20, 6, 19)]);
        driver.finish();
        assert_eq!(rows(&mut driver), [(1, 20, 30, 7, 29)]);
    }

    #[test]
    fn windows_are_aligned_to_the_epoch_before_it_too() {
        let mut driver = Driver::new(&sum_by_key());
        driver.rows(batch_of(&[event(1, 1, -1), event(1, 1, -10), event(1, 1, -11), event(1, 1, 0)])).unwrap();
        driver.finish();
        let windows: Vec<_> = rows(&mut driver).iter().map(|row| (row.1, row.3)).collect();
        assert_eq!(windows, [(-20, 1), (-10, 2), (0, 1)]);
    }

    #[test]
    fn late_rows_are_dropped_and_counted() {
        let mut driver = Driver::new(&sum_by_key());
        driver.watermark(Watermark::At(Time(25)));
        // The window of 20 is open still: a row of it is not late, though it is behind the watermark.
        driver.rows(batch_of(&[event(1, 1, 5), event(1, 2, 21), event(1, 4, 19)])).unwrap();
        driver.rows(batch_of(&[event(1, 8, 19)])).unwrap();
        assert_eq!(driver.late, 3);
        driver.finish();
        assert_eq!(rows(&mut driver), [(1, 20, 30, 2, 29)]);
    }

    #[test]
    fn windows_leave_in_order_and_before_the_watermark() {
        let mut driver = Driver::new(&sum_by_key());
        driver.rows(batch_of(&[event(1, 1, 35), event(1, 1, 5), event(2, 1, 5), event(1, 1, 15)])).unwrap();
        driver.watermark(Watermark::At(Time(30)));
        assert_eq!(driver.trace(), ["2 rows", "1 rows", "at 30"]);
        driver.watermark(Watermark::Idle);
        assert_eq!(driver.trace(), ["idle"], "an idle stream closes nothing");
    }

    /// Two subtasks that have come to different watermarks, as they may once one of the streams was idle: all keys of the first
    /// have window 10 behind them, those of the second have it open.
    fn unequal() -> [Share; 2] {
        let save = |watermark, value| {
            let mut driver = Driver::new(&sum_by_key());
            driver.rows(batch_of(&(0..50).map(|key| event(key, value, 12)).collect::<Vec<_>>())).unwrap();
            driver.save();
            driver.watermark(Watermark::At(Time(watermark)));
            driver.save()
        };
        [save(21, 1), save(19, 2)]
    }

    #[test]
    fn each_goes_on_with_the_windows_that_it_had_not_sent() {
        for (index, sent) in [0, 50].into_iter().enumerate() {
            let mut driver = Driver::resumed(&sum_by_key(), &Restored::new(unequal().into(), index, 2));
            driver.watermark(Watermark::At(Time(25)));
            assert_eq!(rows(&mut driver).len(), sent);
        }
    }

    #[test]
    fn what_another_had_sent_is_not_sent_again_and_what_it_had_not_is_not_lost() {
        let rescaled = Restored::new(unequal().into(), 0, 1);
        let mut driver = Driver::resumed(&sum_by_key(), &rescaled);
        // Once more, before any watermark has come.
        driver.restart(&sum_by_key());
        driver.rows(batch_of(&[event(1, 7, 13), event(1, 7, 23)])).unwrap();
        assert_eq!(driver.late, 1, "one of the two had sent that window");
        driver.watermark(Watermark::At(Time(25)));
        let sent = rows(&mut driver);
        assert!(sent.len() == 50 && sent.iter().all(|row| (row.1, row.3) == (10, 2)), "{sent:?}");
    }

    #[test]
    fn the_end_of_the_input_is_no_time() {
        let mut driver = Driver::new(&sum_by_key());
        driver.rows(batch_of(&[event(1, 1, 12)])).unwrap();
        driver.finish();
        assert_eq!(rows(&mut driver), [(1, 10, 20, 1, 19)]);
        // The file has grown: a window that was sent is closed, later ones are not.
        driver.restart(&sum_by_key());
        driver.rows(batch_of(&[event(1, 1, 19), event(1, 5, 20)])).unwrap();
        driver.finish();
        assert_eq!((rows(&mut driver), driver.late), (vec![(1, 20, 30, 5, 29)], 1));
    }

    #[test]
    fn without_keys_a_window_has_one_row() {
        let calls = || vec![call(&events(), count_udaf(), &["v"], "n")];
        let node =
            TumblingAggregate::try_new(&events(), AggregateInput::Rows, WIDTH, vec![], 0, "w".into(), calls()).unwrap();
        assert_eq!(node.max_parallelism(), Some(1));
        let mut driver = Driver::new(&node);
        driver.rows(batch_of(&[event(1, 1, 5), event(2, 1, 6), event(3, 1, 25)])).unwrap();
        driver.finish();
        let counts = |batch: RecordBatch| lines(&batch.project(&[1]).unwrap());
        assert_eq!(counts(driver.sent_rows()), ["2", "1"]);
    }

    #[test]
    fn distinct_values_are_combined_once_each() {
        // Not compared to the batch engine, which combines equal values as well (DataFusion 55).
        let bits = vec![distinct(&events(), bit_xor_udaf(), "v", "bits")];
        let node = TumblingAggregate::try_new(&events(), AggregateInput::Rows, WIDTH, vec![], 0, "w".into(), bits);
        let mut driver = Driver::new(&node.unwrap());
        driver.rows(batch_of(&[event(1, 5, 5), event(2, 5, 6), event(3, 3, 7)])).unwrap();
        driver.finish();
        assert_eq!(lines(&driver.sent_rows().project(&[1]).unwrap()), ["6"]);
    }

    #[test]
    fn large_windows_leave_in_batches() {
        let keys: Vec<Event> = (0..BATCH_ROWS as i64 * 2 + 1).map(|key| event(key, 1, 1)).collect();
        let mut driver = Driver::new(&sum_by_key());
        driver.rows(batch_of(&keys)).unwrap();
        driver.finish();
        assert_eq!(driver.trace(), ["8192 rows", "8192 rows", "1 rows", "end"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let make = |input: &StreamSchema, width, position| {
            TumblingAggregate::try_new(input, AggregateInput::Rows, width, vec![0], position, "w".into(), vec![])
                .unwrap_err()
        };
        assert!(matches!(make(&events(), Duration::ZERO, 0), NodeError::Duration { .. }));
        assert!(matches!(make(&events(), Duration::MAX, 0), NodeError::Duration { .. }));
        assert!(matches!(make(&events(), WIDTH, 2), NodeError::NoColumn { .. }));
        let updating = StreamSchema::new(events().visible().to_vec(), StreamKind::Updating).unwrap();
        assert!(matches!(make(&updating, WIDTH, 0), NodeError::Updating { .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn gives_what_the_batch_engine_gives(
            mut events in random_events(100),
            lengths in lengths(),
            disorder in 1..30i64,
            window_position in 0..3usize,
            restarts in proptest::collection::vec(any::<bool>(), 1..10),
        ) {
            // In order but for `disorder`, which the watermark stays behind by: no row is late.
            events.sort_by_key(|event| event.time / disorder);
            let input = self::events();
            let mut filtered = call(&input, count_udaf(), &["v"], "kept");
            filtered.filter = Some(3);
            let calls = vec![
                call(&input, sum_udaf(), &["v"], "total"),
                call(&input, avg_udaf(), &["v"], "average"),
                call(&input, max_udaf(), &["s"], "last"),
                distinct(&input, count_udaf(), "v", "values"),
                call(&input, median_udaf(), &["v"], "middle"),
                filtered,
            ];
            let node = TumblingAggregate::try_new(&input, AggregateInput::Rows, WIDTH, vec![0, 1], window_position, "w".into(), calls).unwrap();
            let mut driver = Driver::new(&node);
            for (run, restarts) in cut(&events, &lengths).into_iter().zip(restarts.iter().cycle()) {
                driver.rows(batch_of(run)).unwrap();
                if *restarts {
                    driver.restart(&node);
                }
                let latest = run.last().map_or(0, |event| event.time);
                driver.watermark(Watermark::At(Time((latest / disorder) * disorder)));
            }
            driver.finish();
            prop_assert_eq!(driver.late, 0);

            let mut group = vec!["k", "s"];
            group.insert(window_position, "named_struct('start', start, 'end', start + interval '10 nanosecond')");
            let sql = format!(
                "SELECT {}, sum(v), avg(v), max(s), count(DISTINCT v), median(v), count(v) FILTER (WHERE keep),
                    start + interval '9 nanosecond'
                 FROM (SELECT *, arrow_cast(arrow_cast(_timestamp, 'Int64') / 10 * 10, 'Timestamp(Nanosecond, None)')
                    AS start FROM events) GROUP BY k, s, start",
                group.join(", ")
            );
            prop_assert_eq!(sorted(lines(&driver.sent_rows())), oracle(batch_of(&events), &sql));
        }
    }
}
