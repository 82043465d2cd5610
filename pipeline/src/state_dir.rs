//! The folder that belongs to one pipeline: marked as ours, used by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Marks a state directory; the lock is on this file. It holds the pipeline's name.
const MARKER: &str = "tickhouse-state";

/// A state directory that this process has locked. The lock ends with the value.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A URL of a store that is not supported.
    #[error("the state directory `{0}` is a URL; only a local folder is supported: give --state-dir a path")]
    Url(String),
    /// The folder holds something else.
    #[error("{path} is not a state directory of Tickhouse: it has files, and `{MARKER}` is not among them; \
             give --state-dir a new or empty folder", path = .0.display())]
    NotOurs(PathBuf),
    /// The folder belongs to another pipeline.
    #[error("{path} holds the state of the pipeline `{owner}`, not of `{name}`; \
             give each pipeline a --state-dir of its own, or run this one with --name {owner}", path = .path.display())]
    OtherPipeline {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who asked.
        name: String,
    },
    /// Another process has it.
    #[error("{path} is in use by another process; stop that one first, or give --state-dir another folder",
            path = .0.display())]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("cannot use the state directory {path}: {source}", path = .path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl StateDir {
    /// Opens `path` for the pipeline `name`, making the folder when it is missing, and locks it.
    pub fn open(path: &Path, name: &str) -> Result<Self, StateDirError> {
        if let Some(url) = path.to_str().filter(|p| p.contains("://")) {
            return Err(StateDirError::Url(url.to_owned()));
        }
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let marker = path.join(MARKER);
        if !marker.exists() && fs::read_dir(path).map_err(io)?.next().is_some() {
            return Err(StateDirError::NotOurs(path.to_owned()));
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&marker).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut owner = String::new();
        file.read_to_string(&mut owner).map_err(io)?;
        match owner.trim() {
            "" => writeln!(file, "{name}").and_then(|()| file.sync_all()).map_err(io)?,
            owner if owner == name => {}
            owner => {
                let (path, owner, name) = (path.to_owned(), owner.to_owned(), name.to_owned());
                return Err(StateDirError::OtherPipeline { path, owner, name });
            }
        }
        Ok(Self { _lock: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_taken_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(StateDir::open(&path, "job").unwrap());
        StateDir::open(&path, "job").unwrap();
    }

    #[test]
    fn a_folder_with_other_files_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("photo.jpg"), "x").unwrap();
        let error = StateDir::open(dir.path(), "job").unwrap_err();
        assert!(matches!(error, StateDirError::NotOurs(_)), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateDir::open(dir.path(), "job").unwrap();
        assert!(matches!(StateDir::open(dir.path(), "job"), Err(StateDirError::InUse(_))));
    }

    #[test]
    fn another_pipeline_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateDir::open(dir.path(), "a").unwrap());
        let error = StateDir::open(dir.path(), "b").unwrap_err();
        assert!(error.to_string().contains("`a`") && error.to_string().contains("`b`"), "{error}");
    }

    #[test]
    fn a_url_is_refused() {
        assert!(matches!(StateDir::open(Path::new("s3://bucket/x"), "job"), Err(StateDirError::Url(_))));
    }
}
