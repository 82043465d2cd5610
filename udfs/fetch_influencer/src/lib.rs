/*
[dependencies]
fastrand = "2"
http-body-util = "0.1"
httpdate = "1"
hyper = "1"
hyper-rustls = { version = "0.27", default-features = false, features = ["http1", "ring", "tls12", "webpki-roots"] }
hyper-util = { version = "0.1", features = ["client-legacy", "http1", "tokio"] }
serde = { version = "1", features = ["derive"] }
serde_json = "1"
tokio = { version = "1", features = ["sync", "time"] }
url = "2"
*/
//! `fetch_influencer(pk BIGINT) -> TEXT`: reads one influencer from the upstream API, once per call.
//!
//! The answer is one flat JSON object, so that SQL takes it apart with `json_get_*`. A failed fetch is an answer
//! too; the UDF itself never fails on one.
//!
//! | field | when | meaning |
//! | --- | --- | --- |
//! | `pk` | always | the argument |
//! | `ok` | always | whether the reading is here |
//! | `attempts` | always | requests made, 0 if none could be |
//! | `fetched_at_micros` | always | when the answer came, or the attempts ended: microseconds since 1970, UTC |
//! | `status` | if a response came | HTTP status of the last attempt |
//! | `username`, `follower_count`, `following_count` | `ok` | the reading |
//! | `error` | not `ok` | the kind, see below |
//! | `message` | not `ok` | the kind in words, with what the API said, at most 300 characters |
//!
//! | `error` | cause | tried again |
//! | --- | --- | --- |
//! | `not_found` | status 500 that names `InfluencerNotFoundError` | no |
//! | `server_error` | any other 5xx | yes |
//! | `rate_limited` | 429; `Retry-After` is honoured | yes |
//! | `timeout` | no whole response within the attempt's timeout, or no free connection within the call's budget | yes |
//! | `connection` | refused, reset, cut off, name not resolved | yes |
//! | `bad_body` | a 200 whose body is not the reading of this pk | no |
//! | `unexpected_status` | any other status | no |
//! | `throttled` | our own cap on requests left no room within the call's budget | no |
//!
//! Between attempts it waits a random time up to `FETCH_BACKOFF_MS`, doubled with each attempt (full jitter).
//!
//! | environment | default | meaning |
//! | --- | --- | --- |
//! | `MOCKSTAGRAM_URL` | none, required | base of the API, without `/api/v1`; http or https, reached without a proxy |
//! | `FETCH_ATTEMPT_TIMEOUT_MS` | 5000 | longest wait for one response, body included |
//! | `FETCH_RETRIES` | 3 | further attempts after the first, 0 to 10 |
//! | `FETCH_BACKOFF_MS` | 100 | upper bound of the first wait between attempts |
//! | `FETCH_BUDGET_MS` | 30000 | longest time of one call, all attempts and waits together; at most 60000 |
//! | `FETCH_WINDOW_MS` | none | no request is made past the end of the window of wall-clock time (60000: the minute) in which the call began |
//! | `FETCH_MAX_CONNECTIONS` | 256 | connections, hence requests at once, of one instance (one per subtask) |
//! | `FETCH_MAX_RPS` | no cap | requests per second of the whole process, retries included |
//!
//! Connections should be requests per second times the API's latency, over the instances. More cost CPU: 256 took 20% more than
//! 64 against an API on the same machine.
//!
//! A variable that is missing or does not parse ends the instance with a message that names it: nothing is fetched
//! under settings that were not asked for.
//!
//! The budget stays well under the UDF's timeout, which would end the instance.

use std::cell::RefCell;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arroyo_udf_plugin::udf;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::http::uri::{Parts, PathAndQuery};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{sleep_until, timeout_at, Instant};
use url::Url;

/// Longest body that is read; a reading takes about 100 bytes.
const MAX_BODY: usize = 64 * 1024;
/// A request with less time than this left of its call's budget is not made: it would be given up on its way.
const LEAST_ATTEMPT: Duration = Duration::from_millis(10);
/// How long a connection may stand unused: the API should not be the one that closes it.
const MAX_IDLE: Duration = Duration::from_secs(90);
/// How often the system asks whether the other end of a quiet connection is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest `message`, in characters.
const MAX_MESSAGE: usize = 300;

// What is in flight beyond the connections waits between attempts: of two subtasks so many allow 23,000 calls/s when every
// call fails and waits 350 ms in all. Twice as many made 5% fewer fetches/s (`tickhouse bench boundary --short`).
#[udf(timeout = "90s", allowed_in_flight = 4096)]
async fn fetch_influencer(pk: i64) -> String {
    let upstream = Upstream::of_this_thread();
    let mut attempts = 0;
    let outcome = fetch(&upstream, pk, &mut attempts).await;
    let fetched_at_micros = micros_since_epoch();
    // What is read of every reply stands first: each `json_get_*` reads up to its field.
    match outcome {
        Ok((status, reading)) => format!(
            r#"{{"ok":true,"fetched_at_micros":{fetched_at_micros},"username":{},"follower_count":{},"following_count":{},"pk":{pk},"attempts":{attempts},"status":{}}}"#,
            Value::from(reading.username),
            reading.follower_count,
            reading.following_count,
            status.as_u16(),
        ),
        Err(failure) => format!(
            r#"{{"ok":false,"fetched_at_micros":{fetched_at_micros},"pk":{pk},"attempts":{attempts},{}"error":"{}","message":{}}}"#,
            failure.status.map(|status| format!(r#""status":{},"#, status.as_u16())).unwrap_or_default(),
            failure.kind.name(),
            Value::from(failure.message),
        ),
    }
}

/// What the API answers.
#[derive(Deserialize)]
struct Reading {
    pk: i64,
    username: String,
    #[serde(rename = "followerCount")]
    follower_count: i64,
    #[serde(rename = "followingCount")]
    following_count: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    NotFound,
    ServerError,
    RateLimited,
    Timeout,
    Connection,
    BadBody,
    UnexpectedStatus,
    Throttled,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::NotFound => "not_found",
            Kind::ServerError => "server_error",
            Kind::RateLimited => "rate_limited",
            Kind::Timeout => "timeout",
            Kind::Connection => "connection",
            Kind::BadBody => "bad_body",
            Kind::UnexpectedStatus => "unexpected_status",
            Kind::Throttled => "throttled",
        }
    }

    fn is_transient(self) -> bool {
        use Kind::{Connection, RateLimited, ServerError, Timeout};
        matches!(self, ServerError | RateLimited | Timeout | Connection)
    }
}

struct Failure {
    kind: Kind,
    status: Option<StatusCode>,
    message: String,
    /// What a 429 asked for.
    retry_after: Option<Duration>,
}

impl Failure {
    fn new(kind: Kind, status: Option<StatusCode>, message: impl Display) -> Self {
        let message = message.to_string().chars().take(MAX_MESSAGE).collect();
        Failure { kind, status, message, retry_after: None }
    }
}

/// Attempts until a reading, a failure that another attempt cannot mend, or the end of retries or budget.
async fn fetch(upstream: &Upstream, pk: i64, attempts: &mut u32) -> Result<(StatusCode, Reading), Failure> {
    let settings = upstream.settings;
    let deadline = Instant::now() + settings.budget.min(settings.left_of_window());
    loop {
        settings.wait_for_slot(deadline).await?;
        let free = upstream.connections.acquire();
        // Permits go round in turn: ahead of a first attempt are calls with earlier deadlines, which end before its own.
        let permit = match *attempts {
            0 => free.await.ok(),
            _ => timeout_at(deadline, free).await.ok().and_then(Result::ok),
        };
        let permit = match permit {
            Some(permit) if deadline.saturating_duration_since(Instant::now()) >= LEAST_ATTEMPT => permit,
            _ => {
                let message = format!(
                    "no connection became free in the time that the call had ({:?}, its window)",
                    settings.budget
                );
                return Err(Failure::new(Kind::Timeout, None, message));
            }
        };
        *attempts += 1;
        let own_end = Instant::now() + settings.attempt_timeout;
        let outcome = match timeout_at(deadline.min(own_end), attempt(upstream, pk)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = match own_end <= deadline {
                    true => format!("no whole response within {:?}", settings.attempt_timeout),
                    false => {
                        format!("no whole response in the time that the call had ({:?}, its window)", settings.budget)
                    }
                };
                Err(Failure::new(Kind::Timeout, None, message))
            }
        };
        drop(permit);
        let failure = match outcome {
            Ok(reading) => return Ok(reading),
            Err(failure) => failure,
        };
        // None is later than the clock can tell: the API chooses the pause.
        let retry_at = Instant::now().checked_add(settings.pause(*attempts, failure.retry_after));
        match retry_at.filter(|at| *at < deadline) {
            Some(at) if failure.kind.is_transient() && *attempts <= settings.retries => sleep_until(at).await,
            _ => return Err(failure),
        }
    }
}

/// One request and its whole response.
async fn attempt(upstream: &Upstream, pk: i64) -> Result<(StatusCode, Reading), Failure> {
    let request = upstream.request(pk)?;
    let response =
        upstream.client.request(request).await.map_err(|e| Failure::new(Kind::Connection, None, chain(&e)))?;
    let status = response.status();
    let retry_after =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(parse_retry_after);
    let mut frames = response.into_body();
    let mut body = Vec::with_capacity(frames.size_hint().lower().clamp(256, 4096) as usize);
    while let Some(frame) = frames.frame().await {
        let frame = frame.map_err(|e| Failure::new(Kind::Connection, None, chain(&e)))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if body.len() + chunk.len() > MAX_BODY {
            let message = format!("the body is longer than {MAX_BODY} bytes");
            return Err(Failure::new(Kind::BadBody, Some(status), message));
        }
        body.extend_from_slice(&chunk);
    }
    read(pk, status, &body).map_err(|failure| Failure { retry_after, ..failure })
}

/// Takes a whole response for what it says.
fn read(pk: i64, status: StatusCode, body: &[u8]) -> Result<(StatusCode, Reading), Failure> {
    let failure = |kind, message: String| Err(Failure::new(kind, Some(status), message));
    let text = || String::from_utf8_lossy(body);
    if status == StatusCode::OK {
        return match serde_json::from_slice::<Reading>(body) {
            Err(e) => failure(Kind::BadBody, format!("the body does not parse: {e}: {}", text())),
            Ok(r) if r.pk != pk => failure(Kind::BadBody, format!("the body is of pk {}", r.pk)),
            Ok(r) if r.follower_count < 0 || r.following_count < 0 => {
                failure(Kind::BadBody, format!("a count is negative: {}", text()))
            }
            Ok(reading) => Ok((status, reading)),
        };
    }
    let (kind, words) = match status {
        StatusCode::INTERNAL_SERVER_ERROR if text().contains("InfluencerNotFoundError") => {
            (Kind::NotFound, "no influencer has this pk")
        }
        StatusCode::TOO_MANY_REQUESTS => (Kind::RateLimited, "the API limits our rate"),
        status if status.is_server_error() => (Kind::ServerError, "the API failed"),
        _ => (Kind::UnexpectedStatus, "the API answered with a status that is not in its contract"),
    };
    failure(kind, format!("{words}: {status}: {}", text()))
}

/// `Retry-After` in seconds or as a date; None if it is neither.
fn parse_retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// An error with its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn micros_since_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// The client of one instance. An instance runs on a thread of its own, and its connections live on that thread's
/// runtime: shared between instances they would die with the one that opened them.
///
/// The client is hyper's: what reqwest adds to it (redirects, cookies, retries of its own, proxies) is not wanted here, and
/// parsing each URL and passing each request through those layers took a tenth of a fetch.
struct Upstream {
    settings: &'static Settings,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    connections: Semaphore,
}

impl Upstream {
    fn of_this_thread() -> Arc<Upstream> {
        thread_local!(static UPSTREAM: RefCell<Option<Arc<Upstream>>> = const { RefCell::new(None) });
        UPSTREAM.with_borrow_mut(|upstream| Arc::clone(upstream.get_or_insert_with(|| Arc::new(Upstream::new()))))
    }

    fn new() -> Upstream {
        static SETTINGS: OnceLock<Settings> = OnceLock::new();
        let settings = SETTINGS.get_or_init(|| {
            Settings::from_environment(|name| std::env::var(name).ok())
                .unwrap_or_else(|message| panic!("fetch_influencer cannot start: {message}"))
        });
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEP_ALIVE));
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(settings.connections)
            .pool_idle_timeout(MAX_IDLE)
            .pool_timer(TokioTimer::new())
            // A request without a body is one buffer.
            .http1_writev(false)
            .build(connector);
        Upstream { settings, client, connections: Semaphore::new(settings.connections) }
    }

    /// The request for one influencer.
    fn request(&self, pk: i64) -> Result<Request<Empty<Bytes>>, Failure> {
        let impossible = |e: &dyn std::error::Error| Failure::new(Kind::Connection, None, chain(e));
        let path = Bytes::from(format!("{}{pk}", self.settings.base.path()));
        let mut parts = Parts::from(self.settings.base.clone());
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).map_err(|e| impossible(&e))?);
        let uri = Uri::from_parts(parts).map_err(|e| impossible(&e))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("tickhouse-fetch-influencer"));
        Ok(request)
    }
}

/// The environment, see the crate's documentation.
#[derive(Debug)]
struct Settings {
    /// Of the influencers, with a slash at its end.
    base: Uri,
    attempt_timeout: Duration,
    retries: u32,
    backoff: Duration,
    budget: Duration,
    /// The windows of wall-clock time that no call outlives.
    window: Option<Duration>,
    connections: usize,
    /// Time between two requests of the process under `FETCH_MAX_RPS`.
    interval: Option<Duration>,
}

impl Settings {
    fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let base = get("MOCKSTAGRAM_URL")
            .ok_or("MOCKSTAGRAM_URL is not set; set it to the base of the API, such as http://127.0.0.1:3000")?;
        let influencers = format!("{}/api/v1/influencers/", base.trim_end_matches('/'));
        let base = match Url::parse(&influencers) {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                return Err("MOCKSTAGRAM_URL has a user name or password in it, which the API does not take".to_owned());
            }
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                return Err(format!("MOCKSTAGRAM_URL must end with its path, without `?` or `#`: {base:?}"));
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url.as_str().parse::<Uri>().ok(),
            _ => None,
        }
        .ok_or_else(|| format!("MOCKSTAGRAM_URL is not an http or https URL: {base:?}"))?;
        let millis = |name, default, low, high| number(&get, name, default, low, high).map(Duration::from_millis);
        let rate: f64 = number(&get, "FETCH_MAX_RPS", f64::INFINITY, 0.001, f64::INFINITY)?;
        Ok(Settings {
            base,
            attempt_timeout: millis("FETCH_ATTEMPT_TIMEOUT_MS", 5_000, 1, 60_000)?,
            retries: number(&get, "FETCH_RETRIES", 3, 0, 10)?,
            backoff: millis("FETCH_BACKOFF_MS", 100, 0, 60_000)?,
            budget: millis("FETCH_BUDGET_MS", 30_000, 1, 60_000)?,
            window: match get("FETCH_WINDOW_MS") {
                Some(_) => Some(millis("FETCH_WINDOW_MS", 60_000, 100, 86_400_000)?),
                None => None,
            },
            connections: number(&get, "FETCH_MAX_CONNECTIONS", 256, 1, 65_536)?,
            interval: rate.is_finite().then(|| Duration::from_secs_f64(1.0 / rate)),
        })
    }

    /// How long the window of now still lasts.
    fn left_of_window(&self) -> Duration {
        let left = |window: Duration| {
            let micros = window.as_micros() as u64;
            Duration::from_micros(micros - micros_since_epoch() % micros)
        };
        self.window.map_or(Duration::MAX, left)
    }

    /// How long to wait before the attempt after `attempts` of them.
    fn pause(&self, attempts: u32, retry_after: Option<Duration>) -> Duration {
        let bound = self.backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        let jitter = bound.min(self.budget).mul_f64(fastrand::f64());
        // A server that names a time means all of its clients: the jitter keeps them apart there too.
        retry_after.map_or(jitter, |asked| asked.saturating_add(jitter.min(self.backoff)))
    }

    /// Waits for the process's next free slot under `FETCH_MAX_RPS`.
    async fn wait_for_slot(&self, deadline: Instant) -> Result<(), Failure> {
        /// The next free slot, in nanoseconds since `EPOCH`.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let Some(interval) = self.interval else {
            return Ok(());
        };
        let epoch = *EPOCH.get_or_init(Instant::now);
        let since = |at: Instant| at.duration_since(epoch).as_nanos() as u64;
        let (now, latest) = (since(Instant::now()), since(deadline));
        let step = interval.as_nanos() as u64;
        let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let slot = next.max(now);
            (slot < latest).then(|| slot.saturating_add(step))
        });
        match taken {
            Ok(next) if next <= now => Ok(()),
            Ok(next) => {
                sleep_until(epoch + Duration::from_nanos(next)).await;
                Ok(())
            }
            Err(_) => {
                let rate = 1.0 / interval.as_secs_f64();
                let message = format!("the cap of {rate} requests per second left no room within {:?}", self.budget);
                Err(Failure::new(Kind::Throttled, None, message))
            }
        }
    }
}

/// A number from the environment, within its bounds.
fn number<T: FromStr + PartialOrd + Display>(
    get: impl Fn(&str) -> Option<String>,
    name: &str,
    default: T,
    low: T,
    high: T,
) -> Result<T, String> {
    let Some(text) = get(name) else {
        return Ok(default);
    };
    match text.trim().parse() {
        Ok(value) if value >= low && value <= high => Ok(value),
        _ => Err(format!("{name} must be a number from {low} to {high}, not {text:?}")),
    }
}
