//! A query's result as an HTTP response: held back until its status is certain, then streamed.

use std::io::{self, Read, Seek, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tempfile::SpooledTempFile;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::body::exception_of;
use crate::encode::ResponseEncoder;
use crate::engine::Facts;
use crate::exception::Exception;
use crate::ffi::Counts;
use crate::native::Revised;
use crate::request::OutputRequest;
use crate::running::{CancelOnDrop, Running};

/// The body of every response.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How much is read from the pipe at once, in bytes.
const PIECE: usize = 64 << 10;
/// How long a client has to take the end of a result that failed, before the connection is broken off.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// What a response says besides the result.
pub(crate) struct Head {
    pub(crate) facts: Facts,
    pub(crate) output: OutputRequest,
    pub(crate) started: Instant,
    pub(crate) query: Arc<Running>,
}

/// A running query, as the side that answers sees it.
pub(crate) struct Live {
    pub(crate) pipe: pipe::Receiver,
    pub(crate) done: oneshot::Receiver<Result<Counts, Exception>>,
    pub(crate) guard: CancelOnDrop,
}

impl Live {
    /// Appends the next piece of the result to `to`. False at the end.
    async fn read(&mut self, to: &mut Vec<u8>) -> Result<bool, Exception> {
        to.reserve(PIECE);
        let read = self.pipe.read_buf(to).await;
        read.map(|length| length > 0)
            .map_err(|error| Exception::system(format_args!("cannot read the engine's result: {error}")))
    }

    /// How the query ended.
    async fn outcome(&mut self) -> Result<Counts, Exception> {
        let lost = |_| Err(Exception::system("the thread that ran the query ended without a result"));
        let outcome = (&mut self.done).await.unwrap_or_else(lost);
        self.guard.ended();
        outcome
    }
}

/// Waits for the result, or for enough of it that the rest can be streamed.
pub(crate) async fn respond(head: Head, live: Live) -> Response<Body> {
    match first_part(&head, live).await {
        Ok(response) => response,
        Err(exception) => error_response(&exception, &head.facts, &head.query.query_id),
    }
}

async fn first_part(head: &Head, mut live: Live) -> Result<Response<Body>, Exception> {
    let mut held = Vec::new();
    let mut more = true;
    while more && held.len() < head.output.buffer_size {
        more = live.read(&mut held).await?;
    }
    if !more {
        let counts = live.outcome().await?;
        return Ok(head.response(&counts, &tag(), full(head.encode(&held)?)));
    }
    if head.output.wait_end_of_query {
        return spool(head, live, &held).await;
    }
    head.stream(held, Source::Pipe, live, &Counts::default())
}

/// Reads on to the end into a file, and only then answers.
async fn spool(head: &Head, mut live: Live, held: &[u8]) -> Result<Response<Body>, Exception> {
    let failed =
        |error: io::Error| Exception::system(format_args!("cannot hold a result back in a temporary file: {error}"));
    let mut file = tempfile::spooled_tempfile(head.output.buffer_size);
    file.write_all(held).map_err(failed)?;
    let mut piece = Vec::with_capacity(PIECE);
    while live.read(&mut piece).await? {
        file.write_all(&piece).map_err(failed)?;
        piece.clear();
    }
    let counts = live.outcome().await?;
    file.rewind().map_err(failed)?;
    head.stream(Vec::new(), Source::File(file), live, &counts)
}

impl Head {
    fn encoder(&self) -> Result<ResponseEncoder, Exception> {
        let native = self.query.format.get().is_some_and(|format| format.eq_ignore_ascii_case("Native"));
        let revised = native.then(|| Revised::for_revision(self.output.client_protocol_version)).flatten();
        ResponseEncoder::new(revised, self.output.compress, self.output.encoding)
            .map_err(|error| Exception::system(format_args!("cannot compress the result: {error}")))
    }

    /// A whole result. An empty one stays empty: there is nothing to decompress.
    fn encode(&self, result: &[u8]) -> Result<Bytes, Exception> {
        if result.is_empty() {
            return Ok(Bytes::new());
        }
        let mut encoder = self.encoder()?;
        let mut body = encoder.push(result).map_err(exception_of)?.to_vec();
        body.extend_from_slice(&encoder.finish(b"").map_err(exception_of)?);
        Ok(body.into())
    }

    fn stream(&self, held: Vec<u8>, source: Source, live: Live, counts: &Counts) -> Result<Response<Body>, Exception> {
        let tag = tag();
        let response_tag = tag.clone();
        let encoder = self.encoder()?;
        let version = self.facts.version.clone();
        let streaming = Streaming { encoder, source, live, held, tag, version, state: State::Going };
        let body = stream::try_unfold(streaming, |mut streaming| async move {
            Ok(streaming.next().await?.map(|bytes| (Frame::data(bytes), streaming)))
        });
        Ok(self.response(counts, &response_tag, StreamBody::new(body).boxed_unsync()))
    }

    fn response(&self, counts: &Counts, tag: &str, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        common_headers(headers, &self.facts, &self.query.query_id);
        let format = self.query.format.get().map(String::as_str);
        set(headers, CONTENT_TYPE, content_type(format));
        if let Some(format) = format {
            set(headers, HeaderName::from_static("x-clickhouse-format"), format);
        }
        if let Some(encoding) = self.output.encoding.header().filter(|_| format.is_some()) {
            set(headers, CONTENT_ENCODING, encoding);
        }
        set(headers, HeaderName::from_static("x-clickhouse-exception-tag"), tag);
        set(headers, HeaderName::from_static("x-clickhouse-summary"), &summary(counts, self.started));
        response
    }
}

/// Where the rest of a result comes from.
enum Source {
    Pipe,
    File(SpooledTempFile),
}

enum State {
    /// There may be more.
    Going,
    /// The end was sent.
    Ended,
    /// The exception was sent; the connection is to be broken off, so that no client takes this for the end.
    Failed,
}

struct Streaming {
    encoder: ResponseEncoder,
    source: Source,
    live: Live,
    held: Vec<u8>,
    tag: String,
    version: String,
    state: State,
}

impl Streaming {
    /// The next bytes of the body; `None` at its end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.state {
                State::Ended => return Ok(None),
                State::Failed => {
                    // What was handed over before is written first.
                    tokio::time::sleep(LAST_WRITES).await;
                    return Err(io::Error::other("the query failed while its result was sent"));
                }
                State::Going => {}
            }
            let bytes = match self.piece().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    self.state = State::Ended;
                    self.encoder.finish(b"")?
                }
                Err(exception) => {
                    self.state = State::Failed;
                    self.encoder.finish(&exception_frame(&exception.versioned(&self.version), &self.tag))?
                }
            };
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Exception> {
        if self.held.is_empty() {
            let more = match &mut self.source {
                Source::Pipe => self.live.read(&mut self.held).await?,
                Source::File(file) => {
                    let read = file.take(PIECE as u64).read_to_end(&mut self.held);
                    read.map_err(|error| Exception::system(format_args!("cannot read the result back: {error}")))? > 0
                }
            };
            if !more {
                if matches!(self.source, Source::Pipe) {
                    self.live.outcome().await?;
                }
                return Ok(None);
            }
        }
        let bytes = self.encoder.push(&self.held).map_err(exception_of)?;
        self.held.clear();
        Ok(Some(bytes))
    }
}

/// An exception after the start of a result, as ClickHouse writes it from 25.11 on; clients look for the tag.
fn exception_frame(message: &str, tag: &str) -> Vec<u8> {
    let length = message.len() + 1;
    format!("\r\n__exception__\r\n{tag}\r\n{message}\n{length} {tag}\r\n__exception__\r\n").into_bytes()
}

/// Sixteen letters that no result contains by chance.
fn tag() -> String {
    let mut bits = rand::random::<u128>();
    let mut letter = || {
        let letter = b'a' + u8::try_from(bits % 26).unwrap_or_default();
        bits /= 26;
        char::from(letter)
    };
    std::iter::repeat_with(&mut letter).take(16).collect()
}

/// The response to a request that failed before any of its result was sent.
pub(crate) fn error_response(exception: &Exception, facts: &Facts, query_id: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{}\n", exception.versioned(&facts.version)).into()));
    *response.status_mut() = exception.status();
    let headers = response.headers_mut();
    common_headers(headers, facts, query_id);
    set(headers, CONTENT_TYPE, "text/plain; charset=UTF-8");
    set(headers, HeaderName::from_static("x-clickhouse-exception-code"), &exception.code().to_string());
    response
}

/// A response of plain text.
pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    set(response.headers_mut(), CONTENT_TYPE, "text/html; charset=UTF-8");
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn common_headers(headers: &mut HeaderMap, facts: &Facts, query_id: &str) {
    set(headers, HeaderName::from_static("x-clickhouse-query-id"), query_id);
    set(headers, HeaderName::from_static("x-clickhouse-timezone"), &facts.timezone);
    set(headers, HeaderName::from_static("x-clickhouse-server-display-name"), &facts.display_name);
}

/// Sets a header; a value that cannot stand in one (a query id with a line break) is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// ClickHouse's summary. Memory and the rows that were to be read are not known, and stated as 0.
fn summary(counts: &Counts, started: Instant) -> String {
    // ClickHouse counts the rows of an INSERT as read, too.
    let (read_rows, read_bytes) = match counts.written_rows {
        0 => (counts.read_rows, counts.read_bytes),
        _ => (counts.read_rows.max(counts.written_rows), counts.read_bytes.max(counts.written_bytes)),
    };
    let (result_rows, result_bytes) = match counts.written_rows {
        0 => (counts.result_rows, counts.result_bytes),
        _ => (counts.written_rows, counts.written_bytes),
    };
    format!(
        "{{\"read_rows\":\"{read_rows}\",\"read_bytes\":\"{read_bytes}\",\"written_rows\":\"{}\",\"written_bytes\":\"{}\",\
         \"total_rows_to_read\":\"0\",\"result_rows\":\"{result_rows}\",\"result_bytes\":\"{result_bytes}\",\
         \"elapsed_ns\":\"{}\",\"memory_usage\":\"0\"}}",
        counts.written_rows,
        counts.written_bytes,
        started.elapsed().as_nanos(),
    )
}

fn content_type(format: Option<&str>) -> &'static str {
    let Some(format) = format else {
        return "text/plain; charset=UTF-8";
    };
    let lower = format.to_ascii_lowercase();
    match lower.as_str() {
        "xml" => "application/xml; charset=UTF-8",
        "jsoneachrow"
        | "jsonstringseachrow"
        | "jsoncompacteachrow"
        | "jsoncompactstringseachrow"
        | "jsonlines"
        | "ndjson" => "application/x-ndjson; charset=UTF-8",
        "markdown" => "text/markdown; charset=UTF-8",
        "arrow" | "arrowstream" => "application/vnd.apache.arrow.stream",
        "parquet" | "orc" | "avro" | "native" => "application/octet-stream",
        json if json.starts_with("json") => "application/json; charset=UTF-8",
        tsv if tsv.starts_with("tabseparated") || tsv.starts_with("tsv") => "text/tab-separated-values; charset=UTF-8",
        "csvwithnames" | "csvwithnamesandtypes" => "text/csv; charset=UTF-8; header=present",
        "csv" => "text/csv; charset=UTF-8; header=absent",
        binary if binary.starts_with("rowbinary") => "application/octet-stream",
        _ => "text/plain; charset=UTF-8",
    }
}
