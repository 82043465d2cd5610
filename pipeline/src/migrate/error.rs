//! What can go wrong while migrating, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

/// Why a database was not migrated. Every text names the file or place and the way out.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A folder without a migration in it: most likely the wrong one.
    #[error("{} holds no migration: they are named like 0001_first_table.sql", path.display())]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// An `.sql` file that cannot be put in order.
    #[error("migration {file}: the name must be four digits, an underscore and a name, like 0001_first_table.sql")]
    FileName {
        /// The file.
        file: String,
    },
    /// Two files with one number.
    #[error("migrations {first} and {second} have the same number: give the newer one the next free number")]
    DuplicateNumber {
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A number left out.
    #[error("migration {missing:04} is missing: after it comes {next}. Numbers start at 0001 and leave none out")]
    Gap {
        /// The number that no file has.
        missing: u32,
        /// The first file after it.
        next: String,
    },
    /// A file that holds nothing to run, or does not end.
    #[error("migration {file}, line {line}: {problem}")]
    Syntax {
        /// The file.
        file: String,
        /// Where it begins, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file that is not what was applied under its number.
    #[error(
        "migration {file} was changed after it was applied to `{database}`: applied as {recorded_file} with sha256 {recorded}, it now \
         has {found}. What was applied stays as it is: put the file back, and make the change in a new file, {next:04}_....sql"
    )]
    Changed {
        /// The file as it is now.
        file: String,
        /// Its name when it was applied.
        recorded_file: String,
        /// The database.
        database: String,
        /// The checksum applied.
        recorded: String,
        /// The file's checksum.
        found: String,
        /// The next free number.
        next: u32,
    },
    /// The database is ahead of the files.
    #[error(
        "`{database}` was migrated with {recorded_file} (number {version:04}), which is not among the {known} files at hand: this \
         tickhouse, or the folder given, is older than the database; use the newer one"
    )]
    Unknown {
        /// The database.
        database: String,
        /// The file recorded.
        recorded_file: String,
        /// Its number.
        version: u32,
        /// How many files there are.
        known: usize,
    },
    /// The journal says that a file was applied and one before it was not.
    #[error(
        "`{database}` has {recorded_file} recorded but not {missing_file}, which comes before it: the table schema_migrations was \
         altered by hand. Find out whether {missing_file} took effect; if it did, insert its row again (version {missing}, its \
         sha256 is {checksum}); if not, delete the rows after it and migrate again"
    )]
    NotInOrder {
        /// The database.
        database: String,
        /// A recorded file.
        recorded_file: String,
        /// The earlier file that is not recorded.
        missing_file: String,
        /// Its number.
        missing: u32,
        /// Its checksum.
        checksum: String,
    },
    /// ClickHouse did not answer, or not as one does.
    #[error(
        "no answer from ClickHouse at {endpoint} while {doing}: {source}. Is it running, and is this its HTTP port?"
    )]
    Unreachable {
        /// The address, without the password.
        endpoint: String,
        /// What was asked for.
        doing: &'static str,
        /// The client's reason.
        source: clickhouse::error::Error,
    },
    /// ClickHouse refused something of the migrator's own: rights, most likely.
    #[error("ClickHouse at {endpoint} refused {doing}: {source}")]
    Refused {
        /// The address, without the password.
        endpoint: String,
        /// What was asked for.
        doing: &'static str,
        /// ClickHouse's text.
        source: clickhouse::error::Error,
    },
    /// Another migrator is at work, or died at work.
    #[error(
        "another migration of `{database}` has been running since {since} UTC ({holder}); waited {} s for it. If it is still at work, \
         run again when it is done; if it is dead, free its lock: DROP TABLE `{database}`.schema_migrations_lock",
        waited.as_secs()
    )]
    Locked {
        /// The database.
        database: String,
        /// Who holds the lock.
        holder: String,
        /// Since when, ClickHouse's clock.
        since: String,
        /// How long this run waited.
        waited: Duration,
    },
    /// A statement of a file failed.
    #[error("migration {file}, line {line}: statement {number} of {total} failed: {source}. {applied}")]
    Statement {
        /// The file.
        file: String,
        /// The statement's first line, from 1.
        line: usize,
        /// Which statement, from 1.
        number: usize,
        /// How many the file has.
        total: usize,
        /// What this run had applied by then, in words.
        applied: String,
        /// ClickHouse's text.
        source: clickhouse::error::Error,
    },
}

/// Says what a run that failed in `file` after `done` of its statements has changed.
pub(super) fn applied_so_far(before: &[String], file: &str, done: usize) -> String {
    let mut text = match before {
        [] => "Nothing was applied before it".to_owned(),
        files => format!("Applied and recorded before it: {}", files.join(", ")),
    };
    if done > 0 {
        let statements =
            if done == 1 { "its first statement".to_owned() } else { format!("its first {done} statements") };
        text.push_str(&format!("; of {file}, {statements} took effect and will run again next time"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_took_effect() {
        assert_eq!(applied_so_far(&[], "0001_a.sql", 0), "Nothing was applied before it");
        let before = ["0001_a.sql".to_owned(), "0002_b.sql".to_owned()];
        assert_eq!(
            applied_so_far(&before, "0003_c.sql", 2),
            "Applied and recorded before it: 0001_a.sql, 0002_b.sql; of 0003_c.sql, its first 2 statements took effect and will run \
             again next time"
        );
    }
}
