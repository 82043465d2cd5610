//! The running half: whole columns of numbers, paced by the clock.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Schedule;
use crate::runtime::{OperatorError, Source, SourceContext, SourceEvent, Time};

/// The most rows in a batch.
const MAX_BATCH: u64 = 8192;

/// Rows due within this time go together: no event is later than this, and a high rate makes few batches.
const GATHER: Duration = Duration::from_millis(20);

/// Makes the rows whose counter is `index` modulo `parallelism`.
pub(super) struct ImpulseSource {
    schedule: Schedule,
    index: u64,
    parallelism: u64,
    schema: SchemaRef,
    /// The time of the first call, from which rows are due.
    start: Option<Time>,
    /// Rows made.
    made: u64,
}

impl ImpulseSource {
    pub(super) fn new(schedule: Schedule, index: usize, parallelism: usize, schema: SchemaRef) -> Self {
        Self { schedule, index: index as u64, parallelism: parallelism.max(1) as u64, schema, start: None, made: 0 }
    }

    /// The counter of this subtask's `nth` row; `None` behind the last number there is.
    fn counter(&self, nth: u64) -> Option<u64> {
        nth.checked_mul(self.parallelism)?.checked_add(self.index)
    }

    /// How many rows this subtask makes in all.
    fn total(&self) -> u64 {
        let end = self.schedule.count.unwrap_or(u64::MAX);
        end.saturating_sub(self.index).div_ceil(self.parallelism)
    }

    /// The rows of the next batch, and when the last of them is due; `None` without a rate.
    fn next_batch(&self, start: Time) -> (u64, Option<Time>) {
        let left = self.total() - self.made;
        let Some(rate) = self.schedule.rate else { return (left.min(MAX_BATCH), None) };
        let own_rate = rate / self.parallelism as f64;
        let rows = ((own_rate * GATHER.as_secs_f64()) as u64).clamp(1, MAX_BATCH).min(left);
        let last = self.counter(self.made + rows.saturating_sub(1)).unwrap_or(u64::MAX);
        // From the start, not from the row before: no drift. Behind what a Duration holds, it is never due.
        let due = Duration::try_from_secs_f64(last as f64 / rate).map_or(Time::MAX, |after| start.after(after));
        (rows, Some(due))
    }

    /// Builds the next `rows` rows.
    fn build(&mut self, rows: u64, start: Time, now: Time) -> Result<RecordBatch, OperatorError> {
        let first = self.counter(self.made).unwrap_or(u64::MAX);
        let counters = (0..rows).map(|i| first + i * self.parallelism);
        let times: TimestampNanosecondArray = match self.schedule.interval {
            Some(interval) => {
                let step = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
                let at = |counter: u64| {
                    let offset = step.saturating_mul(i64::try_from(counter).unwrap_or(i64::MAX));
                    start.0.saturating_add(offset)
                };
                counters.clone().map(at).collect::<Vec<_>>().into()
            }
            None => TimestampNanosecondArray::from_value(now.0, rows as usize),
        };
        self.made += rows;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(counters)),
            Arc::new(UInt64Array::from_value(self.index, rows as usize)),
            Arc::new(times),
        ];
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

impl Source for ImpulseSource {
    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            let start = *self.start.get_or_insert_with(|| cx.now());
            let (rows, due) = self.next_batch(start);
            if rows == 0 {
                return Ok(SourceEvent::End);
            }
            if let Some(due) = due {
                cx.clock.sleep_until(due).await;
            }
            // Nothing is awaited from here on: a dropped future has made no row.
            Ok(SourceEvent::Batch(self.build(rows, start, cx.now())?))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{TimestampNanosecondType, UInt64Type};

    use super::*;
    use crate::plan::{StreamKind, StreamSchema};
    use crate::runtime::Clock;

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
}
