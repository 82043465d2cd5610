//! The types of Native format, as far as one must know them to find where a column's data ends.

use std::str::FromStr;

/// A position in bytes of which more may come. Every step gives `None` when the bytes do not suffice.
pub(crate) struct Walk<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Where the walk has come to.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The bytes passed so far.
    pub(crate) fn passed(&self) -> &'a [u8] {
        self.input.get(..self.at).unwrap_or_default()
    }

    fn bytes(&mut self, length: u64) -> Option<&'a [u8]> {
        let end = self.at.checked_add(usize::try_from(length).ok()?)?;
        let bytes = self.input.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// A number in LEB128.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.input.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A length and as many bytes.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.varint()?;
        self.bytes(length)
    }
}

/// How the data of a type is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    /// So many bytes each.
    Fixed(u64),
    String,
    Nullable(Box<Type>),
    Array(Box<Type>),
    Tuple(Vec<Type>),
    LowCardinality(Box<Type>),
}

impl Type {
    /// Reads a type's name; `None` for types whose layout is not known here (AggregateFunction, JSON, Dynamic, Variant).
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        let (base, arguments) = match name.split_once('(') {
            Some((base, rest)) => (base.trim(), split_arguments(rest.strip_suffix(')')?)),
            None => (name, Vec::new()),
        };
        let argument = |at: usize| arguments.get(at).map(|argument| Self::parse(argument)).and_then(|parsed| parsed);
        let boxed = |at: usize| argument(at).map(Box::new);
        Some(match base {
            "UInt8" | "Int8" | "Bool" | "Enum8" | "Nothing" => Self::Fixed(1),
            "UInt16" | "Int16" | "Date" | "Enum16" | "BFloat16" => Self::Fixed(2),
            "UInt32" | "Int32" | "Float32" | "Date32" | "DateTime" | "IPv4" | "Decimal32" | "Time" => Self::Fixed(4),
            "UInt64" | "Int64" | "Float64" | "DateTime64" | "Decimal64" | "Time64" => Self::Fixed(8),
            "UInt128" | "Int128" | "UUID" | "IPv6" | "Decimal128" => Self::Fixed(16),
            "UInt256" | "Int256" | "Decimal256" => Self::Fixed(32),
            "Decimal" => Self::Fixed(match u32::from_str(arguments.first()?).ok()? {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            }),
            "FixedString" => Self::Fixed(u64::from_str(arguments.first()?).ok()?),
            "String" => Self::String,
            "Nullable" => Self::Nullable(boxed(0)?),
            "LowCardinality" => Self::LowCardinality(boxed(0)?),
            "Array" => Self::Array(boxed(0)?),
            "Map" => Self::Array(Box::new(Self::Tuple(vec![argument(0)?, argument(1)?]))),
            "Tuple" => Self::Tuple(elements(&arguments)?),
            "Nested" => Self::Array(Box::new(Self::Tuple(elements(&arguments)?))),
            "SimpleAggregateFunction" => argument(1)?,
            "Point" => Self::Tuple(vec![Self::Fixed(8), Self::Fixed(8)]),
            "Ring" | "LineString" => Self::Array(Box::new(Self::parse("Point")?)),
            "Polygon" | "MultiLineString" => Self::Array(Box::new(Self::parse("Ring")?)),
            "MultiPolygon" => Self::Array(Box::new(Self::parse("Polygon")?)),
            interval if interval.starts_with("Interval") => Self::Fixed(8),
            _ => return None,
        })
    }

    /// Passes over a column of `rows` values: first the prefixes of all its parts, then the data.
    pub(crate) fn walk_column(&self, walk: &mut Walk<'_>, rows: u64) -> Option<()> {
        self.walk_prefix(walk)?;
        self.walk_data(walk, rows)
    }

    fn walk_prefix(&self, walk: &mut Walk<'_>) -> Option<()> {
        match self {
            Self::Fixed(_) | Self::String => Some(()),
            Self::Nullable(inner) | Self::Array(inner) => inner.walk_prefix(walk),
            Self::Tuple(parts) => parts.iter().try_for_each(|part| part.walk_prefix(walk)),
            // The version of the dictionary's layout.
            Self::LowCardinality(_) => walk.u64().map(|_| ()),
        }
    }

    fn walk_data(&self, walk: &mut Walk<'_>, rows: u64) -> Option<()> {
        if rows == 0 {
            return Some(());
        }
        match self {
            Self::Fixed(size) => walk.bytes(rows.checked_mul(*size)?).map(|_| ()),
            Self::String => (0..rows).try_for_each(|_| walk.string().map(|_| ())),
            Self::Nullable(inner) => {
                walk.bytes(rows)?;
                inner.walk_data(walk, rows)
            }
            Self::Array(inner) => {
                walk.bytes((rows - 1).checked_mul(8)?)?;
                let total = walk.u64()?;
                inner.walk_data(walk, total)
            }
            // A tuple of nothing still has a byte a row.
            Self::Tuple(parts) if parts.is_empty() => walk.bytes(rows).map(|_| ()),
            Self::Tuple(parts) => parts.iter().try_for_each(|part| part.walk_data(walk, rows)),
            Self::LowCardinality(inner) => walk_dictionary(inner, walk, rows),
        }
    }
}

/// The data of a LowCardinality: one or more parts, each with its keys and the indexes into them.
fn walk_dictionary(inner: &Type, walk: &mut Walk<'_>, rows: u64) -> Option<()> {
    // The null is a key like others, without a mask.
    let keys_type = if let Type::Nullable(inner) = inner { inner.as_ref() } else { inner };
    let mut left = rows;
    while left > 0 {
        let flags = walk.u64()?;
        let index_size = 1_u64 << (flags & 0xff).min(3);
        let keys = walk.u64()?;
        keys_type.walk_data(walk, keys)?;
        let indexes = walk.u64()?;
        walk.bytes(indexes.checked_mul(index_size)?)?;
        left = left.saturating_sub(indexes.max(1));
    }
    Some(())
}

/// The types of a tuple's elements, which may be named: `a UInt8` or `` `a b` UInt8 ``.
fn elements(arguments: &[&str]) -> Option<Vec<Type>> {
    arguments
        .iter()
        .map(|argument| {
            let argument = argument.trim();
            let unnamed = match argument.strip_prefix('`') {
                Some(quoted) => quoted.split_once('`').map(|(_, rest)| rest.trim_start())?,
                None => match argument.split_once(' ') {
                    // `Decimal(9, 2)` has a blank, but no name before it.
                    Some((first, rest)) if !first.contains('(') => rest,
                    _ => argument,
                },
            };
            Type::parse(unnamed)
        })
        .collect()
}

/// Splits at the commas outside of parentheses and quotes.
pub(crate) fn split_arguments(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start, mut quote, mut escaped) = (0_usize, 0, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(text.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text.get(start..).unwrap_or_default().trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_with_all_their_arguments() {
        let fixed = |size| Type::Fixed(size);
        for (name, parsed) in [
            ("DateTime64(3, 'UTC')", fixed(8)),
            ("Enum8('a, b' = 1, 'c\\')' = 2)", fixed(1)),
            ("Decimal(38, 9)", fixed(16)),
            ("FixedString(7)", fixed(7)),
            ("SimpleAggregateFunction(sum, UInt64)", fixed(8)),
            ("Array(Nullable(String))", Type::Array(Box::new(Type::Nullable(Box::new(Type::String))))),
            ("Tuple(a UInt8, `b c` Decimal(9, 2), String)", Type::Tuple(vec![fixed(1), fixed(4), Type::String])),
            ("Tuple(Decimal(9, 2), Int16)", Type::Tuple(vec![fixed(4), fixed(2)])),
            ("Map(String, UInt64)", Type::Array(Box::new(Type::Tuple(vec![Type::String, fixed(8)])))),
            ("IntervalSecond", fixed(8)),
        ] {
            assert_eq!(Type::parse(name), Some(parsed), "{name}");
        }
        assert_eq!(Type::parse("AggregateFunction(sum, UInt64)"), None);
        assert_eq!(Type::parse("Array(JSON)"), None);
    }
}
