//! `clickhouse`: a sink into a ClickHouse table.
//!
//! Rows of an append-only query are appended. An updating query writes one row per PRIMARY KEY and insert into a
//! ReplacingMergeTree, whose version column the sink fills; where rows can vanish it fills `is_deleted` too.
//!
//! At start each subtask looks at the table (`catalog`) and decides how to write (`check`, pure); then rows gather (`sink`),
//! are brought to the exact types (`convert`, `encode`) and inserted until they are in (`insert`). No value is changed on the
//! way but one: a time loses the digits that its column has no room for.
//!
//! Delivery is exactly once: rows are staged with the checkpoint and inserted when it is complete, each insert under a token of
//! its own (`insert_deduplication_token`), so that ClickHouse drops a repeat. `delivery = 'at_least_once'` inserts rows as they
//! gather.

mod catalog;
mod check;
mod chunk;
mod convert;
mod encode;
pub mod endpoint;
mod exceptions;
mod insert;
mod repeats;
mod sink;
mod types;
mod upsert;

pub use endpoint::{Endpoint, EndpointError};

use std::sync::Arc;
use std::time::Duration;

use super::{Connector, OptionError, OptionSpec, Options, SourceTable, TableDefinition, cannot_read};
use crate::plan::{EventTimeUse, NodePlan, StreamSchema};
use crate::runtime::{Body, OperatorError, Stage, Subtask};
use catalog::TableName;
use check::Wanted;
use chunk::Tokens;
use insert::{Outage, Remote};
use sink::{ClickHouseWriter, Gathering};

static URL: OptionSpec = OptionSpec {
    name: "url",
    value: "ClickHouse's HTTP address: 'http://user:password@host:8123/?database=tickhouse', or '{{ CLICKHOUSE_URL }}'",
    default: Some("the option `endpoint`"),
    doc: "Where ClickHouse is; user, password and database may be in it.",
};
static ENDPOINT: OptionSpec =
    OptionSpec { name: "endpoint", value: URL.value, default: Some("the option `url`"), doc: "Another name of `url`." };
static DATABASE: OptionSpec = OptionSpec {
    name: "database",
    value: "a database's name",
    default: Some("the URL's, else 'tickhouse'"),
    doc: "The database of the table.",
};
static TABLE: OptionSpec = OptionSpec {
    name: "table",
    value: "a table's name",
    default: Some("the name in SQL"),
    doc: "The table in ClickHouse; it must be there.",
};
static USER: OptionSpec = OptionSpec {
    name: "user",
    value: "a user's name",
    default: Some("the URL's, else ClickHouse's default"),
    doc: "Who writes.",
};
static PASSWORD: OptionSpec = OptionSpec {
    name: "password",
    value: "the user's password, best as '{{ CLICKHOUSE_PASSWORD }}'",
    default: Some("the URL's, else none"),
    doc: "The user's password; never shown.",
};
static DELIVERY: OptionSpec = OptionSpec {
    name: "delivery",
    value: "'exactly_once' or 'at_least_once'",
    default: Some("'exactly_once'"),
    doc: "What a failure may do to a row. Exactly once, rows are visible when their checkpoint is complete; at least once, within \
          `batch.interval_ms`, and a failure may write some again.",
};
static INSERT_TIMEOUT: OptionSpec = OptionSpec {
    name: "insert.timeout_ms",
    value: "a whole number of milliseconds above 0",
    default: Some("300000"),
    doc: "How long ClickHouse may take to acknowledge an insert before it is repeated.",
};
static BATCH_ROWS: OptionSpec = OptionSpec {
    name: "batch.rows",
    value: "a whole number of rows from 1 to 1000000",
    default: Some("100000"),
    doc: "So many rows of a subtask are inserted at once, or 16 MiB if that is less; at most 1000000.",
};
static BATCH_INTERVAL: OptionSpec = OptionSpec {
    name: "batch.interval_ms",
    value: "a whole number of milliseconds",
    default: Some("1000"),
    doc: "The longest that a row waits for others before it is inserted, where it does not wait for a checkpoint.",
};

const DEFAULT_GATHERING: Gathering = Gathering { rows: 100_000, interval: Duration::from_secs(1) };

/// How long ClickHouse may think about an insert.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// ClickHouse makes one block of so many rows, and a token covers one block of each partition (`max_insert_block_size` is
/// 1,048,449 rows by default).
const MAX_BATCH_ROWS: usize = 1_000_000;

/// What a failure may do to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// Nothing.
    ExactlyOnce,
    /// Write it again.
    AtLeastOnce,
}

const DELIVERIES: &[(&str, Delivery)] =
    &[("exactly_once", Delivery::ExactlyOnce), ("at_least_once", Delivery::AtLeastOnce)];

static OPTIONS: &[&OptionSpec] =
    &[&URL, &ENDPOINT, &DATABASE, &TABLE, &USER, &PASSWORD, &DELIVERY, &BATCH_ROWS, &BATCH_INTERVAL, &INSERT_TIMEOUT];

/// The connector.
pub(super) struct ClickHouse {
    /// How long to wait for ClickHouse at start.
    pub(super) wait: Duration,
}

impl Connector for ClickHouse {
    fn name(&self) -> &'static str {
        "clickhouse"
    }

    fn options(&self) -> &'static [&'static OptionSpec] {
        OPTIONS
    }

    fn source(&self, _: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        Err(cannot_read(self.name()))
    }

    fn sink(
        &self,
        table: &TableDefinition,
        options: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError> {
        let (endpoint, client) = connection(options)?;
        let database = options.get(&DATABASE)?.unwrap_or_else(|| endpoint.database().to_owned());
        let name = TableName { database, table: options.get(&TABLE)?.unwrap_or_else(|| table.name.clone()) };
        let delivery = options.choice(DELIVERY.name, DELIVERIES)?.unwrap_or(Delivery::ExactlyOnce);
        let gathering = gathering(options)?;
        let timeout = timeout(options)?;
        check_key(table, input)?;
        let wanted = Wanted { name, input: input.clone(), primary_key: table.primary_key.clone(), delivery };
        Ok(Arc::new(ClickHouseSink {
            client,
            address: endpoint.base().trim_end_matches('/').to_owned(),
            wanted: Arc::new(wanted),
            gathering,
            timeout,
            wait: self.wait,
            outage: Arc::new(Outage::default()),
        }))
    }
}

/// The client of `url` or `endpoint`, `user` and `password`.
fn connection(options: &mut Options) -> Result<(Endpoint, clickhouse::Client), OptionError> {
    let (url, endpoint) = (options.take(URL.name), options.take(ENDPOINT.name));
    let (option, text) = match (url, endpoint) {
        (Some(url), None) => (URL.name, url),
        (None, Some(url)) => (ENDPOINT.name, url),
        (None, None) => return Err(OptionError::table(format!("the option `url` is missing: {}", URL.value))),
        (Some(_), Some(_)) => {
            return Err(OptionError::option(ENDPOINT.name, "`url` and `endpoint` are one option: give one of them"));
        }
    };
    let endpoint = Endpoint::parse(&text).map_err(|error| OptionError::option(option, error.to_string()))?;
    let mut client = endpoint.server_client();
    if let Some(user) = options.take(USER.name) {
        if endpoint.user().is_some() {
            return Err(OptionError::option(USER.name, "the URL names a user as well: give one of them"));
        }
        client = client.with_user(user);
    }
    if let Some(password) = options.take(PASSWORD.name) {
        client = client.with_password(password);
    }
    // Rows are acknowledged when they are in, a null is never turned into a default, a time out of range is an error, and a
    // repeat that is dropped is dropped in the tables behind materialized views too.
    let settings = [
        ("async_insert", "0"),
        ("input_format_null_as_default", "0"),
        ("date_time_overflow_behavior", "throw"),
        ("insert_deduplicate", "1"),
        ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ];
    let client = settings.into_iter().fold(client, |client, (name, value)| client.with_setting(name, value));
    Ok((endpoint, client))
}

fn timeout(options: &mut Options) -> Result<Duration, OptionError> {
    match options.get::<u64>(&INSERT_TIMEOUT)?.map(Duration::from_millis) {
        Some(Duration::ZERO) => Err(OptionError::option(
            INSERT_TIMEOUT.name,
            format!("`insert.timeout_ms` must be {}", INSERT_TIMEOUT.value),
        )),
        timeout => Ok(timeout.unwrap_or(DEFAULT_TIMEOUT)),
    }
}

fn gathering(options: &mut Options) -> Result<Gathering, OptionError> {
    let rows = options.get::<usize>(&BATCH_ROWS)?.unwrap_or(DEFAULT_GATHERING.rows);
    if rows == 0 || rows > MAX_BATCH_ROWS {
        return Err(OptionError::option(BATCH_ROWS.name, format!("`batch.rows` must be {}", BATCH_ROWS.value)));
    }
    let interval = options.get::<u64>(&BATCH_INTERVAL)?.map(Duration::from_millis);
    Ok(Gathering { rows, interval: interval.unwrap_or(DEFAULT_GATHERING.interval) })
}

/// An updating stream says by which columns its rows replace each other.
fn check_key(table: &TableDefinition, input: &StreamSchema) -> Result<(), OptionError> {
    if input.is_updating() && table.primary_key.is_empty() {
        return Err(OptionError::table(format!(
            "the query is updating: its rows replace earlier ones, and `{}` does not say by which columns. Declare them with \
             PRIMARY KEY (...); ClickHouse's table must be a ReplacingMergeTree sorted by the same columns",
            table.name
        )));
    }
    let is_column = |name: &&String| input.visible().iter().any(|field| field.name() == *name);
    match table.primary_key.iter().find(|name| !is_column(name)) {
        Some(name) => Err(OptionError::table(format!("the PRIMARY KEY column `{name}` is not written by the query"))),
        None => Ok(()),
    }
}

struct ClickHouseSink {
    client: clickhouse::Client,
    address: String,
    wanted: Arc<Wanted>,
    gathering: Gathering,
    timeout: Duration,
    wait: Duration,
    outage: Arc<Outage>,
}

impl std::fmt::Debug for ClickHouseSink {
    /// Without the client, which holds the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseSink")
            .field("address", &self.address)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl NodePlan for ClickHouseSink {
    fn kind(&self) -> &'static str {
        "clickhouse_sink"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let writes = match self.wanted.input.is_updating() {
            true => format!("one row per {}", self.wanted.primary_key.join(", ")),
            false => "every row".to_owned(),
        };
        let delivery = match self.wanted.delivery {
            Delivery::ExactlyOnce => "exactly once",
            Delivery::AtLeastOnce => "at least once",
        };
        vec![("table", self.wanted.name.to_string()), ("writes", writes), ("delivery", delivery.to_owned())]
    }

    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::Ignored
    }

    fn output(&self) -> Option<&StreamSchema> {
        None
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for ClickHouseSink {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        let remote = Remote {
            client: self.client.clone(),
            address: self.address.clone(),
            clock: subtask.clock,
            timeout: self.timeout,
            outage: Arc::clone(&self.outage),
        };
        let tokens = Tokens::new(subtask, self.wanted.delivery);
        let stages = subtask.run.is_some() && self.commits();
        let writer = ClickHouseWriter::new(remote, Arc::clone(&self.wanted), self.gathering, self.wait, tokens, stages);
        Ok(Body::Operator(Box::new(writer)))
    }

    fn commits(&self) -> bool {
        self.wanted.delivery == Delivery::ExactlyOnce
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;
    use crate::plan::StreamKind;

    fn sink(pairs: &[(&str, &str)], kind: StreamKind, key: &[&str]) -> Result<Arc<dyn Stage>, OptionError> {
        let primary_key = key.iter().map(|k| (*k).to_owned()).collect();
        let table = TableDefinition { name: "summary".into(), columns: Vec::new(), primary_key };
        let mut options = Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let input = StreamSchema::new([Arc::new(Field::new("pk", DataType::Int64, false))], kind).unwrap();
        let made = ClickHouse { wait: Duration::ZERO }.sink(&table, &mut options, &input)?;
        options.finish()?;
        Ok(made)
    }

    #[test]
    fn the_table_is_named_after_sql_and_the_url() {
        let made = sink(&[("url", "http://u:p@h:8123/?database=d")], StreamKind::Updating, &["pk"]).unwrap();
        let details = made.details();
        assert_eq!(details[0], ("table", "d.summary".into()));
        assert_eq!(details[1], ("writes", "one row per pk".into()));
        let other =
            [("endpoint", "http://h:8123"), ("database", "e"), ("table", "t"), ("user", "u"), ("password", "secret")];
        let made = sink(&other, StreamKind::Append, &[]).unwrap();
        assert_eq!(made.details()[0], ("table", "e.t".into()));
        assert!(!format!("{made:?}").contains("secret"));
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        let url = ("url", "http://h:8123");
        let option = |pairs: &[(&str, &str)]| sink(pairs, StreamKind::Append, &[]).unwrap_err().option;
        assert_eq!(option(&[url, ("delivery", "at_most_once")]).as_deref(), Some("delivery"));
        assert_eq!(option(&[url, ("endpoint", "http://h:8123")]).as_deref(), Some("endpoint"));
        assert_eq!(option(&[url, ("batch.rows", "0")]).as_deref(), Some("batch.rows"));
        assert_eq!(option(&[url, ("batch.rows", "1000001")]).as_deref(), Some("batch.rows"));
        assert_eq!(option(&[url, ("insert.timeout_ms", "0")]).as_deref(), Some("insert.timeout_ms"));
        assert_eq!(option(&[("url", "https://h")]).as_deref(), Some("url"));
        assert_eq!(option(&[("url", "http://a@h"), ("user", "b")]).as_deref(), Some("user"));
        assert_eq!(option(&[]), None);
    }

    #[test]
    fn an_updating_query_needs_a_key() {
        let url = [("url", "http://h:8123")];
        let error = sink(&url, StreamKind::Updating, &[]).unwrap_err();
        assert!(error.message.contains("PRIMARY KEY"), "{error}");
        let error = sink(&url, StreamKind::Updating, &["id"]).unwrap_err();
        assert!(error.message.contains("`id`"), "{error}");
    }
}
