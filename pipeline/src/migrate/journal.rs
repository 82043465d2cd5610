//! The only part that talks to ClickHouse: the table of what was applied, the lock, and running statements.

use std::time::Duration;

use clickhouse::Client;
use clickhouse::error::Error;
use tokio::time::Instant;

use super::error::MigrateError;
use super::files::Migration;
use super::plan::Recorded;
use crate::connectors::clickhouse::Endpoint;

const CREATE_JOURNAL: &str = "
CREATE TABLE IF NOT EXISTS schema_migrations
(
    version    UInt32 COMMENT 'Number of the file',
    name       String COMMENT 'Name of the file',
    checksum   String COMMENT 'SHA-256 of its text',
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When its last statement had succeeded'
)
ENGINE = MergeTree
ORDER BY version
COMMENT 'Migrations applied to this database; written by tickhouse clickhouse migrate'";

const LOCK_POLL: Duration = Duration::from_millis(100);

/// One database's journal.
pub(super) struct Journal {
    endpoint: Endpoint,
    /// Runs in the database.
    client: Client,
}

impl Journal {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        Self { endpoint: endpoint.clone(), client: endpoint.client() }
    }

    /// Creates the database and the journal where they do not exist. Asks first: a user who may only read can then check a
    /// database that is up to date. Returns whether the database was created.
    pub(super) async fn prepare(&self) -> Result<bool, MigrateError> {
        let server = self.endpoint.server_client();
        let name = self.endpoint.database();
        let count = async |query: clickhouse::query::Query| {
            let counted = query.bind(name).fetch_one::<u64>().await;
            counted.map_err(|error| self.failed("asking whether the database exists", error))
        };
        let database = count(server.query("SELECT count() FROM system.databases WHERE name = ?")).await?;
        let journal =
            count(server.query("SELECT count() FROM system.tables WHERE name = 'schema_migrations' AND database = ?"))
                .await?;
        if database == 0 {
            let create = format!("CREATE DATABASE IF NOT EXISTS {}", quoted_name(name));
            server.query_raw(&create).execute().await.map_err(|error| self.failed("creating the database", error))?;
        }
        if journal == 0 {
            self.execute(CREATE_JOURNAL).await.map_err(|error| self.failed("creating schema_migrations", error))?;
        }
        Ok(database == 0)
    }

    /// Every row of the journal.
    pub(super) async fn recorded(&self) -> Result<Vec<Recorded>, MigrateError> {
        let rows = self
            .client
            .query_raw("SELECT version, name, checksum FROM schema_migrations ORDER BY version, applied_at")
            .fetch_all::<(u32, String, String)>()
            .await
            .map_err(|error| self.failed("reading schema_migrations", error))?;
        Ok(rows.into_iter().map(|(version, file, checksum)| Recorded { version, file, checksum }).collect())
    }

    /// Notes that a file was applied.
    pub(super) async fn record(&self, migration: &Migration) -> Result<(), MigrateError> {
        self.client
            .query("INSERT INTO schema_migrations (version, name, checksum) VALUES (?, ?, ?)")
            .bind(migration.version)
            .bind(&migration.file)
            .bind(&migration.checksum)
            .with_setting("async_insert", "0")
            .execute()
            .await
            .map_err(|error| self.failed("writing schema_migrations", error))
    }

    /// Runs one statement in the database. An insert or a mutation has taken effect when this returns: what follows may depend
    /// on it.
    pub(super) async fn execute(&self, sql: &str) -> Result<(), Error> {
        let query = self.client.query_raw(sql);
        query.with_setting("async_insert", "0").with_setting("mutations_sync", "1").execute().await
    }

    /// Takes the lock, waiting up to `wait` for whoever holds it.
    ///
    /// The lock is a table: of several who create it, ClickHouse lets one succeed. It outlives a holder that was killed, and is
    /// never taken from one, since a dead holder looks like one whose statement takes long.
    pub(super) async fn lock(&self, wait: Duration) -> Result<Lock<'_>, MigrateError> {
        let create = format!(
            "CREATE TABLE schema_migrations_lock (nothing UInt8) ENGINE = Memory COMMENT {}",
            quoted_text(&format!("held by {}", holder()))
        );
        let give_up = Instant::now() + wait;
        loop {
            match self.execute(&create).await {
                Ok(()) => return Ok(Lock { journal: self }),
                Err(Error::BadResponse(text)) if text.contains("TABLE_ALREADY_EXISTS") => {}
                Err(error) => return Err(self.failed("taking the lock", error)),
            }
            if Instant::now() >= give_up {
                // Gone by now: it was freed a moment ago, and the next try may succeed.
                if let Some((holder, since)) = self.lock_holder().await? {
                    let database = self.endpoint.database().to_owned();
                    return Err(MigrateError::Locked { database, holder, since, waited: wait });
                }
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    async fn lock_holder(&self) -> Result<Option<(String, String)>, MigrateError> {
        self.client
            .query(
                "SELECT comment, toString(metadata_modification_time, 'UTC') FROM system.tables \
                 WHERE database = ? AND name = 'schema_migrations_lock'",
            )
            .bind(self.endpoint.database())
            .fetch_optional::<(String, String)>()
            .await
            .map_err(|error| self.failed("asking who holds the lock", error))
    }

    /// Tells a ClickHouse that refuses from one that is not there.
    fn failed(&self, doing: &'static str, source: Error) -> MigrateError {
        let endpoint = self.endpoint.to_string();
        match source {
            Error::BadResponse(_) => MigrateError::Refused { endpoint, doing, source },
            _ => MigrateError::Unreachable { endpoint, doing, source },
        }
    }
}

/// The right to apply migrations.
#[must_use]
pub(super) struct Lock<'a> {
    journal: &'a Journal,
}

impl Lock<'_> {
    /// Gives the lock back. A failure is only logged: what the run has to say comes first, and the next run names the lock.
    pub(super) async fn release(self) {
        if let Err(error) = self.journal.execute("DROP TABLE IF EXISTS schema_migrations_lock SYNC").await {
            let database = self.journal.endpoint.database();
            tracing::warn!(%error, database, "could not free the migration lock: drop the table schema_migrations_lock");
        }
    }
}

/// Who is asking, for whoever finds the lock.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "an unnamed host",
        host => host,
    };
    format!("process {} on {host}", std::process::id())
}

fn quoted_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', r"\\").replace('`', r"\`"))
}

fn quoted_text(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quoted_name(r"a`b\c"), r"`a\`b\\c`");
        assert_eq!(quoted_text(r"a'b\c"), r"'a\'b\\c'");
    }

    #[tokio::test]
    async fn a_clickhouse_that_is_away_is_said_to_be_so_with_its_address() {
        // A port that was just free: bound, then closed.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = Endpoint::parse(&format!("http://me:secret@127.0.0.1:{port}/?database=d")).unwrap();
        let error = crate::migrate::run(&endpoint, &Default::default()).await.unwrap_err();
        assert!(matches!(error, MigrateError::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{port}")) && !text.contains("secret"), "{text}");
    }
}
