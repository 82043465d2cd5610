//! The running half: whole columns of numbers, paced by the clock.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::Schedule;
use crate::runtime::{OperatorError, Source, SourceContext, SourceEvent, Time};
use crate::state::{Restored, Snapshot};

/// The saved value that holds the lanes.
const LANES: &str = "lanes";

/// The most rows in a batch.
const MAX_BATCH: u64 = 8192;

/// Rows due within this time go together: no event is later than this, and a high rate makes few batches.
const GATHER: Duration = Duration::from_millis(20);

/// Every `stride`th number from `next` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lane {
    next: u64,
    stride: u64,
    /// The event time of number 0 where event time steps by an interval, in nanoseconds; set by the first row.
    base: Option<i64>,
}

impl Lane {
    /// The lane's `nth` number from now; `None` behind the last number there is.
    fn nth(&self, nth: u64) -> Option<u64> {
        nth.checked_mul(self.stride)?.checked_add(self.next)
    }

    /// How many numbers below `end` are left.
    fn left(&self, end: u64) -> u64 {
        end.saturating_sub(self.next).div_ceil(self.stride)
    }

    /// The same numbers as `parts` lanes.
    fn split(self, parts: u64) -> impl Iterator<Item = Self> {
        let lane = move |part| Some(Self { next: self.nth(part)?, stride: self.stride.checked_mul(parts)?, ..self });
        (0..parts).filter_map(lane)
    }
}

/// Makes the rows of its lanes, the least number first. At first a subtask has one lane: the numbers that are its index modulo
/// the parallelism. When the number of subtasks changes, lanes are dealt out anew, and split where there are too few.
pub(super) struct ImpulseSource {
    schedule: Schedule,
    index: u64,
    lanes: Vec<Lane>,
    schema: SchemaRef,
    /// When number 0 was, or would have been, due: what was missed while the pipeline was down is not made up for.
    start: Option<Time>,
}

/// The next batch.
struct Due {
    lane: usize,
    rows: u64,
    /// When its last row is due; `None` without a rate.
    at: Option<Time>,
}

impl ImpulseSource {
    pub(super) fn new(schedule: Schedule, index: usize, parallelism: usize, schema: SchemaRef) -> Self {
        let lane = Lane { next: index as u64, stride: parallelism.max(1) as u64, base: None };
        Self { schedule, index: index as u64, lanes: vec![lane], schema, start: None }
    }

    /// The end of all numbers.
    fn end(&self) -> u64 {
        self.schedule.count.unwrap_or(u64::MAX)
    }

    /// How long after number 0 a number is due.
    fn offset(counter: u64, rate: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(counter as f64 / rate).ok()
    }

    /// When number 0 was due, if the next is due now.
    fn begin(&self, now: Time) -> Time {
        let next = self.lanes.iter().map(|lane| lane.next).min().unwrap_or(0);
        // A pipeline that begins has number 0 due now, whichever subtask makes it.
        let made = next.saturating_sub(self.index);
        let passed = self.schedule.rate.and_then(|rate| Self::offset(made, rate));
        now.before(passed.unwrap_or_default())
    }

    /// What is made next; `None` when all is.
    fn next_batch(&self, start: Time) -> Option<Due> {
        let open = self.lanes.iter().enumerate().filter(|(_, lane)| lane.left(self.end()) > 0);
        let (at, lane) = open.min_by_key(|(_, lane)| lane.next)?;
        let left = lane.left(self.end());
        let Some(rate) = self.schedule.rate else { return Some(Due { lane: at, rows: left.min(MAX_BATCH), at: None }) };
        let own_rate = rate / lane.stride as f64;
        let rows = ((own_rate * GATHER.as_secs_f64()) as u64).clamp(1, MAX_BATCH).min(left);
        let last = lane.nth(rows - 1).unwrap_or(u64::MAX);
        // From the start, not from the row before: no drift. Behind what a Duration holds, it is never due.
        let due = Self::offset(last, rate).map_or(Time::MAX, |after| start.after(after));
        Some(Due { lane: at, rows, at: Some(due) })
    }

    /// Builds the next `rows` rows of a lane.
    fn build(&mut self, due: &Due, start: Time, now: Time) -> Result<RecordBatch, OperatorError> {
        let missing = || OperatorError::internal("a lane of numbers is missing");
        let lane = self.lanes.get_mut(due.lane).ok_or_else(missing)?;
        let (first, stride, rows) = (lane.next, lane.stride, due.rows);
        let counters = (0..rows).map(|i| first + i * stride);
        let times: TimestampNanosecondArray = match self.schedule.interval {
            Some(interval) => {
                let base = *lane.base.get_or_insert(start.0);
                let step = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
                let at = |counter: u64| {
                    let offset = step.saturating_mul(i64::try_from(counter).unwrap_or(i64::MAX));
                    base.saturating_add(offset)
                };
                counters.clone().map(at).collect::<Vec<_>>().into()
            }
            None => TimestampNanosecondArray::from_value(now.0, rows as usize),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(counters)),
            Arc::new(UInt64Array::from_value(self.index, rows as usize)),
            Arc::new(times),
        ];
        lane.next = lane.nth(rows).unwrap_or(u64::MAX);
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

impl Source for ImpulseSource {
    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            let start = match self.start {
                Some(start) => start,
                None => *self.start.insert(self.begin(cx.now())),
            };
            let Some(due) = self.next_batch(start) else { return Ok(SourceEvent::End) };
            if let Some(at) = due.at {
                cx.clock.sleep_until(at).await;
            }
            // Nothing is awaited from here on: a dropped future has made no row.
            Ok(SourceEvent::Batch(self.build(&due, start, cx.now())?))
        }
        .boxed()
    }

    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        let lanes: Vec<Lane> = state.values::<Vec<Lane>>(LANES)?.into_iter().flatten().collect();
        let (index, parallelism) = state.place();
        let parts = if lanes.len() < parallelism { parallelism.div_ceil(lanes.len().max(1)) } else { 1 };
        let all = lanes.into_iter().flat_map(|lane| lane.split(parts as u64));
        self.lanes = all.skip(index).step_by(parallelism).collect();
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        snapshot.value(LANES, serde_json::json!(self.lanes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{TimestampNanosecondType, UInt64Type};

    use super::*;
    use crate::plan::{StreamKind, StreamSchema};
    use crate::runtime::Clock;
    use crate::state::{Share, StateLogs};

    fn source(schedule: Schedule, index: usize, parallelism: usize) -> ImpulseSource {
        let schema = StreamSchema::new(super::super::columns(), StreamKind::Append).unwrap();
        ImpulseSource::new(schedule, index, parallelism, Arc::clone(schema.schema()))
    }

    /// (counter, event time) of every row, and the batches' sizes.
    async fn drain(mut source: ImpulseSource, clock: Clock) -> (Vec<(u64, i64)>, Vec<usize>) {
        let cx = SourceContext { clock };
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        while let SourceEvent::Batch(batch) = source.next(&cx).await.unwrap() {
            let counters = batch.column(0).as_primitive::<UInt64Type>().values();
            let times = batch.column(2).as_primitive::<TimestampNanosecondType>().values();
            rows.extend(counters.iter().copied().zip(times.iter().copied()));
            sizes.push(batch.num_rows());
        }
        (rows, sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn every_number_comes_once_at_any_parallelism() {
        for parallelism in [1, 3, 7] {
            let schedule = Schedule { rate: None, interval: None, count: Some(20_000) };
            let mut counters = Vec::new();
            for index in 0..parallelism {
                let (rows, sizes) = drain(source(schedule, index, parallelism), Clock::simulated(Time(0))).await;
                assert!(sizes.iter().all(|size| *size as u64 <= MAX_BATCH));
                counters.extend(rows.into_iter().map(|(counter, _)| counter));
            }
            counters.sort_unstable();
            assert!(counters.into_iter().eq(0..20_000), "parallelism {parallelism}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_low_rate_comes_row_by_row_on_time() {
        let clock = Clock::simulated(Time(5_000_000_000));
        let schedule = Schedule { rate: Some(10.0), interval: None, count: Some(100) };
        let (rows, _) = drain(source(schedule, 0, 1), clock).await;
        for (counter, time) in rows {
            let due = 5_000_000_000 + counter as i64 * 100_000_000;
            // Tokio's timers are a millisecond coarse; the error does not add up.
            assert!((due..=due + 1_000_000).contains(&time), "row {counter} at {time}, due {due}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_high_rate_comes_in_batches_and_takes_its_time() {
        let clock = Clock::simulated(Time(0));
        let schedule = Schedule { rate: Some(100_000.0), interval: None, count: Some(500_000) };
        let (rows, sizes) = drain(source(schedule, 1, 2), clock).await;
        assert_eq!(rows.len(), 250_000);
        assert!(sizes.len() <= 251, "{} batches", sizes.len());
        let took = clock.now().since(Time(0));
        assert!((Duration::from_millis(4_999)..Duration::from_millis(5_010)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn event_time_steps_by_the_interval_whatever_the_rate() {
        let interval = Some(Duration::from_micros(250));
        let schedule = Schedule { rate: Some(3.0), interval, count: Some(7) };
        let (rows, _) = drain(source(schedule, 1, 2), Clock::simulated(Time(1_000))).await;
        assert_eq!(rows, [(1, 251_000), (3, 751_000), (5, 1_251_000)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_loses_and_doubles_nothing() {
        let cx = SourceContext { clock: Clock::simulated(Time(0)) };
        let schedule = Schedule { rate: Some(1.0), interval: None, count: Some(3) };
        let mut source = source(schedule, 0, 1);
        let mut counters = Vec::new();
        loop {
            let wait = tokio::time::timeout(Duration::from_millis(300), source.next(&cx));
            match wait.await {
                Err(_) => continue,
                Ok(Ok(SourceEvent::Batch(batch))) => {
                    counters.extend_from_slice(batch.column(0).as_primitive::<UInt64Type>().values());
                }
                Ok(_) => break,
            }
        }
        assert_eq!(counters, [0, 1, 2]);
    }

    /// Saves `sources` and gives what they saved to `parallelism` new ones.
    fn rescaled(sources: &mut [ImpulseSource], schedule: Schedule, parallelism: usize) -> Vec<ImpulseSource> {
        let share = |source: &mut ImpulseSource| {
            let mut logs = StateLogs::default();
            let mut snapshot = logs.snapshot();
            source.snapshot(&mut snapshot).unwrap();
            Share { values: snapshot.finish().values, ..Share::default() }
        };
        let shares: Arc<[Share]> = sources.iter_mut().map(share).collect();
        let restored = |index| {
            let mut source = source(schedule, index, parallelism);
            source.restore(&Restored::new(Arc::clone(&shares), index, parallelism)).unwrap();
            source
        };
        (0..parallelism).map(restored).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn every_number_comes_once_though_the_parallelism_changes() {
        let interval = Some(Duration::from_nanos(1));
        let schedule = Schedule { rate: None, interval, count: Some(200_000) };
        let cx = SourceContext { clock: Clock::simulated(Time(7)) };
        let mut seen: Vec<(u64, i64)> = Vec::new();
        let mut sources: Vec<_> = (0..2).map(|index| source(schedule, index, 2)).collect();
        for (round, parallelism) in [3, 1, 4, 4, 2, 5].into_iter().enumerate() {
            for (index, source) in sources.iter_mut().enumerate() {
                // Not all have come equally far.
                for _ in 0..(index + round) % 3 {
                    let SourceEvent::Batch(batch) = source.next(&cx).await.unwrap() else { continue };
                    let counters = batch.column(0).as_primitive::<UInt64Type>().values();
                    let times = batch.column(2).as_primitive::<TimestampNanosecondType>().values();
                    seen.extend(counters.iter().copied().zip(times.iter().copied()));
                }
            }
            tokio::time::advance(Duration::from_secs(60)).await;
            sources = rescaled(&mut sources, schedule, parallelism);
        }
        for source in sources {
            seen.extend(drain(source, cx.clock).await.0);
        }
        seen.sort_unstable();
        assert!(seen.iter().map(|(counter, _)| *counter).eq(0..200_000));
        let continued = seen.iter().filter(|(counter, time)| *time == 7 + *counter as i64).count();
        assert!(continued > 0, "event time goes on from where it began");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_is_not_made_up_for() {
        let clock = Clock::simulated(Time(0));
        let cx = SourceContext { clock };
        let schedule = Schedule { rate: Some(10.0), interval: None, count: Some(20) };
        let mut sources = vec![source(schedule, 0, 1)];
        for _ in 0..10 {
            sources[0].next(&cx).await.unwrap();
        }
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let back = clock.now();
        let (rows, _) = drain(rescaled(&mut sources, schedule, 1).remove(0), clock).await;
        assert_eq!(rows.iter().map(|(counter, _)| *counter).collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
        assert!(rows[0].1 >= back.0 && clock.now().since(back) >= Duration::from_millis(890), "at its rate, from now");
    }
}
