//! Calls an async UDF once per row.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Field, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::error::column;
use super::gathered::Gathered;
use super::{BATCH_ROWS, NodeError};
use crate::plan::{NodePlan, StreamSchema};
use crate::runtime::{
    AsyncCalls, AsyncFunction, Barrier, Body, Context, Operator, OperatorError, Stage, Subtask, Watermark,
};
use crate::state::{Restored, Snapshot};

const KIND: &str = "async_udf";

/// The saved table of rows that have no result, in the columns of the input.
const PENDING: &str = "pending";

/// How long a result waits for others to leave in the same batch.
const LINGER: Duration = Duration::from_millis(20);

/// In an ordered call, how many times the limit of calls in flight may be sent past a row that has no result yet.
const ORDERED_WINDOW: usize = 8;

/// Adds to each row the result of an [`AsyncFunction`], with many calls in flight at once.
///
/// Rows leave as results come, or in the order in which they came when the function is ordered. A watermark leaves
/// behind all rows that came before it.
///
/// Where state is saved, a barrier does not wait for calls: rows without a result are saved, and called for again by a pipeline
/// that goes on from there. A barrier that stops the pipeline waits for all calls, and so does every barrier where no state is
/// saved.
#[derive(Debug)]
pub struct AsyncUdf {
    function: Arc<dyn AsyncFunction>,
    args: Vec<usize>,
    call: String,
    output: StreamSchema,
}

impl AsyncUdf {
    /// Calls `function` with columns `args` of `input`. The result is a new column `name` behind the visible ones.
    pub fn try_new(
        input: &StreamSchema,
        function: Arc<dyn AsyncFunction>,
        args: Vec<usize>,
        name: String,
    ) -> Result<Self, NodeError> {
        if input.is_updating() {
            // A second call for a withdrawn row may give another result, and the retraction would match no row.
            return Err(NodeError::Updating { node: KIND });
        }
        let (expected, actual) = (function.argument_types().len(), args.len());
        if expected != actual {
            return Err(NodeError::Arguments { function: function.name().to_owned(), expected, actual });
        }
        let mut names = Vec::with_capacity(args.len());
        for (position, (index, expected)) in args.iter().zip(function.argument_types()).enumerate() {
            let field = column(KIND, input, *index)?;
            if field.data_type() != expected {
                return Err(NodeError::Argument {
                    function: function.name().to_owned(),
                    position: position + 1,
                    expected: expected.clone(),
                    column: field.name().clone(),
                    actual: field.data_type().clone(),
                });
            }
            names.push(format!("{}@{index}", field.name()));
        }
        let call = format!("{}({}) AS {name}", function.name(), names.join(", "));
        let mut fields = input.visible().to_vec();
        fields.push(Arc::new(Field::new(name, function.result_type().clone(), function.is_nullable())));
        let output = StreamSchema::new(fields, input.kind())?;
        Ok(Self { function, args, call, output })
    }
}

impl NodePlan for AsyncUdf {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let order = if self.function.is_ordered() { "as they came" } else { "as results come" };
        vec![("call", self.call.clone()), ("rows leave", order.to_owned())]
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    /// Calls go out into the world: two nodes are two calls.
    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for AsyncUdf {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        let limit = self.function.max_in_flight().max(1);
        let ordered = self.function.is_ordered();
        Ok(Body::Operator(Box::new(AsyncUdfOperator {
            calls: self.function.start(subtask)?,
            function: Arc::clone(&self.function),
            args: self.args.clone(),
            limit,
            window: if ordered { limit.saturating_mul(ORDERED_WINDOW) } else { usize::MAX },
            batches: VecDeque::new(),
            received: 0,
            rows: VecDeque::new(),
            first: 0,
            in_flight: 0,
            gathered: Gathered::default(),
            watermarks: VecDeque::new(),
            draining: false,
            empties: false,
            saves: subtask.run.is_some(),
            result: self.output.visible_len() - 1,
            output: Arc::clone(self.output.schema()),
        })))
    }
}

/// One subtask of an [`AsyncUdf`].
///
/// Rows are numbered in the order in which they come; a row's number is its call's id. At most one batch has rows that
/// are not sent yet: it waits for calls to return, and the inputs wait for it.
struct AsyncUdfOperator {
    function: Arc<dyn AsyncFunction>,
    calls: Box<dyn AsyncCalls>,
    args: Vec<usize>,
    limit: usize,
    /// The most rows between the oldest that has not left and the newest sent.
    window: usize,
    /// The batches of rows that have not left, oldest first. Only the last may have rows that are not sent.
    batches: VecDeque<Pending>,
    /// How many rows have come in all: the number of the next.
    received: u64,
    /// The rows sent, from number `first` on, which is the oldest that is not gathered.
    rows: VecDeque<Row>,
    first: u64,
    in_flight: usize,
    gathered: Gathered,
    /// Watermarks, each with the number of the first row behind it.
    watermarks: VecDeque<(u64, Watermark)>,
    /// A barrier or the end has come: results are sent without waiting for more.
    draining: bool,
    /// It waits for all rows.
    empties: bool,
    /// Whether state is saved.
    saves: bool,
    /// Where the result's column is in the output.
    result: usize,
    output: SchemaRef,
}

struct Pending {
    /// The number of the first row.
    first: u64,
    batch: RecordBatch,
    args: Vec<ArrayRef>,
    sent: usize,
}

enum Row {
    InFlight,
    /// Its result, by position in an array; it waits for rows before it.
    Answered(ArrayRef, usize),
    Gathered,
}

impl AsyncUdfOperator {
    fn has_unsent(&self) -> bool {
        self.batches.back().is_some_and(|pending| pending.sent < pending.batch.num_rows())
    }

    fn take_in(&mut self, batch: RecordBatch) {
        let args = self.args.iter().filter_map(|index| batch.columns().get(*index)).map(Arc::clone).collect();
        let first = self.received;
        self.received += batch.num_rows() as u64;
        self.batches.push_back(Pending { first, batch, args, sent: 0 });
        self.draining = false;
    }

    /// Makes calls for the rows that wait, as far as the limits and the function allow. Returns how many.
    fn send_more(&mut self, task: &mut task::Context<'_>) -> Result<usize, OperatorError> {
        let Some(pending) = self.batches.back_mut() else {
            return Ok(0);
        };
        let before = pending.sent;
        while pending.sent < pending.batch.num_rows() && self.in_flight < self.limit && self.rows.len() < self.window {
            match self.calls.poll_ready(task) {
                Poll::Pending => break,
                Poll::Ready(ready) => ready?,
            }
            self.calls.send(pending.first + pending.sent as u64, &pending.args, pending.sent)?;
            pending.sent += 1;
            self.rows.push_back(Row::InFlight);
            self.in_flight += 1;
        }
        Ok(pending.sent - before)
    }

    fn take_results(&mut self, ids: &[u64], results: &ArrayRef, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let function = Arc::clone(&self.function);
        let name = function.name();
        if results.data_type() != function.result_type() || results.len() != ids.len() {
            return Err(OperatorError::internal(format!(
                "`{name}` returned {} results of type {} for {} calls of type {}",
                results.len(),
                results.data_type(),
                ids.len(),
                function.result_type()
            )));
        }
        for (answer, id) in ids.iter().enumerate() {
            let row = id.checked_sub(self.first).and_then(|index| self.rows.get_mut(usize::try_from(index).ok()?));
            match row {
                Some(row @ Row::InFlight) => *row = Row::Answered(Arc::clone(results), answer),
                _ => return Err(OperatorError::internal(format!("`{name}` returned a result for no call in flight"))),
            }
            self.in_flight -= 1;
            if !function.is_ordered() {
                self.gather(*id, cx)?;
            }
        }
        while let Some(row) = self.rows.front() {
            match row {
                Row::InFlight => break,
                Row::Answered(..) => self.gather(self.first, cx)?,
                Row::Gathered => {}
            }
            self.rows.pop_front();
            self.first += 1;
        }
        while self.batches.front().is_some_and(|pending| pending.first + pending.batch.num_rows() as u64 <= self.first)
        {
            self.batches.pop_front();
        }
        Ok(())
    }

    /// Adds answered row `id` to those that leave next.
    fn gather(&mut self, id: u64, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let missing = || OperatorError::internal("a result belongs to no row");
        let row = self.rows.get_mut((id - self.first) as usize).ok_or_else(missing)?;
        let Row::Answered(results, answer) = std::mem::replace(row, Row::Gathered) else {
            return Err(missing());
        };
        let behind = self.batches.partition_point(|pending| pending.first <= id);
        let pending = behind.checked_sub(1).and_then(|index| self.batches.get(index)).ok_or_else(missing)?;
        self.gathered.push((pending.first, &pending.batch), (id - pending.first) as usize, &results, answer);
        if self.gathered.len() >= BATCH_ROWS {
            cx.emit(self.gathered.take(self.result, &self.output)?);
        } else if self.gathered.due.is_none() {
            let due = cx.now().after(LINGER);
            self.gathered.due = Some(due);
            cx.wake_at(due);
        }
        Ok(())
    }

    /// Sends what is gathered when it is time to, and the watermarks whose rows have left.
    fn send_on(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let nothing_to_wait_for = self.draining || (self.in_flight == 0 && !self.has_unsent());
        if !self.gathered.is_empty() && (nothing_to_wait_for || self.gathered.due.is_some_and(|due| due <= cx.now())) {
            cx.emit(self.gathered.take(self.result, &self.output)?);
        }
        while self.gathered.is_empty() && self.watermarks.front().is_some_and(|(row, _)| *row <= self.first) {
            if let Some((_, watermark)) = self.watermarks.pop_front() {
                cx.emit_watermark(watermark);
            }
        }
        Ok(())
    }

    fn drain(&mut self, empties: bool, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        (self.draining, self.empties) = (true, empties);
        self.send_on(cx)
    }

    /// The rows that have not left, in order.
    fn unanswered(&self) -> Result<Vec<RecordBatch>, OperatorError> {
        let has_left = |id: u64| match id.checked_sub(self.first) {
            None => true,
            Some(index) => usize::try_from(index).is_ok_and(|at| matches!(self.rows.get(at), Some(Row::Gathered))),
        };
        let left = |pending: &Pending| {
            let rows = 0..pending.batch.num_rows() as u32;
            let rows: UInt32Array =
                rows.filter(|row| !has_left(pending.first + u64::from(*row))).collect::<Vec<_>>().into();
            take_record_batch(&pending.batch, &rows)
        };
        let batches = self.batches.iter().map(left).filter(|batch| batch.as_ref().map_or(true, |b| b.num_rows() > 0));
        Ok(batches.collect::<Result<_, _>>()?)
    }
}

impl Operator for AsyncUdfOperator {
    /// In one batch, since only the last may have rows that are not sent.
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        let batches = state.dealt(PENDING);
        let Some(first) = batches.first() else { return Ok(()) };
        let batch = concat_batches(first.schema_ref(), &batches)?;
        self.take_in(batch);
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.rows(PENDING, self.unanswered()?);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: RecordBatch, _cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.take_in(batch);
        Ok(())
    }

    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        match (self.watermarks.back_mut(), watermark) {
            (Some((row, last @ Watermark::At(_))), Watermark::At(_)) if *row == self.received => *last = watermark,
            _ => self.watermarks.push_back((self.received, watermark)),
        }
        self.send_on(cx)
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.send_on(cx)?;
        if let Some(due) = self.gathered.due {
            cx.wake_at(due);
        }
        Ok(())
    }

    fn poll_work(&mut self, task: &mut task::Context<'_>, cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        // No new calls for a reader that cannot take the results of the old ones.
        let sent = if cx.is_blocked() { 0 } else { self.send_more(task)? };
        match self.calls.poll_results(task) {
            Poll::Ready(results) => {
                let (ids, results) = results?;
                self.take_results(&ids, &results, cx)?;
                Poll::Ready(self.send_on(cx))
            }
            Poll::Pending if sent > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn accepts_input(&self) -> bool {
        !self.has_unsent() && self.in_flight < self.limit && self.rows.len() < self.window
    }

    fn barrier(&mut self, barrier: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.drain(barrier.stop || !self.saves, cx)
    }

    fn is_settled(&self) -> bool {
        let is_empty = || self.rows.is_empty() && !self.has_unsent() && self.watermarks.is_empty();
        self.gathered.is_empty() && (!self.empties || is_empty())
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.drain(true, cx)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Int64Type};
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{Driver, batch_of, cut, event, events, lengths, lines, sorted};
    use crate::plan::StreamKind;
    use crate::runtime::Time;

    /// A function whose calls return when the test says so.
    #[derive(Debug)]
    struct Manual {
        ordered: bool,
        limit: usize,
        calls: Arc<Mutex<Calls>>,
    }

    #[derive(Debug, Default)]
    struct Calls {
        /// The ids and arguments of the calls in flight, in the order in which they were made.
        open: Vec<(u64, Option<i64>)>,
        /// Results to give, poll by poll.
        ready: VecDeque<Result<(Vec<u64>, ArrayRef), OperatorError>>,
    }

    impl Calls {
        /// Lets the calls at these places in `open` return together, each with its argument as text.
        fn answer(&mut self, mut places: Vec<usize>) {
            let open = std::mem::take(&mut self.open);
            let answered: Vec<_> = places.iter().filter_map(|place| open.get(*place)).collect();
            let results: StringArray = answered.iter().map(|(_, k)| k.map(|k| format!("r{k}"))).collect();
            self.ready.push_back(Ok((answered.iter().map(|(id, _)| *id).collect(), Arc::new(results))));
            places.sort_unstable();
            let left = open.into_iter().enumerate().filter(|(place, _)| places.binary_search(place).is_err());
            self.open = left.map(|(_, call)| call).collect();
        }

        fn answer_all(&mut self) {
            self.answer((0..self.open.len()).collect());
        }
    }

    impl AsyncFunction for Manual {
        fn name(&self) -> &str {
            "fetch"
        }
        fn argument_types(&self) -> &[DataType] {
            &[DataType::Int64]
        }
        fn result_type(&self) -> &DataType {
            &DataType::Utf8
        }
        fn is_nullable(&self) -> bool {
            true
        }
        fn is_ordered(&self) -> bool {
            self.ordered
        }
        fn max_in_flight(&self) -> usize {
            self.limit
        }
        fn start(&self, _subtask: &Subtask) -> Result<Box<dyn AsyncCalls>, OperatorError> {
            Ok(Box::new(ManualCalls { calls: Arc::clone(&self.calls), polls: 0, sent: None }))
        }
    }

    struct ManualCalls {
        calls: Arc<Mutex<Calls>>,
        polls: usize,
        sent: Option<u64>,
    }

    impl AsyncCalls for ManualCalls {
        fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), OperatorError>> {
            self.polls += 1;
            if self.polls.is_multiple_of(5) {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, id: u64, args: &[ArrayRef], row: usize) -> Result<(), OperatorError> {
            let keys = args[0].as_primitive::<Int64Type>();
            let key = keys.iter().nth(row).flatten();
            assert!(Some(id) > self.sent, "ids rise");
            self.sent = Some(id);
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).open.push((id, key));
            Ok(())
        }

        fn poll_results(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(Vec<u64>, ArrayRef), OperatorError>> {
            match self.calls.lock().unwrap_or_else(PoisonError::into_inner).ready.pop_front() {
                Some(results) => Poll::Ready(results),
                None => Poll::Pending,
            }
        }
    }

    fn start(ordered: bool, limit: usize) -> (Driver, Arc<Mutex<Calls>>) {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let function = Arc::new(Manual { ordered, limit, calls: Arc::clone(&calls) });
        let node = AsyncUdf::try_new(&events(), function, vec![0], "reply".into()).unwrap();
        (Driver::new(&node), calls)
    }

    /// Keys and replies.
    fn replies(batch: &RecordBatch) -> Vec<String> {
        lines(&batch.project(&[0, 4]).unwrap())
    }

    fn keys(keys: std::ops::Range<i64>) -> RecordBatch {
        batch_of(&keys.map(|key| event(key, 0, key)).collect::<Vec<_>>())
    }

    #[test]
    fn rows_leave_as_results_come_or_as_they_came() {
        for (ordered, expected) in [(false, ["3|r3", "1|r1", "2|r2"]), (true, ["1|r1", "2|r2", "3|r3"])] {
            let (mut driver, calls) = start(ordered, 10);
            driver.rows(keys(1..4)).unwrap();
            assert_eq!(driver.in_flight(), 3);
            calls.lock().unwrap().answer(vec![2]);
            driver.work().unwrap();
            calls.lock().unwrap().answer(vec![0, 1]);
            driver.work().unwrap();
            let rows = driver.sent_rows();
            assert_eq!(replies(&rows), expected);
            assert_eq!(rows.schema().field(4).name(), "reply");
            assert!(driver.is_settled());
        }
    }

    #[test]
    fn calls_in_flight_are_bounded_and_the_input_waits() {
        let (mut driver, calls) = start(false, 3);
        driver.rows(keys(0..5)).unwrap();
        assert_eq!((driver.in_flight(), driver.accepts_input()), (3, false));
        calls.lock().unwrap().answer(vec![1]);
        driver.work().unwrap();
        assert_eq!((driver.in_flight(), driver.accepts_input()), (3, false), "the fourth row was sent");
        calls.lock().unwrap().answer(vec![0, 1, 2]);
        driver.work().unwrap();
        assert_eq!((driver.in_flight(), driver.accepts_input()), (1, true));
    }

    #[test]
    fn an_ordered_call_runs_ahead_of_a_slow_row_but_not_forever() {
        let (mut driver, calls) = start(true, 2);
        let mut key = 0;
        while driver.accepts_input() {
            driver.rows(keys(key..key + 1)).unwrap();
            key += 1;
            let second = calls.lock().unwrap().open.len() == 2;
            if second {
                calls.lock().unwrap().answer(vec![1]);
                driver.work().unwrap();
            }
        }
        assert_eq!(key, 2 * ORDERED_WINDOW as i64);
        assert!(driver.sent_batches().is_empty());
        calls.lock().unwrap().answer_all();
        driver.work().unwrap();
        assert_eq!(driver.sent_rows().num_rows(), 2 * ORDERED_WINDOW);
    }

    #[test]
    fn a_watermark_follows_all_rows_before_it() {
        for ordered in [false, true] {
            let (mut driver, calls) = start(ordered, 10);
            driver.watermark(Watermark::At(Time(1)));
            assert_eq!(driver.trace(), ["at 1"]);
            driver.rows(keys(0..3)).unwrap();
            driver.watermark(Watermark::At(Time(2)));
            driver.watermark(Watermark::At(Time(3)));
            driver.rows(keys(3..4)).unwrap();
            driver.watermark(Watermark::Idle);
            calls.lock().unwrap().answer(vec![0, 1, 3]);
            driver.work().unwrap();
            driver.pass(LINGER);
            let before = if ordered { "2 rows" } else { "3 rows" };
            assert_eq!(driver.trace(), [before]);
            calls.lock().unwrap().answer_all();
            driver.work().unwrap();
            let after = if ordered { "2 rows" } else { "1 rows" };
            assert_eq!(driver.trace(), [after, "at 3", "idle"]);
        }
    }

    #[test]
    fn results_wait_a_moment_for_company() {
        let (mut driver, calls) = start(false, 100);
        driver.rows(keys(0..10)).unwrap();
        for _ in 0..4 {
            calls.lock().unwrap().answer(vec![0]);
            driver.work().unwrap();
            driver.pass(LINGER / 4 - Duration::from_micros(1));
        }
        assert!(driver.trace().is_empty());
        driver.pass(LINGER / 4);
        assert_eq!(driver.trace(), ["4 rows"]);
    }

    #[test]
    fn a_barrier_waits_for_the_calls_and_then_hurries() {
        let (mut driver, calls) = start(false, 100);
        driver.rows(keys(0..3)).unwrap();
        calls.lock().unwrap().answer(vec![0]);
        driver.work().unwrap();
        assert!(driver.trace().is_empty());
        driver.barrier();
        assert_eq!(driver.trace(), ["1 rows"]);
        assert!(!driver.is_settled());
        calls.lock().unwrap().answer(vec![0]);
        driver.work().unwrap();
        assert_eq!(driver.trace(), ["1 rows"]);
        calls.lock().unwrap().answer_all();
        driver.work().unwrap();
        assert!(driver.is_settled());
    }

    #[test]
    fn full_batches_leave_at_once() {
        let (mut driver, calls) = start(false, 3 * BATCH_ROWS);
        let rows = BATCH_ROWS as i64 + 10;
        driver.rows(keys(0..rows)).unwrap();
        calls.lock().unwrap().answer((0..BATCH_ROWS + 1).collect());
        driver.work().unwrap();
        assert_eq!(driver.trace(), ["8192 rows"]);
    }

    #[test]
    fn failures_and_results_for_nothing_are_errors() {
        let (mut driver, calls) = start(false, 10);
        driver.rows(keys(0..1)).unwrap();
        calls.lock().unwrap().ready.push_back(Err(OperatorError::external("`fetch` took longer than 30 s")));
        assert!(driver.work().unwrap_err().to_string().contains("30 s"));

        let text = || Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
        let number = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
        for (id, result) in [(7, text()), (0, number)] {
            let (mut driver, calls) = start(true, 10);
            driver.rows(keys(0..1)).unwrap();
            calls.lock().unwrap().ready.push_back(Ok((vec![id], result)));
            assert!(driver.work().unwrap_err().to_string().contains("`fetch`"));
        }
        let (mut driver, calls) = start(false, 10);
        driver.rows(keys(0..2)).unwrap();
        calls.lock().unwrap().ready.extend([Ok((vec![1], text())), Ok((vec![1], text()))]);
        assert!(driver.work().is_err(), "a second result for one call");
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let function = || Arc::new(Manual { ordered: false, limit: 1, calls: Arc::default() });
        let refused =
            |args: Vec<usize>| AsyncUdf::try_new(&events(), function(), args, "r".into()).unwrap_err().to_string();
        assert_eq!(refused(vec![]), "`fetch` takes 1 arguments, not 0");
        let text = refused(vec![1]);
        assert!(text.contains("`s`") && text.contains("Int64") && text.contains("Utf8"), "{text}");
        let updating = StreamSchema::new(events().visible().to_vec(), StreamKind::Updating).unwrap();
        assert!(matches!(
            AsyncUdf::try_new(&updating, function(), vec![0], "r".into()),
            Err(NodeError::Updating { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_row_leaves_once_with_its_own_result(
            count in 1..300i64,
            lengths in lengths(),
            limit in 1..40usize,
            ordered in any::<bool>(),
            choices in proptest::collection::vec(any::<usize>(), 1..50),
        ) {
            let all: Vec<i64> = (0..count).collect();
            let (mut driver, calls) = start(ordered, limit);
            let mut choices = choices.iter().cycle();
            let mut answer = |driver: &mut Driver| {
                let mut places: Vec<usize> = (0..calls.lock().unwrap().open.len()).collect();
                prop_assert!(places.len() <= limit);
                // Some of the calls, in some order.
                let factor = *choices.next().unwrap_or(&1);
                places.sort_by_key(|place| place.wrapping_mul(factor) % 97);
                places.truncate(1 + choices.next().unwrap_or(&1) % limit);
                calls.lock().unwrap().answer(places);
                driver.work().unwrap();
                Ok(())
            };
            for run in cut(&all, &lengths) {
                while !driver.accepts_input() {
                    answer(&mut driver)?;
                }
                driver.rows(keys(run[0]..run[0] + run.len() as i64)).unwrap();
            }
            driver.barrier();
            while !driver.is_settled() {
                answer(&mut driver)?;
            }
            let rows = replies(&driver.sent_rows());
            let expected: Vec<_> = all.iter().map(|key| format!("{key}|r{key}")).collect();
            if ordered {
                prop_assert_eq!(rows, expected);
            } else {
                prop_assert_eq!(sorted(rows), sorted(expected));
            }
        }
    }
}
