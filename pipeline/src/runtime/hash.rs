//! The stable hash that keyed exchanges route by.
//!
//! Which subtask a key belongs to decides where its state is saved, so the hash is the same in every release and on every
//! machine. It is XXH64, chained over the key's columns: the hash of one column is the seed of the next, and the first
//! seed is 0. What is hashed of a value:
//!
//! | type | bytes |
//! | --- | --- |
//! | null of any type | the one byte `fe`, which no UTF-8 text holds |
//! | `Boolean` | one byte, 0 or 1 |
//! | integers, signed or not | 8 bytes, little-endian, sign-extended: widening a column moves no key |
//! | `Date`, `Time`, `Timestamp`, `Duration`, `Interval(YearMonth)` | the stored number, as an integer (the unit is not part of it) |
//! | `Interval(MonthDayNano)` | months and days as 4 bytes each, nanoseconds as 8 |
//! | floats | as `Float64`, 8 bytes; -0.0 is 0.0, every NaN is `7ff8000000000000` |
//! | `Decimal32`, `64`, `128` | the unscaled number as 16 bytes, little-endian, sign-extended |
//! | `Decimal256` | the unscaled number as 32 bytes |
//! | `Utf8`, `LargeUtf8`, `Utf8View` | the bytes of the text |
//! | `Binary`, `LargeBinary`, `BinaryView`, `FixedSizeBinary` | the bytes |
//! | `Struct` | chained through the fields, as columns are |
//! | `List`, `LargeList`, `FixedSizeList` | the number of elements as 8 bytes, then each element's hash (seed 0) as 8 bytes |
//! | `Dictionary` | the value that the key stands for |
//!
//! Other types are refused by [`check`]: a map has no order of its own, a union no type of its own.
//!
//! A key belongs to subtask `(hash * n) >> 64` of `n`: each subtask has one contiguous range of hashes, so that state
//! saved by `n` subtasks can be read back by any other number in ranges.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::take;
use arrow::datatypes::{self as types, DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit, i256};
use arrow::error::ArrowError;
use twox_hash::XxHash64;

const NULL: [u8; 1] = [0xfe];

/// A column that cannot be a key of an exchange.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("values of type {0} cannot be grouped or joined by; cast the column to another type, such as TEXT")]
pub struct Unhashable(pub DataType);

/// Whether [`hash_columns`] can hash columns of this type.
pub fn check(data_type: &DataType) -> Result<(), Unhashable> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => check(item.data_type()),
        DataType::Struct(fields) => fields.iter().try_for_each(|field| check(field.data_type())),
        DataType::Dictionary(_, value) => check(value),
        DataType::Interval(IntervalUnit::DayTime)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Union(_, _)
        | DataType::Map(_, _)
        | DataType::RunEndEncoded(_, _) => Err(Unhashable(data_type.clone())),
        _ => Ok(()),
    }
}

/// The hash of each of `rows` rows, over `columns` in order.
///
/// # Errors
/// A column of a type that [`check`] refuses.
pub fn hash_columns<'a>(columns: impl IntoIterator<Item = &'a ArrayRef>, rows: usize) -> Result<Vec<u64>, ArrowError> {
    let mut hashes = Vec::new();
    hash_columns_into(columns, rows, &mut hashes)?;
    Ok(hashes)
}

/// [`hash_columns`] into memory that is used again: fresh zeroed memory of a batch's size comes from the kernel page by page.
///
/// # Errors
/// A column of a type that [`check`] refuses.
pub fn hash_columns_into<'a>(
    columns: impl IntoIterator<Item = &'a ArrayRef>,
    rows: usize,
    hashes: &mut Vec<u64>,
) -> Result<(), ArrowError> {
    hashes.clear();
    hashes.resize(rows, 0);
    columns.into_iter().try_for_each(|column| chain(column, hashes))
}

/// The subtask, of `parallelism`, whose key range holds `hash`.
pub fn owner(hash: u64, parallelism: usize) -> usize {
    // The product of two 64-bit numbers, shifted by 64, is below the second: it fits.
    ((u128::from(hash) * parallelism as u128) >> 64) as usize
}

/// Makes each of `hashes` the hash of the row's value in `column`, seeded with what it was.
fn chain(column: &dyn Array, hashes: &mut [u64]) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Null => hashes.iter_mut().for_each(|hash| *hash = XxHash64::oneshot(*hash, &NULL)),
        DataType::Boolean => {
            let values = column.as_boolean();
            chain_bytes(column, hashes, |row| [u8::from(values.value(row))]);
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::LargeUtf8 => {
            let values = column.as_string::<i64>();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::Utf8View => {
            let values = column.as_string_view();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::LargeBinary => {
            let values = column.as_binary::<i64>();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::BinaryView => {
            let values = column.as_binary_view();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::FixedSizeBinary(_) => {
            let values = column.as_fixed_size_binary();
            chain_bytes(column, hashes, |row| values.value(row));
        }
        DataType::Struct(_) | DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) => {
            chain_nested(column, hashes)?;
        }
        DataType::Dictionary(_, _) => chain_dictionary(column, hashes)?,
        _ => chain_primitive(column, hashes)?,
    }
    Ok(())
}

/// Chains every row through the bytes that `bytes` gives for it, or through [`NULL`].
fn chain_bytes<B: AsRef<[u8]>>(column: &dyn Array, hashes: &mut [u64], bytes: impl Fn(usize) -> B) {
    match column.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => {
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = XxHash64::oneshot(*hash, bytes(row).as_ref());
            }
        }
        Some(nulls) => {
            for ((row, hash), valid) in hashes.iter_mut().enumerate().zip(nulls) {
                *hash = match valid {
                    true => XxHash64::oneshot(*hash, bytes(row).as_ref()),
                    false => XxHash64::oneshot(*hash, &NULL),
                };
            }
        }
    }
}

fn integer(value: impl Into<i64>) -> [u8; 8] {
    value.into().to_le_bytes()
}

fn float(value: impl Into<f64>) -> [u8; 8] {
    let value = value.into();
    if value.is_nan() {
        return 0x7ff8_0000_0000_0000_u64.to_le_bytes();
    }
    // Adding zero turns -0.0 into 0.0 and leaves the rest as it is.
    (value + 0.0).to_bits().to_le_bytes()
}

fn decimal(value: impl Into<i128>) -> [u8; 16] {
    value.into().to_le_bytes()
}

fn month_day_nano(value: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&value.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&value.days.to_le_bytes());
    bytes[8..].copy_from_slice(&value.nanoseconds.to_le_bytes());
    bytes
}

/// Chains columns of numbers; `match` over the types, so that the loop over the rows knows its type.
fn chain_primitive(column: &dyn Array, hashes: &mut [u64]) -> Result<(), ArrowError> {
    macro_rules! by_type {
        ($($data_type:pat => $arrow:ident $canonical:expr),+ $(,)?) => {
            match column.data_type() {
                $($data_type => {
                    let values = column.as_primitive::<types::$arrow>().values();
                    chain_bytes(column, hashes, |row| $canonical(values[row]));
                })+
                other => return Err(ArrowError::NotYetImplemented(Unhashable(other.clone()).to_string())),
            }
        };
    }
    by_type! {
        DataType::Int8 => Int8Type integer,
        DataType::Int16 => Int16Type integer,
        DataType::Int32 => Int32Type integer,
        DataType::Int64 => Int64Type integer,
        DataType::UInt8 => UInt8Type integer,
        DataType::UInt16 => UInt16Type integer,
        DataType::UInt32 => UInt32Type integer,
        DataType::UInt64 => UInt64Type u64::to_le_bytes,
        DataType::Float16 => Float16Type float,
        DataType::Float32 => Float32Type float,
        DataType::Float64 => Float64Type float,
        DataType::Decimal32(_, _) => Decimal32Type decimal,
        DataType::Decimal64(_, _) => Decimal64Type decimal,
        DataType::Decimal128(_, _) => Decimal128Type decimal,
        DataType::Decimal256(_, _) => Decimal256Type i256::to_le_bytes,
        DataType::Date32 => Date32Type integer,
        DataType::Date64 => Date64Type integer,
        DataType::Time32(TimeUnit::Second) => Time32SecondType integer,
        DataType::Time32(_) => Time32MillisecondType integer,
        DataType::Time64(TimeUnit::Microsecond) => Time64MicrosecondType integer,
        DataType::Time64(_) => Time64NanosecondType integer,
        DataType::Timestamp(TimeUnit::Second, _) => TimestampSecondType integer,
        DataType::Timestamp(TimeUnit::Millisecond, _) => TimestampMillisecondType integer,
        DataType::Timestamp(TimeUnit::Microsecond, _) => TimestampMicrosecondType integer,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => TimestampNanosecondType integer,
        DataType::Duration(TimeUnit::Second) => DurationSecondType integer,
        DataType::Duration(TimeUnit::Millisecond) => DurationMillisecondType integer,
        DataType::Duration(TimeUnit::Microsecond) => DurationMicrosecondType integer,
        DataType::Duration(TimeUnit::Nanosecond) => DurationNanosecondType integer,
        DataType::Interval(IntervalUnit::YearMonth) => IntervalYearMonthType integer,
        DataType::Interval(IntervalUnit::MonthDayNano) => IntervalMonthDayNanoType month_day_nano,
    }
    Ok(())
}

/// Chains a dictionary as the plain column that it stands for.
fn chain_dictionary(column: &dyn Array, hashes: &mut [u64]) -> Result<(), ArrowError> {
    let values = column.as_any_dictionary();
    let plain = take(values.values(), values.keys(), None)?;
    chain(&plain, hashes)
}

fn chain_nested(column: &dyn Array, hashes: &mut [u64]) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Struct(_) => {
            let seeds = column.nulls().is_some().then(|| hashes.to_vec());
            for field in column.as_struct().columns() {
                chain(field, hashes)?;
            }
            if let (Some(seeds), Some(nulls)) = (seeds, column.nulls()) {
                for ((hash, seed), _) in hashes.iter_mut().zip(seeds).zip(nulls).filter(|(_, valid)| !valid) {
                    *hash = XxHash64::oneshot(seed, &NULL);
                }
            }
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let bounds: Vec<usize> = list.value_offsets().iter().map(|offset| *offset as usize).collect();
            chain_elements(column, hashes, list.values(), &bounds)?;
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            let bounds: Vec<usize> = list.value_offsets().iter().map(|offset| *offset as usize).collect();
            chain_elements(column, hashes, list.values(), &bounds)?;
        }
        _ => {
            let list = column.as_fixed_size_list();
            let bounds: Vec<usize> = (0..=list.len()).map(|row| list.value_offset(row) as usize).collect();
            chain_elements(column, hashes, list.values(), &bounds)?;
        }
    }
    Ok(())
}

/// Chains each row through its list's length and the hashes of its elements. The elements of row `r` are those from
/// `bounds[r]` to before `bounds[r + 1]`.
fn chain_elements(
    column: &dyn Array,
    hashes: &mut [u64],
    elements: &ArrayRef,
    bounds: &[usize],
) -> Result<(), ArrowError> {
    let (Some(first), Some(end)) = (bounds.first(), bounds.last()) else { return Ok(()) };
    // A slice of a list shares all elements of the whole: only those of the slice are hashed.
    let elements = elements.slice(*first, end - first);
    let element_hashes = hash_columns([&elements], elements.len())?;
    let mut bytes = Vec::new();
    for ((row, hash), bounds) in hashes.iter_mut().enumerate().zip(bounds.windows(2)) {
        bytes.clear();
        if column.is_null(row) {
            bytes.extend(NULL);
        } else {
            let of_row = &element_hashes[bounds[0] - first..bounds[1] - first];
            bytes.extend((of_row.len() as u64).to_le_bytes());
            bytes.extend(of_row.iter().flat_map(|hash| hash.to_le_bytes()));
        }
        *hash = XxHash64::oneshot(*hash, &bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::datatypes::{Field, Fields, Int32Type};

    use super::*;

    /// The hashes of a column's rows.
    fn of(column: impl Array + 'static) -> Vec<u64> {
        let column: ArrayRef = Arc::new(column);
        check(column.data_type()).unwrap();
        hash_columns([&column], column.len()).unwrap()
    }

    // Computed with another implementation of XXH64. Saved state depends on them: they may never change.
    const NULL_HASH: u64 = 0x17e1_aaf6_7878_28ab;
    const ONE: u64 = 0x9f29_cb17_a2a4_9995;
    const MINUS_ONE: u64 = 0x85d1_36ad_b773_c6c9;
    const TEXT: u64 = 0x138a_895d_31fb_9c40;
    const EMPTY: u64 = 0xef46_db37_51d8_e999;

    #[test]
    fn integers_of_all_widths_hash_alike() {
        let expected = [ONE, NULL_HASH];
        assert_eq!(of(Int8Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(Int16Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(Int32Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(Int64Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(UInt8Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(UInt16Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(UInt32Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(UInt64Array::from(vec![Some(1), None])), expected);
        assert_eq!(of(Int8Array::from(vec![-1])), [MINUS_ONE]);
        assert_eq!(of(Int64Array::from(vec![-1, 1_000_000])), [MINUS_ONE, 0xf126_1947_44ec_ba1e]);
    }

    #[test]
    fn moments_hash_as_their_numbers() {
        assert_eq!(of(Date32Array::from(vec![1])), [ONE]);
        assert_eq!(of(Date64Array::from(vec![1])), [ONE]);
        assert_eq!(of(Time32SecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(Time32MillisecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(Time64MicrosecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(Time64NanosecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(TimestampSecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(TimestampMillisecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(TimestampMicrosecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(TimestampNanosecondArray::from(vec![1]).with_timezone("UTC")), [ONE]);
        assert_eq!(of(DurationSecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(DurationMillisecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(DurationMicrosecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(DurationNanosecondArray::from(vec![1])), [ONE]);
        assert_eq!(of(IntervalYearMonthArray::from(vec![1])), [ONE]);
        let interval = IntervalMonthDayNano::new(1, 2, 3);
        assert_eq!(of(IntervalMonthDayNanoArray::from(vec![interval])), [0x28c4_6192_0d6a_41dc]);
    }

    #[test]
    fn floats_are_made_canonical() {
        let (zero, nan) = (0x34c9_6acd_cadb_1bbb, 0xe9ad_b09f_ee12_2aac);
        let other_nan = f64::from_bits(0xfff8_0000_0000_0001);
        assert_eq!(of(Float64Array::from(vec![0.0, -0.0, f64::NAN, other_nan])), [zero, zero, nan, nan]);
        assert_eq!(of(Float64Array::from(vec![1.5])), [0x49f7_b96b_6b5c_caf9]);
        assert_eq!(of(Float32Array::from(vec![1.5, -0.0, f32::NAN])), [0x49f7_b96b_6b5c_caf9, zero, nan]);
        let half = arrow::compute::cast(&Float32Array::from(vec![1.5]), &DataType::Float16).unwrap();
        assert_eq!(of(half), [0x49f7_b96b_6b5c_caf9]);
    }

    #[test]
    fn decimals_booleans_nulls() {
        let (one, minus_one) = (0x6c1c_ff04_59c8_bb10, 0xa721_445d_6a57_c444);
        assert_eq!(of(Decimal32Array::from(vec![1, -1])), [one, minus_one]);
        assert_eq!(of(Decimal64Array::from(vec![1, -1])), [one, minus_one]);
        assert_eq!(of(Decimal128Array::from(vec![1, -1])), [one, minus_one]);
        assert_eq!(of(Decimal256Array::from(vec![i256::ONE])), [0xf186_e28f_ede3_a371]);
        assert_eq!(of(BooleanArray::from(vec![Some(true), None])), [0x8a41_2781_1b21_e730, NULL_HASH]);
        assert_eq!(of(NullArray::new(2)), [NULL_HASH; 2]);
    }

    #[test]
    fn texts_and_bytes_hash_alike_however_they_are_stored() {
        let long = "a pipeline is one file of SQL, and it runs anywhere";
        let values = vec![Some("tickhouse"), None, Some(""), Some(long)];
        let expected = [TEXT, NULL_HASH, EMPTY, 0xc743_27b7_9899_ac61];
        assert_eq!(of(StringArray::from(values.clone())), expected);
        assert_eq!(of(LargeStringArray::from(values.clone())), expected);
        assert_eq!(of(StringViewArray::from(values.clone())), expected);
        let bytes: Vec<Option<&[u8]>> = values.iter().map(|value| value.map(str::as_bytes)).collect();
        assert_eq!(of(BinaryArray::from(bytes.clone())), expected);
        assert_eq!(of(LargeBinaryArray::from(bytes.clone())), expected);
        assert_eq!(of(BinaryViewArray::from(bytes)), expected);
        let fixed = FixedSizeBinaryArray::try_from_iter([b"tickhouse"].into_iter()).unwrap();
        assert_eq!(of(fixed), [TEXT]);
        let dictionary: DictionaryArray<Int32Type> = values.into_iter().collect();
        assert_eq!(of(dictionary), expected);
    }

    #[test]
    fn columns_are_chained() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 1]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("tickhouse"), None]));
        let expected = [0xc589_a025_d783_5a45, 0xba9b_0b1c_191a_aad9];
        assert_eq!(hash_columns([&numbers, &texts], 2).unwrap(), expected);
        assert_ne!(hash_columns([&texts, &numbers], 2).unwrap(), expected);
        assert_eq!(hash_columns([], 2).unwrap(), [0, 0]);

        let field = |name, data_type| Field::new(name, data_type, true);
        let fields = Fields::from(vec![field("a", DataType::Int64), field("b", DataType::Utf8)]);
        let both = StructArray::new(fields.clone(), vec![Arc::clone(&numbers), Arc::clone(&texts)], None);
        assert_eq!(of(both), expected, "a struct hashes as its columns");
        let nulls = arrow::buffer::NullBuffer::from(vec![true, false]);
        let partly = StructArray::new(fields, vec![numbers, texts], Some(nulls));
        assert_eq!(of(partly), [expected[0], NULL_HASH]);
    }

    #[test]
    fn lists_hash_by_length_and_elements() {
        let expected = [0x8a6c_3062_7d0e_e9cf, NULL_HASH, 0x34c9_6acd_cadb_1bbb];
        let lists = || vec![Some(vec![Some(1), None]), None, Some(vec![])];
        assert_eq!(of(ListArray::from_iter_primitive::<Int32Type, _, _>(lists())), expected);
        assert_eq!(of(LargeListArray::from_iter_primitive::<Int32Type, _, _>(lists())), expected);
        let fixed =
            FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None], 2);
        assert_eq!(of(fixed.slice(1, 1)), expected[1..2]);
        assert_eq!(of(fixed), expected[..2]);
        let sliced = ListArray::from_iter_primitive::<Int32Type, _, _>(lists()).slice(1, 2);
        assert_eq!(of(sliced), expected[1..]);
    }

    #[test]
    fn a_slice_hashes_as_its_rows() {
        let numbers = Int64Array::from(vec![Some(7), None, Some(1), Some(-1)]);
        assert_eq!(of(numbers.slice(1, 3)), [NULL_HASH, ONE, MINUS_ONE]);
        let texts = StringViewArray::from(vec![None, Some("tickhouse"), Some("")]);
        assert_eq!(of(texts.slice(1, 2)), [TEXT, EMPTY]);
    }

    #[test]
    fn types_without_an_order_of_their_own_are_refused() {
        let union = DataType::Union(arrow::datatypes::UnionFields::empty(), arrow::datatypes::UnionMode::Sparse);
        let list = DataType::new_list(union.clone(), true);
        assert_eq!(check(&list), Err(Unhashable(union)));
        let refused = IntervalDayTimeArray::from(vec![arrow::datatypes::IntervalDayTime::ZERO]);
        assert!(check(refused.data_type()).is_err());
        let refused: ArrayRef = Arc::new(refused);
        assert!(hash_columns([&refused], 1).is_err());
    }

    #[test]
    fn owners_are_contiguous_ranges() {
        assert_eq!([0, u64::MAX].map(|hash| owner(hash, 1)), [0, 0]);
        assert_eq!([0, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX].map(|hash| owner(hash, 2)), [0, 0, 1, 1]);
        assert_eq!([u64::MAX / 3, u64::MAX / 3 + 1].map(|hash| owner(hash, 3)), [0, 1]);
    }
}
