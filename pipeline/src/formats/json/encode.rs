//! Rows to lines, column by column through arrow's JSON writer.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::json::writer::{LineDelimited, WriterBuilder};

use crate::plan::StreamSchema;

/// What a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The row: `{"column": value, ...}`.
    Rows,
    /// What happened to the row, as Debezium writes it: `{"before": null, "after": {...}, "op": "c"}`, or the row in `before`
    /// and op `d` when it is withdrawn. A change of a row is a `d` and then a `c`.
    Changes,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "json",
            Self::Changes => "debezium_json",
        })
    }
}

/// Rows that may be withdrawn, in a shape that cannot say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the query is updating, and `format = 'json'` cannot show that a row is withdrawn: write `format = 'debezium_json'`"
)]
pub struct ShapeError;

/// Writes the visible columns of a stream's batches as JSON lines; nulls are written as `null`.
#[derive(Debug, Clone)]
pub struct Encoder {
    visible: usize,
    retract: Option<usize>,
    /// The schema of the lines, when they are changes.
    changes: Option<SchemaRef>,
}

impl Encoder {
    /// An encoder of batches of `input`.
    ///
    /// # Errors
    /// [`Shape::Rows`] for an updating stream.
    pub fn new(input: &StreamSchema, shape: Shape) -> Result<Self, ShapeError> {
        let changes = match shape {
            Shape::Rows if input.is_updating() => return Err(ShapeError),
            Shape::Rows => None,
            Shape::Changes => {
                let row = DataType::Struct(Fields::from(input.visible().to_vec()));
                let before = Field::new("before", row.clone(), true);
                let after = Field::new("after", row, true);
                Some(Arc::new(Schema::new(vec![before, after, Field::new("op", DataType::Utf8, false)])))
            }
        };
        Ok(Self { visible: input.visible_len(), retract: input.retract_index(), changes })
    }

    /// What a line holds.
    pub fn shape(&self) -> Shape {
        if self.changes.is_some() { Shape::Changes } else { Shape::Rows }
    }

    /// Appends one line per row of `batch` to `out`.
    ///
    /// # Errors
    /// A batch of another schema, or a column type that JSON cannot show.
    pub fn encode(&self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        let visible = batch.project(&(0..self.visible).collect::<Vec<_>>())?;
        let lines = match &self.changes {
            Some(schema) => changes(visible, self.retract.map(|index| batch.column(index)), schema)?,
            None => visible,
        };
        let builder = WriterBuilder::new().with_explicit_nulls(true);
        let mut writer: LineDelimitedWriter<_> = builder.build::<_, LineDelimited>(out);
        writer.write(&lines)?;
        writer.finish()
    }
}

/// The rows as changes. Columns are shared, not copied: `before` and `after` differ in which rows are null.
fn changes(rows: RecordBatch, retract: Option<&ArrayRef>, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let withdrawn = match retract {
        Some(column) => column
            .as_boolean_opt()
            .ok_or_else(|| ArrowError::SchemaError(format!("the retraction column is {}", column.data_type())))?
            .values()
            .clone(),
        None => BooleanBuffer::new_unset(rows.num_rows()),
    };
    let (schema_of_rows, columns, _) = rows.into_parts();
    let side = |present: BooleanBuffer| -> ArrayRef {
        let fields = schema_of_rows.fields().clone();
        Arc::new(StructArray::new(fields, columns.clone(), Some(NullBuffer::new(present))))
    };
    let ops = StringArray::from_iter_values(withdrawn.iter().map(|withdrawn| if withdrawn { "d" } else { "c" }));
    let after = !&withdrawn;
    RecordBatch::try_new(Arc::clone(schema), vec![side(withdrawn), side(after), Arc::new(ops)])
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Int64Array, TimestampNanosecondArray};

    use super::*;
    use crate::plan::StreamKind;

    fn encode(kind: StreamKind, shape: Shape, retract: Option<Vec<bool>>) -> String {
        let name = Arc::new(Field::new("name", DataType::Utf8, true));
        let count = Arc::new(Field::new("n", DataType::Int64, false));
        let input = StreamSchema::new([name, count], kind).unwrap();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![Some("a\"b"), None])),
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(TimestampNanosecondArray::from(vec![0, 0])),
        ];
        columns.extend(retract.map(|r| Arc::new(BooleanArray::from(r)) as ArrayRef));
        let batch = RecordBatch::try_new(Arc::clone(input.schema()), columns).unwrap();
        let mut out = Vec::new();
        Encoder::new(&input, shape).unwrap().encode(&batch, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_row_is_a_line_without_hidden_columns() {
        assert_eq!(
            encode(StreamKind::Append, Shape::Rows, None),
            "{\"name\":\"a\\\"b\",\"n\":1}\n{\"name\":null,\"n\":2}\n"
        );
    }

    #[test]
    fn a_change_is_a_debezium_event() {
        let lines = encode(StreamKind::Updating, Shape::Changes, Some(vec![true, false]));
        let expected = "{\"before\":{\"name\":\"a\\\"b\",\"n\":1},\"after\":null,\"op\":\"d\"}\n\
                        {\"before\":null,\"after\":{\"name\":null,\"n\":2},\"op\":\"c\"}\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_added_row_can_be_shown_as_a_change_and_a_change_not_as_a_row() {
        let lines = encode(StreamKind::Append, Shape::Changes, None);
        assert!(
            lines.starts_with("{\"before\":null,\"after\":{\"name\":\"a\\\"b\",\"n\":1},\"op\":\"c\"}\n"),
            "{lines}"
        );
        let input = StreamSchema::new([], StreamKind::Updating).unwrap();
        assert_eq!(Encoder::new(&input, Shape::Rows).unwrap_err(), ShapeError);
    }
}
