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
    AsyncCalls, AsyncFunction, Barrier, Body, Context, Operator, OperatorError, Stage, Subtask, Time, Watermark,
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
    /// Called at that time.
    InFlight(Time),
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
    fn send_more(&mut self, now: Time, task: &mut task::Context<'_>) -> Result<usize, OperatorError> {
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
            self.rows.push_back(Row::InFlight(now));
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
            let open = row.and_then(|row| match *row {
                Row::InFlight(called) => Some((row, called)),
                _ => None,
            });
            let Some((row, called)) = open else {
                return Err(OperatorError::internal(format!("`{name}` returned a result for no call in flight")));
            };
            *row = Row::Answered(Arc::clone(results), answer);
            cx.record_call(cx.now().since(called));
            self.in_flight -= 1;
            if !function.is_ordered() {
                self.gather(*id, cx)?;
            }
        }
        while let Some(row) = self.rows.front() {
            match row {
                Row::InFlight(_) => break,
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
        let sent = if cx.is_blocked() { 0 } else { self.send_more(cx.now(), task)? };
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
mod tests;
