//! Talking to ClickHouse: the start, and inserts that are repeated until they are in.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clickhouse::Client;
use clickhouse::error::Error;

use super::catalog::{self, TableName};
use super::check::{self, Layout, Wanted};
use super::chunk::{Chunk, new_token};
use super::exceptions::{Verdict, message, verdict};
use super::repeats::Repeats;
use crate::runtime::{Clock, OperatorError, Time};

/// What is sent at once; ClickHouse's client compresses each piece by itself.
const PIECE: usize = 256 << 10;

/// How long one piece may wait for the network.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How exactly ClickHouse knows when it was started.
const UPTIME_SLACK: Duration = Duration::from_secs(5);

/// How long an insert may need between its token and its rows.
const DONE_WITHIN: Duration = Duration::from_secs(1);

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A ClickHouse, as one subtask of a sink sees it.
#[derive(Clone)]
pub(super) struct Remote {
    /// Names no database: statements name it.
    pub(super) client: Client,
    /// The address without user and password, for messages.
    pub(super) address: String,
    pub(super) clock: Clock,
    /// How long ClickHouse may think about an insert.
    pub(super) timeout: Duration,
    /// Shared by all subtasks of a sink.
    pub(super) outage: Arc<Outage>,
}

/// Whether ClickHouse is away, so that it is said once.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Mutex<Option<Time>>,
}

impl Outage {
    /// Notes a failure; true when it is the first.
    fn begin(&self, now: Time) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let first = since.is_none();
        since.get_or_insert(now);
        first
    }

    /// Notes a success; when ClickHouse was away, for how long.
    fn end(&self, now: Time) -> Option<Duration> {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner).take();
        since.map(|since| now.since(since))
    }
}

/// Pauses that double, with jitter, so that subtasks do not come back all at once.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// The next pause: between half and all of the current length.
    fn pause(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST_PAUSE);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl Remote {
    /// Reads what there is and decides how to write, waiting up to `wait` for ClickHouse to answer.
    pub(super) async fn prepare(self, wanted: Arc<Wanted>, wait: Duration) -> Result<Layout, OperatorError> {
        let deadline = self.clock.now().after(wait);
        let mut backoff = Backoff::new();
        loop {
            let error = match catalog::read(&self.client, &wanted.name).await {
                Ok(found) => {
                    self.reached();
                    return check::layout(&wanted, &found).map_err(|unfit| OperatorError::user(unfit.to_string()));
                }
                Err(error) => error,
            };
            let said = message(&error);
            if verdict(&error) == Verdict::Refused {
                return Err(self.refused(&wanted.name, &said));
            }
            if self.clock.now() >= deadline {
                return Err(OperatorError::external(format!(
                    "ClickHouse at {} has not answered for {wait:?}: {said}. Is it running? `tickhouse clickhouse serve` starts one; \
                     `--wait` gives it more time",
                    self.address
                )));
            }
            if self.outage.begin(self.clock.now()) {
                tracing::warn!(clickhouse = %self.address, "waiting up to {wait:?} for ClickHouse: {said}");
            }
            self.clock.sleep_until(self.clock.now().after(backoff.pause()).min(deadline)).await;
        }
    }

    /// Inserts `chunk`, again and again until ClickHouse has acknowledged it or refuses it.
    ///
    /// An insert whose answer was lost may be in all the same: `repeats` says what is done about it.
    pub(super) async fn insert(
        self,
        name: TableName,
        chunk: Chunk,
        repeats: Arc<Repeats>,
    ) -> Result<usize, OperatorError> {
        let started = self.clock.now();
        let mut backoff = Backoff::new();
        let mut may_be_in = chunk.is_restored;
        loop {
            let error = match self.deliver(&name, &chunk, &repeats, may_be_in).await {
                Ok(()) => {
                    self.reached();
                    let took = self.clock.now().since(started);
                    tracing::debug!(table = %name, rows = chunk.rows, bytes = chunk.body.len(), ?took, "inserted");
                    return Ok(chunk.rows);
                }
                Err(error) => error,
            };
            may_be_in = true;
            let said = message(&error);
            if verdict(&error) == Verdict::Refused {
                return Err(self.refused(&name, &said));
            }
            if self.outage.begin(self.clock.now()) {
                tracing::warn!(table = %name, clickhouse = %self.address, "ClickHouse does not take rows, they wait: {said}");
            }
            self.clock.sleep_until(self.clock.now().after(backoff.pause())).await;
        }
    }

    /// One attempt to bring `chunk` in, which may be in already.
    async fn deliver(&self, name: &TableName, chunk: &Chunk, repeats: &Repeats, may_be_in: bool) -> Result<(), Error> {
        let token = match repeats {
            Repeats::Anew if may_be_in => new_token(),
            _ => chunk.token.clone(),
        };
        self.send(&chunk.statement, &chunk.body, &token).await?;
        let Repeats::Checked(missing) = repeats else { return Ok(()) };
        let age = self.clock.now().since(chunk.made);
        if !may_be_in || !self.was_restarted_within(age).await? {
            return Ok(());
        }
        tracing::info!(table = %name, rows = chunk.rows, "ClickHouse was restarted meanwhile: writing the rows that it has lost");
        // An earlier attempt under the token that is not quite done is given the time for it.
        self.clock.sleep_until(self.clock.now().after(DONE_WITHIN)).await;
        self.send(&missing.statement(name, age), &chunk.body, &new_token()).await
    }

    /// Whether ClickHouse may have started within the last `age`.
    async fn was_restarted_within(&self, age: Duration) -> Result<bool, Error> {
        let up: u32 = self.client.query("SELECT uptime()").fetch_one().await?;
        Ok(Duration::from_secs(up.into()) <= age + UPTIME_SLACK)
    }

    async fn send(&self, statement: &str, body: &Bytes, token: &str) -> Result<(), Error> {
        let client = self.client.clone().with_setting("insert_deduplication_token", token);
        let insert = client.insert_formatted_with(statement);
        let mut insert = insert.with_timeouts(Some(SEND_TIMEOUT), Some(self.timeout));
        let mut rest = body.clone();
        while !rest.is_empty() {
            insert.send(rest.split_to(PIECE.min(rest.len()))).await?;
        }
        insert.end().await
    }

    fn reached(&self) {
        if let Some(away) = self.outage.end(self.clock.now()) {
            tracing::info!(clickhouse = %self.address, "ClickHouse is back after {away:.1?}");
        }
    }

    fn refused(&self, name: &TableName, said: &str) -> OperatorError {
        OperatorError::user(format!("ClickHouse at {} refuses rows for {name}: {said}", self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2);
        assert!(pauses[10..].iter().all(|pause| (LONGEST_PAUSE / 2..=LONGEST_PAUSE).contains(pause)));
        assert!(pauses[10..].iter().any(|pause| *pause != pauses[19]));
    }

    #[test]
    fn an_outage_is_told_once() {
        let outage = Outage::default();
        assert!(outage.begin(Time(0)));
        assert!(!outage.begin(Time(5)));
        assert_eq!(outage.end(Time(9)), Some(Duration::from_nanos(9)));
        assert_eq!(outage.end(Time(10)), None);
    }
}
