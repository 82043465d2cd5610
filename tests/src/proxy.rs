//! What may stand between a pipeline and ClickHouse: a proxy that passes requests on, and breaks them on demand.
//!
//! It speaks HTTP on both sides, so that a fault meets a whole request and a test says in words what went wrong. In front of
//! ClickHouse faults meet INSERTs only, told by the statement in the URL, which is where the sink has it; everything else
//! passes. In front of another server they meet every request.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, sleep_until};

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Connections are closed as soon as they are made, and those there are at their next request, whatever it asks.
    Refuse,
    /// The connections of both sides break after so many bytes of an INSERT's body, or right before the end of a shorter one.
    Cut {
        /// Bytes of the body, as sent, that reach ClickHouse.
        after: usize,
    },
    /// The INSERT is done, and its answer lost: the connection closes in its place.
    Swallow,
    /// The INSERT is done, and its answer comes this much later.
    Hold(Duration),
    /// The INSERT reaches ClickHouse this much later, even when who sent it has given up on it or is gone.
    Late(Duration),
    /// Bodies of INSERTs pass at this rate, all together.
    Slow {
        /// Bytes as sent, which is compressed.
        bytes_per_second: u32,
    },
    /// The INSERT does not reach ClickHouse; this is the answer.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The header `X-ClickHouse-Exception-Code`, where ClickHouse itself is supposed to have answered.
        code: Option<u32>,
        /// The body.
        body: String,
    },
}

impl Fault {
    /// ClickHouse's answer when it refuses: `exception(252, "TOO_MANY_PARTS", "Too many parts (300)")`.
    pub fn exception(code: u32, name: &str, says: &str) -> Self {
        let body = format!("Code: {code}. DB::Exception: {says}. ({name}) (version 26.7.3.1)\n");
        Self::Answer { status: 500, code: Some(code), body }
    }

    /// What a load balancer answers when it does not reach ClickHouse.
    pub fn bad_gateway() -> Self {
        let body = "<html><head><title>502 Bad Gateway</title></head></html>\n".to_owned();
        Self::Answer { status: 502, code: None, body }
    }
}

/// The proxy. It runs on a thread of its own, so that a test may block, and ends with the value.
pub struct Proxy {
    shared: Arc<Shared>,
    url: String,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy to the ClickHouse at `upstream`, which need not run; it listens on a port that the system chooses.
    pub fn start(upstream: &str) -> Self {
        Self::start_where(upstream, is_insert)
    }

    /// Starts a proxy to any server, all of whose requests may meet faults.
    pub fn start_for_all(upstream: &str) -> Self {
        Self::start_where(upstream, |_| true)
    }

    fn start_where(upstream: &str, meets: fn(&Parts) -> bool) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let address = listener.local_addr().expect("a bound socket has an address");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        // A connection for each request: one that is kept open would break when ClickHouse is restarted.
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        let shared = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client,
            meets,
            script: Mutex::new(Script { fault: None, every: 1, seen: 0 }),
            paced_until: Mutex::new(Instant::now()),
            faults: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, url: format!("http://{address}"), runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on each `every`-th INSERT meets `fault`; [`Fault::Refuse`] meets every connection.
    pub fn fail(&self, fault: Fault, every: u64) {
        *self.shared.script() = Script { fault: Some(fault), every, seen: 0 };
    }

    /// From now on everything passes.
    pub fn pass(&self) {
        self.shared.script().fault = None;
    }

    /// How many faults there were since the start, each counted when it has happened.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }

    /// How many INSERTs have come and are not done with, whether or not who sent them still waits.
    pub fn under_way(&self) -> u64 {
        self.shared.under_way.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its end is not allowed inside an asynchronous test.
            runtime.shutdown_background();
        }
    }
}

type Answer = Response<Full<Bytes>>;

struct Shared {
    upstream: String,
    client: reqwest::Client,
    /// Which requests may meet a fault.
    meets: fn(&Parts) -> bool,
    script: Mutex<Script>,
    /// Until when slow bodies have used up their rate.
    paced_until: Mutex<Instant>,
    faults: AtomicU64,
    under_way: AtomicU64,
}

/// Which INSERTs meet what.
struct Script {
    fault: Option<Fault>,
    every: u64,
    /// INSERTs since the script was given.
    seen: u64,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuses(&self) -> bool {
        self.script().fault == Some(Fault::Refuse)
    }

    /// What the next INSERT meets.
    fn next_fault(&self) -> Option<Fault> {
        let mut script = self.script();
        script.seen += 1;
        if script.seen.is_multiple_of(script.every) { script.fault.clone() } else { None }
    }

    fn count(&self) {
        self.faults.fetch_add(1, Ordering::SeqCst);
    }

    /// The answer to a request; with an error the connection is closed without one.
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Answer> {
        if self.refuses() {
            self.count();
            return Err(io::Error::other("refused"));
        }
        let (head, body) = request.into_parts();
        if !(self.meets)(&head) {
            let body = whole(body).await?;
            return self.forward(head, body.into()).await;
        }
        self.under_way.fetch_add(1, Ordering::SeqCst);
        // A task of its own: an INSERT on its way arrives although its sender has gone.
        let insert = tokio::spawn(async move {
            let answer = self.insert(head, body).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            answer
        });
        insert.await.map_err(io::Error::other)?
    }

    async fn insert(self: &Arc<Self>, head: Parts, body: Incoming) -> io::Result<Answer> {
        match self.next_fault() {
            None | Some(Fault::Refuse) => {
                let body = whole(body).await?;
                self.forward(head, body.into()).await
            }
            Some(Fault::Slow { .. }) => {
                self.count();
                self.forward(head, self.streamed(body, None)).await
            }
            Some(Fault::Cut { after }) => self.forward(head, self.streamed(body, Some(after))).await,
            Some(Fault::Swallow) => {
                self.forward_counted(head, self.streamed(body, None)).await?;
                Err(io::Error::other("swallowed the answer"))
            }
            Some(Fault::Hold(time)) => {
                let answer = self.forward_counted(head, self.streamed(body, None)).await;
                sleep(time).await;
                answer
            }
            Some(Fault::Late(time)) => {
                let body = whole(body).await?;
                sleep(time).await;
                self.forward_counted(head, body.into()).await
            }
            Some(Fault::Answer { status, code, body: says }) => {
                whole(body).await?;
                self.count();
                answer(status, code, says)
            }
        }
    }

    /// Passes an INSERT on, and counts a fault when ClickHouse has done it.
    async fn forward_counted(&self, head: Parts, body: reqwest::Body) -> io::Result<Answer> {
        let answer = self.forward(head, body).await?;
        if answer.status().is_success() {
            self.count();
        }
        Ok(answer)
    }

    async fn forward(&self, head: Parts, body: reqwest::Body) -> io::Result<Answer> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = self.client.request(head.method, format!("{}{path}", self.upstream));
        let request = request.headers(end_to_end(head.headers)).body(body);
        let answer = request.send().await.map_err(io::Error::other)?;
        let (status, headers) = (answer.status(), end_to_end(answer.headers().clone()));
        let mut passed = Response::new(Full::new(answer.bytes().await.map_err(io::Error::other)?));
        (*passed.status_mut(), *passed.headers_mut()) = (status, headers);
        Ok(passed)
    }

    /// A body that is passed on as it comes, at the rate of the moment; it breaks off after `cut` bytes, or at its end when
    /// that comes first.
    fn streamed(self: &Arc<Self>, body: Incoming, cut: Option<usize>) -> reqwest::Body {
        let passing = Passing { shared: Arc::clone(self), body, left: cut };
        reqwest::Body::wrap_stream(stream::try_unfold(passing, Passing::next))
    }

    /// Waits until so many bytes may pass.
    async fn pace(&self, bytes: usize) {
        let Some(Fault::Slow { bytes_per_second }) = self.script().fault.clone() else { return };
        let until = {
            let mut until = self.paced_until.lock().unwrap_or_else(PoisonError::into_inner);
            let time = Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_second.max(1)));
            *until = (*until).max(Instant::now()) + time;
            *until
        };
        sleep_until(until).await;
    }
}

/// A body on its way.
struct Passing {
    shared: Arc<Shared>,
    body: Incoming,
    /// Bytes until it is cut; `None` when it is not.
    left: Option<usize>,
}

impl Passing {
    /// The next bytes; `None` at the end.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let frame = if self.left == Some(0) { None } else { self.body.frame().await };
        let Some(frame) = frame else {
            if self.left.is_none() {
                return Ok(None);
            }
            // What was passed on before is sent first, so that ClickHouse has begun when it breaks.
            sleep(Duration::from_millis(20)).await;
            self.shared.count();
            return Err(io::Error::other("cut"));
        };
        let mut bytes = frame.map_err(io::Error::other)?.into_data().unwrap_or_default();
        if let Some(left) = &mut self.left {
            bytes.truncate(*left);
            *left -= bytes.len();
        }
        self.shared.pace(bytes.len()).await;
        Ok(Some((bytes, self)))
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket");
    loop {
        match listener.accept().await {
            Ok((stream, _)) if shared.refuses() => {
                drop(stream);
                shared.count();
            }
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&shared)))),
            // Out of descriptors, most likely: others give some back.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves one connection up to its end, which may be one that a fault asks for: the client sees it, nobody else needs to.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| Arc::clone(&shared).handle(request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn is_insert(head: &Parts) -> bool {
    let url = reqwest::Url::parse(&format!("http://any/?{}", head.uri.query().unwrap_or_default()));
    let starts = |text: &str| text.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("INSERT"));
    url.is_ok_and(|url| url.query_pairs().any(|(name, value)| name == "query" && starts(&value)))
}

async fn whole(body: Incoming) -> io::Result<Bytes> {
    Ok(body.collect().await.map_err(io::Error::other)?.to_bytes())
}

/// The headers without those that belong to one connection.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT] {
        headers.remove(name);
    }
    headers
}

fn answer(status: u16, code: Option<u32>, body: String) -> io::Result<Answer> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = StatusCode::from_u16(status).map_err(io::Error::other)?;
    if let Some(code) = code {
        answer.headers_mut().insert("x-clickhouse-exception-code", code.into());
    }
    Ok(answer)
}
