//! Lines to rows, in columns: a chunk of lines at a time through arrow's JSON reader.
//!
//! Only when a chunk fails are its lines looked at one by one, to name the line, the field and the value, or to leave the
//! line out.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::util::display::FormatOptions;

/// The most characters of a line that a message shows.
const SHOWN: usize = 200;

/// What a line that is no row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadData {
    /// Ends the pipeline.
    #[default]
    Fail,
    /// Is left out, and counted.
    Drop,
}

/// How times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampFormat {
    /// `2023-10-09T17:13:20.2Z`; without an offset it is UTC.
    #[default]
    Rfc3339,
    /// A number of milliseconds since 1970.
    UnixMillis,
}

/// Why lines could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// A column that JSON cannot hold.
    #[error("the column `{column}` cannot be read from JSON: {reason}")]
    Column {
        /// The column's name.
        column: String,
        /// What is wrong with its type.
        reason: String,
    },
    /// A line that is no row.
    #[error("line {line}: {reason}: {text}")]
    Line {
        /// The number of the line, from 1.
        line: u64,
        /// The field and what is wrong with it.
        reason: String,
        /// The line, or its beginning.
        text: String,
    },
}

/// Reads rows of fixed columns from JSON lines. Fields that are no columns are passed over; a field that is not there is null.
#[derive(Debug)]
pub struct Decoder {
    columns: Vec<Column>,
    bad_data: BadData,
    /// Lines seen.
    lines: u64,
    dropped: u64,
    /// What arrow's reader makes of a line.
    raw: SchemaRef,
    schema: SchemaRef,
}

/// A column, and the casts from what arrow's reader makes of it to its type.
///
/// Arrow's reader takes 1.5 for 1 where a whole number is asked for, and any number for a time. So both come as text, and
/// arrow's checked casts read them.
#[derive(Debug)]
struct Column {
    field: FieldRef,
    casts: Vec<DataType>,
}

impl Decoder {
    /// A decoder into `columns`.
    ///
    /// # Errors
    /// A column of a type that JSON cannot hold.
    pub fn new(
        columns: impl IntoIterator<Item = FieldRef>,
        bad_data: BadData,
        times: TimestampFormat,
    ) -> Result<Self, JsonError> {
        let columns: Vec<_> = columns.into_iter().map(|field| Column::new(field, times)).collect();
        let raw: Vec<_> = columns.iter().map(Column::raw).collect();
        for field in &raw {
            let alone = Arc::new(Schema::new(vec![field.clone()]));
            ReaderBuilder::new(alone)
                .build_decoder()
                .map_err(|error| JsonError::Column { column: field.name().clone(), reason: plain(&error) })?;
        }
        let schema = Arc::new(Schema::new(columns.iter().map(|c| Arc::clone(&c.field)).collect::<Fields>()));
        Ok(Self { columns, bad_data, lines: 0, dropped: 0, raw: Arc::new(Schema::new(raw)), schema })
    }

    /// Lines left out so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many lines were read.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Counts `lines` as read: those in front of the first that is given.
    pub fn skip(&mut self, lines: u64) {
        self.lines += lines;
    }

    /// The rows of `lines`: whole lines, the last one with or without its newline. Blank lines are passed over.
    ///
    /// # Errors
    /// The first line that is no row, unless such lines are left out.
    pub fn decode(&mut self, lines: &[u8]) -> Result<RecordBatch, JsonError> {
        let split: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').collect();
        let filled = split.iter().filter(|line| !line.trim_ascii().is_empty()).count();
        let batch = match self.read(&self.raw, &self.columns, lines, filled) {
            Ok(batch) => batch,
            Err(_) => self.one_by_one(&split)?,
        };
        // A newline at the end does not begin another line.
        let unfinished = split.last().is_some_and(|last| !last.is_empty());
        self.lines += split.len() as u64 - u64::from(!unfinished);
        Ok(batch)
    }

    /// Reads `rows` objects with these columns. Another number of objects is an error: some line holds two, or half of one.
    fn read(&self, raw: &SchemaRef, columns: &[Column], lines: &[u8], rows: usize) -> Result<RecordBatch, ArrowError> {
        let builder = ReaderBuilder::new(Arc::clone(raw)).with_batch_size(rows.max(1)).with_coerce_primitive(true);
        let mut decoder = builder.build_decoder()?;
        let taken = decoder.decode(lines)?;
        if !lines.get(taken..).unwrap_or_default().trim_ascii().is_empty() {
            return Err(ArrowError::JsonError("a line holds more than one object".into()));
        }
        if decoder.has_partial_record() {
            return Err(ArrowError::JsonError("the object does not end".into()));
        }
        let batch = decoder.flush()?;
        if batch.as_ref().map_or(0, RecordBatch::num_rows) != rows {
            return Err(ArrowError::JsonError("a line must hold one object".into()));
        }
        let cast = |(column, array): (&Column, &ArrayRef)| column.finish(array);
        let arrays = match &batch {
            Some(batch) => columns.iter().zip(batch.columns()).map(cast).collect::<Result<Vec<_>, _>>()?,
            None => return Ok(RecordBatch::new_empty(fields_of(columns))),
        };
        RecordBatch::try_new_with_options(
            fields_of(columns),
            arrays,
            &RecordBatchOptions::new().with_row_count(Some(rows)),
        )
    }

    /// Reads each line alone; a bad one is named or left out.
    fn one_by_one(&mut self, lines: &[&[u8]]) -> Result<RecordBatch, JsonError> {
        let mut rows = Vec::new();
        for (number, line) in (self.lines + 1..).zip(lines) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            match self.read(&self.raw, &self.columns, line, 1) {
                Ok(row) => rows.push(row),
                Err(_) if self.bad_data == BadData::Drop => self.dropped += 1,
                Err(error) => return Err(self.explain(number, line, &error)),
            }
        }
        concat_batches(&self.schema, &rows).map_err(|error| JsonError::Line {
            line: self.lines + 1,
            reason: plain(&error),
            text: String::new(),
        })
    }

    /// Names the field at fault: the one that cannot be read although it is alone.
    fn explain(&self, line: u64, text: &[u8], error: &ArrowError) -> JsonError {
        let fault = self.columns.iter().find_map(|column| {
            let alone = Arc::new(Schema::new(vec![column.raw()]));
            let error = self.read(&alone, std::slice::from_ref(column), text, 1).err()?;
            Some(format!("field `{}`: {}", column.field.name(), plain(&error)))
        });
        // What is wrong with every field is wrong with the line.
        let whole = self.read(&Arc::new(Schema::empty()), &[], text, 1).err();
        let reason = match (whole, fault) {
            (Some(error), _) => plain(&error),
            (None, Some(fault)) => fault,
            (None, None) => plain(error),
        };
        let text = String::from_utf8_lossy(text);
        let shown: String = text.trim().chars().take(SHOWN).collect();
        let more = if shown.len() < text.trim().len() { "…" } else { "" };
        JsonError::Line { line, reason, text: shown + more }
    }
}

fn fields_of(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| Arc::clone(&c.field)).collect::<Fields>()))
}

impl Column {
    fn new(field: FieldRef, times: TimestampFormat) -> Self {
        let own = field.data_type();
        let mut casts = Vec::new();
        if times == TimestampFormat::UnixMillis {
            let is_time = |of: &DataType| matches!(of, DataType::Timestamp(_, _));
            casts.push(map_leaves(own, &|of| if is_time(of) { DataType::Int64 } else { of.clone() }));
            let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
            casts.push(map_leaves(own, &|of| if is_time(of) { millis.clone() } else { of.clone() }));
        }
        casts.push(own.clone());
        Self { field, casts }
    }

    /// The column as arrow's reader gives it.
    fn raw(&self) -> Field {
        let as_text = |of: &DataType| of.is_integer() || matches!(of, DataType::Timestamp(_, _));
        let raw = map_leaves(self.field.data_type(), &|of| if as_text(of) { DataType::Utf8 } else { of.clone() });
        Field::new(self.field.name(), raw, self.field.is_nullable())
    }

    fn finish(&self, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let checked = CastOptions { safe: false, format_options: FormatOptions::default() };
        let mut array = Arc::clone(array);
        for data_type in self.casts.iter() {
            if array.data_type() != data_type {
                array = cast_with_options(&array, data_type, &checked)?;
            }
        }
        Ok(array)
    }
}

/// The type with `map` applied to what lies in its lists and structs.
fn map_leaves(data_type: &DataType, map: &dyn Fn(&DataType) -> DataType) -> DataType {
    let inside = |field: &FieldRef| {
        let mapped = map_leaves(field.data_type(), map);
        Arc::new(field.as_ref().clone().with_data_type(mapped))
    };
    match data_type {
        DataType::List(item) => DataType::List(inside(item)),
        DataType::LargeList(item) => DataType::LargeList(inside(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inside).collect()),
        other => map(other),
    }
}

/// An error without the name of its kind.
fn plain(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(text) | ArrowError::CastError(text) | ArrowError::ParseError(text) => text.clone(),
        ArrowError::InvalidArgumentError(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int64Type, TimestampNanosecondType};

    use super::*;

    fn field(name: &str, data_type: DataType) -> FieldRef {
        Arc::new(Field::new(name, data_type, true))
    }

    fn time() -> DataType {
        DataType::Timestamp(TimeUnit::Nanosecond, None)
    }

    fn decoder(fields: Vec<FieldRef>) -> Decoder {
        Decoder::new(fields, BadData::Fail, TimestampFormat::Rfc3339).unwrap()
    }

    #[test]
    fn fields_become_columns_by_name() {
        let list = DataType::List(field("item", DataType::Int64));
        let mut decoder = decoder(vec![field("n", DataType::Int64), field("s", DataType::Utf8), field("l", list)]);
        let lines = b"{\"s\":\"a\",\"n\":1,\"l\":[1,2]}\n\n{\"n\":9223372036854775807,\"other\":{}}\n{\"n\":null}";
        let batch = decoder.decode(lines).unwrap();
        assert_eq!(batch.num_rows(), 3);
        let numbers = batch.column(0).as_primitive::<Int64Type>();
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(1), Some(i64::MAX), None]);
        let list = batch.column(2).as_list::<i32>().value(0);
        assert_eq!(list.as_primitive::<Int64Type>().values(), &[1, 2]);
    }

    #[test]
    fn times_are_read_in_either_format() {
        let lines = b"{\"t\":\"2023-10-09T17:13:20.200+02:00\"}\n{\"t\":\"2023-10-09T17:13:20\"}";
        let batch = decoder(vec![field("t", time())]).decode(lines).unwrap();
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>();
        assert_eq!(times.values(), &[1_696_864_400_200_000_000, 1_696_871_600_000_000_000]);

        let mut millis = Decoder::new([field("t", time())], BadData::Fail, TimestampFormat::UnixMillis).unwrap();
        let batch = millis.decode(b"{\"t\":1696864400200}").unwrap();
        let times = batch.column(0).as_primitive::<TimestampNanosecondType>();
        assert_eq!(times.values(), &[1_696_864_400_200_000_000]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_field_and_value() {
        for (lines, says) in [
            (
                "{\"n\":1}\n{\"n\":1.5}\n",
                "line 2: field `n`: Cannot cast string '1.5' to value of Int64 type: {\"n\":1.5}",
            ),
            ("{\"n\":1}\n\n{\"n\":9223372036854775808}\n", "line 3: field `n`"),
            ("{\"n\":1,\"t\":1696864400}\n", "line 1: field `t`"),
            ("{\"n\":1,\"t\":\"yesterday\"}\n", "line 1: field `t`"),
            ("{\"n\":1}\n{\"n\":\n2}\n", "line 2: "),
            ("{\"n\":1}{\"n\":2}\n", "line 1: "),
            ("{\"n\":1}\nnope\n", "line 2: "),
            ("[1]\n", "line 1: "),
        ] {
            let mut decoder = decoder(vec![field("n", DataType::Int64), field("t", time())]);
            let error = decoder.decode(lines.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(says), "{lines}: {error}");
        }
    }

    #[test]
    fn a_field_that_must_be_there_is_missed() {
        let required = Arc::new(Field::new("n", DataType::Int64, false));
        let error = decoder(vec![required]).decode(b"{\"m\":1}").unwrap_err().to_string();
        assert!(error.starts_with("line 1: field `n`"), "{error}");
    }

    #[test]
    fn lines_are_counted_over_chunks_and_bad_ones_left_out_when_told() {
        let columns = vec![field("n", DataType::Int64)];
        let mut strict = decoder(columns.clone());
        strict.decode(b"{\"n\":1}\n{\"n\":2}\n").unwrap();
        let error = strict.decode(b"{\"n\":3}\n{\"n\":true}\n").unwrap_err();
        assert!(error.to_string().starts_with("line 4: "), "{error}");

        let mut lenient = Decoder::new(columns, BadData::Drop, TimestampFormat::Rfc3339).unwrap();
        let batch = lenient.decode(b"{\"n\":1}\nnope\n{\"n\":2}\n{\"n\":\"x\"}\n").unwrap();
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
        assert_eq!(lenient.dropped(), 2);
    }

    #[test]
    fn a_type_that_json_cannot_hold_is_refused() {
        let interval = field("i", DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano));
        let error = Decoder::new([interval], BadData::Fail, TimestampFormat::Rfc3339).unwrap_err();
        assert!(matches!(error, JsonError::Column { column, .. } if column == "i"));
    }
}
