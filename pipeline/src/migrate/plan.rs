//! What is left to apply, decided from the files and the journal. Touches nothing.

use super::error::MigrateError;
use super::files::Migration;

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) version: u32,
    pub(super) file: String,
    pub(super) checksum: String,
}

/// The files that are not applied yet, in order.
///
/// `files` are numbered from 1 without a gap. `recorded` may come in any order and hold a row twice. A renamed file with the
/// same content counts as the same.
pub(super) fn pending<'a>(
    files: &'a [Migration],
    recorded: &[Recorded],
    database: &str,
) -> Result<&'a [Migration], MigrateError> {
    let mut applied = vec![false; files.len()];
    for row in recorded {
        let place = (row.version as usize).checked_sub(1);
        let known = place.and_then(|place| Some((files.get(place)?, applied.get_mut(place)?)));
        let Some((file, applied)) = known else {
            return Err(MigrateError::Unknown {
                database: database.to_owned(),
                recorded_file: row.file.clone(),
                version: row.version,
                known: files.len(),
            });
        };
        if file.checksum != row.checksum {
            return Err(MigrateError::Changed {
                file: file.file.clone(),
                recorded_file: row.file.clone(),
                database: database.to_owned(),
                recorded: row.checksum.clone(),
                found: file.checksum.clone(),
                next: files.last().map_or(1, |file| file.version + 1),
            });
        }
        *applied = true;
    }

    let done = applied.iter().take_while(|applied| **applied).count();
    let (_, pending) = files.split_at(done);
    let skipped = pending.iter().zip(applied.iter().skip(done)).find(|(_, applied)| **applied);
    match (skipped, pending.first()) {
        (Some((later, _)), Some(missing)) => Err(MigrateError::NotInOrder {
            database: database.to_owned(),
            recorded_file: later.file.clone(),
            missing_file: missing.file.clone(),
            missing: missing.version,
            checksum: missing.checksum.clone(),
        }),
        _ => Ok(pending),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: u32) -> Vec<Migration> {
        (1..=count).map(|n| Migration::parse(&format!("{n:04}_f{n}.sql"), &format!("SELECT {n}")).unwrap()).collect()
    }

    fn row(file: &Migration) -> Recorded {
        Recorded { version: file.version, file: file.file.clone(), checksum: file.checksum.clone() }
    }

    fn numbers(pending: &[Migration]) -> Vec<u32> {
        pending.iter().map(|file| file.version).collect()
    }

    #[test]
    fn an_empty_journal_leaves_everything_to_do() {
        assert_eq!(numbers(pending(&files(3), &[], "d").unwrap()), [1, 2, 3]);
        assert!(pending(&[], &[], "d").unwrap().is_empty());
    }

    #[test]
    fn what_is_recorded_is_done_in_whatever_order_and_however_often_it_stands_there() {
        let files = files(3);
        let recorded = [row(&files[1]), row(&files[0]), row(&files[1])];
        assert_eq!(numbers(pending(&files, &recorded, "d").unwrap()), [3]);
        let all: Vec<_> = files.iter().map(row).collect();
        assert!(pending(&files, &all, "d").unwrap().is_empty());
    }

    #[test]
    fn a_renamed_file_is_the_same_file() {
        let files = files(1);
        let recorded = [Recorded { file: "0001_old_name.sql".into(), ..row(&files[0]) }];
        assert!(pending(&files, &recorded, "d").unwrap().is_empty());
    }

    #[test]
    fn a_changed_file_is_refused_with_both_checksums_and_the_next_number() {
        let files = files(3);
        let recorded = [row(&files[0]), Recorded { checksum: "abc".into(), ..row(&files[1]) }];
        let error = pending(&files, &recorded, "d").unwrap_err().to_string();
        for part in ["0002_f2.sql", "sha256 abc", &files[1].checksum, "0004_", "`d`"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_database_ahead_of_the_files_is_refused() {
        let (old, new) = (files(2), files(3));
        let recorded: Vec<_> = new.iter().map(row).collect();
        let error = pending(&old, &recorded, "d").unwrap_err().to_string();
        assert!(error.contains("0003_f3.sql") && error.contains("older than the database"), "{error}");
        let zero = [Recorded { version: 0, file: "0000_x.sql".into(), checksum: String::new() }];
        assert!(matches!(pending(&old, &zero, "d"), Err(MigrateError::Unknown { version: 0, .. })));
    }

    #[test]
    fn a_hole_in_the_journal_is_refused() {
        let files = files(3);
        let error = pending(&files, &[row(&files[0]), row(&files[2])], "d").unwrap_err();
        assert!(
            matches!(&error, MigrateError::NotInOrder { missing: 2, recorded_file, .. } if recorded_file == "0003_f3.sql")
        );
        assert!(error.to_string().contains(&files[1].checksum), "{error}");
    }
}
