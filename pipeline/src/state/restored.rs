//! Saved state, as a subtask reads it back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::snapshot::{Staged, StateLogs};
use crate::runtime::hash;

/// What one subtask had saved.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Its values.
    pub values: BTreeMap<String, Value>,
    /// Its tables' rows, in the order in which they were written.
    pub tables: BTreeMap<String, Vec<RecordBatch>>,
    /// What was to be delivered.
    pub staged: Vec<Staged>,
}

/// What a node's subtasks had saved, as one of the node's subtasks of now is given it. The node may have had another
/// number of subtasks then.
#[derive(Debug, Clone)]
pub struct Restored {
    shares: Arc<[Share]>,
    index: usize,
    parallelism: usize,
}

/// A saved value that is not what the operator saves.
#[derive(Debug, thiserror::Error)]
#[error("the saved value `{name}` cannot be read: {source}")]
pub struct ValueError {
    name: &'static str,
    source: serde_json::Error,
}

impl Restored {
    /// For subtask `index` of `parallelism`.
    pub fn new(shares: Arc<[Share]>, index: usize, parallelism: usize) -> Self {
        Self { shares, index, parallelism }
    }

    /// Whether the node has another number of subtasks than it had.
    pub fn is_rescaled(&self) -> bool {
        self.shares.len() != self.parallelism
    }

    /// Which of the node's subtasks this is for, and how many there are.
    pub fn place(&self) -> (usize, usize) {
        (self.index, self.parallelism)
    }

    /// The value `name` of every subtask that had one, in order of their index.
    ///
    /// # Errors
    /// A value of another shape.
    pub fn values<T: DeserializeOwned>(&self, name: &'static str) -> Result<Vec<T>, ValueError> {
        let values = self.shares.iter().filter_map(|share| share.values.get(name));
        let parse = |value: &Value| T::deserialize(value).map_err(|source| ValueError { name, source });
        values.map(parse).collect()
    }

    /// The former subtasks that may have keys of this one.
    pub fn formers(&self) -> impl Iterator<Item = Former<'_>> {
        let own = |index| self.is_rescaled() || index == self.index;
        let shares = self.shares.iter().enumerate().filter(move |(index, _)| own(*index));
        shares.map(|(_, share)| Former { restored: self, share })
    }

    /// The rows of table `name` whose keys, in columns `keys`, belong to this subtask. Where a key has several rows, the last
    /// counts.
    ///
    /// # Errors
    /// Keys that cannot be hashed.
    pub fn keyed(&self, name: &str, keys: &[usize]) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut all = Vec::new();
        for former in self.formers() {
            all.extend(former.keyed(name, keys)?);
        }
        Ok(all)
    }

    fn owned(&self, batch: &RecordBatch, keys: &[usize]) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<&ArrayRef> = keys.iter().filter_map(|key| batch.columns().get(*key)).collect();
        let hashes = hash::hash_columns(columns, batch.num_rows())?;
        let mine = |(row, hash): (u32, u64)| (hash::owner(hash, self.parallelism) == self.index).then_some(row);
        let rows: UInt32Array = (0_u32..).zip(hashes).filter_map(mine).collect::<Vec<_>>().into();
        if rows.len() == batch.num_rows() { Ok(batch.clone()) } else { take_record_batch(batch, &rows) }
    }

    /// The rows of table `name` that fall to this subtask where any subtask may have them: those of whole former subtasks,
    /// in their order.
    pub fn dealt(&self, name: &str) -> Vec<RecordBatch> {
        self.dealt_shares().filter_map(|share| share.tables.get(name)).flatten().cloned().collect()
    }

    /// What this subtask has to deliver.
    pub fn staged(&self) -> Vec<Staged> {
        self.dealt_shares().flat_map(|share| &share.staged).cloned().collect()
    }

    fn dealt_shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter().skip(self.index).step_by(self.parallelism.max(1))
    }

    /// The subtask's logs: where the number of subtasks has changed they are written whole first.
    pub(crate) fn logs(&self) -> StateLogs {
        if self.is_rescaled() {
            return StateLogs::default();
        }
        let Some(share) = self.shares.get(self.index) else { return StateLogs::default() };
        let rows = |batches: &Vec<RecordBatch>| batches.iter().map(|batch| batch.num_rows() as u64).sum();
        StateLogs::carried_on(share.tables.iter().map(|(name, batches)| (name.clone(), rows(batches))).collect())
    }
}

/// What one former subtask had saved that may be of keys of this one.
#[derive(Debug, Clone, Copy)]
pub struct Former<'a> {
    restored: &'a Restored,
    share: &'a Share,
}

impl Former<'_> {
    /// The value `name`, if it had one.
    ///
    /// # Errors
    /// A value of another shape.
    pub fn value<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, ValueError> {
        let value = self.share.values.get(name);
        value.map(|value| T::deserialize(value).map_err(|source| ValueError { name, source })).transpose()
    }

    /// The rows of table `name` whose keys, in columns `keys`, belong to the subtask of now.
    ///
    /// # Errors
    /// Keys that cannot be hashed.
    pub fn keyed(&self, name: &str, keys: &[usize]) -> Result<Vec<RecordBatch>, ArrowError> {
        let Some(batches) = self.share.tables.get(name) else { return Ok(Vec::new()) };
        if !self.restored.is_rescaled() {
            return Ok(batches.clone());
        }
        let owned = batches.iter().map(|batch| self.restored.owned(batch, keys));
        owned.filter(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn share(keys: std::ops::Range<i64>) -> Share {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.clone()));
        let batch = RecordBatch::try_from_iter([("k", column)]).unwrap();
        Share {
            values: [("from".to_owned(), Value::from(keys.start))].into(),
            tables: [("t".to_owned(), vec![batch])].into(),
            staged: Vec::new(),
        }
    }

    fn keys(batches: &[RecordBatch]) -> Vec<i64> {
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    #[test]
    fn each_key_and_each_share_has_one_owner_at_every_parallelism() {
        let shares: Arc<[Share]> = [share(0..100), share(100..200), share(200..300)].into();
        for parallelism in [1, 2, 3, 4, 7] {
            let restored = |index| Restored::new(Arc::clone(&shares), index, parallelism);
            let (mut by_key, mut dealt) = (Vec::new(), Vec::new());
            for index in 0..parallelism {
                by_key.extend(keys(&restored(index).keyed("t", &[0]).unwrap()));
                dealt.extend(keys(&restored(index).dealt("t")));
                assert_eq!(restored(index).values::<i64>("from").unwrap(), [0, 100, 200]);
            }
            for mut found in [by_key, dealt] {
                found.sort_unstable();
                assert_eq!(found, (0..300).collect::<Vec<_>>(), "at parallelism {parallelism}");
            }
        }
    }

    #[test]
    fn a_value_of_another_shape_is_an_error_that_names_it() {
        let restored = Restored::new([share(0..1)].into(), 0, 1);
        let error = restored.values::<String>("from").unwrap_err();
        assert!(error.to_string().contains("`from`"), "{error}");
    }
}
