//! Changes to one row per key: the last word on each key within an insert.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{take, take_record_batch};
use arrow::datatypes::Schema;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use crate::runtime::OperatorError;

/// The last row of each key, in the order in which keys first came, and which of them are gone.
pub(super) struct Latest {
    pub(super) rows: RecordBatch,
    /// True where the last word was a retraction.
    pub(super) gone: BooleanArray,
}

/// Keeps the last row of each key of `batch`; `key` and `retract` are column indexes.
///
/// A change is a retraction and then the new row, so that the last row is the one that stands, or, when it is a retraction,
/// says that none does.
pub(super) fn latest(batch: &RecordBatch, key: &[usize], retract: usize) -> Result<Latest, OperatorError> {
    let columns: Vec<ArrayRef> = key.iter().map(|index| Arc::clone(batch.column(*index))).collect();
    let fields: Vec<_> = key.iter().map(|index| batch.schema_ref().field(*index).clone()).collect();
    let mut keys = new_group_values(Arc::new(Schema::new(fields)), &GroupOrdering::None)?;
    let mut groups = Vec::with_capacity(batch.num_rows());
    keys.intern(&columns, &mut groups)?;

    let mut last = vec![0_u32; keys.len()];
    for (row, group) in (0_u32..).zip(&groups) {
        if let Some(last) = last.get_mut(*group) {
            *last = row;
        }
    }
    let last = UInt32Array::from(last);
    let gone = take(batch.column(retract), &last, None)?;
    Ok(Latest { rows: take_record_batch(batch, &last)?, gone: gone.as_boolean().clone() })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::Int64Type;
    use arrow::record_batch::RecordBatch;

    use super::*;

    fn changes(rows: &[(Option<&str>, i64, bool)]) -> RecordBatch {
        let key = StringArray::from_iter(rows.iter().map(|row| row.0));
        let value = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
        let retract = BooleanArray::from_iter(rows.iter().map(|row| Some(row.2)));
        let columns: Vec<(&str, ArrayRef)> =
            vec![("key", Arc::new(key)), ("value", Arc::new(value)), ("_retract", Arc::new(retract))];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn the_last_row_of_each_key_stands() {
        let batch = changes(&[
            (Some("a"), 1, false),
            (Some("b"), 10, false),
            (Some("a"), 1, true),
            (Some("a"), 2, false),
            (None, 5, false),
            (Some("b"), 10, true),
            (Some("a"), 2, true),
            (Some("a"), 3, false),
        ]);
        let Latest { rows, gone } = latest(&batch, &[0], 2).unwrap();
        let values = rows.column(1).as_primitive::<Int64Type>();
        assert_eq!(values.values(), &[3, 10, 5]);
        assert_eq!(gone.iter().map(Option::unwrap).collect::<Vec<_>>(), [false, true, false]);
    }
}
