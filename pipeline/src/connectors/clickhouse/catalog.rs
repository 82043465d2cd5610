//! What ClickHouse says of a table: read once per start, judged in [`super::check`].

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::types::{quoted, split_arguments};

/// A table's name with its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableName {
    pub(super) database: String,
    pub(super) table: String,
}

impl std::fmt::Display for TableName {
    /// As written in a statement.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", quoted(&self.database), quoted(&self.table))
    }
}

/// What there is under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    NoDatabase,
    NoTable,
    Table(TableFacts),
}

/// A table as ClickHouse describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableFacts {
    pub(super) engine: Engine,
    /// The expressions of ORDER BY.
    pub(super) sorting_key: Vec<String>,
    pub(super) columns: Vec<ColumnFacts>,
}

/// A table engine and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
}

/// A column as ClickHouse describes it.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(super) struct ColumnFacts {
    pub(super) name: String,
    /// The type's text.
    pub(super) type_name: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, `EPHEMERAL`, or empty.
    pub(super) default_kind: String,
}

/// The columns of a ReplacingMergeTree that decide which row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replacing<'a> {
    pub(super) version: Option<&'a str>,
    pub(super) is_deleted: Option<&'a str>,
}

impl Engine {
    /// Reads `engine` and `engine_full` of `system.tables`.
    pub(super) fn parse(name: &str, full: &str) -> Self {
        let arguments = full.strip_prefix(name).map_or("", |rest| enclosed(rest.trim_start()));
        let arguments = split_arguments(arguments).into_iter().map(str::to_owned).collect();
        Self { name: name.to_owned(), arguments }
    }

    /// Whether there is nothing to insert into.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.name.as_str(), "View" | "LiveView" | "WindowView" | "Dictionary")
            || self.name.starts_with("System")
    }

    /// The version columns, when it is a ReplacingMergeTree, replicated or not.
    pub(super) fn replacing(&self) -> Option<Replacing<'_>> {
        if !self.name.ends_with("ReplacingMergeTree") {
            return None;
        }
        // A replicated engine shows its path and replica name first, as quoted texts.
        let mut columns = self.arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('\''));
        let unquoted = |name: &'_ str| name.trim_matches('`').len();
        let mut next =
            || columns.next().map(|name| if unquoted(name) < name.len() { name.trim_matches('`') } else { name });
        Some(Replacing { version: next(), is_deleted: next() })
    }
}

/// The inside of the bracket that `text` begins with; empty when it begins with none.
fn enclosed(text: &str) -> &str {
    let Some(inside) = text.strip_prefix('(') else { return "" };
    let mut depth = 1_usize;
    let mut quote = None;
    for (at, character) in inside.char_indices() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`') => quote = Some(character),
            (None, '(') => depth += 1,
            (None, ')') => {
                depth -= 1;
                if depth == 0 {
                    return &inside[..at];
                }
            }
            (None, _) => {}
        }
    }
    inside
}

/// Reads what there is under `name`.
pub(super) async fn read(client: &Client, name: &TableName) -> Result<Found, clickhouse::error::Error> {
    #[derive(Row, Deserialize)]
    struct TableRow {
        engine: String,
        engine_full: String,
        sorting_key: String,
    }
    let table = client
        .query("SELECT engine, engine_full, sorting_key FROM system.tables WHERE database = ? AND name = ?")
        .bind(&name.database)
        .bind(&name.table)
        .fetch_optional::<TableRow>()
        .await?;
    let Some(table) = table else {
        let databases = client.query("SELECT count() FROM system.databases WHERE name = ?").bind(&name.database);
        let known = databases.fetch_one::<u64>().await? > 0;
        return Ok(if known { Found::NoTable } else { Found::NoDatabase });
    };
    let columns = client
        .query("SELECT name, type AS type_name, default_kind FROM system.columns WHERE database = ? AND table = ? ORDER BY position")
        .bind(&name.database)
        .bind(&name.table)
        .fetch_all::<ColumnFacts>()
        .await?;
    Ok(Found::Table(TableFacts {
        engine: Engine::parse(&table.engine, &table.engine_full),
        sorting_key: sorting_key(&table.sorting_key),
        columns,
    }))
}

/// The columns of a sorting key as `system.tables` has it: `a, b`, and for `ORDER BY (a)` with its parentheses.
fn sorting_key(text: &str) -> Vec<String> {
    let inner =
        text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).filter(|inner| !inner.contains(['(', ')']));
    split_arguments(inner.unwrap_or(text)).into_iter().map(|part| part.trim_matches('`').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sorting_key_is_read_with_and_without_parentheses() {
        assert_eq!(sorting_key("a, `b c`"), ["a", "b c"]);
        assert_eq!(sorting_key("(a)"), ["a"]);
        assert_eq!(sorting_key("(a, b)"), ["a", "b"]);
        assert_eq!(sorting_key("toDate(a), b"), ["toDate(a)", "b"]);
        assert!(sorting_key("").is_empty());
    }

    fn replacing(name: &str, full: &str) -> Option<(Option<String>, Option<String>)> {
        let engine = Engine::parse(name, full);
        engine.replacing().map(|r| (r.version.map(str::to_owned), r.is_deleted.map(str::to_owned)))
    }

    #[test]
    fn the_version_columns_are_found_in_every_spelling_of_the_engine() {
        let plain = replacing(
            "ReplacingMergeTree",
            "ReplacingMergeTree(version) ORDER BY pk SETTINGS index_granularity = 8192",
        );
        assert_eq!(plain, Some((Some("version".into()), None)));
        let deleted = replacing("ReplacingMergeTree", "ReplacingMergeTree(`row version`, is_deleted) ORDER BY (a, b)");
        assert_eq!(deleted, Some((Some("row version".into()), Some("is_deleted".into()))));
        let replicated =
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', version) ORDER BY pk";
        assert_eq!(replacing("ReplicatedReplacingMergeTree", replicated), Some((Some("version".into()), None)));
        assert_eq!(replacing("ReplacingMergeTree", "ReplacingMergeTree ORDER BY (pk)"), Some((None, None)));
        assert_eq!(replacing("MergeTree", "MergeTree ORDER BY pk"), None);
    }

    #[test]
    fn what_takes_no_rows_is_told_apart() {
        let engine = |name: &str| Engine::parse(name, name);
        assert!(engine("View").is_read_only());
        assert!(!engine("MaterializedView").is_read_only() && !engine("Memory").is_read_only());
    }
}
