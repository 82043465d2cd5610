//! The data directory: made, recognised as ours, and held by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::EmbeddedError;

/// The file that says that a directory is ours; the lock on it says that a server uses it.
pub(crate) const MARKER: &str = "tickhouse-clickhouse";

const MARKER_TEXT: &str = "A data directory of tickhouse's embedded ClickHouse. Do not delete this file.\n";

/// A data directory of ours. The lock is released when this is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes `path` a data directory if it is missing or empty, checks that it is ours otherwise, and locks it.
    ///
    /// # Errors
    /// `NotOurs`, `PathInUse`, or `DataDir` with what the system said.
    pub(crate) fn claim(path: &Path) -> Result<Self, EmbeddedError> {
        fs::create_dir_all(path).map_err(failed(path, "make it"))?;
        // Absolute, so that the engine and later checks mean the same place whatever the working directory is.
        let path = path.canonicalize().map_err(failed(path, "resolve it"))?;
        let marker = path.join(MARKER);
        if !marker.exists() {
            let mut entries = fs::read_dir(&path).map_err(failed(&path, "list it"))?;
            if entries.next().is_some() {
                return Err(EmbeddedError::NotOurs { path });
            }
        }
        let lock = open_marker(&marker).map_err(failed(&path, "write its marker file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EmbeddedError::PathInUse { path }),
            Err(TryLockError::Error(source)) => {
                return Err(failed(&path, "lock it")(source));
            }
        }
        if engine_lock_held(&path).map_err(failed(&path, "read the engine's lock"))? {
            return Err(EmbeddedError::PathInUse { path });
        }
        Ok(Self { path, _lock: lock })
    }

    /// The absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(std::io::Error) -> EmbeddedError + use<'a> {
    move |source| EmbeddedError::DataDir { path: path.to_owned(), action, source }
}

fn open_marker(marker: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(marker)?;
    if file.metadata()?.len() == 0 {
        file.write_all(MARKER_TEXT.as_bytes())?;
        file.sync_all()?;
    }
    Ok(file)
}

/// Whether another engine (one that does not know our marker) holds ClickHouse's own lock file.
fn engine_lock_held(path: &Path) -> std::io::Result<bool> {
    let status = match File::open(path.join("status")) {
        Ok(status) => status,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match status.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_becomes_ours_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/data");
        drop(DataDir::claim(&path).unwrap());
        fs::write(path.join("store"), "x").unwrap();
        DataDir::claim(&path).unwrap();
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let refused = DataDir::claim(dir.path()).unwrap_err();
        assert!(matches!(refused, EmbeddedError::NotOurs { .. }), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_held_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::claim(dir.path()).unwrap();
        let refused = DataDir::claim(dir.path()).unwrap_err();
        assert!(matches!(refused, EmbeddedError::PathInUse { .. }), "{refused}");
        drop(first);
        DataDir::claim(dir.path()).unwrap();
    }

    #[test]
    fn an_engine_that_does_not_know_our_marker_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::claim(dir.path()).unwrap());
        let status = File::create(dir.path().join("status")).unwrap();
        status.lock().unwrap();
        let refused = DataDir::claim(dir.path()).unwrap_err();
        assert!(matches!(refused, EmbeddedError::PathInUse { .. }), "{refused}");
    }
}
