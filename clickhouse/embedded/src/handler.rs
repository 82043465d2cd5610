//! What each request gets: the small fixed answers, or a query on a thread of its own.

use std::convert::Infallible;
use std::io::pipe;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::unix::pipe as async_pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::auth::Account;
use crate::body::{BodyReader, Piece};
use crate::engine::Engine;
use crate::exception::Exception;
use crate::execute::Job;
use crate::ffi::{Connection, Counts};
use crate::request::QueryRequest;
use crate::respond::{Body, Head, Live, error_response, plain, respond};
use crate::running::{CancelOnDrop, Registry};
use crate::session::Sessions;

/// As deep as a server's own threads; the engine's parser is recursive.
const STACK: usize = 8 << 20;
/// A client that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(300);
/// How much of a body is read to its end, in bytes, after its query has failed; beyond that the connection breaks.
const DRAINED: u64 = 64 << 20;
/// Pieces of a body between the network and the query's thread.
const PIECES: usize = 4;

/// What all requests share.
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) sessions: Arc<Sessions<Connection>>,
    pub(crate) account: Account,
}

impl Service {
    /// Answers one request.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let asks = head.uri.query().is_some_and(|query| !query.is_empty());
        Ok(match (&head.method, head.uri.path()) {
            (&Method::GET | &Method::HEAD, "/ping" | "/replicas_status") => plain(StatusCode::OK, "Ok.\n"),
            (&Method::GET | &Method::HEAD, "/") if !asks => plain(StatusCode::OK, "Ok.\n"),
            (&Method::GET | &Method::HEAD | &Method::POST, "/" | "/query") => self.query(head, body).await,
            (&Method::OPTIONS, _) => plain(StatusCode::NO_CONTENT, ""),
            (&Method::GET | &Method::HEAD | &Method::POST, path) => plain(
                StatusCode::NOT_FOUND,
                format!(
                    "There is no handle {path}\n\nUse / or /ping for health checks.\nOr /replicas_status.\n\
                         Send queries from your program with POST method or GET /?query=...\n"
                ),
            ),
            (method, _) => plain(StatusCode::NOT_IMPLEMENTED, format!("There is no method {method}\n")),
        })
    }

    async fn query(self: Arc<Self>, head: Parts, body: Incoming) -> Response<Body> {
        let facts = self.engine.facts().clone();
        let read = QueryRequest::read(&head)
            .and_then(|(request, credentials)| self.account.check(&credentials).map(|()| request));
        let request = match read {
            Ok(request) => request,
            Err(exception) => {
                drain(body).await;
                return error_response(&exception, &facts, "");
            }
        };
        let query_id = request.query_id.clone();
        match self.start(request) {
            Ok((answer_head, live, sender)) => {
                pump(body, sender).await;
                respond(answer_head, live).await
            }
            Err(exception) => {
                drain(body).await;
                error_response(&exception, &facts, &query_id)
            }
        }
    }

    /// Starts the thread that runs the query.
    fn start(&self, request: QueryRequest) -> Result<(Head, Live, mpsc::Sender<Piece>), Exception> {
        let started = Instant::now();
        let admitted = self.registry.admit(request.query_id.clone())?;
        let query = Arc::clone(admitted.query());
        let session = match &request.session {
            Some(session) => Some(self.sessions.take(session.clone(), started, || self.engine.connect())?),
            None => None,
        };
        let refused = |error: std::io::Error| Exception::system(format_args!("cannot start a query: {error}"));
        let (reader, writer) = pipe().map_err(refused)?;
        let reader = async_pipe::Receiver::from_owned_fd(reader.into()).map_err(refused)?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let (finished, done) = oneshot::channel();
        let output = request.output;
        let head = Head { facts: self.engine.facts().clone(), output, started, query: Arc::clone(&query) };
        let job = Job {
            request,
            body: BodyReader::new(pieces),
            output: writer,
            session,
            engine: Arc::clone(&self.engine),
            admitted,
        };
        spawn(job, finished).map_err(refused)?;
        let guard = CancelOnDrop::new(Arc::clone(&self.engine), query);
        Ok((head, Live { pipe: reader, done, guard }, sender))
    }
}

fn spawn(job: Job, finished: oneshot::Sender<Result<Counts, Exception>>) -> std::io::Result<()> {
    thread::Builder::new().name("query".to_owned()).stack_size(STACK).spawn(move || {
        let outcome = job.run();
        // The client may have gone away.
        let _ = finished.send(outcome);
    })?;
    Ok(())
}

/// Sends the body on to the query's thread. Returns when it is complete, broken off, or no longer wanted; in the
/// last case the rest is read first, so that a client that only writes gets to read its exception.
async fn pump(mut body: Incoming, sender: mpsc::Sender<Piece>) {
    loop {
        match next(&mut body).await {
            Some(Ok(data)) => {
                if sender.send(Piece::Data(data)).await.is_err() {
                    return drain(body).await;
                }
            }
            Some(Err(())) => return,
            None => {
                let _ = sender.send(Piece::End).await;
                return;
            }
        }
    }
}

/// The next bytes of a body; `None` at its end, an error if it breaks off or falls silent.
async fn next(body: &mut Incoming) -> Option<Result<bytes::Bytes, ()>> {
    loop {
        let frame = match timeout(SILENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return None,
            Ok(Some(Err(_))) | Err(_) => return Some(Err(())),
        };
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Some(Ok(data));
        }
    }
}

/// Reads the rest of a body that nobody needs, if it is not too large.
async fn drain(mut body: Incoming) {
    if body.size_hint().lower() > DRAINED {
        return;
    }
    let mut left = DRAINED;
    while let Some(Ok(data)) = next(&mut body).await {
        left = left.saturating_sub(data.len() as u64);
        if left == 0 {
            return;
        }
    }
}
