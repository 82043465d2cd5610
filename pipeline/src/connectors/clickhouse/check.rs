//! Whether a stream can be written into a table, decided from what ClickHouse said; nothing here asks it.
//!
//! Each refusal carries the statement that mends it.

use super::Delivery;
use super::catalog::{ColumnFacts, Found, Replacing, TableFacts, TableName, WINDOW};
use super::convert::Conversion;
use super::repeats::Repeats;
use super::types::{ColumnType, Kind, proposed_type, quoted};
use crate::plan::StreamSchema;

/// What is to be written where.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: TableName,
    pub(super) input: StreamSchema,
    /// Names of the PRIMARY KEY columns in SQL; each is a visible column.
    pub(super) primary_key: Vec<String>,
    pub(super) delivery: Delivery,
}

/// How the rows are written.
#[derive(Debug)]
pub(super) struct Layout {
    /// The visible columns, in order.
    pub(super) columns: Vec<ColumnLayout>,
    /// For an updating stream.
    pub(super) upsert: Option<Upsert>,
    pub(super) repeats: Repeats,
}

/// How a column is written.
#[derive(Debug)]
pub(super) struct ColumnLayout {
    pub(super) name: String,
    /// The type in ClickHouse's words, for messages.
    pub(super) type_name: String,
    pub(super) conversion: Conversion,
}

/// How changes are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upsert {
    /// Indexes of the PRIMARY KEY columns.
    pub(super) key: Vec<usize>,
    /// The version column that the sink fills with a number that grows; `None` when the query gives it.
    pub(super) version: Option<Version>,
    /// The column that says that a row is gone.
    pub(super) is_deleted: Option<String>,
}

/// A version column for the sink to fill.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) name: String,
    /// `UInt64`, else `Int64`.
    pub(super) unsigned: bool,
}

/// Why a stream cannot be written into a table, and the statement that mends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("ClickHouse has no database `{0}`: CREATE DATABASE {q}, or `tickhouse clickhouse migrate`", q = quoted(.0))]
    NoDatabase(String),
    #[error("ClickHouse has no table {name}. To make one: {create}")]
    NoTable { name: TableName, create: String },
    #[error("{name} is a {engine}, and nothing can be inserted into it: name a table of the MergeTree family")]
    ReadOnly { name: TableName, engine: String },
    #[error("{name} has no column `{column}`{hint}. To add it: {alter}; or leave it out of the query")]
    NoColumn { name: TableName, column: String, hint: String, alter: String },
    #[error("the column `{column}` of {name} is {default_kind}: ClickHouse computes it, leave it out of the query")]
    Computed { name: TableName, column: String, default_kind: String },
    #[error("the column `{column}` of {name} is {found}: {reason}; or change the column: {alter}")]
    Type { name: TableName, column: String, found: String, reason: String, alter: String },
    #[error(
        "{name} is a {engine}, and the query is updating: its rows replace earlier ones, which needs a ReplacingMergeTree with a \
         version column. To make one: {create}"
    )]
    NotReplacing { name: TableName, engine: String, create: String },
    #[error(
        "{name} is sorted by ({found}), and the query's PRIMARY KEY is ({wanted}): rows replace each other by the sorting key, so \
         the two must be the same columns. To make such a table: {create}"
    )]
    SortingKey { name: TableName, found: String, wanted: String, create: String },
    #[error(
        "the version column `{column}` of {name} is {found}, which the sink cannot fill: make it UInt64, or let the query give it. \
         To make such a table: {create}"
    )]
    VersionType { name: TableName, column: String, found: String, create: String },
    #[error(
        "the column `{column}` of {name} says which rows are gone, and the sink fills it: leave it out of the query"
    )]
    DeletedGiven { name: TableName, column: String },
    #[error(
        "{name} remembers no inserts, so that one that has to be repeated could be written twice: {alter}; or set \
         `delivery = 'at_least_once'`"
    )]
    NoWindow { name: TableName, alter: String },
    #[error(
        "{name} is a {engine}, which cannot tell a repeated insert from a new one: write into a table of the MergeTree family, or set \
         `delivery = 'at_least_once'`"
    )]
    NoDeduplication { name: TableName, engine: String },
}

/// Decides how `wanted` is written into what was `found`.
///
/// # Errors
/// The first thing that stands in the way.
pub(super) fn layout(wanted: &Wanted, found: &Found) -> Result<Layout, Box<Unfit>> {
    let facts = match found {
        Found::NoDatabase => return Err(Unfit::NoDatabase(wanted.name.database.clone()).into()),
        Found::NoTable => {
            return Err(Unfit::NoTable { name: wanted.name.clone(), create: wanted.create_table() }.into());
        }
        Found::Table(facts) => facts,
    };
    if facts.engine.is_read_only() {
        return Err(Unfit::ReadOnly { name: wanted.name.clone(), engine: facts.engine.name.clone() }.into());
    }
    let upsert = if wanted.input.is_updating() { Some(wanted.upsert(facts)?) } else { None };
    let columns: Vec<_> =
        (0..wanted.input.visible_len()).map(|index| wanted.column(index, facts)).collect::<Result<_, _>>()?;
    // Rows that replace each other may be written again: the same version of a row is one row.
    if wanted.delivery == Delivery::ExactlyOnce && upsert.is_none() {
        wanted.remembers_inserts(facts)?;
    }
    let repeats = Repeats::of(facts, wanted.delivery, upsert.is_some(), &columns);
    Ok(Layout { columns, upsert, repeats })
}

impl Wanted {
    /// Whether a repeated insert is dropped.
    fn remembers_inserts(&self, facts: &TableFacts) -> Result<(), Box<Unfit>> {
        let name = self.name.clone();
        if !facts.engine.is_merge_tree() {
            return Err(Unfit::NoDeduplication { name, engine: facts.engine.name.clone() }.into());
        }
        if !facts.engine.is_replicated() && facts.deduplication_window == 0 {
            let alter = format!("ALTER TABLE {name} MODIFY SETTING {WINDOW} = 10000");
            return Err(Unfit::NoWindow { name, alter }.into());
        }
        Ok(())
    }

    fn column(&self, index: usize, facts: &TableFacts) -> Result<ColumnLayout, Box<Unfit>> {
        let field = &self.input.visible()[index];
        let name = field.name();
        let in_key = self.primary_key.contains(name);
        let proposed = || proposed_type(field, field.is_nullable() && !in_key).unwrap_or_else(|| "String".into());
        let Some(column) = facts.columns.iter().find(|column| column.name == *name) else {
            return Err(Unfit::NoColumn {
                name: self.name.clone(),
                column: name.clone(),
                hint: similar(name, &facts.columns),
                alter: format!("ALTER TABLE {} ADD COLUMN {} {}", self.name, quoted(name), proposed()),
            }
            .into());
        };
        if matches!(column.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
            return Err(Unfit::Computed {
                name: self.name.clone(),
                column: name.clone(),
                default_kind: column.default_kind.clone(),
            }
            .into());
        }
        let exact = self.input.is_updating() && in_key;
        let conversion = Conversion::new(field.data_type(), &ColumnType::parse(&column.type_name), exact);
        let conversion = conversion.map_err(|misfit| Unfit::Type {
            name: self.name.clone(),
            column: name.clone(),
            found: column.type_name.clone(),
            reason: misfit.to_string(),
            alter: format!("ALTER TABLE {} MODIFY COLUMN {} {}", self.name, quoted(name), proposed()),
        })?;
        Ok(ColumnLayout { name: name.clone(), type_name: column.type_name.clone(), conversion })
    }

    fn upsert(&self, facts: &TableFacts) -> Result<Upsert, Box<Unfit>> {
        let not_replacing = || Unfit::NotReplacing {
            name: self.name.clone(),
            engine: match facts.engine.replacing() {
                Some(_) => format!("{} without a version column", facts.engine.name),
                None => facts.engine.name.clone(),
            },
            create: self.create_table(),
        };
        let Some(Replacing { version: Some(version), is_deleted }) = facts.engine.replacing() else {
            return Err(not_replacing().into());
        };
        let is_key = |column: &String| self.primary_key.contains(column);
        if facts.sorting_key.len() != self.primary_key.len() || !facts.sorting_key.iter().all(is_key) {
            return Err(Unfit::SortingKey {
                name: self.name.clone(),
                found: facts.sorting_key.join(", "),
                wanted: self.primary_key.join(", "),
                create: self.create_table(),
            }
            .into());
        }
        if let Some(column) = is_deleted.filter(|column| self.position(column).is_some()) {
            return Err(Unfit::DeletedGiven { name: self.name.clone(), column: column.to_owned() }.into());
        }
        Ok(Upsert {
            key: self.primary_key.iter().filter_map(|column| self.position(column)).collect(),
            version: self.version(version, facts)?,
            is_deleted: is_deleted.map(str::to_owned),
        })
    }

    /// The version column to be filled; `None` when the query gives it.
    fn version(&self, column: &str, facts: &TableFacts) -> Result<Option<Version>, Box<Unfit>> {
        if self.position(column).is_some() {
            return Ok(None);
        }
        let found = facts.columns.iter().find(|c| c.name == column).map_or("missing", |c| c.type_name.as_str());
        match ColumnType::parse(found).kind {
            Kind::Integer { signed, bits: 64 } => Ok(Some(Version { name: column.to_owned(), unsigned: !signed })),
            _ => Err(Unfit::VersionType {
                name: self.name.clone(),
                column: column.to_owned(),
                found: found.to_owned(),
                create: self.create_table(),
            }
            .into()),
        }
    }

    fn position(&self, column: &str) -> Option<usize> {
        self.input.visible().iter().position(|field| field.name() == column)
    }

    /// The table that this stream could be written into.
    fn create_table(&self) -> String {
        let is_key = |name: &String| self.primary_key.contains(name);
        let mut columns: Vec<_> = self
            .input
            .visible()
            .iter()
            .map(|field| {
                let proposed = proposed_type(field, field.is_nullable() && !is_key(field.name()));
                format!("{} {}", quoted(field.name()), proposed.unwrap_or_else(|| "String".into()))
            })
            .collect();
        let engine = if self.input.is_updating() {
            for (name, of) in [("version", "UInt64"), ("is_deleted", "UInt8")] {
                if self.position(name).is_none() {
                    columns.push(format!("{name} {of}"));
                }
            }
            "ReplacingMergeTree(version, is_deleted)"
        } else {
            "MergeTree"
        };
        let settings = match self.delivery {
            Delivery::ExactlyOnce if !self.input.is_updating() => format!(" SETTINGS {WINDOW} = 10000"),
            _ => String::new(),
        };
        let key: Vec<_> = self.primary_key.iter().map(|column| quoted(column)).collect();
        let (columns, key) = (columns.join(", "), key.join(", "));
        format!("CREATE TABLE {} ({columns}) ENGINE = {engine} ORDER BY ({key}){settings}", self.name)
    }
}

/// A column whose name differs only in case or by an underscore, as a question.
fn similar(name: &str, columns: &[ColumnFacts]) -> String {
    let bare = |name: &str| name.replace('_', "").to_lowercase();
    let near = columns.iter().find(|column| bare(&column.name) == bare(name));
    near.map_or_else(String::new, |column| format!(" (it has `{}`)", column.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};

    use super::super::catalog::Engine;
    use super::*;
    use crate::plan::StreamKind;

    fn field(name: &str, data_type: DataType) -> FieldRef {
        Arc::new(Field::new(name, data_type, true))
    }

    fn wanted(fields: Vec<FieldRef>, kind: StreamKind, key: &[&str]) -> Wanted {
        Wanted {
            name: TableName { database: "tickhouse".into(), table: "summary".into() },
            input: StreamSchema::new(fields, kind).unwrap(),
            primary_key: key.iter().map(|k| (*k).to_owned()).collect(),
            delivery: Delivery::ExactlyOnce,
        }
    }

    fn table(engine: &str, sorting_key: &[&str], columns: &[(&str, &str)]) -> Found {
        let name = engine.split(['(', ' ']).next().unwrap();
        let column = |(name, of): &(&str, &str)| {
            let (of, default_kind) = of.split_once(" | ").unwrap_or((of, ""));
            ColumnFacts { name: (*name).into(), type_name: of.into(), default_kind: default_kind.into() }
        };
        Found::Table(TableFacts {
            engine: Engine::parse(name, engine),
            deduplication_window: 100,
            sorting_key: sorting_key.iter().map(|k| (*k).to_owned()).collect(),
            columns: columns.iter().map(column).collect(),
        })
    }

    fn append(columns: &[(&str, &str)]) -> Result<Layout, Box<Unfit>> {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        let stream = wanted(vec![field("pk", DataType::Int64), field("minute", time)], StreamKind::Append, &[]);
        layout(&stream, &table("MergeTree ORDER BY pk", &["pk"], columns))
    }

    fn update(engine: &str, sorting_key: &[&str], columns: &[(&str, &str)]) -> Result<Layout, Box<Unfit>> {
        let fields = vec![field("pk", DataType::Int64), field("total", DataType::Int64)];
        layout(&wanted(fields, StreamKind::Updating, &["pk"]), &table(engine, sorting_key, columns))
    }

    #[test]
    fn columns_that_the_query_does_not_give_are_left_to_clickhouse() {
        let columns = [("pk", "Int64"), ("minute", "DateTime('UTC')"), ("recorded_at", "DateTime | DEFAULT")];
        let layout = append(&columns).unwrap();
        assert_eq!(layout.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["pk", "minute"]);
        assert_eq!(layout.upsert, None);
    }

    #[test]
    fn exactly_once_needs_a_table_that_remembers_inserts() {
        let layout_of = |engine: &str, window, delivery| {
            let mut stream = wanted(vec![field("pk", DataType::Int64)], StreamKind::Append, &[]);
            stream.delivery = delivery;
            let Found::Table(facts) = table(engine, &["pk"], &[("pk", "Int64")]) else { panic!("a table") };
            layout(&stream, &Found::Table(TableFacts { deduplication_window: window, ..facts }))
        };
        let refused = |engine, window| layout_of(engine, window, Delivery::ExactlyOnce).unwrap_err().to_string();
        let mend = "ALTER TABLE tickhouse.summary MODIFY SETTING non_replicated_deduplication_window = 10000";
        assert!(refused("MergeTree ORDER BY pk", 0).contains(mend));
        assert!(refused("Memory", 0).contains("is a Memory, which cannot tell a repeated insert"));
        for (engine, window) in
            [("MergeTree ORDER BY pk", 1), ("ReplicatedMergeTree ORDER BY pk", 0), ("SharedMergeTree", 0)]
        {
            assert!(layout_of(engine, window, Delivery::ExactlyOnce).is_ok(), "{engine}");
        }
        assert!(layout_of("Memory", 0, Delivery::AtLeastOnce).is_ok());
    }

    #[test]
    fn what_is_missing_comes_with_the_statement_that_adds_it() {
        let stream = wanted(vec![field("pk", DataType::Int64)], StreamKind::Append, &[]);
        let error = layout(&stream, &Found::NoTable).unwrap_err().to_string();
        let create = "CREATE TABLE tickhouse.summary (pk Nullable(Int64)) ENGINE = MergeTree ORDER BY () \
                      SETTINGS non_replicated_deduplication_window = 10000";
        assert!(error.ends_with(create), "{error}");
        assert!(layout(&stream, &Found::NoDatabase).unwrap_err().to_string().contains("CREATE DATABASE tickhouse"));

        let error = append(&[("pk", "Int64"), ("Minute", "DateTime")]).unwrap_err().to_string();
        assert!(error.contains("(it has `Minute`)"), "{error}");
        let alter = "ALTER TABLE tickhouse.summary ADD COLUMN minute Nullable(DateTime64(9, 'UTC'))";
        assert!(error.contains(alter), "{error}");
    }

    #[test]
    fn a_type_that_would_lose_values_is_refused_with_both_ways_out() {
        let error = append(&[("pk", "String"), ("minute", "DateTime")]).unwrap_err().to_string();
        assert!(error.contains("`pk` of tickhouse.summary is String"), "{error}");
        assert!(error.contains("CAST(... AS TEXT)"), "{error}");
        assert!(error.contains("ALTER TABLE tickhouse.summary MODIFY COLUMN pk Nullable(Int64)"), "{error}");
        let error = append(&[("pk", "Int64 | ALIAS"), ("minute", "DateTime")]).unwrap_err();
        assert!(matches!(*error, Unfit::Computed { .. }), "{error}");
    }

    #[test]
    fn changes_go_into_a_replacing_merge_tree_whose_version_the_sink_fills() {
        let columns = [("pk", "Int64"), ("total", "Int64"), ("version", "UInt64"), ("gone", "UInt8")];
        let layout = update("ReplacingMergeTree(version, gone) ORDER BY pk", &["pk"], &columns).unwrap();
        let version = Some(Version { name: "version".into(), unsigned: true });
        assert_eq!(layout.upsert, Some(Upsert { key: vec![0], version, is_deleted: Some("gone".into()) }));
    }

    #[test]
    fn a_version_that_the_query_gives_is_left_alone() {
        let columns = [("pk", "Int64"), ("total", "Int64")];
        let layout = update("ReplacingMergeTree(total) ORDER BY pk", &["pk"], &columns).unwrap();
        assert_eq!(layout.upsert, Some(Upsert { key: vec![0], version: None, is_deleted: None }));
    }

    #[test]
    fn changes_into_another_engine_are_refused_with_the_whole_table() {
        let create = "CREATE TABLE tickhouse.summary (pk Int64, total Nullable(Int64), version UInt64, is_deleted UInt8) \
                      ENGINE = ReplacingMergeTree(version, is_deleted) ORDER BY (pk)";
        let columns = [("pk", "Int64"), ("total", "Int64"), ("version", "DateTime"), ("gone", "UInt8")];
        for (engine, sorting_key, says) in [
            ("MergeTree ORDER BY pk", &["pk"][..], "is a MergeTree"),
            ("ReplacingMergeTree ORDER BY pk", &["pk"], "without a version column"),
            ("ReplacingMergeTree(version) ORDER BY (pk, total)", &["pk", "total"], "sorted by (pk, total)"),
            ("ReplacingMergeTree(version) ORDER BY total", &["total"], "PRIMARY KEY is (pk)"),
            ("ReplacingMergeTree(version) ORDER BY pk", &["pk"], "`version` of tickhouse.summary is DateTime"),
        ] {
            let error = update(engine, sorting_key, &columns).unwrap_err().to_string();
            assert!(error.contains(says) && error.ends_with(create), "{engine}: {error}");
        }
    }

    #[test]
    fn a_view_takes_no_rows() {
        let stream = wanted(vec![field("pk", DataType::Int64)], StreamKind::Append, &[]);
        let error = layout(&stream, &table("View", &[], &[("pk", "Int64")])).unwrap_err();
        assert!(matches!(*error, Unfit::ReadOnly { .. }), "{error}");
    }
}
