//! A running instance of an async UDF.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::UInt64Type;
use tokio::time::Sleep;

use super::abi::{AsyncEntry, DrainResult, FfiArrays, Handle};
use super::bell::Bell;
use super::calls::{Answers, Calls};
use super::feeder::Dead;
use super::library::{check_arguments, wrong_result};
use super::row::{self, Ring};
use super::{Udf, UdfError, UdfKind};

/// Results are fetched at most this often, so that many come at once when there are many.
const DRAIN_INTERVAL: Duration = Duration::from_millis(1);
/// A call that has ended hands in its result within microseconds; after this time without one the instance is dead.
const RESULT_GRACE: Duration = Duration::from_secs(1);
/// How long after its timeout a call may be silent: the library ends the instance at the timeout itself, unless its
/// thread is blocked.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// Timeouts longer than this are as good as none; clocks can still add it.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// One instance of an async UDF: a thread of the library's, with a runtime of its own, that makes calls.
///
/// One task uses it: it waits for [`AsyncUdf::poll_ready`], calls [`AsyncUdf::send`] per row, and takes results with
/// [`AsyncUdf::poll_drain`], which it must poll before it waits, whether it has rows to send or not. At the limit of
/// calls under way the instance is ready again only after a drain.
///
/// Nothing is lost when a future of [`AsyncUdf::ready`] or [`AsyncUdf::drain`] is dropped. After an error every method
/// fails. Dropping the instance ends its thread; calls under way are cancelled.
///
/// Must be polled within a Tokio runtime with time enabled.
pub struct AsyncUdf {
    udf: Arc<Udf>,
    entry: AsyncEntry,
    handle: Handle,
    bell: Arc<Bell>,
    calls: Calls,
    max_in_flight: usize,
    timeout: Duration,
    /// Reused to take the ended calls from the bell.
    ended: Vec<u32>,
    drained_at: Instant,
    /// When a result last came, or a call was made while there was none.
    progress_at: Instant,
    /// Since when a due result is missing.
    missing_since: Option<Instant>,
    timer: Timer,
    /// Why it no longer runs, and with how many calls.
    stopped: Option<(String, usize)>,
}

/// Results of an async UDF.
#[derive(Debug)]
pub struct Finished {
    /// The ids given to [`AsyncUdf::send`].
    pub ids: Vec<u64>,
    /// Their results, in the order of `ids`, of the UDF's result type.
    pub results: ArrayRef,
}

impl AsyncUdf {
    pub(super) fn start(udf: Arc<Udf>) -> Result<Self, UdfError> {
        let (UdfKind::Async { ordered, max_in_flight, timeout }, Some(entry)) =
            (udf.spec().kind, udf.library().async_entry())
        else {
            return Err(UdfError::Misuse { name: udf.spec().name.clone(), message: "is not async" });
        };
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        let allowed = u32::try_from(max_in_flight).unwrap_or(u32::MAX);
        // SAFETY: the entry point is called as the plugin declares it.
        let handle = unsafe { (entry.start)(ordered, micros, allowed) };
        let now = Instant::now();
        Ok(Self {
            udf,
            entry,
            handle,
            bell: Bell::new(Some((entry, handle))),
            calls: Calls::new(ordered),
            max_in_flight,
            timeout: timeout.min(LONGEST_TIMEOUT),
            ended: Vec::new(),
            drained_at: now,
            progress_at: now,
            missing_since: None,
            timer: Timer::default(),
            stopped: None,
        })
    }

    /// The UDF.
    pub fn udf(&self) -> &Arc<Udf> {
        &self.udf
    }

    /// Calls under way: sent, and their results not yet taken.
    pub fn in_flight(&self) -> usize {
        self.calls.under_way()
    }

    /// Waits until a row can be sent. At the limit of calls under way that takes a drain.
    ///
    /// # Errors
    /// The instance has stopped.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UdfError>> {
        self.check_running()?;
        let has_place = self.hand_over(cx)?;
        if has_place && self.calls.under_way() < self.max_in_flight { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Calls the UDF with row `row` of the columns `args`. The result comes under `id`. NULL for an argument that is
    /// not nullable gives NULL without a call.
    ///
    /// # Errors
    /// The columns are not of the UDF's types, there is no such row, the instance is not ready, or has stopped.
    pub fn send(&mut self, id: u64, args: &[ArrayRef], row: usize) -> Result<(), UdfError> {
        self.check_running()?;
        if self.calls.under_way() >= self.max_in_flight {
            return Err(self.misuse("was called before it was ready"));
        }
        if args.iter().any(|column| row >= column.len()) {
            return Err(self.misuse("was called with a row that is not there"));
        }
        let spec = self.udf.spec();
        check_arguments(spec, args)?;
        if args.iter().zip(&spec.args).any(|(column, arg)| !arg.nullable && column.is_null(row)) {
            self.calls.answer_null(id);
            return Ok(());
        }
        if self.calls.under_way() == 0 {
            self.progress_at = Instant::now();
        }
        let slot = self.calls.begin(id);
        let mut ring = Some(Ring::new(&self.bell, slot));
        let columns = if args.is_empty() {
            FfiArrays::export(ring.take().map(row::export_ring).into_iter())
        } else {
            // Checked above: there is a column for each argument.
            let columns = args.iter().zip(&spec.args);
            FfiArrays::export_some(
                args.len(),
                columns.filter_map(|(column, arg)| row::export(column, &arg.data_type, row, ring.take())),
            )
        };
        self.bell.feeder().push(&self.bell, slot, columns);
        Ok(())
    }

    /// Waits for results. Pending while no call is under way.
    ///
    /// # Errors
    /// The instance has stopped: a call panicked or outlived the UDF's timeout, or blocks the instance's thread.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<Finished, UdfError>> {
        self.check_running()?;
        self.hand_over(cx)?;
        loop {
            if self.calls.null_is_due() {
                return Poll::Ready(self.finish(&[], None));
            }
            if !self.result_is_due(cx) {
                if self.calls.under_way() == 0 {
                    return Poll::Pending;
                }
                let silent_until = self.progress_at + self.timeout + TIMEOUT_GRACE;
                if Instant::now() >= silent_until {
                    let reason = format!(
                        "no call has ended in {:?}, longer than the UDF's timeout; it seems to block its thread",
                        self.progress_at.elapsed()
                    );
                    return Poll::Ready(Err(self.stop(reason)));
                }
                if self.timer.poll(silent_until, cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            let next = self.drained_at + DRAIN_INTERVAL;
            if Instant::now() < next {
                if self.timer.poll(next, cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if let Some(outcome) = self.drain_now() {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Waits until a row can be sent, see [`AsyncUdf::poll_ready`].
    pub async fn ready(&mut self) -> Result<(), UdfError> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Waits for results, see [`AsyncUdf::poll_drain`].
    pub async fn drain(&mut self) -> Result<Finished, UdfError> {
        poll_fn(|cx| self.poll_drain(cx)).await
    }

    /// Sees to the rows that the library has not taken yet. Whether another one may be sent; if not, the task will be woken.
    fn hand_over(&mut self, cx: &mut Context<'_>) -> Result<bool, UdfError> {
        self.bell.register(cx.waker());
        self.bell.feeder().has_place(&self.bell).map_err(|Dead| self.died())
    }

    /// Whether the library must have a result; if not, the task will be woken when it has.
    fn result_is_due(&mut self, cx: &mut Context<'_>) -> bool {
        self.note_ended();
        if self.calls.result_is_due() {
            return true;
        }
        self.bell.listen(cx.waker());
        self.note_ended();
        self.calls.result_is_due()
    }

    fn note_ended(&mut self) {
        self.bell.take_ended(&mut self.ended);
        for slot in self.ended.drain(..) {
            self.calls.ended(slot);
        }
    }

    /// Takes what the library has. None if it has nothing yet although a result is due.
    fn drain_now(&mut self) -> Option<Result<Finished, UdfError>> {
        let now = Instant::now();
        self.drained_at = now;
        // SAFETY: the handle lives until the instance is dropped.
        match unsafe { (self.entry.drain)(self.handle) } {
            DrainResult::Data(columns) => {
                (self.progress_at, self.missing_since) = (now, None);
                // Their calls ended before they came: seen now, the slots can be given out again.
                self.note_ended();
                // SAFETY: the columns come from the library.
                let columns = unsafe { columns.import() };
                Some(columns.map_err(|error| wrong_result(self.udf.spec(), 1, error)).and_then(|c| self.take(&c)))
            }
            DrainResult::None => {
                let missing = now - *self.missing_since.get_or_insert(now);
                (missing >= RESULT_GRACE).then(|| Err(self.died()))
            }
            DrainResult::Error => {
                let reason = format!("a call took longer than the UDF's timeout of {:?}", self.timeout);
                Some(Err(self.stop(reason)))
            }
        }
    }

    /// Takes the library's columns of slots and results.
    fn take(&mut self, columns: &[ArrayRef]) -> Result<Finished, UdfError> {
        let spec = self.udf.spec();
        let [slots, results] = columns else {
            return Err(wrong_result(spec, 1, format!("{} columns", columns.len())));
        };
        let Some(slots) = slots.as_primitive_opt::<UInt64Type>().filter(|slots| slots.len() == results.len()) else {
            return Err(wrong_result(spec, results.len(), format!("{} ids of {}", slots.len(), slots.data_type())));
        };
        if results.data_type() != &spec.result {
            return Err(wrong_result(spec, results.len(), results.data_type()));
        }
        self.finish(slots.values(), Some(results))
    }

    /// Joins the library's results with the answers that needed no call.
    fn finish(&mut self, slots: &[u64], results: Option<&ArrayRef>) -> Result<Finished, UdfError> {
        let Some(Answers { ids, rows }) = self.calls.finish(slots) else {
            return Err(self.stop("it answered a call that was not made, or out of order".to_owned()));
        };
        let results = match results {
            None => new_null_array(&self.udf.spec().result, ids.len()),
            Some(results) if ids.len() == slots.len() => Arc::clone(results),
            Some(results) => take(results, &UInt32Array::from(rows), None)
                .map_err(|error| wrong_result(self.udf.spec(), ids.len(), error))?,
        };
        Ok(Finished { ids, results })
    }

    fn check_running(&self) -> Result<(), UdfError> {
        match &self.stopped {
            None => Ok(()),
            Some((reason, lost)) => {
                Err(UdfError::Stopped { name: self.udf.spec().name.clone(), lost: *lost, reason: reason.clone() })
            }
        }
    }

    /// The instance's thread is gone.
    fn died(&mut self) -> UdfError {
        self.stop("a call panicked; its message is on standard error".to_owned())
    }

    fn stop(&mut self, reason: String) -> UdfError {
        let lost = self.calls.under_way();
        self.stopped = Some((reason.clone(), lost));
        UdfError::Stopped { name: self.udf.spec().name.clone(), lost, reason }
    }

    fn misuse(&self, message: &'static str) -> UdfError {
        UdfError::Misuse { name: self.udf.spec().name.clone(), message }
    }
}

impl Drop for AsyncUdf {
    fn drop(&mut self) {
        if let Some(handle) = self.bell.feeder().close() {
            // SAFETY: the handle is not used again. The library's thread ends by itself.
            unsafe { (self.entry.stop)(handle) };
        }
    }
}

impl std::fmt::Debug for AsyncUdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncUdf")
            .field("name", &self.udf.spec().name)
            .field("in_flight", &self.in_flight())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// Wakes the task at a moment, or earlier.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// The moment it is set to, None once it has passed.
    set: Option<Instant>,
}

impl Timer {
    /// Ready at `moment`. May be ready early: look at the clock again.
    fn poll(&mut self, moment: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
        if self.set.is_none_or(|set| set > moment) {
            let wait = moment.saturating_duration_since(Instant::now());
            sleep.as_mut().reset(tokio::time::Instant::now() + wait);
            self.set = Some(moment);
        }
        let outcome = sleep.as_mut().poll(cx);
        if outcome.is_ready() {
            self.set = None;
        }
        outcome
    }
}
