//! The columns of a stream: those the user sees, and the hidden ones that carry event time and retractions.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

/// The hidden column of every stream: event time, `Timestamp(Nanosecond)` in UTC, never null.
pub const TIMESTAMP_COLUMN: &str = "_timestamp";

/// The hidden column of an updating stream: `Boolean`, never null; true when the row is withdrawn.
pub const RETRACT_COLUMN: &str = "_retract";

/// Whether rows, once sent, stand (append) or may be withdrawn and replaced (updating).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Every row stands for good.
    Append,
    /// A row may be withdrawn by a later one that is equal in all visible columns and has `_retract` set.
    ///
    /// A change of one key is a retraction followed by the new row, in the same batch.
    Updating,
}

/// The columns of a stream: visible ones first, then [`TIMESTAMP_COLUMN`], then, when updating,
/// [`RETRACT_COLUMN`]. A visible column thus has the same index with and without the hidden ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSchema {
    schema: SchemaRef,
    kind: StreamKind,
}

/// A set of columns that cannot be a stream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    /// A visible column has the name of a hidden one.
    #[error("the column name `{0}` is reserved; give the column another name")]
    Reserved(String),
}

impl StreamSchema {
    /// The stream with these visible columns; the hidden ones are added.
    pub fn new(visible: impl IntoIterator<Item = FieldRef>, kind: StreamKind) -> Result<Self, SchemaError> {
        let mut fields: Vec<FieldRef> = visible.into_iter().collect();
        if let Some(field) = fields.iter().find(|f| [TIMESTAMP_COLUMN, RETRACT_COLUMN].contains(&f.name().as_str())) {
            return Err(SchemaError::Reserved(field.name().clone()));
        }
        let timestamp = DataType::Timestamp(TimeUnit::Nanosecond, None);
        fields.push(Arc::new(Field::new(TIMESTAMP_COLUMN, timestamp, false)));
        if kind == StreamKind::Updating {
            fields.push(Arc::new(Field::new(RETRACT_COLUMN, DataType::Boolean, false)));
        }
        Ok(Self { schema: Arc::new(Schema::new(fields)), kind })
    }

    /// All columns, hidden ones included: the schema of every batch of the stream.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Append-only or updating.
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// Whether rows of this stream can be withdrawn.
    pub fn is_updating(&self) -> bool {
        self.kind == StreamKind::Updating
    }

    /// The number of visible columns; also the index of [`TIMESTAMP_COLUMN`].
    pub fn visible_len(&self) -> usize {
        self.schema.fields().len() - if self.is_updating() { 2 } else { 1 }
    }

    /// The columns that the user sees, in order.
    pub fn visible(&self) -> &[FieldRef] {
        &self.schema.fields()[..self.visible_len()]
    }

    /// The index of [`TIMESTAMP_COLUMN`].
    pub fn timestamp_index(&self) -> usize {
        self.visible_len()
    }

    /// The index of [`RETRACT_COLUMN`] in an updating stream.
    pub fn retract_index(&self) -> Option<usize> {
        self.is_updating().then(|| self.visible_len() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str) -> FieldRef {
        Arc::new(Field::new(name, DataType::Int64, true))
    }

    #[test]
    fn hidden_columns_follow_the_visible_ones() {
        let append = StreamSchema::new([field("a"), field("b")], StreamKind::Append).unwrap();
        assert_eq!(append.visible_len(), 2);
        assert_eq!(append.schema().field(append.timestamp_index()).name(), TIMESTAMP_COLUMN);
        assert_eq!(append.retract_index(), None);

        let updating = StreamSchema::new([field("a")], StreamKind::Updating).unwrap();
        assert_eq!(updating.visible().len(), 1);
        assert_eq!(updating.schema().field(2).name(), RETRACT_COLUMN);
        assert_eq!(updating.retract_index(), Some(2));
    }

    #[test]
    fn a_reserved_name_is_refused() {
        let refused = StreamSchema::new([field("_retract")], StreamKind::Append);
        assert_eq!(refused, Err(SchemaError::Reserved("_retract".into())));
    }
}
