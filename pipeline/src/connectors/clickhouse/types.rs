//! ClickHouse's column types, as far as rows can be written into them, and back: which type an Arrow column asks for.

use arrow::datatypes::{DataType, Field};

use crate::plan::{is_bytes, is_text};

/// The type of a ClickHouse column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnType {
    pub(super) kind: Kind,
    /// `Nullable(...)`.
    pub(super) nullable: bool,
}

/// What a column holds, without `Nullable`, `LowCardinality` and `SimpleAggregateFunction` around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    /// `Int8` to `UInt256`.
    Integer {
        signed: bool,
        bits: u16,
    },
    Float32,
    Float64,
    Decimal {
        precision: u8,
        scale: i8,
    },
    String,
    FixedString,
    /// Days since 1970 in 16 bits.
    Date,
    /// Days since 1970 in 32 bits.
    Date32,
    /// Seconds since 1970 in 32 bits.
    DateTime,
    /// This many digits of a second.
    DateTime64(u8),
    /// What ClickHouse reads out of a text: UUID, IPv4, IPv6, Enum, JSON.
    Parsed,
    Array(Box<ColumnType>),
    /// Fields, named or by place.
    Tuple(Vec<(Option<String>, ColumnType)>),
    /// Everything else.
    Other,
}

impl ColumnType {
    /// Reads a type as `system.columns` gives it.
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        let (name, inside) = match text.split_once('(') {
            Some((name, rest)) => (name.trim_end(), rest.strip_suffix(')').unwrap_or(rest)),
            None => (text, ""),
        };
        let arguments = split_arguments(inside);
        match (name, arguments.as_slice()) {
            ("LowCardinality", [inner]) | ("SimpleAggregateFunction", [_, inner]) => Self::parse(inner),
            ("Nullable", [inner]) => Self { nullable: true, ..Self::parse(inner) },
            _ => Self { kind: Kind::parse(name, &arguments), nullable: false },
        }
    }
}

impl Kind {
    fn parse(name: &str, arguments: &[&str]) -> Self {
        match (name, arguments) {
            ("Bool", []) => Self::Bool,
            ("Float32", []) => Self::Float32,
            ("Float64", []) => Self::Float64,
            ("String", []) => Self::String,
            ("FixedString", [_]) => Self::FixedString,
            ("Date", []) => Self::Date,
            ("Date32", []) => Self::Date32,
            ("DateTime", _) => Self::DateTime,
            ("DateTime64", [digits, ..]) => digits.parse().map_or(Self::Other, Self::DateTime64),
            ("Decimal", [precision, scale]) => match (precision.parse(), scale.parse()) {
                (Ok(precision), Ok(scale)) => Self::Decimal { precision, scale },
                _ => Self::Other,
            },
            ("UUID" | "IPv4" | "IPv6" | "Enum8" | "Enum16" | "JSON", _) => Self::Parsed,
            ("Array", [inner]) => Self::Array(Box::new(ColumnType::parse(inner))),
            ("Tuple", fields) if !fields.is_empty() => Self::Tuple(fields.iter().map(|f| parse_field(f)).collect()),
            (integer, []) => Self::parse_integer(integer),
            _ => Self::Other,
        }
    }

    fn parse_integer(name: &str) -> Self {
        let (signed, bits) = match name.strip_prefix('U') {
            Some(rest) => (false, rest.strip_prefix("Int")),
            None => (true, name.strip_prefix("Int")),
        };
        match bits.and_then(|bits| bits.parse().ok()) {
            Some(bits @ (8 | 16 | 32 | 64 | 128 | 256)) => Self::Integer { signed, bits },
            _ => Self::Other,
        }
    }
}

/// A field of a tuple: `name Type`, with the name perhaps in back-ticks, or `Type`.
fn parse_field(text: &str) -> (Option<String>, ColumnType) {
    let text = text.trim();
    if let Some((name, rest)) = text.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
        return (Some(name.to_owned()), ColumnType::parse(rest));
    }
    match text.split_once(' ') {
        Some((name, rest)) if !name.contains('(') => (Some(name.to_owned()), ColumnType::parse(rest)),
        _ => (None, ColumnType::parse(text)),
    }
}

/// Cuts at the commas that stand in no bracket and no quotes; trimmed, none for a blank text.
pub(super) fn split_arguments(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth, mut quote, mut escaped) = (0, 0_usize, None, false);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`' | '"') => quote = Some(character),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            (None, _) => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

/// The ClickHouse type that holds every value of an Arrow column; `None` when there is none to propose.
pub(super) fn proposed_type(field: &Field, nullable: bool) -> Option<String> {
    let scalar = |name: &str| Some(if nullable { format!("Nullable({name})") } else { name.to_owned() });
    match field.data_type() {
        DataType::Boolean => scalar("Bool"),
        DataType::Int8 => scalar("Int8"),
        DataType::Int16 => scalar("Int16"),
        DataType::Int32 => scalar("Int32"),
        DataType::Int64 => scalar("Int64"),
        DataType::UInt8 => scalar("UInt8"),
        DataType::UInt16 => scalar("UInt16"),
        DataType::UInt32 => scalar("UInt32"),
        DataType::UInt64 => scalar("UInt64"),
        DataType::Float16 | DataType::Float32 => scalar("Float32"),
        DataType::Float64 => scalar("Float64"),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            scalar(&format!("Decimal({precision}, {scale})"))
        }
        DataType::Date32 => scalar("Date32"),
        DataType::Timestamp(unit, _) => scalar(&format!("DateTime64({}, 'UTC')", digits(*unit))),
        DataType::List(item) | DataType::LargeList(item) => {
            Some(format!("Array({})", proposed_type(item, item.is_nullable())?))
        }
        DataType::Struct(fields) => {
            let fields: Option<Vec<_>> = fields
                .iter()
                .map(|field| Some(format!("{} {}", quoted(field.name()), proposed_type(field, field.is_nullable())?)))
                .collect();
            Some(format!("Tuple({})", fields?.join(", ")))
        }
        other if is_text(other) || is_bytes(other) => scalar("String"),
        _ => None,
    }
}

/// Digits of a second.
pub(super) fn digits(unit: arrow::datatypes::TimeUnit) -> u8 {
    use arrow::datatypes::TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    match unit {
        Second => 0,
        Millisecond => 3,
        Microsecond => 6,
        Nanosecond => 9,
    }
}

/// A ClickHouse identifier, in back-ticks where it needs them.
pub(super) fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn types_are_read_through_their_wrappers() {
        let kind = |text: &str| ColumnType::parse(text).kind;
        assert_eq!(kind("LowCardinality(String)"), Kind::String);
        assert_eq!(kind("UInt64"), Kind::Integer { signed: false, bits: 64 });
        assert_eq!(kind("DateTime('Europe/Berlin')"), Kind::DateTime);
        assert_eq!(kind("DateTime64(3, 'UTC')"), Kind::DateTime64(3));
        assert_eq!(kind("Decimal(18, 4)"), Kind::Decimal { precision: 18, scale: 4 });
        assert_eq!(kind("SimpleAggregateFunction(sum, Int64)"), Kind::Integer { signed: true, bits: 64 });
        assert_eq!(kind("Enum8('a,b' = 1, 'c\\')' = 2)"), Kind::Parsed);
        assert_eq!(kind("Map(String, Int64)"), Kind::Other);
        assert_eq!(kind("IntervalDay"), Kind::Other);
        let nullable = ColumnType::parse("LowCardinality(Nullable(String))");
        assert_eq!(nullable, ColumnType { kind: Kind::String, nullable: true });
    }

    #[test]
    fn nested_types_are_read() {
        let tuple = ColumnType::parse("Array(Tuple(a Nullable(Int64), `b c` Decimal(5, 2)))");
        let fields = vec![
            (Some("a".into()), ColumnType { kind: Kind::Integer { signed: true, bits: 64 }, nullable: true }),
            (Some("b c".into()), ColumnType { kind: Kind::Decimal { precision: 5, scale: 2 }, nullable: false }),
        ];
        let inner = ColumnType { kind: Kind::Tuple(fields), nullable: false };
        assert_eq!(tuple.kind, Kind::Array(Box::new(inner)));
        let Kind::Tuple(fields) = ColumnType::parse("Tuple(Int64, Decimal(5, 2))").kind else { panic!() };
        assert!(fields.iter().all(|(name, _)| name.is_none()));
    }

    #[test]
    fn what_is_proposed_for_a_column_reads_back_as_a_type_that_can_be_written() {
        let item = Arc::new(Field::new("item", DataType::Utf8View, true));
        for arrow in [
            DataType::Int64,
            DataType::Utf8,
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            DataType::Decimal128(38, 9),
            DataType::List(item),
        ] {
            let field = Field::new("c", arrow.clone(), true);
            let proposed = proposed_type(&field, true).unwrap();
            assert_ne!(ColumnType::parse(&proposed).kind, Kind::Other, "{arrow} -> {proposed}");
        }
    }

    #[test]
    fn only_names_that_need_it_are_quoted() {
        assert_eq!(quoted("pk"), "pk");
        assert_eq!(quoted("per cent"), "`per cent`");
        assert_eq!(quoted("a`b\\"), "`a\\`b\\\\`");
    }
}
