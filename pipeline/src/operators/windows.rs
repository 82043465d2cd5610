//! Tumbling windows, and the rows of a batch cut by them.

use std::time::Duration;

use arrow::array::{AsArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::NodeError;

/// Windows of equal width that follow each other without a gap, at multiples of their width since the Unix epoch. A window
/// is named by its start, in nanoseconds since then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    width: i64,
}

impl Windows {
    /// Windows of `width` for a node of kind `node`.
    ///
    /// # Errors
    /// A width of zero, or one that does not fit into 64 bits of nanoseconds.
    pub(super) fn try_new(node: &'static str, width: Duration) -> Result<Self, NodeError> {
        match i64::try_from(width.as_nanos()) {
            Ok(width) if width > 0 => Ok(Self { width }),
            _ => Err(NodeError::Duration { node, what: "window width" }),
        }
    }

    pub(super) fn width(self) -> Duration {
        Duration::from_nanos(self.width.unsigned_abs())
    }

    /// The start of the window that `time` falls into.
    pub(super) fn start(self, time: i64) -> i64 {
        time.div_euclid(self.width).saturating_mul(self.width)
    }

    /// The end of the window that begins at `start`: the first moment that is not in it, or the greatest that there is.
    pub(super) fn end(self, start: i64) -> i64 {
        i64::try_from(self.next(start)).unwrap_or(i64::MAX)
    }

    /// The last moment in the window that begins at `start`.
    pub(super) fn last(self, start: i64) -> i64 {
        i64::try_from(self.next(start) - 1).unwrap_or(i64::MAX)
    }

    /// The start of the window behind the one that begins at `start`, which may be past the greatest time. (The first window
    /// of all begins before the least time, which stands for its start.)
    fn next(self, start: i64) -> i128 {
        (i128::from(start.div_euclid(self.width)) + 1) * i128::from(self.width)
    }

    /// The rows of `batch` by the windows that their times, in column `timestamp`, fall into: each window once, the rows of
    /// one in their order. A batch of one window is not copied.
    pub(super) fn cut(self, batch: RecordBatch, timestamp: usize) -> Result<Vec<(i64, RecordBatch)>, ArrowError> {
        let times = batch.column(timestamp).as_primitive::<TimestampNanosecondType>().values().clone();
        let (earliest, latest) = times.iter().fold((i64::MAX, i64::MIN), |(a, b), t| (a.min(*t), b.max(*t)));
        let first = self.start(earliest);
        if first == self.start(latest) {
            return Ok(vec![(first, batch)]);
        }
        let mut starts: Vec<i64> = times.iter().map(|time| self.start(*time)).collect();
        let mut batch = batch;
        if !starts.is_sorted() {
            let mut order: Vec<u32> = (0..starts.len() as u32).collect();
            order.sort_by_key(|row| starts.get(*row as usize).copied());
            batch = take_record_batch(&batch, &UInt32Array::from(order))?;
            starts.sort_unstable();
        }
        let mut offset = 0;
        let run = |run: &[i64]| {
            let rows = batch.slice(offset, run.len());
            offset += run.len();
            run.first().map(|start| (*start, rows))
        };
        Ok(starts.chunk_by(|a, b| a == b).filter_map(run).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_at_the_ends_of_time_are_windows_too() {
        for width in [Duration::from_nanos(1), Duration::from_nanos(7), Duration::from_secs(86_400)] {
            let windows = Windows::try_new("test", width).unwrap();
            for time in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX] {
                let start = windows.start(time);
                assert!(start <= time && time <= windows.last(start), "{time} in a window of {width:?}");
                assert_eq!(windows.start(windows.last(start)), start);
                let end = windows.end(start);
                assert!(end == i64::MAX || (windows.start(end) == end && windows.last(start) < end));
            }
        }
    }
}
