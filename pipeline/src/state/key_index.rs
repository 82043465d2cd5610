//! Numbers for keys.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{FieldRef, Schema};
use datafusion::error::Result;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::primitive_index;

/// Gives each distinct key a number, counting from 0 without gaps. The new keys of one batch are numbered in the order of
/// their rows unless hashes collide. Nulls are equal to each other. A key of no columns has one value: the group of all
/// rows.
pub struct KeyIndex(Inner);

enum Inner {
    /// No key columns. Whether a row was seen.
    Single(bool),
    Columns(Box<dyn GroupValues>),
}

impl KeyIndex {
    /// An empty index of keys with these columns.
    pub fn try_new(columns: &[FieldRef]) -> Result<Self> {
        if columns.is_empty() {
            return Ok(Self(Inner::Single(false)));
        }
        if let [column] = columns
            && let Some(index) = primitive_index::of_type(column.data_type())
        {
            return Ok(Self(Inner::Columns(index)));
        }
        let schema = Arc::new(Schema::new(columns.to_vec()));
        Ok(Self(Inner::Columns(new_group_values(schema, &GroupOrdering::None)?)))
    }

    /// Sets `numbers` to the numbers of `rows` keys, given as columns; a new key gets the next number.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize, numbers: &mut Vec<usize>) -> Result<()> {
        match &mut self.0 {
            Inner::Single(seen) => {
                *seen |= rows > 0;
                numbers.clear();
                numbers.resize(rows, 0);
                Ok(())
            }
            Inner::Columns(values) => values.intern(columns, numbers),
        }
    }

    /// How many distinct keys there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Inner::Single(seen) => usize::from(*seen),
            Inner::Columns(values) => values.len(),
        }
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys in the order of their numbers, as columns; the index is empty afterwards.
    pub fn take(&mut self) -> Result<Vec<ArrayRef>> {
        match &mut self.0 {
            Inner::Single(seen) => {
                *seen = false;
                Ok(Vec::new())
            }
            Inner::Columns(values) => {
                let columns = values.emit(EmitTo::All)?;
                // Emitting leaves the hash table as it was: keys seen before would be taken for known ones.
                values.clear_shrink(0);
                Ok(columns)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Int64Array, StringArray};
    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn an_index_that_was_taken_begins_anew() {
        let ints = |values: [Option<i64>; 3]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let texts = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let flags = |values: [Option<bool>; 3]| Arc::new(BooleanArray::from(values.to_vec())) as ArrayRef;
        let first = [
            ints([Some(1), Some(2), None]),
            texts([Some("a"), Some("b"), None]),
            flags([Some(true), Some(false), None]),
        ];
        // The same keys backwards.
        let second = [
            ints([None, Some(2), Some(1)]),
            texts([None, Some("b"), Some("a")]),
            flags([None, Some(false), Some(true)]),
        ];
        for columns in [vec![0_usize], vec![1], vec![2], vec![0, 1], vec![0, 1, 2]] {
            let of = |rows: &[ArrayRef; 3]| columns.iter().map(|i| Arc::clone(&rows[*i])).collect::<Vec<_>>();
            let field = |column: &ArrayRef| Arc::new(Field::new("key", column.data_type().clone(), true));
            let fields: Vec<FieldRef> = of(&first).iter().map(field).collect();
            let mut index = KeyIndex::try_new(&fields).unwrap();
            let mut numbers = Vec::new();
            for rows in [&first, &second, &first] {
                index.intern(&of(rows), 3, &mut numbers).unwrap();
                assert_eq!((numbers.as_slice(), index.len()), ([0, 1, 2].as_slice(), 3));
                assert_eq!(index.take().unwrap(), of(rows));
                assert!(index.is_empty());
            }
        }
    }
}
