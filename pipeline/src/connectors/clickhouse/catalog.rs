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
    /// How many inserts are remembered, so that a repeat is dropped; of replicated engines, which remember by themselves, none.
    pub(super) deduplication_window: u64,
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

    /// Whether it belongs to the MergeTree family, which can remember inserts.
    pub(super) fn is_merge_tree(&self) -> bool {
        self.name.ends_with("MergeTree")
    }

    /// Whether it remembers inserts without being told to.
    pub(super) fn is_replicated(&self) -> bool {
        self.name.starts_with("Replicated") || self.name.starts_with("Shared")
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
    let deduplication_window = match window(&table.engine_full) {
        Some(window) => window,
        None => default_window(client).await?,
    };
    Ok(Found::Table(TableFacts {
        engine: Engine::parse(&table.engine, &table.engine_full),
        deduplication_window,
        sorting_key: sorting_key(&table.sorting_key),
        columns,
    }))
}

/// The setting of a table that says how many inserts it remembers.
pub(super) const WINDOW: &str = "non_replicated_deduplication_window";

/// The window that a table's own settings give, at the end of `engine_full`.
fn window(engine_full: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once(" SETTINGS ")?;
    let value =
        |setting: &str| setting.trim().strip_prefix(WINDOW)?.trim_start().strip_prefix('=')?.trim().parse().ok();
    settings.split(',').find_map(value)
}

/// The window of tables that say nothing of it.
async fn default_window(client: &Client) -> Result<u64, clickhouse::error::Error> {
    let query =
        client.query("SELECT toUInt64OrZero(value) FROM system.merge_tree_settings WHERE name = ?").bind(WINDOW);
    Ok(query.fetch_optional().await?.unwrap_or(0))
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
    fn the_deduplication_window_is_found_among_the_settings() {
        let full = |settings: &str| format!("MergeTree PARTITION BY x ORDER BY (a, b){settings}");
        assert_eq!(
            window(&full(" SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 100")),
            Some(100)
        );
        assert_eq!(window(&full(" SETTINGS non_replicated_deduplication_window=7")), Some(7));
        assert_eq!(window(&full(" SETTINGS index_granularity = 8192")), None);
        assert_eq!(window(&full("")), None);
    }

    #[test]
    fn what_takes_no_rows_is_told_apart() {
        let engine = |name: &str| Engine::parse(name, name);
        assert!(engine("View").is_read_only());
        assert!(!engine("MaterializedView").is_read_only() && !engine("Memory").is_read_only());
    }
}
