//! Runs one query on a thread of its own: reads the text, prepares a connection, and lets the engine work.
//!
//! A result is not fetched chunk by chunk: the engine formats each chunk as a document of its own, so that JSON,
//! Parquet or RowBinaryWithNamesAndTypes would come out wrong. Instead the statement gets `INTO OUTFILE` with the
//! write end of a pipe: the engine writes one document, as fast as the client takes it.

use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::body::{BodyReader, decoded, exception_of};
use crate::engine::Engine;
use crate::exception::Exception;
use crate::ffi::{Connection, Counts, Param, QueryClass};
use crate::form::{Form, create_temporary, drop_temporary};
use crate::request::QueryRequest;
use crate::running::Admitted;
use crate::scope;
use crate::session::Session;
use crate::sql::{self, Input, Insert, Statement, Text};

/// ClickHouse's default for `max_query_size`, in bytes.
const MAX_QUERY_SIZE: usize = 262_144;
/// Rows are handed to the engine in pieces of this size.
const PIECE: usize = 256 << 10;
const DEFAULT_FORMAT: &str = "TabSeparated";

/// A query, ready to run. The fields are dropped in this order: the right to run comes last.
pub(crate) struct Job {
    pub(crate) request: QueryRequest,
    pub(crate) body: BodyReader,
    pub(crate) output: PipeWriter,
    pub(crate) session: Option<Session<Connection>>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) admitted: Admitted,
}

impl Job {
    /// Runs the query to its end. The result goes into the pipe, which is closed when this returns.
    ///
    /// # Errors
    /// The exception to send to the client.
    pub(crate) fn run(self) -> Result<Counts, Exception> {
        let Self { mut request, mut body, mut output, mut session, engine, admitted } = self;
        let mut own = None;
        let connection = match session.as_mut().and_then(Session::connection) {
            Some(connection) => connection,
            None => own.insert(engine.connect()?),
        };
        let mut reader = decoded(&mut body, request.body_encoding, request.decompress).map_err(exception_of)?;
        let mut tables = Vec::new();
        if let Some(boundary) = request.form.take() {
            tables = Form::read(&mut reader, &boundary)?.merge_into(&mut request)?;
        }
        let (text, read) = read_text(&request, &mut reader)?;
        for table in &tables {
            table.create(connection)?;
        }

        let mut query = Query { request: &request, engine: &engine, admitted: &admitted, connection };
        let outcome = match read {
            Text::Insert(insert) => query.insert(&insert, &text, &mut reader),
            Text::Statement(statement) => query.statement(&statement, &text, &mut output),
            Text::Incomplete => Err(Exception::syntax("the query ends too early")),
        };
        for table in tables.iter().filter(|_| request.session.is_some()) {
            table.drop_from(query.connection);
        }
        outcome
    }
}

/// Reads the query's text: all of it, or for an INSERT as much as was needed to find its rows, and what came with that.
fn read_text(request: &QueryRequest, body: &mut dyn Read) -> Result<(Vec<u8>, Text), Exception> {
    let setting = request.settings.iter().find(|(name, _)| name == "max_query_size");
    let limit = setting.and_then(|(_, size)| size.parse().ok()).filter(|size| *size > 0).unwrap_or(MAX_QUERY_SIZE);
    let mut text = Vec::new();
    if !request.query.is_empty() {
        text.extend_from_slice(request.query.as_bytes());
        text.push(b'\n');
    }
    let mut piece = vec![0; PIECE];
    loop {
        // What is in the URL may already be an INSERT whose rows make up the body.
        let read = sql::read(&text, false);
        if read != Text::Incomplete {
            return Ok((text, read));
        }
        if text.len() > limit {
            return Err(Exception::syntax(format_args!("Max query size exceeded ({limit} bytes; see max_query_size)")));
        }
        match body.read(&mut piece).map_err(exception_of)? {
            0 => {
                let read = sql::read(&text, true);
                return Ok((text, read));
            }
            length => text.extend_from_slice(piece.get(..length).unwrap_or_default()),
        }
    }
}

struct Query<'a> {
    request: &'a QueryRequest,
    engine: &'a Engine,
    admitted: &'a Admitted,
    connection: &'a mut Connection,
}

impl Query<'_> {
    /// Runs `act` with the request's settings and database in force, and not after it.
    fn scoped<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Exception>) -> Result<T, Exception> {
        let restore = scope::enter(self.connection, self.request)?;
        let outcome = act(self);
        restore.leave(self.connection);
        outcome
    }

    /// Sends the rows after an INSERT to the engine as they come. Nothing more is inserted once the body breaks off.
    fn insert(&mut self, insert: &Insert, text: &[u8], rows: &mut dyn Read) -> Result<Counts, Exception> {
        if self.request.readonly {
            return Err(cannot_change());
        }
        let format = insert.format.as_deref().or(self.request.default_format.as_deref()).unwrap_or("Values");
        let marker = comment(self.admitted);
        let statement = format!("{}{marker}", insert.statement);
        let first = text.get(insert.data..).unwrap_or_default();
        let params = &self.request.params;
        self.scoped(|query| match &insert.input {
            None => send_rows(query.connection, &statement, format, params, first, rows),
            Some(input) => query.select_rows(&statement, input, format, first, rows),
        })
        .map_err(|exception| exception.without(&marker))
    }

    /// Runs an INSERT SELECT whose query reads the rows after it. The engine's interface takes no rows for one: they become a
    /// table that exists for this query.
    fn select_rows(
        &mut self,
        statement: &str,
        input: &Input,
        format: &str,
        first: &[u8],
        rows: &mut dyn Read,
    ) -> Result<Counts, Exception> {
        if input.structure.is_empty() {
            return Err(Exception::not_implemented(
                "input() must name its columns in the embedded engine: input('a Int64, b String')",
            ));
        }
        let name = format!("input {}", self.admitted.query().marker);
        create_temporary(self.connection, &name, &input.structure)?;
        let table = sql::quote_name(&name);
        let fill = format!("INSERT INTO {table}");
        let outcome = send_rows(self.connection, &fill, format, &[], first, rows).and_then(|_| {
            let mut sql = statement.to_owned();
            sql.replace_range(input.call.clone(), &table);
            let result = self.connection.query(&sql, DEFAULT_FORMAT, &self.request.params);
            result.map(|result| result.counts()).map_err(|message| Exception::from_engine(&message))
        });
        drop_temporary(self.connection, &name);
        outcome
    }

    /// Runs a statement whose text is complete.
    fn statement(&mut self, statement: &Statement, text: &[u8], output: &mut PipeWriter) -> Result<Counts, Exception> {
        let text = std::str::from_utf8(text)
            .map_err(|error| Exception::syntax(format_args!("the query is not UTF-8: {error}")))?;
        refuse(statement, text)?;
        self.scoped(|query| {
            let bare = text.get(..statement.end).unwrap_or_default();
            match query.connection.classify(bare) {
                // In EXPLAIN AST the clause would belong to the statement that is explained.
                QueryClass::ReadOnly if !statement.begins("EXPLAIN", "AST") => {
                    query.read_piped(statement, bare, output)
                }
                class => query.run_whole(class, statement, bare, output),
            }
        })
    }

    /// Runs a statement that only reads; the engine writes its result into the pipe.
    fn read_piped(&mut self, statement: &Statement, text: &str, output: &mut PipeWriter) -> Result<Counts, Exception> {
        let running = self.admitted.query();
        running.set_read_only();
        let format = output_format(self.request, statement);
        let _ = running.format.set(format.to_owned());

        let cut = statement.format.as_ref().map_or(text.len(), |(start, _)| *start);
        let (before, after) = text.split_at_checked(cut).unwrap_or((text, ""));
        let inserted =
            format!("{}\nINTO OUTFILE '{}' APPEND ", comment(self.admitted), descriptor_path(output.as_raw_fd()));
        let sql = format!("{before}{inserted}{after}");
        match self.connection.query(&sql, default_format(self.request), &self.request.params) {
            Ok(result) => {
                // Nothing, unless the engine has a statement that does not heed the clause.
                let _ = output.write_all(result.bytes());
                Ok(result.counts())
            }
            Err(message) => Err(Exception::from_engine(&message).without(&inserted)),
        }
    }

    /// Runs any other statement; its result, if it has one, is small.
    fn run_whole(
        &mut self,
        class: QueryClass,
        statement: &Statement,
        text: &str,
        output: &mut PipeWriter,
    ) -> Result<Counts, Exception> {
        // Outside of a session the engine itself knows that the connection is read-only.
        let harmless = class == QueryClass::ReadOnly || ["SET", "USE"].contains(&statement.first.as_str());
        if self.request.readonly && self.request.session.is_some() && !harmless {
            return Err(cannot_change());
        }
        let marker = comment(self.admitted);
        let sql = match class {
            // The engine's message on a syntax error quotes the text.
            QueryClass::Unknown => text.to_owned(),
            _ if statement.begins("KILL", "QUERY") => {
                format!("{}{marker}", self.kill(text))
            }
            _ => format!("{text}{marker}"),
        };
        let result = self
            .connection
            .query(&sql, default_format(self.request), &self.request.params)
            .map_err(|message| Exception::from_engine(&message).without(&marker))?;
        if !result.bytes().is_empty() {
            let _ = self.admitted.query().format.set(output_format(self.request, statement).to_owned());
            // The client may have gone away; the statement has run all the same.
            let _ = output.write_all(result.bytes());
        }
        Ok(result.counts())
    }

    /// A KILL QUERY with the clients' ids of running queries replaced by the engine's own.
    fn kill(&self, text: &str) -> String {
        sql::replace_texts(text, |id| {
            let marker = self.admitted.registry().marker(id)?;
            self.engine.engine_id(&marker)
        })
    }
}

fn default_format(request: &QueryRequest) -> &str {
    request.default_format.as_deref().unwrap_or(DEFAULT_FORMAT)
}

fn output_format<'a>(request: &'a QueryRequest, statement: &'a Statement) -> &'a str {
    statement.format.as_ref().map_or(default_format(request), |(_, format)| format)
}

fn send_rows(
    connection: &mut Connection,
    statement: &str,
    format: &str,
    params: &[Param],
    first: &[u8],
    rows: &mut dyn Read,
) -> Result<Counts, Exception> {
    let from_engine = |message: String| Exception::from_engine(&message);
    let mut stream = connection.insert(statement, format, params).map_err(from_engine)?;
    // False means that the engine has failed; `finish` says how.
    let mut going = first.is_empty() || stream.append(first);
    let mut piece = vec![0; PIECE];
    while going {
        // On an error the stream is dropped unfinished, which inserts nothing more.
        let length = rows.read(&mut piece).map_err(exception_of)?;
        if length == 0 {
            break;
        }
        going = stream.append(piece.get(..length).unwrap_or_default());
    }
    stream.finish().map_err(from_engine)
}

/// Refuses what the engine's interface would accept, and ClickHouse's HTTP interface does not.
fn refuse(statement: &Statement, text: &str) -> Result<(), Exception> {
    if statement.end == 0 {
        return Err(Exception::syntax("Empty query"));
    }
    if statement.more {
        return Err(Exception::syntax(format_args!(
            "Syntax error (Multi-statements are not allowed): failed at position {}: a statement ends there and \
             another one follows",
            statement.end + 1
        )));
    }
    if statement.into_outfile {
        return Err(Exception::outfile_not_allowed("INTO OUTFILE is not allowed"));
    }
    if statement.from_infile {
        return Err(Exception::infile_not_allowed("Query has infile and was send directly to server"));
    }
    if statement.begins("SYSTEM", "SHUTDOWN") || statement.begins("SYSTEM", "KILL") {
        return Err(Exception::not_implemented(
            "SYSTEM SHUTDOWN and SYSTEM KILL would signal every process of this process's group; stop the server itself",
        ));
    }
    // The engine's interface is a client's, for which these words mean something else.
    let word = text.trim_matches(|c: char| c.is_whitespace() || c == ';');
    if ["exit", "quit", "logout", "учше", "йгше", "дщпщгею", "q", "й", "\\q", "\\Q", "\\й", "\\Й", ":q", "Жй"]
        .contains(&word)
    {
        return Err(Exception::syntax(format_args!("Syntax error: failed at position 1 ({word}): {word}.")));
    }
    Ok(())
}

fn cannot_change() -> Exception {
    Exception::readonly(
        "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. \
                         You should use method POST for modifying queries.",
    )
}

fn comment(admitted: &Admitted) -> String {
    format!(" /* {} */", admitted.query().marker)
}

/// A path that opens an open descriptor again.
fn descriptor_path(descriptor: i32) -> String {
    if cfg!(target_os = "linux") { format!("/proc/self/fd/{descriptor}") } else { format!("/dev/fd/{descriptor}") }
}
