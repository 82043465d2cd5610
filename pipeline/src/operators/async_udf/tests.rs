//! Order, limits, barriers and failures of the operator, with a function whose calls return when a test says so.

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
fn a_call_takes_from_when_it_is_sent_to_its_result() {
    let (mut driver, calls) = start(false, 1);
    let begin = driver.now;
    driver.rows(keys(0..2)).unwrap();
    for seconds in [2, 5] {
        driver.now = begin.after(Duration::from_secs(seconds));
        calls.lock().unwrap().answer(vec![0]);
        driver.work().unwrap();
    }
    assert_eq!(driver.calls, [2, 3].map(Duration::from_secs), "the second call waited for the first");
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
    assert!(matches!(AsyncUdf::try_new(&updating, function(), vec![0], "r".into()), Err(NodeError::Updating { .. })));
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
