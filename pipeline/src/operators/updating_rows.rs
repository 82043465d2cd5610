//! The rows of an updating aggregate, and how changes become retractions and new rows.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, TimestampNanosecondArray, UInt32Array, UInt64Array, make_comparator,
};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{SortOptions, interleave, take};
use arrow::datatypes::{Field, FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::aggregate::{Aggregation, Functions};
use crate::runtime::{OperatorError, Time};
use crate::state::{KeyedTable, Restored, Snapshot, Stored};

/// The saved table: keys, the functions' states, unstable values, time of last touch.
const ROWS: &str = "rows";

/// What has happened to some keys: one row per key.
pub(super) struct Changes {
    pub(super) keys: Vec<ArrayRef>,
    /// The functions' states over the keys' new rows alone.
    pub(super) states: Vec<ArrayRef>,
    /// The latest event time of the keys' new rows.
    pub(super) latest: TimestampNanosecondArray,
}

impl Changes {
    pub(super) fn len(&self) -> usize {
        self.latest.len()
    }

    pub(super) fn slice(&self, offset: usize, len: usize) -> Self {
        let slice = |columns: &[ArrayRef]| columns.iter().map(|column| column.slice(offset, len)).collect();
        Self { keys: slice(&self.keys), states: slice(&self.states), latest: self.latest.slice(offset, len) }
    }
}

/// The state of every key.
///
/// The table has the functions' states. A function whose value may come out differently when it is evaluated again (the
/// order of a set) has its value beside them, since a retraction must be equal to the row it withdraws; the others'
/// old values are computed from their old states.
pub(super) struct UpdatingRows {
    table: KeyedTable,
    functions: Arc<Functions>,
    /// How many columns the states have.
    states: usize,
    /// The functions whose values are stored.
    unstable: Vec<usize>,
    output: SchemaRef,
}

impl UpdatingRows {
    pub(super) fn try_new(
        aggregation: &Aggregation,
        functions: Arc<Functions>,
        output: SchemaRef,
    ) -> Result<Self, OperatorError> {
        let unstable = functions.unstable();
        let mut values: Vec<FieldRef> = functions.state_fields().cloned().collect();
        let states = values.len();
        for position in &unstable {
            if let Some(call) = aggregation.calls.get(*position) {
                values.push(Arc::new(Field::clone(&call.expr.field()).with_nullable(true)));
            }
        }
        let table = KeyedTable::try_new(aggregation.keys.clone(), &values)?;
        Ok(Self { table, functions, states, unstable, output })
    }

    /// Forgets the keys that were last touched before `moment`.
    pub(super) fn expire(&mut self, moment: Time) -> Result<(), OperatorError> {
        self.table.expire(moment)?;
        Ok(())
    }

    /// Saves the rows that have changed since the last snapshot.
    pub(super) fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        Ok(snapshot.log(ROWS, self.table.len(), |part| self.table.save(part))?)
    }

    /// Takes back the saved rows of the keys that belong here.
    pub(super) fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        let keys: Vec<usize> = (0..self.table.key_columns()).collect();
        Ok(self.table.restore(state.keyed(ROWS, &keys)?)?)
    }

    /// Merges `changes` into the rows of their keys, as touched at `watermark` or later. Returns, for each key whose
    /// row is new or has changed, the retraction of the old row and the new row, in this order.
    pub(super) fn apply(&mut self, changes: &Changes, watermark: Time) -> Result<RecordBatch, OperatorError> {
        let touched = changes.latest.unary(|time| time.max(watermark.0));
        let (functions, unstable, states) = (&self.functions, &self.unstable, self.states);
        let mut versions = None;
        self.table.update(&changes.keys, &touched, |stored| -> Result<_, OperatorError> {
            let (merged, new) = merge(functions, changes, &stored, states)?;
            let old = old_values(functions, unstable, &stored, states)?;
            let kept = unstable.iter().filter_map(|position| new.get(*position)).map(Arc::clone);
            let values = merged.into_iter().chain(kept).collect();
            versions = Some(Versions { positions: stored.positions, old, new });
            Ok(values)
        })?;
        let versions = versions.ok_or_else(|| OperatorError::internal("the state was not updated"))?;
        versions.changes(changes, &self.output)
    }
}

/// The states of the changed keys after their changes, and the functions' values.
fn merge(
    functions: &Functions,
    changes: &Changes,
    stored: &Stored,
    states: usize,
) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>), OperatorError> {
    let count = changes.len();
    let numbers = stored_first(&stored.positions, count);
    let known = stored.positions.len();
    let mut accumulators = functions.accumulators()?;
    if known > 0 {
        let stored_states = stored.values.get(..states).unwrap_or_default();
        let all: Vec<usize> = (0..known).collect();
        accumulators.merge(functions, stored_states, &all, known)?;
    }
    accumulators.merge(functions, &changes.states, &numbers, count)?;
    let merged = in_order(accumulators.states()?, &numbers)?;
    let all: Vec<usize> = (0..count).collect();
    accumulators.merge(functions, &merged, &all, count)?;
    Ok((merged, accumulators.values()?))
}

/// Numbers for `count` changed keys under which those at `positions`, whose rows are stored, come first and in order.
///
/// An accumulator may take every group that it is told of for one that has had a value (DataFusion's `NullState` does, as
/// long as no null comes): so the stored states must be of all groups that there are when they are merged.
fn stored_first(positions: &[usize], count: usize) -> Vec<usize> {
    let mut numbers = vec![None; count];
    for (number, position) in positions.iter().enumerate() {
        if let Some(slot) = numbers.get_mut(*position) {
            *slot = Some(number);
        }
    }
    let mut next = positions.len();
    let mut number = |known: Option<usize>| {
        known.unwrap_or_else(|| {
            next += 1;
            next - 1
        })
    };
    numbers.into_iter().map(&mut number).collect()
}

/// The rows of `columns` in the order of the changed keys, whose rows stand at `numbers`.
fn in_order(columns: Vec<ArrayRef>, numbers: &[usize]) -> Result<Vec<ArrayRef>, OperatorError> {
    if numbers.iter().enumerate().all(|(position, number)| position == *number) {
        return Ok(columns);
    }
    let numbers = UInt64Array::from_iter_values(numbers.iter().map(|number| *number as u64));
    Ok(columns.iter().map(|column| take(column, &numbers, None)).collect::<Result<_, _>>()?)
}

/// The functions' values of the rows that are stored.
fn old_values(
    functions: &Functions,
    unstable: &[usize],
    stored: &Stored,
    states: usize,
) -> Result<Vec<ArrayRef>, OperatorError> {
    let count = stored.positions.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let (states, kept) = stored.values.split_at_checked(states).unwrap_or_default();
    let all: Vec<usize> = (0..count).collect();
    let mut accumulators = functions.accumulators()?;
    accumulators.merge(functions, states, &all, count)?;
    let mut values = accumulators.values()?;
    for (position, kept) in unstable.iter().zip(kept) {
        if let Some(value) = values.get_mut(*position) {
            *value = Arc::clone(kept);
        }
    }
    Ok(values)
}

/// The functions' values of some keys, before and after a change.
struct Versions {
    /// The keys that had a row.
    positions: Vec<usize>,
    /// Of the keys in `positions`; no columns when there are none.
    old: Vec<ArrayRef>,
    /// Of all keys.
    new: Vec<ArrayRef>,
}

impl Versions {
    fn changes(&self, changes: &Changes, output: &SchemaRef) -> Result<RecordBatch, OperatorError> {
        let differs = self.differs(changes.len())?;
        // For each row sent: its key's position, whether it is a retraction, and where its values are: old or new, row.
        let (mut keys, mut retract, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut stored = self.positions.iter().enumerate().peekable();
        for position in 0..changes.len() {
            if let Some((row, _)) = stored.next_if(|(_, stored)| **stored == position) {
                if !differs.get(row).copied().unwrap_or(true) {
                    continue;
                }
                keys.push(position as u32);
                retract.push(true);
                rows.push((0, row));
            }
            keys.push(position as u32);
            retract.push(false);
            rows.push((1, position));
        }
        let keys = UInt32Array::from(keys);
        let mut columns = Vec::with_capacity(output.fields().len());
        for column in &changes.keys {
            columns.push(take(column, &keys, None)?);
        }
        for (index, new) in self.new.iter().enumerate() {
            let old = self.old.get(index).unwrap_or(new);
            columns.push(interleave(&[old.as_ref(), new.as_ref()], &rows)?);
        }
        columns.push(take(&changes.latest, &keys, None)?);
        columns.push(Arc::new(BooleanArray::from(retract)));
        Ok(RecordBatch::try_new(Arc::clone(output), columns)?)
    }

    /// For each row that was stored, whether the new one is another.
    fn differs(&self, keys: usize) -> Result<Vec<bool>, OperatorError> {
        let count = self.positions.len();
        let mut differs = vec![false; count];
        if count == 0 {
            return Ok(differs);
        }
        let positions = UInt32Array::from_iter_values(self.positions.iter().map(|position| *position as u32));
        for (old, new) in self.old.iter().zip(&self.new) {
            let new = if count == keys { Arc::clone(new) } else { take(new, &positions, None)? };
            if old.data_type().is_nested() {
                let compare = make_comparator(old, &new, SortOptions::default())?;
                differs.iter_mut().enumerate().for_each(|(row, differs)| *differs |= compare(row, row).is_ne());
            } else {
                let distinct = distinct(old, &new)?;
                differs.iter_mut().zip(distinct.values()).for_each(|(differs, distinct)| *differs |= distinct);
            }
        }
        Ok(differs)
    }
}

/// Cuts changes into batches of at most `rows` rows, never between a retraction and its row.
pub(super) fn cut(changes: &RecordBatch, retract: usize, rows: usize) -> Vec<RecordBatch> {
    let retract = changes.column(retract).as_boolean();
    let mut batches = Vec::new();
    let mut start = 0;
    while start < changes.num_rows() {
        let mut end = changes.num_rows().min(start + rows);
        if end - start > 1 && retract.value(end - 1) {
            end -= 1;
        }
        batches.push(changes.slice(start, end - start));
        start = end;
    }
    batches
}
