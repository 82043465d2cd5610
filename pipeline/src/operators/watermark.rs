//! Gives a stream its event time and its watermarks.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast_with_options, max};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampNanosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::physical_expr::PhysicalExpr;

use super::NodeError;
use super::error::column;
use crate::plan::{NodePlan, StreamSchema};
use crate::runtime::{self, Body, Context, Operator, OperatorError, Stage, Subtask, Time};
use crate::state::{Restored, Snapshot};

const KIND: &str = "watermark";

/// How far the watermark stays behind the latest event time where no expression says otherwise.
const DEFAULT_DELAY: Duration = Duration::from_secs(1);

/// The saved value that holds how far the watermark has come; null before the first row.
const REACHED: &str = "reached";

/// How often a watermark is sent: each time event time has moved this far, or this long after it moved less.
const PERIOD: Duration = Duration::from_secs(1);

/// Sets the event time of each row and sends watermarks.
///
/// The watermark is the greatest value of an expression over all rows so far, by default the latest event time minus one
/// second. After some time without rows the stream is declared idle, so that it holds no other back, until rows
/// come again. Watermarks that arrive from the input are not used, but for the last.
///
/// Where nothing behind it reads event times ([`Subtask::event_time_is_read`]), the last row of a batch stands for all of them
/// unless there is an expression: the watermark may then be earlier than it could be, and only the lag that is shown of it with it.
#[derive(Debug)]
pub struct Watermark {
    event_time: Option<EventTime>,
    watermark: Option<Arc<dyn PhysicalExpr>>,
    idle: Duration,
    output: StreamSchema,
}

#[derive(Debug, Clone)]
struct EventTime {
    column: usize,
    name: String,
}

impl Watermark {
    /// Takes event time from timestamp column `event_time`, or leaves it as it is; computes the watermark by `watermark`,
    /// an expression over `input`'s columns that gives a timestamp (a null says nothing); calls the stream idle after
    /// `idle` of wall time without rows.
    pub fn try_new(
        input: &StreamSchema,
        event_time: Option<usize>,
        watermark: Option<Arc<dyn PhysicalExpr>>,
        idle: Duration,
    ) -> Result<Self, NodeError> {
        let needs_timestamp = |what: String, actual: DataType| match actual {
            DataType::Timestamp(_, _) => Ok(()),
            actual => Err(NodeError::Type { node: KIND, what, needed: "a TIMESTAMP", actual }),
        };
        let mut set = None;
        if let Some(index) = event_time {
            let field = column(KIND, input, index)?;
            needs_timestamp(field.name().clone(), field.data_type().clone())?;
            set = Some(EventTime { column: index, name: field.name().clone() });
        }
        if let Some(expr) = &watermark {
            needs_timestamp(expr.to_string(), expr.data_type(input.schema())?)?;
        }
        if idle.is_zero() {
            return Err(NodeError::Duration { node: KIND, what: "idle time" });
        }
        Ok(Self { event_time: set, watermark, idle, output: input.clone() })
    }
}

impl NodePlan for Watermark {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let event_time = match &self.event_time {
            Some(set) => format!("{}@{}", set.name, set.column),
            None => "time of arrival".to_owned(),
        };
        let watermark = match &self.watermark {
            Some(expr) => expr.to_string(),
            None => format!("event time - {}", humantime::format_duration(DEFAULT_DELAY)),
        };
        let idle = humantime::format_duration(self.idle).to_string();
        vec![("event time", event_time), ("watermark", watermark), ("idle after", idle)]
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for Watermark {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok(Body::Operator(Box::new(WatermarkOperator {
            event_time: self.event_time.clone(),
            watermark: self.watermark.clone(),
            is_read: subtask.event_time_is_read,
            idle: self.idle,
            schema: Arc::clone(self.output.schema()),
            timestamp: self.output.timestamp_index(),
            reached: None,
            sent: None,
            send_at: None,
            idle_at: None,
        })))
    }
}

/// One subtask of a [`Watermark`].
struct WatermarkOperator {
    event_time: Option<EventTime>,
    watermark: Option<Arc<dyn PhysicalExpr>>,
    /// Whether anything behind it reads event times.
    is_read: bool,
    idle: Duration,
    schema: SchemaRef,
    timestamp: usize,
    /// The watermark after the rows so far.
    reached: Option<Time>,
    /// The last one sent.
    sent: Option<Time>,
    /// When `reached` is to be sent though it moved by less than [`PERIOD`].
    send_at: Option<Time>,
    /// When the stream becomes idle; `None` while it is.
    idle_at: Option<Time>,
}

impl WatermarkOperator {
    fn set_event_time(&self, batch: RecordBatch) -> Result<RecordBatch, OperatorError> {
        let Some(EventTime { column, name }) = &self.event_time else {
            return Ok(batch);
        };
        let mut columns = batch.columns().to_vec();
        let times = columns.get(*column).ok_or_else(|| OperatorError::internal("the event time column is missing"))?;
        if times.null_count() > 0 {
            return Err(OperatorError::user(format!(
                "event time column `{name}` is null in {} of {} rows; filter those rows out or give them a time",
                times.null_count(),
                times.len()
            )));
        }
        let times = to_nanoseconds(times).map_err(|e| {
            OperatorError::user(format!("event time column `{name}` holds a time outside of the years 1677 to 2262"))
                .because(e)
        })?;
        if let Some(hidden) = columns.get_mut(self.timestamp) {
            *hidden = times;
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// The watermark that the rows of `batch` reach.
    fn reached_by(&self, batch: &RecordBatch) -> Result<Option<Time>, OperatorError> {
        let latest = |times: &ArrayRef| max(times.as_primitive::<TimestampNanosecondType>()).map(Time);
        match &self.watermark {
            Some(expr) => {
                let times = expr.evaluate(batch)?.into_array(batch.num_rows())?;
                Ok(latest(&to_nanoseconds(&times)?))
            }
            None => {
                let times = batch.column(self.timestamp);
                // To look at all times is most of what a watermark costs: where they are not read they come from memory for it.
                let skipped = if self.is_read { 0 } else { times.len().saturating_sub(1) };
                Ok(latest(&times.slice(skipped, times.len() - skipped)).map(|time| time.before(DEFAULT_DELAY)))
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        if let Some(reached) = self.reached.filter(|reached| Some(*reached) > self.sent) {
            cx.emit_watermark(runtime::Watermark::At(reached));
            self.sent = Some(reached);
        }
        self.send_at = None;
    }

    fn set_timer(&self, cx: &mut Context<'_>) {
        for moment in [self.send_at, self.idle_at].into_iter().flatten() {
            cx.wake_at(moment);
        }
    }
}

/// Timestamps of any unit and zone as `Timestamp(Nanosecond)` in UTC; an error when one does not fit.
fn to_nanoseconds(times: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    // A zone is a way to print: taking it off by hand keeps the instant, where a cast would keep the local time.
    let zoneless = match times.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            let data = times.to_data().into_builder().data_type(DataType::Timestamp(*unit, None)).build()?;
            arrow::array::make_array(data)
        }
        _ => Arc::clone(times),
    };
    cast_with_options(&zoneless, &DataType::Timestamp(TimeUnit::Nanosecond, None), &strict)
}

impl Operator for WatermarkOperator {
    /// The least of what was reached: whoever reads this has been told no more.
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        self.reached = state.values::<Option<i64>>(REACHED)?.into_iter().min().flatten().map(Time);
        self.sent = self.reached;
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(REACHED, self.reached.max(self.sent).map(|time| time.0));
        Ok(())
    }

    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if let Some(sent) = self.sent {
            // Readers go on from their own state, but not from what they were told.
            cx.emit_watermark(runtime::Watermark::At(sent));
        }
        self.idle_at = Some(cx.now().after(self.idle));
        self.set_timer(cx);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let batch = self.set_event_time(batch)?;
        self.reached = self.reached.max(self.reached_by(&batch)?);
        cx.emit(batch);
        let was_idle = self.idle_at.is_none();
        self.idle_at = Some(cx.now().after(self.idle));
        match (self.reached, self.sent) {
            (Some(reached), Some(sent)) if was_idle => {
                // Readers have stopped to wait for this stream: they learn that it is back, even where it has not moved.
                cx.emit_watermark(runtime::Watermark::At(reached.max(sent)));
                self.sent = Some(reached.max(sent));
                self.send_at = None;
            }
            (Some(reached), Some(sent)) if reached.since(sent) < PERIOD => {
                if reached > sent && self.send_at.is_none() {
                    self.send_at = Some(cx.now().after(PERIOD));
                }
            }
            _ => self.send(cx),
        }
        self.set_timer(cx);
        Ok(())
    }

    fn watermark(&mut self, watermark: runtime::Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if watermark == runtime::Watermark::At(Time::MAX) {
            // Not what was reached: a source that has more when the pipeline is run again goes on from there.
            cx.emit_watermark(watermark);
            (self.send_at, self.idle_at) = (None, None);
        }
        Ok(())
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if self.send_at.is_some_and(|moment| moment <= cx.now()) {
            self.send(cx);
        }
        match self.idle_at {
            // Readers have held this subtask up, or the process has stood still: rows may wait in front of it. If they were
            // overtaken by other streams they would be late.
            Some(moment) if cx.now().since(moment) > PERIOD => self.idle_at = Some(cx.now().after(self.idle)),
            Some(moment) if moment <= cx.now() => {
                self.send(cx);
                cx.emit_watermark(runtime::Watermark::Idle);
                self.idle_at = None;
            }
            _ => {}
        }
        self.set_timer(cx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{TimestampMicrosecondArray, TimestampNanosecondArray};
    use datafusion::physical_expr::expressions::col;

    use super::*;
    use crate::operators::testing::{Driver, batch_of, event, events, field};
    use crate::plan::StreamKind;

    const SECOND: i64 = 1_000_000_000;
    const IDLE: Duration = Duration::from_secs(300);

    fn watermark() -> Watermark {
        Watermark::try_new(&events(), None, None, IDLE).unwrap()
    }

    fn at(driver: &mut Driver, time: i64) {
        driver.rows(batch_of(&[event(1, 1, time)])).unwrap();
    }

    #[test]
    fn follows_event_time_a_second_behind() {
        let mut driver = Driver::new(&watermark());
        at(&mut driver, 10 * SECOND);
        at(&mut driver, 12 * SECOND);
        assert_eq!(driver.trace(), ["1 rows", "at 9000000000", "1 rows", "at 11000000000"]);
    }

    #[test]
    fn never_goes_back() {
        let mut driver = Driver::new(&watermark());
        at(&mut driver, 10 * SECOND);
        at(&mut driver, 2 * SECOND);
        driver.pass(Duration::from_secs(5));
        assert_eq!(driver.trace(), ["1 rows", "at 9000000000", "1 rows"]);
    }

    #[test]
    fn the_last_row_stands_for_its_batch_where_nothing_reads_event_times() {
        let batch = batch_of(&[event(1, 1, 20 * SECOND), event(1, 1, 10 * SECOND)]);
        for (is_read, reached) in [(true, "at 19000000000"), (false, "at 9000000000")] {
            let mut driver = Driver::with_readers(&watermark(), is_read);
            driver.rows(batch.clone()).unwrap();
            assert_eq!(driver.trace(), ["2 rows", reached]);
        }
    }

    #[test]
    fn small_steps_are_sent_once_a_second() {
        let mut driver = Driver::new(&watermark());
        for step in 0..10 {
            at(&mut driver, 10 * SECOND + step);
        }
        assert_eq!(driver.trace().len(), 11, "ten batches, one watermark");
        driver.pass(Duration::from_millis(999));
        assert!(driver.trace().is_empty());
        driver.pass(Duration::from_millis(1));
        assert_eq!(driver.trace(), ["at 9000000009"]);
        driver.pass(Duration::from_secs(5));
        assert!(driver.trace().is_empty(), "nothing has moved");
    }

    #[test]
    fn becomes_idle_and_comes_back() {
        let mut driver = Driver::new(&watermark());
        at(&mut driver, 10 * SECOND);
        driver.pass(IDLE - Duration::from_secs(1));
        at(&mut driver, 10 * SECOND);
        driver.pass(IDLE - Duration::from_secs(1));
        assert_eq!(driver.trace(), ["1 rows", "at 9000000000", "1 rows"]);
        driver.pass(Duration::from_secs(1000));
        assert_eq!(driver.trace(), ["idle"], "once");
        at(&mut driver, 10 * SECOND);
        assert_eq!(driver.trace(), ["1 rows", "at 9000000000"], "readers wait for it again");
    }

    #[test]
    fn a_subtask_that_was_held_up_is_not_idle() {
        let mut driver = Driver::new(&watermark());
        at(&mut driver, 10 * SECOND);
        driver.trace();
        driver.now = driver.now.after(IDLE + Duration::from_secs(2));
        driver.pass(Duration::ZERO);
        assert!(driver.trace().is_empty(), "rows may wait in front of it");
        driver.pass(IDLE);
        assert_eq!(driver.trace(), ["idle"]);
    }

    #[test]
    fn the_end_of_the_input_is_not_what_was_reached() {
        let mut driver = Driver::new(&watermark());
        at(&mut driver, 10 * SECOND);
        driver.finish();
        assert_eq!(driver.trace(), ["1 rows", "at 9000000000", "end"]);
        driver.restart(&watermark());
        assert_eq!(driver.trace(), ["at 9000000000"]);
    }

    #[test]
    fn without_any_row_it_becomes_idle_too() {
        let mut driver = Driver::new(&watermark());
        driver.pass(IDLE);
        assert_eq!(driver.trace(), ["idle"]);
        driver.finish();
        assert_eq!(driver.trace(), ["end"]);
    }

    #[test]
    fn the_inputs_watermarks_are_not_used_but_the_last_is() {
        let mut driver = Driver::new(&watermark());
        driver.watermark(runtime::Watermark::At(Time(5)));
        driver.watermark(runtime::Watermark::Idle);
        assert!(driver.trace().is_empty());
        driver.finish();
        assert_eq!(driver.trace(), ["end"]);
    }

    fn timed(unit: TimeUnit, zone: Option<&str>) -> StreamSchema {
        let at = field("at", DataType::Timestamp(unit, zone.map(Into::into)));
        StreamSchema::new([at], StreamKind::Append).unwrap()
    }

    fn timed_batch(schema: &StreamSchema, times: ArrayRef) -> RecordBatch {
        let hidden = Arc::new(TimestampNanosecondArray::from_value(0, times.len()));
        RecordBatch::try_new(Arc::clone(schema.schema()), vec![times, hidden]).unwrap()
    }

    #[test]
    fn event_time_comes_from_a_column_of_any_unit_and_zone() {
        for zone in [None, Some("+05:00")] {
            let input = timed(TimeUnit::Microsecond, zone);
            let mut driver = Driver::new(&Watermark::try_new(&input, Some(0), None, IDLE).unwrap());
            let times = TimestampMicrosecondArray::from(vec![3_000_000, 2_000_000]).with_timezone_opt(zone);
            driver.rows(timed_batch(&input, Arc::new(times))).unwrap();
            assert_eq!(
                driver.sent_batches()[0].column(1).as_primitive::<TimestampNanosecondType>().values(),
                &[3 * SECOND, 2 * SECOND]
            );
        }
    }

    #[test]
    fn the_watermark_may_be_an_expression() {
        let input = timed(TimeUnit::Second, None);
        let expr = col("at", input.schema()).unwrap();
        let mut driver = Driver::new(&Watermark::try_new(&input, None, Some(expr), IDLE).unwrap());
        let times = arrow::array::TimestampSecondArray::from(vec![Some(7), None, Some(4)]);
        driver.rows(timed_batch(&input, Arc::new(times))).unwrap();
        driver.rows(timed_batch(&input, Arc::new(arrow::array::TimestampSecondArray::from(vec![None])))).unwrap();
        assert_eq!(driver.trace(), ["3 rows", "at 7000000000", "1 rows"]);
    }

    #[test]
    fn an_event_time_that_is_null_or_too_far_is_an_error_that_names_the_column() {
        let input = timed(TimeUnit::Microsecond, None);
        for time in [None, Some(i64::MAX / 10)] {
            let mut driver = Driver::new(&Watermark::try_new(&input, Some(0), None, IDLE).unwrap());
            let error = driver.rows(timed_batch(&input, Arc::new(TimestampMicrosecondArray::from(vec![time]))));
            let error = error.unwrap_err();
            assert_eq!(error.fault, runtime::Fault::User);
            assert!(error.to_string().contains("event time column `at`"), "{error}");
        }
    }

    #[test]
    fn event_time_must_be_a_timestamp() {
        let refused = Watermark::try_new(&events(), Some(0), None, IDLE).unwrap_err().to_string();
        assert!(refused.contains("TIMESTAMP") && refused.contains("`k`"), "{refused}");
    }
}
