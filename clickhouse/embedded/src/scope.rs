//! Settings and database of one request: in force for its query, and for no other one.
//!
//! Outside of a session a connection serves one query, and nothing needs to be put back. In a session, what the URL
//! changes is read before, and set again after.

use crate::exception::Exception;
use crate::ffi::Connection;
use crate::request::QueryRequest;
use crate::sql::{quote, quote_name};

/// The statements that put a session's connection back.
pub(crate) struct Restore {
    statements: Vec<String>,
}

/// Puts the request's settings and database in force.
///
/// # Errors
/// The engine's exception, for example Code 115 for an unknown setting and 81 for an unknown database.
pub(crate) fn enter(connection: &mut Connection, request: &QueryRequest) -> Result<Restore, Exception> {
    let restore = match request.session {
        Some(_) => Restore { statements: current(connection, request)? },
        None => Restore { statements: Vec::new() },
    };
    if let Err(exception) = apply(connection, request) {
        restore.leave(connection);
        return Err(exception);
    }
    Ok(restore)
}

fn apply(connection: &mut Connection, request: &QueryRequest) -> Result<(), Exception> {
    if !request.settings.is_empty() {
        let set = |(name, value): &(String, String)| format!("{name} = {}", quote(value));
        let changes: Vec<String> = request.settings.iter().map(set).collect();
        run(connection, &format!("SET {}", changes.join(", ")))?;
    }
    if let Some(database) = &request.database {
        run(connection, &format!("USE {}", quote_name(database)))?;
    }
    // A session must stay writable, so there the statement itself is looked at.
    if request.readonly && request.session.is_none() && !request.settings.iter().any(|(name, _)| name == "readonly") {
        run(connection, "SET readonly = 2")?;
    }
    Ok(())
}

/// The statements that restore what the request is about to change.
fn current(connection: &mut Connection, request: &QueryRequest) -> Result<Vec<String>, Exception> {
    if request.settings.is_empty() && request.database.is_none() {
        return Ok(Vec::new());
    }
    let names = request.settings.iter().map(|(name, _)| name);
    let settings = names.clone().map(|name| format!(", toString(getSetting({}))", quote(name)));
    let sql = format!("SELECT currentDatabase(){}", settings.collect::<String>());
    let values: Vec<String> = {
        let result = connection.query(&sql, "JSONCompactEachRow", &[]).map_err(|message| unknown(&message))?;
        serde_json::from_slice(result.bytes())
            .map_err(|error| Exception::system(format_args!("cannot read the session's settings: {error}")))?
    };
    let mut values = values.into_iter();
    let database = values.next().unwrap_or_default();
    let set = |(name, value): (&String, String)| format!("SET {name} = {}", quote(&value));
    let mut statements: Vec<String> = names.zip(values).map(set).collect();
    if request.database.is_some() {
        statements.push(format!("USE {}", quote_name(&database)));
    }
    Ok(statements)
}

/// The engine's exception on a setting, without the query that asked for it.
fn unknown(message: &str) -> Exception {
    let own = message.split_once(": In scope SELECT").map(|(setting, _)| format!("{setting}. (UNKNOWN_SETTING)"));
    Exception::from_engine(own.as_deref().unwrap_or(message))
}

fn run(connection: &mut Connection, sql: &str) -> Result<(), Exception> {
    connection.query(sql, "Null", &[]).map(|_| ()).map_err(|message| Exception::from_engine(&message))
}

impl Restore {
    /// Puts the session's connection back.
    pub(crate) fn leave(&self, connection: &mut Connection) {
        for statement in &self.statements {
            if let Err(exception) = run(connection, statement) {
                tracing::warn!(%exception, statement, "cannot put a session's connection back");
            }
        }
    }
}
