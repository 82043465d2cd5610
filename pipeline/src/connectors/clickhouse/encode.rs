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
        let mut body = Vec::with_capacity(rows.get_array_memory_size());
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
