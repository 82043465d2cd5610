//! What a subtask hands over at a barrier.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde_json::Value;

/// A log is written anew when it has more rows than twice those that count, and this many.
const SLACK_ROWS: u64 = 65_536;

/// Which rows of a table are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Those that were written or changed since the last snapshot.
    Changes,
    /// All.
    Everything,
}

/// The state of one subtask at the end of an epoch, as far as it differs from the epoch before.
#[derive(Debug, Clone, Default)]
pub struct SubtaskSnapshot {
    /// All values.
    pub values: BTreeMap<String, Value>,
    /// The tables that have changed.
    pub tables: BTreeMap<String, TableChange>,
    /// All that is to be delivered when the checkpoint is complete.
    pub staged: Vec<Staged>,
}

/// What has become of a table.
#[derive(Debug, Clone)]
pub struct TableChange {
    /// Whether all rows written before are void.
    pub replaces: bool,
    /// Rows, all of one schema.
    pub batches: Vec<RecordBatch>,
}

/// A piece of what a sink delivers when the checkpoint is complete.
#[derive(Debug, Clone)]
pub struct Staged {
    /// What the sink needs to know of it.
    pub about: Value,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Keeps, for one subtask, how long its tables' logs have become.
#[derive(Debug, Default)]
pub struct StateLogs {
    rows: BTreeMap<String, u64>,
}

impl StateLogs {
    /// Logs that go on from a checkpoint, in which they had so many rows. A table that is not in it is written whole first.
    pub fn carried_on(rows: BTreeMap<String, u64>) -> Self {
        Self { rows }
    }

    /// Begins a snapshot.
    pub fn snapshot(&mut self) -> Snapshot<'_> {
        Snapshot { logs: self, taken: SubtaskSnapshot::default() }
    }
}

/// A snapshot that is being taken.
#[derive(Debug)]
pub struct Snapshot<'a> {
    logs: &'a mut StateLogs,
    taken: SubtaskSnapshot,
}

impl Snapshot<'_> {
    /// Saves a small value. It is written with every checkpoint.
    pub fn value(&mut self, name: &'static str, value: impl Into<Value>) {
        self.taken.values.insert(name.to_owned(), value.into());
    }

    /// Saves a table of `live` rows as a log: `write` gives the rows that have changed since the last snapshot, or all of
    /// them when the log has become too long. Its batches have one schema, which stays the same.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn log<E>(
        &mut self,
        name: &'static str,
        live: usize,
        write: impl FnOnce(Part) -> Result<Vec<RecordBatch>, E>,
    ) -> Result<(), E> {
        let live = live as u64;
        let logged = self.logs.rows.get(name).copied();
        let part = match logged {
            Some(logged) if logged <= 2 * live + SLACK_ROWS => Part::Changes,
            _ => Part::Everything,
        };
        let batches = write(part)?;
        let written: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let replaces = part == Part::Everything;
        self.logs.rows.insert(name.to_owned(), if replaces { written } else { logged.unwrap_or(0) + written });
        if replaces || written > 0 {
            self.taken.tables.insert(name.to_owned(), TableChange { replaces, batches });
        }
        Ok(())
    }

    /// Saves rows that are written whole with every checkpoint, all of one schema.
    pub fn rows(&mut self, name: &'static str, batches: Vec<RecordBatch>) {
        self.taken.tables.insert(name.to_owned(), TableChange { replaces: true, batches });
    }

    /// Keeps `bytes` with the checkpoint, to be delivered when it is complete.
    pub fn stage(&mut self, about: Value, bytes: Bytes) {
        self.taken.staged.push(Staged { about, bytes });
    }

    /// What was saved.
    pub fn finish(self) -> SubtaskSnapshot {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn rows(count: usize) -> Vec<RecordBatch> {
        let column: ArrayRef = Arc::new(Int64Array::from_value(1, count));
        vec![RecordBatch::try_from_iter([("k", column)]).unwrap()]
    }

    fn part(logs: &mut StateLogs, live: usize, written: usize) -> Part {
        let mut snapshot = logs.snapshot();
        let mut asked = None;
        let write = |part| -> Result<_, Infallible> {
            asked = Some(part);
            Ok(rows(written))
        };
        let Ok(()) = snapshot.log("t", live, write);
        let change = snapshot.finish().tables.remove("t").unwrap();
        assert_eq!(change.replaces, asked == Some(Part::Everything));
        asked.unwrap()
    }

    #[test]
    fn a_log_is_written_whole_at_first_and_when_it_is_mostly_void() {
        let mut logs = StateLogs::default();
        assert_eq!(part(&mut logs, 50_000, 50_000), Part::Everything);
        for _ in 0..3 {
            assert_eq!(part(&mut logs, 50_000, 40_000), Part::Changes);
        }
        assert_eq!(part(&mut logs, 50_000, 50_000), Part::Everything, "170,000 rows for 50,000");
        assert_eq!(part(&mut logs, 50_000, 10), Part::Changes);
    }

    #[test]
    fn a_log_is_carried_on() {
        let mut logs = StateLogs::carried_on([("t".to_owned(), 1_000)].into());
        assert_eq!(part(&mut logs, 1_000, 1), Part::Changes);
        assert_eq!(part(&mut StateLogs::carried_on([("t".to_owned(), 200_000)].into()), 1, 1), Part::Everything);
    }

    #[test]
    fn a_table_that_has_not_changed_is_not_written() {
        let mut logs = StateLogs::carried_on([("t".to_owned(), 1)].into());
        let mut snapshot = logs.snapshot();
        let Ok(()) = snapshot.log("t", 1, |_| Ok::<_, Infallible>(Vec::new()));
        assert!(snapshot.finish().tables.is_empty());
    }
}
