//! The folder or bucket that belongs to one pipeline: marked as ours, used by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::state::{StateError, Store};

/// Marks a state directory; the lock is on this file. It holds the pipeline's name, and the state's id.
const MARKER: &str = "tickhouse-state";

/// A state directory that belongs to a pipeline. A folder is locked by this process until the value is dropped; in a bucket
/// there are no locks, and whoever comes second finds a checkpoint that it was about to write.
#[derive(Debug)]
pub struct StateDir {
    /// What is in it.
    pub store: Store,
    /// What the state is known by: drawn when the directory was first used.
    pub id: String,
    _lock: Option<File>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A URL of a store that is not supported.
    #[error(
        "the state directory `{0}` is a URL of a kind that is not supported: give --state-dir a path, or s3://BUCKET/PREFIX"
    )]
    Url(String),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StateError),
    /// The folder holds something else.
    #[error("{path} is not a state directory of Tickhouse: it has files, and `{MARKER}` is not among them; \
             give --state-dir a new or empty folder", path = .0)]
    NotOurs(String),
    /// There is nothing to look at.
    #[error(
        "{0} is not a state directory: there is no file `{MARKER}` in it; give the folder that `tickhouse run --state-dir` was given"
    )]
    NothingThere(String),
    /// The folder belongs to another pipeline.
    #[error(
        "{path} holds the state of the pipeline `{owner}`, not of `{name}`; \
             give each pipeline a --state-dir of its own, or run this one with --name {owner}"
    )]
    OtherPipeline {
        /// The folder or bucket.
        path: String,
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
    /// Opens `location`, a path or an `s3://` URL, for the pipeline `name`. A folder is made when it is missing, and locked.
    pub async fn open(location: &str, name: &str) -> Result<Self, StateDirError> {
        match location.split_once("://") {
            None => Self::open_folder(Path::new(location), name),
            Some(("s3" | "s3a", _)) => Self::open_bucket(location, name).await,
            Some(_) => Err(StateDirError::Url(location.to_owned())),
        }
    }

    /// The store of `location`, to be looked at only: nothing is made, and nothing locked.
    pub fn look(location: &str) -> Result<Store, StateDirError> {
        match location.split_once("://") {
            None if Path::new(location).join(MARKER).exists() => Ok(Store::folder(Path::new(location))?),
            None => Err(StateDirError::NothingThere(location.to_owned())),
            Some(("s3" | "s3a", _)) => Ok(Store::bucket(location)?),
            Some(_) => Err(StateDirError::Url(location.to_owned())),
        }
    }

    fn open_folder(path: &Path, name: &str) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let marker = path.join(MARKER);
        if !marker.exists() && fs::read_dir(path).map_err(io)?.next().is_some() {
            return Err(StateDirError::NotOurs(path.display().to_string()));
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&marker).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let id = match Marker::parse(&text) {
            Some(marker) => marker.check(&path.display().to_string(), name)?,
            None => {
                // Also where a process was killed before it had written the whole marker: there is no checkpoint yet.
                let marker = Marker::new(name);
                file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
                file.write_all(marker.text().as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
                marker.id
            }
        };
        remove_half_written(path).map_err(io)?;
        Ok(Self { store: Store::folder(path)?, id, _lock: Some(file) })
    }

    async fn open_bucket(url: &str, name: &str) -> Result<Self, StateDirError> {
        let store = Store::bucket(url)?;
        let text = match store.read(MARKER).await? {
            Some(bytes) => bytes,
            None if !store.list("").await?.is_empty() => return Err(StateDirError::NotOurs(url.to_owned())),
            None => {
                let text = Bytes::from(Marker::new(name).text());
                match store.create(MARKER, text.clone()).await {
                    Ok(()) => text,
                    // Somebody else was faster.
                    Err(StateError::Contended { .. }) => store.read(MARKER).await?.unwrap_or(text),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let marker = Marker::parse(&String::from_utf8_lossy(&text));
        let id = marker.ok_or_else(|| StateDirError::NotOurs(url.to_owned()))?.check(url, name)?;
        Ok(Self { store, id, _lock: None })
    }
}

/// Removes the files that a process was writing when it was killed. The store writes a file under its name, `#` and a number, and
/// renames it; it does not list such files.
fn remove_half_written(path: &Path) -> std::io::Result<()> {
    let is_half_written = |name: &str| {
        name.rsplit_once('#')
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    for folder in fs::read_dir(path)? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder)? {
            let file = file?;
            if file.file_name().to_str().is_some_and(is_half_written) {
                fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

/// What the marker says.
struct Marker {
    name: String,
    id: String,
}

impl Marker {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), id: format!("{:032x}", rand::random::<u128>()) }
    }

    fn text(&self) -> String {
        format!("{}\n{}\n", self.name, self.id)
    }

    /// `None` for one that was not written whole.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.lines();
        let (name, id) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        Some(Self { name, id })
    }

    /// The id, if the state belongs to the pipeline `name`.
    fn check(self, location: &str, name: &str) -> Result<String, StateDirError> {
        if self.name == name {
            return Ok(self.id);
        }
        Err(StateDirError::OtherPipeline { path: location.to_owned(), owner: self.name, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(path: &Path, name: &str) -> Result<StateDir, StateDirError> {
        StateDir::open(&path.display().to_string(), name).await
    }

    #[tokio::test]
    async fn a_new_folder_is_taken_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let id = open(&path, "job").await.unwrap().id;
        assert_eq!(open(&path, "job").await.unwrap().id, id);
        let other = open(&dir.path().join("other"), "job").await.unwrap();
        assert_ne!(other.id, id);
    }

    #[tokio::test]
    async fn a_marker_that_was_not_written_whole_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "jo", "job\n", "job\n0123"] {
            fs::write(dir.path().join(MARKER), text).unwrap();
            let id = open(dir.path(), "job").await.unwrap().id;
            assert_eq!(open(dir.path(), "job").await.unwrap().id, id);
        }
    }

    #[tokio::test]
    async fn what_was_being_written_at_a_kill_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "job").await.unwrap());
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        for name in ["000000000004-1-0-t.log#1", "000000000004-1-0-t.log#27", "000000000003-1-0-t.log"] {
            fs::write(data.join(name), "x").unwrap();
        }
        open(dir.path(), "job").await.unwrap();
        let left: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["000000000003-1-0-t.log"]);
    }

    #[tokio::test]
    async fn a_folder_with_other_files_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("photo.jpg"), "x").unwrap();
        let error = open(dir.path(), "job").await.unwrap_err();
        assert!(matches!(error, StateDirError::NotOurs(_)), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(StateDir::look(&dir.path().display().to_string()).is_err());
    }

    #[tokio::test]
    async fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path(), "job").await.unwrap();
        assert!(matches!(open(dir.path(), "job").await, Err(StateDirError::InUse(_))));
    }

    #[tokio::test]
    async fn another_pipeline_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "a").await.unwrap());
        let error = open(dir.path(), "b").await.unwrap_err();
        assert!(error.to_string().contains("`a`") && error.to_string().contains("`b`"), "{error}");
    }

    #[tokio::test]
    async fn a_url_of_another_kind_is_refused() {
        let refused = StateDir::open("ftp://host/x", "job").await;
        assert!(matches!(refused, Err(StateDirError::Url(_))));
    }
}
