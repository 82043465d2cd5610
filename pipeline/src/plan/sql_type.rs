//! Arrow's types in SQL's words.

use arrow::datatypes::{DataType, IntervalUnit};

/// Whether a column holds text in any of Arrow's layouts.
pub fn is_text(arrow: &DataType) -> bool {
    match arrow {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// Whether a column holds bytes in any of Arrow's layouts.
pub fn is_bytes(arrow: &DataType) -> bool {
    match arrow {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Dictionary(_, value) => is_bytes(value),
        _ => false,
    }
}

/// An Arrow type in SQL's words, for messages.
pub fn sql_name(arrow: &DataType) -> String {
    let name = match arrow {
        DataType::Boolean => "BOOLEAN",
        DataType::Int8 => "TINYINT",
        DataType::Int16 => "SMALLINT",
        DataType::Int32 => "INT",
        DataType::Int64 => "BIGINT",
        DataType::UInt8 => "TINYINT UNSIGNED",
        DataType::UInt16 => "SMALLINT UNSIGNED",
        DataType::UInt32 => "INT UNSIGNED",
        DataType::UInt64 => "BIGINT UNSIGNED",
        DataType::Float32 => "FLOAT",
        DataType::Float64 => "DOUBLE",
        DataType::Date32 => "DATE",
        DataType::Timestamp(_, _) => "TIMESTAMP",
        DataType::Interval(IntervalUnit::MonthDayNano | IntervalUnit::DayTime | IntervalUnit::YearMonth) => "INTERVAL",
        DataType::Decimal128(precision, scale) => return format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) => return format!("{}[]", sql_name(item.data_type())),
        text if is_text(text) => "TEXT",
        bytes if is_bytes(bytes) => "BYTEA",
        other => return other.to_string(),
    };
    name.to_owned()
}
