//! Arrow columns to what ClickHouse reads without loss.
//!
//! ClickHouse casts what arrives to the column's type as SQL's CAST does, which wraps around on overflow and turns a null
//! list into an empty one. So each column is brought to the exact type here, checked, and the first value that does not fit
//! is named. ClickHouse's Arrow reader takes UInt16 for `Date` and UInt32 for `DateTime`, as it writes them itself.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, Int64Array, OffsetSizeTrait, StructArray, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, Fields, Int64Type, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::types::{ColumnType, Kind, digits};
use crate::plan::{is_bytes, is_text, sql_name};

/// How one column travels.
#[derive(Debug, Clone)]
pub(super) struct Conversion {
    step: Step,
    nullable: bool,
    wire: DataType,
}

#[derive(Debug, Clone)]
enum Step {
    /// The values are what ClickHouse expects.
    Keep,
    /// Arrow's checked cast.
    Cast,
    /// Timestamps of `from` ticks a second to whole seconds. Those that are no multiples of `grain` ticks are refused.
    Seconds {
        from: i64,
        grain: i64,
    },
    /// Timestamps of `from` ticks a second to `to` ticks, as above.
    Ticks {
        from: i64,
        to: i64,
        grain: i64,
    },
    /// Days that fit into 16 bits.
    Day,
    List(Box<Conversion>),
    Struct(Vec<Conversion>),
}

/// A column whose type cannot be written into the ClickHouse column. The caller names table and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct TypeMisfit(String);

/// A value that cannot be written. The caller names table and column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValueMisfit {
    /// The row in the batch.
    pub(super) row: usize,
    /// The value as text.
    pub(super) value: String,
    /// Why it cannot be written.
    pub(super) reason: &'static str,
}

/// Why a column could not be converted.
#[derive(Debug)]
pub(super) enum ConvertError {
    Value(ValueMisfit),
    Arrow(ArrowError),
}

impl From<ArrowError> for ConvertError {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

const OUT_OF_RANGE: &str = "does not fit into the column's type";
const HAS_FRACTION: &str = "is finer than the column, and it is part of the key: two keys would become one";
const IS_NULL: &str = "is null, and the column is not Nullable";

/// Seconds of 1900-01-01 and 2299-12-31T23:59:59, the range of `DateTime64`.
const DATE_TIME_64: std::ops::RangeInclusive<i64> = -2_208_988_800..=10_413_791_999;

impl Conversion {
    /// How a column of `arrow` travels into a column of `target`.
    ///
    /// Times lose the digits that the column has no room for, as in ClickHouse's own CAST; with `exact` (columns of the key)
    /// that is an error of the row.
    ///
    /// # Errors
    /// A pair where values could be changed on the way, with the cast that says so.
    pub(super) fn new(arrow: &DataType, target: &ColumnType, exact: bool) -> Result<Self, TypeMisfit> {
        let (step, wire) = Self::step(arrow, &target.kind, exact)?;
        let step = if matches!(step, Step::Cast) && wire == *arrow { Step::Keep } else { step };
        Ok(Self { step, nullable: target.nullable, wire })
    }

    fn step(arrow: &DataType, kind: &Kind, exact: bool) -> Result<(Step, DataType), TypeMisfit> {
        let wire = match (arrow, kind) {
            (DataType::Boolean, Kind::Bool) => DataType::Boolean,
            (arrow, Kind::Integer { signed, bits }) if arrow.is_integer() || *arrow == DataType::Boolean => {
                integer(arrow, *signed, *bits)
            }
            (DataType::Float32, Kind::Float32) => DataType::Float32,
            (DataType::Float32 | DataType::Float64, Kind::Float64) => DataType::Float64,
            (DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16, Kind::Float32) => DataType::Float32,
            (arrow, Kind::Float64) if arrow.is_integer() && arrow.primitive_width() < Some(8) => DataType::Float64,
            (arrow, Kind::Decimal { precision, scale }) if keeps_fraction(arrow, *scale) => match *precision {
                ..=38 => DataType::Decimal128(*precision, *scale),
                _ => DataType::Decimal256(*precision, *scale),
            },
            (arrow, Kind::String | Kind::FixedString | Kind::Parsed) if is_text(arrow) => DataType::Utf8,
            (arrow, Kind::String | Kind::FixedString) if is_bytes(arrow) => DataType::Binary,
            (DataType::Date32, Kind::Date32) => DataType::Date32,
            (DataType::Date32, Kind::Date) => return Ok((Step::Day, DataType::UInt16)),
            (DataType::Timestamp(unit, _), Kind::DateTime) => {
                return Ok((Step::Seconds { from: ticks(*unit), grain: grain(*unit, 0, exact) }, DataType::UInt32));
            }
            (DataType::Timestamp(unit, _), Kind::DateTime64(places)) => return Ok(timestamps(*unit, *places, exact)),
            (DataType::List(item) | DataType::LargeList(item), Kind::Array(inner)) => {
                return list(arrow, item, inner);
            }
            (DataType::Struct(fields), Kind::Tuple(elements)) => return tuple(fields, elements),
            (arrow, kind) => return Err(misfit(arrow, kind)),
        };
        Ok((Step::Cast, wire))
    }

    /// The type that travels.
    pub(super) fn wire(&self) -> &DataType {
        &self.wire
    }

    /// Brings `array` to the type that travels.
    ///
    /// # Errors
    /// The first value that does not fit.
    pub(super) fn apply(&self, array: &ArrayRef) -> Result<ArrayRef, ConvertError> {
        if !self.nullable && array.null_count() > 0 {
            let row = (0..array.len()).find(|row| array.is_null(*row)).unwrap_or_default();
            return Err(ConvertError::Value(ValueMisfit { row, value: "NULL".into(), reason: IS_NULL }));
        }
        match &self.step {
            Step::Keep => Ok(Arc::clone(array)),
            Step::Cast => self.cast(array),
            Step::Seconds { from, grain } => seconds(array, *from, *grain),
            Step::Ticks { from, to, grain } => self.ticks(array, *from, *to, *grain),
            Step::Day => days(array),
            Step::List(item) => match array.data_type() {
                DataType::LargeList(_) => self.list::<i64>(array, item),
                _ => self.list::<i32>(array, item),
            },
            Step::Struct(fields) => self.tuple(array, fields),
        }
    }

    fn cast(&self, array: &ArrayRef) -> Result<ArrayRef, ConvertError> {
        let checked = CastOptions { safe: false, format_options: FormatOptions::default() };
        let failed = match cast_with_options(array, &self.wire, &checked) {
            Ok(cast) => return Ok(cast),
            Err(error) => error,
        };
        let lenient = cast(array, &self.wire)?;
        match (0..array.len()).find(|row| lenient.is_null(*row) && array.is_valid(*row)) {
            Some(row) => Err(value_misfit(array, row, OUT_OF_RANGE)),
            None => Err(failed.into()),
        }
    }

    fn ticks(&self, array: &ArrayRef, from: i64, to: i64, grain: i64) -> Result<ArrayRef, ConvertError> {
        let rescaled: Int64Array = map_times(array, |value| {
            let rescaled = rescale(value, from, to, grain)?;
            if DATE_TIME_64.contains(&rescaled.div_euclid(to)) { Ok(rescaled) } else { Err(OUT_OF_RANGE) }
        })?;
        Ok(cast(&rescaled, &self.wire)?)
    }

    fn list<O: OffsetSizeTrait>(&self, array: &ArrayRef, item: &Conversion) -> Result<ArrayRef, ConvertError> {
        let lists = array.as_list::<O>();
        let offsets = lists.value_offsets();
        let (first, last) = (offsets.first().copied().unwrap_or_default(), offsets.last().copied().unwrap_or_default());
        let values = lists.values().slice(first.as_usize(), last.as_usize() - first.as_usize());
        let values = item.apply(&values).map_err(|error| match error {
            ConvertError::Value(misfit) => {
                let at = misfit.row + first.as_usize();
                let row = offsets.partition_point(|offset| offset.as_usize() <= at).saturating_sub(1);
                ConvertError::Value(ValueMisfit { row, ..misfit })
            }
            other => other,
        })?;
        let offsets = OffsetBuffer::from_lengths(lists.offsets().lengths());
        let field = item_field(item);
        Ok(Arc::new(GenericListArray::<i32>::try_new(field, offsets, values, lists.nulls().cloned())?))
    }

    fn tuple(&self, array: &ArrayRef, fields: &[Conversion]) -> Result<ArrayRef, ConvertError> {
        let columns = array.as_struct().columns();
        let columns: Vec<_> = columns.iter().zip(fields).map(|(c, f)| f.apply(c)).collect::<Result<_, _>>()?;
        let DataType::Struct(fields) = &self.wire else { return Ok(Arc::clone(array)) };
        Ok(Arc::new(StructArray::try_new(fields.clone(), columns, None)?))
    }
}

/// The Arrow integer that travels: ClickHouse widens it without loss where there is none as wide.
fn integer(arrow: &DataType, signed: bool, bits: u16) -> DataType {
    match (signed, bits) {
        (true, 8) => DataType::Int8,
        (true, 16) => DataType::Int16,
        (true, 32) => DataType::Int32,
        (true, 64) => DataType::Int64,
        (true, _) if arrow.is_unsigned_integer() => arrow.clone(),
        (true, _) => DataType::Int64,
        (false, 8) => DataType::UInt8,
        (false, 16) => DataType::UInt16,
        (false, 32) => DataType::UInt32,
        (false, _) => DataType::UInt64,
    }
}

fn keeps_fraction(arrow: &DataType, scale: i8) -> bool {
    match arrow {
        DataType::Decimal128(_, own) | DataType::Decimal256(_, own) => *own <= scale,
        other => other.is_integer(),
    }
}

fn timestamps(unit: TimeUnit, places: u8, exact: bool) -> (Step, DataType) {
    let wire = match places {
        0 => TimeUnit::Second,
        1..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    };
    let from = ticks(unit);
    // Where ClickHouse's digits lie between two of Arrow's units, the finer one travels, cut to ClickHouse's digits.
    let to = ticks(wire);
    (Step::Ticks { from, to, grain: grain(unit, places, exact) }, DataType::Timestamp(wire, None))
}

fn list(arrow: &DataType, item: &FieldRef, inner: &ColumnType) -> Result<(Step, DataType), TypeMisfit> {
    let item = Conversion::new(item.data_type(), inner, false)
        .map_err(|misfit| TypeMisfit(format!("in {}: {misfit}", sql_name(arrow))))?;
    let wire = DataType::List(item_field(&item));
    Ok((Step::List(Box::new(item)), wire))
}

fn item_field(item: &Conversion) -> FieldRef {
    Arc::new(Field::new("item", item.wire.clone(), item.nullable))
}

fn tuple(fields: &Fields, elements: &[(Option<String>, ColumnType)]) -> Result<(Step, DataType), TypeMisfit> {
    let same_name = |field: &Field, name: &Option<String>| name.as_ref().is_none_or(|name| name == field.name());
    if fields.len() != elements.len() || !fields.iter().zip(elements).all(|(f, (name, _))| same_name(f, name)) {
        let names = |names: Vec<&str>| names.join(", ");
        return Err(TypeMisfit(format!(
            "the STRUCT has the fields ({}) and the Tuple ({}): they must be the same, in the same order",
            names(fields.iter().map(|f| f.name().as_str()).collect()),
            names(elements.iter().map(|(name, _)| name.as_deref().unwrap_or("_")).collect()),
        )));
    }
    let mut conversions = Vec::with_capacity(fields.len());
    let mut wire = Vec::with_capacity(fields.len());
    for (field, (_, element)) in fields.iter().zip(elements) {
        let conversion = Conversion::new(field.data_type(), element, false)
            .map_err(|misfit| TypeMisfit(format!("in the field {}: {misfit}", field.name())))?;
        wire.push(Field::new(field.name(), conversion.wire.clone(), conversion.nullable));
        conversions.push(conversion);
    }
    Ok((Step::Struct(conversions), DataType::Struct(wire.into())))
}

fn misfit(arrow: &DataType, kind: &Kind) -> TypeMisfit {
    let from = sql_name(arrow);
    let cast = match kind {
        Kind::Other => return TypeMisfit(format!("{from} cannot be written into a column of this type")),
        Kind::Bool => "BOOLEAN",
        Kind::Integer { .. } => "BIGINT",
        Kind::Float32 => "FLOAT",
        Kind::Float64 => "DOUBLE",
        Kind::Decimal { precision, scale } => {
            let text = format!("{from} would be changed on the way: write CAST(... AS DECIMAL({precision}, {scale}))");
            return TypeMisfit(text);
        }
        Kind::String | Kind::FixedString | Kind::Parsed => "TEXT",
        Kind::Date | Kind::Date32 => "DATE",
        Kind::DateTime | Kind::DateTime64(_) => "TIMESTAMP",
        Kind::Array(_) => return TypeMisfit(format!("{from} is no array")),
        Kind::Tuple(_) => return TypeMisfit(format!("{from} is no STRUCT")),
    };
    TypeMisfit(format!("{from} would be changed on the way: write CAST(... AS {cast})"))
}

fn ticks(unit: TimeUnit) -> i64 {
    10_i64.pow(u32::from(digits(unit)))
}

/// What times in `unit` must be multiples of so that a column with so many `places` has them `exact`ly: what travels may be
/// finer than the column.
fn grain(unit: TimeUnit, places: u8, exact: bool) -> i64 {
    if exact { 10_i64.pow(u32::from(digits(unit).saturating_sub(places))) } else { 1 }
}

/// A time in other ticks; digits too fine for `to` are cut off. One that is no multiple of `grain` is refused.
fn rescale(value: i64, from: i64, to: i64, grain: i64) -> Result<i64, &'static str> {
    if value.rem_euclid(grain) != 0 {
        return Err(HAS_FRACTION);
    }
    match to >= from {
        true => value.checked_mul(to / from).ok_or(OUT_OF_RANGE),
        false => Ok(value.div_euclid(from / to)),
    }
}

/// Maps the ticks of a column of timestamps; nulls stay.
fn map_times<T, A>(array: &ArrayRef, map: impl Fn(i64) -> Result<T, &'static str>) -> Result<A, ConvertError>
where
    T: Default,
    A: From<Vec<T>> + WithNulls,
{
    let values = cast(array, &DataType::Int64)?;
    let values = values.as_primitive::<Int64Type>();
    let mut mapped = Vec::with_capacity(values.len());
    for (row, value) in values.values().iter().enumerate() {
        mapped.push(match map(*value) {
            _ if values.is_null(row) => T::default(),
            Ok(value) => value,
            Err(reason) => return Err(value_misfit(array, row, reason)),
        });
    }
    Ok(A::from(mapped).with_nulls(values.nulls().cloned()))
}

/// The array over the same values with these nulls.
trait WithNulls {
    fn with_nulls(self, nulls: Option<arrow::buffer::NullBuffer>) -> Self;
}

impl<T: arrow::datatypes::ArrowPrimitiveType> WithNulls for arrow::array::PrimitiveArray<T> {
    fn with_nulls(self, nulls: Option<arrow::buffer::NullBuffer>) -> Self {
        Self::new(self.values().clone(), nulls)
    }
}

fn seconds(array: &ArrayRef, from: i64, grain: i64) -> Result<ArrayRef, ConvertError> {
    let seconds: UInt32Array =
        map_times(array, |value| u32::try_from(rescale(value, from, 1, grain)?).map_err(|_| OUT_OF_RANGE))?;
    Ok(Arc::new(seconds))
}

fn days(array: &ArrayRef) -> Result<ArrayRef, ConvertError> {
    let days = array.as_primitive::<Date32Type>();
    let short = days.try_unary::<_, arrow::datatypes::UInt16Type, ArrowError>(|day| {
        u16::try_from(day).map_err(|_| ArrowError::CastError(OUT_OF_RANGE.into()))
    });
    let fits = |row: &usize| days.is_null(*row) || u16::try_from(days.value(*row)).is_ok();
    match short {
        Ok(short) => Ok(Arc::new(short)),
        Err(_) => {
            let row = (0..days.len()).find(|row| !fits(row)).unwrap_or_default();
            Err(value_misfit(array, row, OUT_OF_RANGE))
        }
    }
}

fn value_misfit(array: &ArrayRef, row: usize, reason: &'static str) -> ConvertError {
    let value = ArrayFormatter::try_new(array.as_ref(), &FormatOptions::default())
        .and_then(|formatter| formatter.value(row).try_to_string())
        .unwrap_or_else(|error| error.to_string());
    ConvertError::Value(ValueMisfit { row, value, reason })
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Float64Array, Int32Array, ListArray, StringArray, TimestampNanosecondArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn conversion(arrow: &DataType, target: &str) -> Result<Conversion, TypeMisfit> {
        Conversion::new(arrow, &ColumnType::parse(target), false)
    }

    fn apply(array: impl Array + 'static, target: &str) -> Result<ArrayRef, ValueMisfit> {
        let array: ArrayRef = Arc::new(array);
        let conversion = conversion(array.data_type(), target).unwrap();
        match conversion.apply(&array) {
            Ok(converted) => {
                assert_eq!(converted.data_type(), conversion.wire());
                Ok(converted)
            }
            Err(ConvertError::Value(misfit)) => Err(misfit),
            Err(ConvertError::Arrow(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn pairs_that_could_change_a_value_are_refused() {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        for (arrow, target) in [
            (DataType::Int64, "Float64"),
            (DataType::Float64, "Float32"),
            (DataType::Float64, "Int64"),
            (DataType::Decimal128(10, 3), "Decimal(10, 2)"),
            (DataType::Utf8, "Int64"),
            (DataType::Int64, "String"),
            (DataType::Utf8, "DateTime"),
            (DataType::Int64, "DateTime"),
            (time.clone(), "Date"),
            (time.clone(), "Int64"),
            (DataType::Utf8, "Map(String, String)"),
            (DataType::Utf8, "Array(String)"),
            (DataType::Binary, "UUID"),
        ] {
            assert!(conversion(&arrow, target).is_err(), "{arrow} into {target}");
        }
    }

    #[test]
    fn the_first_value_that_does_not_fit_is_found_behind_nulls() {
        let array = Int64Array::from(vec![Some(1), None, Some(300), Some(301)]);
        let misfit = apply(array, "Nullable(UInt8)").unwrap_err();
        assert_eq!(misfit, ValueMisfit { row: 2, value: "300".into(), reason: OUT_OF_RANGE });
        let misfit = apply(Int64Array::from(vec![Some(1), None]), "Int64").unwrap_err();
        assert_eq!((misfit.row, misfit.reason), (1, IS_NULL));
        assert!(apply(Int64Array::from(vec![-1]), "UInt256").is_err());
    }

    #[test]
    fn a_null_hides_what_lies_under_it() {
        let values = Int64Array::from(vec![1 << 40, 7]).into_data().into_builder();
        let nulls = arrow::buffer::NullBuffer::from(vec![false, true]);
        let array = Int64Array::from(values.nulls(Some(nulls)).build().unwrap());
        let converted = apply(array, "Nullable(Int32)").unwrap();
        assert_eq!((converted.null_count(), converted.as_primitive::<Int32Type>().value(1)), (1, 7));
        let late = TimestampNanosecondArray::new(vec![-1, 0].into(), Some(vec![false, true].into()));
        assert_eq!(apply(late, "Nullable(DateTime)").unwrap().null_count(), 1);
    }

    #[test]
    fn times_are_cut_downwards_and_refused_outside_of_the_range() {
        let times = TimestampNanosecondArray::from(vec![-1, 1_999_999_999]);
        let millis = apply(times, "DateTime64(3)").unwrap();
        assert_eq!(cast(&millis, &DataType::Int64).unwrap().as_primitive::<Int64Type>().values(), &[-1, 1999]);
        let seconds = apply(TimestampNanosecondArray::from(vec![1_999_999_999]), "DateTime").unwrap();
        assert_eq!(seconds.as_ref(), &UInt32Array::from(vec![1]) as &dyn Array);
        assert!(apply(TimestampNanosecondArray::from(vec![-1]), "DateTime").is_err());
        assert!(apply(TimestampNanosecondArray::from(vec![i64::MIN]), "DateTime64(9)").is_err());
    }

    #[test]
    fn times_of_a_key_are_refused_that_are_finer_than_the_column() {
        let apply = |nanos: i64, target: &str| {
            let times: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![nanos]));
            Conversion::new(times.data_type(), &ColumnType::parse(target), true).unwrap().apply(&times)
        };
        for (places, finest) in (0..=9).zip((0..=9).rev().map(|digits| 10_i64.pow(digits))) {
            let target = format!("DateTime64({places})");
            assert!(apply(3 * finest, &target).is_ok(), "{target}");
            assert!(finest == 1 || apply(3 * finest + finest / 10, &target).is_err(), "{target}");
        }
        assert!(apply(1_000_000_000, "DateTime").is_ok() && apply(1_000_000_001, "DateTime").is_err());
    }

    #[test]
    fn lists_are_converted_inside_and_rows_counted_outside() {
        let lists = || {
            ListArray::from_iter_primitive::<Int64Type, _, _>([
                Some(vec![Some(1 << 40)]),
                Some(vec![]),
                Some(vec![Some(1), Some(2)]),
                Some(vec![Some(3), Some(1 << 41)]),
            ])
        };
        // The first and the last row are sliced away, and what they hold is not looked at.
        let converted = apply(lists().slice(1, 2), "Array(Int32)").unwrap();
        let inside = converted.as_list::<i32>().value(1);
        assert_eq!(inside.as_ref(), &Int32Array::from(vec![1, 2]) as &dyn Array);
        let misfit = apply(lists().slice(1, 3), "Array(Int32)").unwrap_err();
        assert_eq!((misfit.row, misfit.value.as_str()), (2, "2199023255552"));
        let null = ListArray::from_iter_primitive::<Int64Type, _, _>([None::<Vec<Option<i64>>>]);
        assert_eq!(apply(null, "Array(Int64)").unwrap_err().reason, IS_NULL);
    }

    #[test]
    fn what_is_right_already_is_not_copied() {
        for (array, target) in [
            (Arc::new(Int64Array::from(vec![1])) as ArrayRef, "Int64"),
            (Arc::new(StringArray::from(vec!["a"])), "LowCardinality(String)"),
            (Arc::new(Float64Array::from(vec![1.0])), "Float64"),
            (Arc::new(BooleanArray::from(vec![true])), "Bool"),
        ] {
            let converted = conversion(array.data_type(), target).unwrap().apply(&array).unwrap();
            assert!(Arc::ptr_eq(&converted, &array), "{target}");
        }
    }
}
