//! What can go wrong when the embedded server starts or stops.

use std::io;
use std::path::PathBuf;

/// Why the embedded server could not start or stop. Each message names the thing, the place and the way out.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// `libchdb` is in none of the places where it may be.
    #[error(
        "the ClickHouse engine (libchdb) is not there; looked for {}; `make build` fetches it, \
         or set TICKHOUSE_CHDB to a copy of it",
        places(.looked)
    )]
    LibraryMissing {
        /// The files that were looked for, in order.
        looked: Vec<PathBuf>,
    },
    /// The library is there but cannot be loaded.
    #[error(
        "{} cannot be loaded as the ClickHouse engine: {reason}; remove it and run `make build`",
        .path.display()
    )]
    LibraryUnusable {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// Another server has the data directory open.
    #[error(
        "another ClickHouse is using the data directory {} (as ClickHouse's Code 76); stop it, or choose another path",
        .path.display()
    )]
    PathInUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory holds something, and it is not a data directory of ours.
    #[error(
        "{} is not empty and was not made by tickhouse (it has no file {}); choose an empty or a new directory",
        .path.display(), crate::datadir::MARKER
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory cannot be made, read or locked.
    #[error("the data directory {}: cannot {action}: {source}", .path.display())]
    DataDir {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// This process has another data directory open, and the engine takes one per process.
    #[error(
        "the engine opens one data directory per process: {} is open, {} was asked for",
        .open.display(), .asked.display()
    )]
    OnePathPerProcess {
        /// The directory that is open.
        open: PathBuf,
        /// The directory that was asked for.
        asked: PathBuf,
    },
    /// The engine did not open the data directory and gave no reason that can be read.
    #[error("the ClickHouse engine did not open the data directory {}: {reason}", .path.display())]
    EngineRefused {
        /// The data directory.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The address does not name a place to listen.
    #[error("{address:?} is not an address to listen on ({reason}); write it as 127.0.0.1:8123")]
    BadAddress {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else listens there.
    #[error("{address} is already in use; stop what listens there, or choose another port (0 for any free one)")]
    PortInUse {
        /// The address.
        address: String,
    },
    /// The system refused to listen there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Queries did not end, cancelled as they were; the engine is still open.
    #[error("{running} queries did not end when cancelled; the engine was left open")]
    StillRunning {
        /// How many are running.
        running: usize,
    },
    /// The operating system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn places(looked: &[PathBuf]) -> String {
    let named: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
    named.join(", ")
}
