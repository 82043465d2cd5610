//! The connectors, one folder each; [`all`] is the only list of their names.
//!
//! A folder's `mod.rs` declares the options and turns them into a node; `source.rs` and `sink.rs` run it. A connector knows
//! no operator and no SQL: the planner has cast and ordered the columns that a sink is given.

mod blackhole;
pub mod clickhouse;
mod impulse;
mod json_lines;
mod options;
mod single_file;
mod stdout;

pub use options::{OptionError, OptionSpec, Options};

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::FieldRef;

use crate::plan::StreamSchema;
use crate::runtime::Stage;

/// A table as declared, as far as its connector needs to know it.
#[derive(Debug, Clone)]
pub struct TableDefinition {
    /// The table's name in SQL; names the node in messages and metrics.
    pub name: String,
    /// The declared plain columns, in order. Empty when the statement lists none: the connector (a source) or the query (a
    /// sink) then decides.
    pub columns: Vec<FieldRef>,
    /// Names of the PRIMARY KEY columns, in order; empty without one.
    pub primary_key: Vec<String>,
}

/// What a table's options turn into for reading.
#[derive(Debug)]
pub struct SourceTable {
    /// The node. Its output is append-only, or updating for a change feed. Event time is the time of arrival (or what the
    /// connector defines); `event_time_field` and watermarks are the planner's and come as nodes of their own.
    pub stage: Arc<dyn Stage>,
}

/// A kind of table: `connector = 'name'`.
///
/// Making a node touches nothing outside the process: `check` and `explain` do it as well as `run`. What needs the world
/// (connecting, start-up checks) happens when the pipeline starts.
pub trait Connector: Send + Sync {
    /// The name in `connector = '...'`.
    fn name(&self) -> &'static str;

    /// Every option that the connector takes, for the reference: the same values that it reads them by.
    fn options(&self) -> &'static [&'static OptionSpec] {
        &[]
    }

    /// The node that reads `table`. Takes what it knows from `options`; what is left over is reported by the caller.
    fn source(&self, table: &TableDefinition, options: &mut Options) -> Result<SourceTable, OptionError>;

    /// The node that writes `input` into `table`. The planner has already cast and ordered `input`'s visible columns as the
    /// table declares them, when it does. Refuses an updating `input` when the connector cannot write changes.
    fn sink(
        &self,
        table: &TableDefinition,
        options: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError>;
}

/// What the command line decides for every connector.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a connector waits at start for something outside that is away (`--wait`). Once it has been there, it is
    /// waited for without end.
    pub wait: Duration,
}

impl Default for Settings {
    /// Waits for a minute.
    fn default() -> Self {
        Self { wait: Duration::from_secs(60) }
    }
}

/// Every connector there is.
pub fn all(settings: &Settings) -> Vec<Box<dyn Connector>> {
    vec![
        Box::new(blackhole::Blackhole),
        Box::new(clickhouse::ClickHouse { wait: settings.wait }),
        Box::new(impulse::Impulse),
        Box::new(single_file::SingleFile),
        Box::new(stdout::Stdout),
    ]
}

/// The refusal of a table that is only read.
fn cannot_write(connector: &str) -> OptionError {
    OptionError::table(format!("a `{connector}` table can only be read: INSERT INTO another table"))
}

/// The refusal of a table that is only written.
fn cannot_read(connector: &str) -> OptionError {
    OptionError::table(format!("a `{connector}` table can only be written: use it in INSERT INTO"))
}
