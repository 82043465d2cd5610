//! The schema's migrations: numbered SQL files, applied once each, in order, and recorded with a checksum.
//!
//! [`files`] reads and numbers them, [`statements`] takes them apart, [`plan`] decides what is to be done from what is
//! recorded; none of these touches ClickHouse. [`journal`] does, and [`run`] joins them.
//!
//! What is guaranteed: a file is recorded after all its statements succeeded and is then never run again. Two migrators at once
//! take turns (a lock table, whose creation is atomic in ClickHouse). ClickHouse has no transactions for DDL: a file that fails
//! or dies half-way stays half applied and unrecorded, and the next run starts it again from its first statement. Hence every
//! statement of ours can be repeated (`IF NOT EXISTS`), and so should yours.

mod error;
mod files;
mod journal;
mod plan;
mod statements;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use error::MigrateError;
pub use files::Migration;
pub use statements::Statement;

use crate::connectors::clickhouse::Endpoint;
use journal::Journal;

/// What to apply, and how patiently.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the files; `None` means those compiled into this binary.
    pub dir: Option<PathBuf>,
    /// How long to wait for another migrator on the same database.
    pub lock_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { dir: None, lock_wait: Duration::from_secs(30) }
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The database migrated.
    pub database: String,
    /// Whether the database was created by this run.
    pub database_created: bool,
    /// The files applied by this run, in order.
    pub applied: Vec<String>,
    /// How many files had been applied before.
    pub already_applied: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database `{}`", self.database)?;
        if self.database_created {
            f.write_str(" (created)")?;
        }
        if self.applied.is_empty() {
            return write!(f, ": up to date, {} migrations", self.already_applied);
        }
        write!(f, ": applied {}", self.applied.join(", "))?;
        if self.already_applied > 0 {
            write!(f, "; {} had been applied before", self.already_applied)?;
        }
        Ok(())
    }
}

/// Brings the endpoint's database up to date, creating it when it does not exist.
///
/// The files are read, split and checked against the journal before anything is changed. Safe to run again and by several at
/// once. Dropping the future half-way leaves the lock behind, and the next run says how to free it.
///
/// # Errors
/// [`MigrateError`]; its text says what had been applied by then.
pub async fn run(endpoint: &Endpoint, options: &Options) -> Result<Report, MigrateError> {
    let files = match &options.dir {
        Some(dir) => files::from_dir(dir)?,
        None => files::built_in()?,
    };
    let journal = Journal::new(endpoint);
    let database_created = journal.prepare().await?;

    let pending = plan::pending(&files, &journal.recorded().await?, endpoint.database())?.len();
    let mut report = Report {
        database: endpoint.database().to_owned(),
        database_created,
        applied: Vec::new(),
        already_applied: files.len() - pending,
    };
    if pending == 0 {
        return Ok(report);
    }

    let lock = journal.lock(options.lock_wait).await?;
    let outcome = apply_pending(&journal, &files, &mut report).await;
    lock.release().await;
    outcome.map(|()| report)
}

/// Applies what is pending now that nobody else does: another migrator may have been at work since the first look.
async fn apply_pending(journal: &Journal, files: &[Migration], report: &mut Report) -> Result<(), MigrateError> {
    let pending = plan::pending(files, &journal.recorded().await?, &report.database)?;
    report.already_applied = files.len() - pending.len();
    for migration in pending {
        apply(journal, migration, &report.applied).await?;
        report.applied.push(migration.file.clone());
    }
    Ok(())
}

/// Runs one file's statements, then records it.
async fn apply(journal: &Journal, migration: &Migration, before: &[String]) -> Result<(), MigrateError> {
    let total = migration.statements.len();
    for (done, statement) in migration.statements.iter().enumerate() {
        journal.execute(&statement.sql).await.map_err(|source| MigrateError::Statement {
            file: migration.file.clone(),
            line: statement.line,
            number: done + 1,
            total,
            applied: error::applied_so_far(before, &migration.file, done),
            source,
        })?;
    }
    journal.record(migration).await?;
    tracing::info!(file = migration.file, statements = total, "migration applied");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_reads_as_a_sentence() {
        let mut report = Report { database: "d".into(), database_created: false, applied: vec![], already_applied: 5 };
        assert_eq!(report.to_string(), "database `d`: up to date, 5 migrations");
        report.applied = vec!["0006_a.sql".into(), "0007_b.sql".into()];
        assert_eq!(report.to_string(), "database `d`: applied 0006_a.sql, 0007_b.sql; 5 had been applied before");
        report = Report { already_applied: 0, database_created: true, ..report };
        assert_eq!(report.to_string(), "database `d` (created): applied 0006_a.sql, 0007_b.sql");
    }
}
