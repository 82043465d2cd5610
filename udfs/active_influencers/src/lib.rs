/*
[dependencies]
fastrand = "2"
reqwest = { version = "0.12", default-features = false, features = ["rustls-tls"] }
tokio = { version = "1", features = ["time"] }
*/
//! `active_influencers(shard BIGINT, shards BIGINT) -> TEXT`: the active influencers of one shard, from the registry.
//!
//! The answer is a JSON array of pks in ascending order, such as `[1000000,1000003]`. A pk belongs to shard
//! `cityHash64(pk) % shards`, so the shards 0 to `shards - 1` together hold every active influencer once.
//!
//! | environment | default | meaning |
//! | --- | --- | --- |
//! | `CLICKHOUSE_URL` | none, required | ClickHouse's HTTP interface, such as `http://127.0.0.1:8123`; http or https |
//! | `CLICKHOUSE_USER`, `CLICKHOUSE_PASSWORD` | ClickHouse's default user | credentials |
//! | `REGISTRY_TIMEOUT_MS` | 60000 | longest wait for one answer |
//! | `REGISTRY_WAIT_MS` | 1800000 | how long to keep asking while ClickHouse is away; at most 3300000 |
//!
//! While ClickHouse is away (no connection, no answer, status 408, 429 or 5xx) the call keeps asking, with growing
//! random pauses, and says so on standard error: a minute that starts late is better than one that is skipped. It
//! ends the instance, with a message that says why, when ClickHouse stays away for longer, refuses the query (no
//! such table, wrong password) or answers with something else than a list, and when a variable or an argument is
//! wrong. An empty list would drop a whole shard's minute without a word.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use arroyo_udf_plugin::udf;
use reqwest::{StatusCode, Url};
use tokio::time::{sleep, Instant};

const QUERY: &str = "SELECT arraySort(groupArray(pk)) FROM tickhouse.active_influencers FINAL \
    WHERE active AND cityHash64(pk) % {shards:UInt64} = {shard:UInt64} FORMAT TabSeparated";
/// Pauses between attempts are random, up to a bound that doubles from the first to the last of these.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

#[udf(timeout = "1h", allowed_in_flight = 64)]
async fn active_influencers(shard: i64, shards: i64) -> String {
    if shards < 1 || shard < 0 || shard >= shards {
        panic!("active_influencers({shard}, {shards}): the shard must be from 0 to shards - 1");
    }
    let registry = Registry::of_this_thread();
    match registry.read_until_answered(shard, shards).await {
        Ok(list) => list,
        Err(message) => panic!("active_influencers({shard}, {shards}): {message}"),
    }
}

/// Why there is no list.
enum Failure {
    /// ClickHouse may answer if asked again.
    Away(String),
    /// It will say the same again.
    Refused(String),
}

/// The client of one instance; it lives on the instance's thread, whose runtime drives its connections.
struct Registry {
    url: Url,
    credentials: Vec<(&'static str, String)>,
    wait: Duration,
    client: reqwest::Client,
}

impl Registry {
    fn of_this_thread() -> Arc<Registry> {
        thread_local!(static REGISTRY: RefCell<Option<Arc<Registry>>> = const { RefCell::new(None) });
        REGISTRY.with_borrow_mut(|registry| {
            let registry = registry.get_or_insert_with(|| match Registry::from_environment() {
                Ok(registry) => Arc::new(registry),
                Err(message) => panic!("active_influencers cannot start: {message}"),
            });
            Arc::clone(registry)
        })
    }

    fn from_environment() -> Result<Registry, String> {
        let text = variable("CLICKHOUSE_URL")
            .ok_or("CLICKHOUSE_URL is not set; set it to ClickHouse's HTTP interface, such as http://127.0.0.1:8123")?;
        let url = match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => return Err(format!("CLICKHOUSE_URL is not an http or https URL: {text:?}")),
        };
        let credentials = [("X-ClickHouse-User", "CLICKHOUSE_USER"), ("X-ClickHouse-Key", "CLICKHOUSE_PASSWORD")]
            .into_iter()
            .filter_map(|(header, name)| Some((header, variable(name)?)))
            .collect();
        let client = reqwest::Client::builder()
            .user_agent("tickhouse-active-influencers")
            .timeout(millis("REGISTRY_TIMEOUT_MS", 60_000, 300_000)?)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| format!("the HTTP client does not start: {}", chain(&e)))?;
        let wait = millis("REGISTRY_WAIT_MS", 1_800_000, 3_300_000)?;
        Ok(Registry { url, credentials, wait, client })
    }

    async fn read_until_answered(&self, shard: i64, shards: i64) -> Result<String, String> {
        let began = Instant::now();
        let mut bound = FIRST_PAUSE;
        loop {
            let why = match self.read(shard, shards).await {
                Ok(list) => return Ok(list),
                Err(Failure::Refused(why)) => return Err(why),
                Err(Failure::Away(why)) => why,
            };
            if began.elapsed() + bound >= self.wait {
                return Err(format!("ClickHouse stayed away for {:?}: {why}", self.wait));
            }
            if bound >= LAST_PAUSE || bound == FIRST_PAUSE {
                eprintln!("active_influencers({shard}, {shards}): asking again, ClickHouse is away: {why}");
            }
            sleep(bound.mul_f64(fastrand::f64())).await;
            bound = (bound * 2).min(LAST_PAUSE);
        }
    }

    async fn read(&self, shard: i64, shards: i64) -> Result<String, Failure> {
        let away = |e: reqwest::Error| Failure::Away(chain(&e));
        let mut request =
            self.client.post(self.url.clone()).query(&[("param_shard", shard), ("param_shards", shards)]).body(QUERY);
        for (header, value) in &self.credentials {
            request = request.header(*header, value);
        }
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let body = response.text().await.map_err(away)?;
        let said = || format!("{status}: {}", body.trim().chars().take(500).collect::<String>());
        match status {
            StatusCode::OK => match list(&body) {
                Some(list) => Ok(list.to_owned()),
                None => Err(Failure::Refused(format!("the answer is not a list of pks: {}", said()))),
            },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failure::Away(said())),
            status if status.is_server_error() => Err(Failure::Away(said())),
            _ => Err(Failure::Refused(format!("ClickHouse refuses the query: {}", said()))),
        }
    }
}

/// The list, which in ClickHouse's own notation is JSON already; None if the body is anything else.
fn list(body: &str) -> Option<&str> {
    let list = body.strip_suffix('\n').unwrap_or(body);
    let inner = list.strip_prefix('[')?.strip_suffix(']')?;
    let plain = inner.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-');
    plain.then_some(list)
}

/// An environment variable, None if it is unset or empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn millis(name: &str, default: u64, most: u64) -> Result<Duration, String> {
    let Some(text) = variable(name) else {
        return Ok(Duration::from_millis(default));
    };
    match text.trim().parse() {
        Ok(value) if (1..=most).contains(&value) => Ok(Duration::from_millis(value)),
        _ => Err(format!("{name} must be a number from 1 to {most}, not {text:?}")),
    }
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
