//! The migration files: those compiled in, or a folder's.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::MigrateError;
use super::statements::{self, Statement};

/// Names and contents, compiled in. A test compares the list to the folder.
macro_rules! compiled_in {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../../../clickhouse/migrations/", $file)))),*]
    };
}

const BUILT_IN: &[(&str, &str)] = compiled_in![
    "0001_active_influencers.sql",
    "0002_follower_timeline.sql",
    "0003_influencer_summary.sql",
    "0004_fetch_dead_letters.sql",
    "0005_analyst_views.sql",
];

/// One migration file, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its number, from 1.
    pub version: u32,
    /// The file's name.
    pub file: String,
    /// What it runs, in order; never empty.
    pub statements: Vec<Statement>,
    /// SHA-256 of the text in hexadecimal. Line endings do not count: a checkout may change them.
    pub checksum: String,
}

impl Migration {
    /// Takes a file apart.
    ///
    /// # Errors
    /// `FileName` when it has no number, `Syntax` when a statement does not end or there is none.
    pub fn parse(file: &str, text: &str) -> Result<Self, MigrateError> {
        let version = number(file).ok_or_else(|| MigrateError::FileName { file: file.to_owned() })?;
        let text = text.replace("\r\n", "\n");
        let syntax = |line, problem| MigrateError::Syntax { file: file.to_owned(), line, problem };
        let statements = statements::split(&text).map_err(|open| syntax(open.line, open.to_string()))?;
        if statements.is_empty() {
            return Err(syntax(1, "there is no statement in it".to_owned()));
        }
        let checksum = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { version, file: file.to_owned(), statements, checksum })
    }
}

/// The migrations compiled into this binary.
pub(super) fn built_in() -> Result<Vec<Migration>, MigrateError> {
    in_order(BUILT_IN.iter().map(|(file, text)| Migration::parse(file, text)).collect::<Result<_, _>>()?)
}

/// The migrations of a folder: its `.sql` files. Other files are left alone.
pub(super) fn from_dir(dir: &Path) -> Result<Vec<Migration>, MigrateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| MigrateError::Read { path, source }
    };
    let mut migrations = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
        migrations.push(Migration::parse(&file, &text)?);
    }
    if migrations.is_empty() {
        return Err(MigrateError::NoFiles { path: dir.to_owned() });
    }
    in_order(migrations)
}

/// Sorts by number and checks that the numbers are 1, 2, 3 and so on.
fn in_order(mut migrations: Vec<Migration>) -> Result<Vec<Migration>, MigrateError> {
    migrations.sort_by(|a, b| (a.version, &a.file).cmp(&(b.version, &b.file)));
    let twins = migrations.iter().zip(migrations.iter().skip(1)).find(|(a, b)| a.version == b.version);
    if let Some((first, second)) = twins {
        return Err(MigrateError::DuplicateNumber { first: first.file.clone(), second: second.file.clone() });
    }
    let gap = (1..).zip(&migrations).find(|(number, migration)| migration.version != *number);
    if let Some((missing, next)) = gap {
        return Err(MigrateError::Gap { missing, next: next.file.clone() });
    }
    Ok(migrations)
}

/// The number of `0001_name.sql`; `None` for any other form, and for 0000.
fn number(file: &str) -> Option<u32> {
    let (digits, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let numbered = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok()?;
    (numbered && !name.is_empty() && number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_compiled_list_is_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clickhouse/migrations");
        assert_eq!(built_in().unwrap(), from_dir(&folder).unwrap());
    }

    #[test]
    fn every_statement_of_ours_can_run_twice() {
        for migration in built_in().unwrap() {
            for statement in &migration.statements {
                let repeatable =
                    ["IF NOT EXISTS", "IF EXISTS", "OR REPLACE"].iter().any(|part| statement.sql.contains(part));
                assert!(repeatable, "{}, line {}", migration.file, statement.line);
            }
        }
    }

    #[test]
    fn files_are_taken_in_the_order_of_their_numbers_and_others_left_alone() {
        let dir = folder(&[("0002_b.sql", "SELECT 2"), ("README.md", "x"), ("0001_a.sql", "SELECT 1;")]);
        let names: Vec<_> = from_dir(dir.path()).unwrap().into_iter().map(|migration| migration.file).collect();
        assert_eq!(names, ["0001_a.sql", "0002_b.sql"]);
    }

    #[test]
    fn a_name_without_a_number_is_refused() {
        for name in ["1_a.sql", "a.sql", "0001.sql", "0001_.sql", "0000_a.sql", "+001_a.sql", "00001_a.sql"] {
            let dir = folder(&[(name, "SELECT 1")]);
            assert!(matches!(from_dir(dir.path()), Err(MigrateError::FileName { file }) if file == name), "{name}");
        }
    }

    #[test]
    fn a_number_twice_or_left_out_is_refused() {
        let dir = folder(&[("0001_a.sql", "SELECT 1"), ("0001_b.sql", "SELECT 1")]);
        let error = from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("0001_a.sql and 0001_b.sql"), "{error}");
        let dir = folder(&[("0001_a.sql", "SELECT 1"), ("0003_b.sql", "SELECT 1")]);
        assert!(matches!(from_dir(dir.path()), Err(MigrateError::Gap { missing: 2, .. })));
        let dir = folder(&[("0002_b.sql", "SELECT 1")]);
        assert!(matches!(from_dir(dir.path()), Err(MigrateError::Gap { missing: 1, .. })));
    }

    #[test]
    fn a_folder_without_migrations_is_refused() {
        let dir = folder(&[("README.md", "x")]);
        assert!(matches!(from_dir(dir.path()), Err(MigrateError::NoFiles { .. })));
        assert!(matches!(from_dir(&dir.path().join("gone")), Err(MigrateError::Read { .. })));
    }

    #[test]
    fn line_endings_do_not_change_the_checksum_but_any_other_byte_does() {
        let checksum = |text| Migration::parse("0001_a.sql", text).unwrap().checksum;
        assert_eq!(checksum("SELECT 1;\nSELECT 2"), checksum("SELECT 1;\r\nSELECT 2"));
        assert_ne!(checksum("SELECT 1"), checksum("SELECT 1 "));
        assert_eq!(checksum("SELECT 1"), "e004ebd5b5532a4b85984a62f8ad48a81aa3460c1ca07701f386135d72cdecf5");
    }

    #[test]
    fn an_empty_or_unfinished_file_is_refused_with_its_line() {
        assert!(matches!(Migration::parse("0001_a.sql", "-- nothing\n;;"), Err(MigrateError::Syntax { line: 1, .. })));
        let error = Migration::parse("0001_a.sql", "SELECT 1;\nSELECT 'abc").unwrap_err().to_string();
        assert!(error.contains("0001_a.sql, line 2: "), "{error}");
    }
}
