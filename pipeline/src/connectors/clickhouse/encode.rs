//! Rows to the body of an INSERT, in the layout that was agreed on at start.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt8Array, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use super::catalog::TableName;
use super::check::{ColumnLayout, Layout, Upsert};
use super::convert::ConvertError;
use super::types::quoted;
use super::upsert::{Latest, latest};
use crate::plan::StreamSchema;
use crate::runtime::OperatorError;

/// Turns batches of one stream into bodies of INSERTs into one table.
pub(super) struct Encoder {
    name: TableName,
    layout: Layout,
    retract: Option<usize>,
    /// The columns that travel.
    wire: SchemaRef,
}

/// The body of one INSERT.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    /// An Arrow stream.
    pub(super) body: Bytes,
    /// The rows in it.
    pub(super) rows: usize,
}

impl Encoder {
    pub(super) fn new(name: TableName, layout: Layout, input: &StreamSchema) -> Self {
        // Nulls are checked against the table before; on the wire every column may have them.
        let columns = layout.columns.iter().map(|c| Field::new(&c.name, c.conversion.wire().clone(), true));
        let mut fields: Vec<_> = columns.collect();
        if let Some(upsert) = &layout.upsert {
            fields.extend(upsert.version.as_ref().map(|version| {
                let data_type = if version.unsigned { DataType::UInt64 } else { DataType::Int64 };
                Field::new(&version.name, data_type, true)
            }));
            fields.extend(upsert.is_deleted.as_ref().map(|name| Field::new(name, DataType::UInt8, true)));
        }
        Self { name, layout, retract: input.retract_index(), wire: Arc::new(Schema::new(fields)) }
    }

    /// The statement in front of every body.
    pub(super) fn statement(&self) -> String {
        let columns: Vec<_> = self.wire.fields().iter().map(|field| quoted(field.name())).collect();
        format!("INSERT INTO {} ({}) FORMAT ArrowStream", self.name, columns.join(", "))
    }

    /// The body for `batches`, in their order. `version` goes into the version column, where the sink fills one; it must be
    /// higher than in any body before.
    ///
    /// # Errors
    /// The first value that the table cannot hold, with its column.
    pub(super) fn encode(&self, batches: &[RecordBatch], version: i64) -> Result<Payload, OperatorError> {
        let Some(first) = batches.first() else { return Ok(Payload { body: Bytes::new(), rows: 0 }) };
        let batch = match batches {
            [only] => only.clone(),
            several => concat_batches(first.schema_ref(), several)?,
        };
        let columns = match (&self.layout.upsert, self.retract) {
            (Some(upsert), Some(retract)) => self.upserts(upsert, latest(&batch, &upsert.key, retract)?, version)?,
            _ => self.convert(&batch)?,
        };
        let rows = RecordBatch::try_new(Arc::clone(&self.wire), columns)?;
        // Bodies are held until their checkpoint is complete: one that outgrew its memory would take up twice its size.
        let mut body = Vec::with_capacity(body_size(&rows));
        let mut writer = StreamWriter::try_new(&mut body, &self.wire)?;
        writer.write(&rows)?;
        writer.finish()?;
        drop(writer);
        Ok(Payload { body: body.into(), rows: rows.num_rows() })
    }

    fn upserts(&self, upsert: &Upsert, latest: Latest, version: i64) -> Result<Vec<ArrayRef>, OperatorError> {
        let Latest { rows, gone } = latest;
        let mut columns = self.convert(&rows)?;
        if let Some(column) = &upsert.version {
            let rows = rows.num_rows();
            columns.push(match u64::try_from(version) {
                Ok(version) if column.unsigned => Arc::new(UInt64Array::from_value(version, rows)),
                _ => Arc::new(Int64Array::from_value(version, rows)),
            });
        }
        if upsert.is_deleted.is_some() {
            columns.push(Arc::new(UInt8Array::from_iter_values(gone.values().iter().map(u8::from))));
        } else if let Some(row) = gone.values().iter().position(|gone| gone) {
            return Err(self.cannot_delete(upsert, &rows, row));
        }
        Ok(columns)
    }

    fn convert(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, OperatorError> {
        let convert = |(column, array): (&ColumnLayout, &ArrayRef)| {
            column.conversion.apply(array).map_err(|error| self.misfit(column, error))
        };
        self.layout.columns.iter().zip(batch.columns()).map(convert).collect()
    }

    fn misfit(&self, column: &ColumnLayout, error: ConvertError) -> OperatorError {
        let ColumnLayout { name, type_name, .. } = column;
        match error {
            ConvertError::Value(misfit) => OperatorError::user(format!(
                "a row cannot be written into {}: the value {} of column `{name}` ({type_name}) {}",
                self.name, misfit.value, misfit.reason
            )),
            ConvertError::Arrow(error) => OperatorError::user(format!(
                "column `{name}` ({type_name}) of {} cannot be written: {error}",
                self.name
            )),
        }
    }

    fn cannot_delete(&self, upsert: &Upsert, rows: &RecordBatch, row: usize) -> OperatorError {
        let one = rows.slice(row, 1);
        let show = |index: &usize| {
            let column = one.column(*index);
            let value = arrow::util::display::array_value_to_string(column, 0).unwrap_or_default();
            format!("{} = {value}", one.schema_ref().field(*index).name())
        };
        let key: Vec<_> = upsert.key.iter().map(show).collect();
        OperatorError::user(format!(
            "the row with {} is gone from the query's result, and {} has no way to say so: give its engine a second column, \
             ReplacingMergeTree(version, is_deleted) with is_deleted UInt8, in a new table",
            key.join(", "),
            self.name
        ))
    }
}

/// The memory of the rows themselves, without what a slice has beside them.
pub(super) fn size(rows: &RecordBatch) -> usize {
    let column = |array: &ArrayRef| {
        let whole = array.get_array_memory_size();
        array.to_data().get_slice_memory_size().unwrap_or(whole)
    };
    rows.columns().iter().map(column).sum()
}

/// The size of an Arrow stream of one batch, or somewhat more: its buffers, each of them padded, and what is said of them.
fn body_size(rows: &RecordBatch) -> usize {
    const PER_COLUMN: usize = 512;
    size(rows) + rows.num_columns() * PER_COLUMN + 1024
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    #[test]
    fn a_body_fits_into_the_memory_that_is_taken_for_it() {
        let of = |rows: i64| {
            let numbers: Int64Array = (0..rows).map(|n| (n % 3 > 0).then_some(n)).collect();
            let texts: StringArray = (0..rows).map(|n| (n % 5 > 0).then(|| "x".repeat(n as usize % 50))).collect();
            let flags: arrow::array::BooleanArray = (0..rows).map(|n| Some(n % 2 > 0)).collect();
            let columns: [(&str, ArrayRef); 3] =
                [("n", Arc::new(numbers)), ("t", Arc::new(texts)), ("f", Arc::new(flags))];
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
        };
        for rows in [of(0), of(1), of(70), of(100_000), of(100_000).slice(500, 1_000)] {
            let mut body = Vec::new();
            let mut writer = StreamWriter::try_new(&mut body, rows.schema_ref()).unwrap();
            writer.write(&rows).unwrap();
            writer.finish().unwrap();
            drop(writer);
            let taken = body_size(&rows);
            assert!((body.len()..=body.len() + 4_096).contains(&taken), "{} bytes, {taken} taken", body.len());
        }
    }
}
