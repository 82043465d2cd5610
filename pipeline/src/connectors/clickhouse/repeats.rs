//! What makes an insert safe that is repeated because it may be in.

use std::time::Duration;

use super::Delivery;
use super::catalog::{TableFacts, TableName};
use super::check::ColumnLayout;
use super::types::quoted;

/// How an insert that may be in is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repeats {
    /// Under a new token: rows that are there twice replace each other, or may be there twice.
    Anew,
    /// Under its token, which ClickHouse remembers when, and only when, it keeps the rows.
    Remembered,
    /// Under its token, and, if ClickHouse may have been restarted meanwhile, what is missing then is written.
    ///
    /// A MergeTree that is not replicated notes a token a moment before it keeps the block (ClickHouse 26.7). Killed between the
    /// two, it drops the repeat, with the same answer as for a block that it keeps.
    Checked(Missing),
}

impl Repeats {
    /// What holds for a table that takes upserts, or else these columns.
    pub(super) fn of(facts: &TableFacts, delivery: Delivery, is_upsert: bool, columns: &[ColumnLayout]) -> Self {
        let remembers = facts.deduplication_window > 0;
        if is_upsert {
            Self::Anew
        } else if facts.engine.is_replicated() {
            Self::Remembered
        } else if facts.engine.name == "MergeTree" && remembers {
            Self::Checked(Missing::new(columns))
        } else if delivery == Delivery::ExactlyOnce {
            // Rows of other engines are merged into others: they cannot be looked for.
            Self::Remembered
        } else {
            Self::Anew
        }
    }
}

/// Writes the rows of a body that a table does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// The columns of the body, as a list in a statement.
    columns: String,
    /// The same with their types in the table.
    structure: String,
}

/// Rows are looked for in parts this much older than the first attempt to insert them.
const SLACK: Duration = Duration::from_secs(60);

impl Missing {
    fn new(columns: &[ColumnLayout]) -> Self {
        let names: Vec<_> = columns.iter().map(|column| quoted(&column.name)).collect();
        let typed: Vec<_> =
            columns.iter().map(|column| format!("{} {}", quoted(&column.name), column.type_name)).collect();
        Self { columns: names.join(", "), structure: typed.join(", ") }
    }

    /// The statement in front of a body that was first inserted at most `age` ago.
    ///
    /// A part has the time of its last merge, so that rows lie in no part older than their insert. Older parts are left out, not
    /// newer ones let in: the list of parts and what is read are of two moments, and between them a merge may have made one
    /// part of several. A row that the body has several times is written as often as it is there too rarely. The tuple keeps
    /// nulls apart from values.
    pub(super) fn statement(&self, name: &TableName, age: Duration) -> String {
        let Self { columns, structure } = self;
        let (database, table, structure) = (text(&name.database), text(&name.table), text(structure));
        let seconds = (age + SLACK).as_secs();
        format!(
            "INSERT INTO {name} ({columns}) SELECT {columns} FROM \
             (SELECT {columns}, `row hash`, row_number() OVER (PARTITION BY `row hash`) AS `row number` FROM \
             (SELECT {columns}, sipHash128(tuple({columns})) AS `row hash` FROM input({structure}))) AS body \
             LEFT JOIN (SELECT sipHash128(tuple({columns})) AS `row hash`, count() AS `rows there` FROM {name} \
             WHERE _part NOT IN (SELECT name FROM system.parts WHERE database = {database} AND table = {table} \
             AND modification_time < now() - {seconds}) GROUP BY `row hash`) AS there USING `row hash` \
             WHERE `row number` > ifNull(`rows there`, 0) FORMAT ArrowStream"
        )
    }
}

/// `text` as a string literal.
fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::super::catalog::Engine;
    use super::*;

    fn facts(engine: &str, deduplication_window: u64) -> TableFacts {
        let engine = Engine { name: engine.to_owned(), arguments: Vec::new() };
        TableFacts { engine, deduplication_window, sorting_key: Vec::new(), columns: Vec::new() }
    }

    #[test]
    fn how_an_insert_is_repeated_depends_on_the_engine() {
        use Delivery::{AtLeastOnce, ExactlyOnce};
        let of = |engine, window, delivery| Repeats::of(&facts(engine, window), delivery, false, &[]);
        assert!(matches!(of("MergeTree", 10, ExactlyOnce), Repeats::Checked(_)));
        assert!(matches!(of("MergeTree", 10, AtLeastOnce), Repeats::Checked(_)));
        assert_eq!(of("MergeTree", 0, AtLeastOnce), Repeats::Anew);
        assert_eq!(of("Memory", 0, AtLeastOnce), Repeats::Anew);
        assert_eq!(of("ReplicatedMergeTree", 0, ExactlyOnce), Repeats::Remembered);
        assert_eq!(of("SharedMergeTree", 0, AtLeastOnce), Repeats::Remembered);
        assert_eq!(of("SummingMergeTree", 10, ExactlyOnce), Repeats::Remembered);
        assert_eq!(Repeats::of(&facts("ReplacingMergeTree", 10), ExactlyOnce, true, &[]), Repeats::Anew);
    }
}
