//! What can be wrong with saved state.

use std::fmt;

/// A place in a store of state: what a user would look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder or bucket.
    pub root: String,
    /// The file in it.
    pub path: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.root.trim_end_matches('/'), self.path)
    }
}

/// Why a file of a checkpoint is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// Its bytes are others than those that were written.
    #[error("was altered or cut short: its checksum is not the one that was recorded")]
    Checksum,
    /// It has the right checksum, or none, and cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// Why state cannot be saved or read back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store refuses or is away.
    #[error("cannot {action} {place}: {source}")]
    Store {
        /// In words that follow "cannot".
        action: &'static str,
        /// The file.
        place: Place,
        /// What the store says.
        source: Box<object_store::Error>,
    },
    /// A file is not what was written.
    #[error("the file {place} of checkpoint {epoch} {damage}")]
    Damaged {
        /// The file.
        place: Place,
        /// The checkpoint that needs it.
        epoch: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A checkpoint was written by another version.
    #[error(
        "{place} was written in format {found}, and this version reads format {supported}: \
         run the version that wrote it, or start anew with --fresh"
    )]
    Format {
        /// The manifest.
        place: Place,
        /// Its format.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// Somebody else writes checkpoints here.
    #[error(
        "{place} has been written by another process, which saves its checkpoints there too; stop one of them, or give each a --state-dir of its own"
    )]
    Contended {
        /// The manifest that was to be written.
        place: Place,
    },
    /// The newest checkpoint cannot be read, and what came of it may be in the sinks.
    #[error(
        "{cause}. Rows of checkpoint {epoch} may be in ClickHouse already, and going back to the one before would write them \
         twice. Put the file back; or accept that and go back with --resume-from {previous}; or start anew with --fresh"
    )]
    CannotGoBack {
        /// The checkpoint that cannot be read.
        epoch: u64,
        /// The newest one before it.
        previous: u64,
        /// What is wrong with it.
        cause: Box<StateError>,
    },
    /// No checkpoint can be read.
    #[error("{cause}. No checkpoint before it can be read either; put the file back, or start anew with --fresh")]
    NothingLeft {
        /// What is wrong with the newest.
        cause: Box<StateError>,
    },
    /// `--resume-from` names a checkpoint that is not there.
    #[error("there is no checkpoint {epoch} in {root}; it has {}", list(.there))]
    NoSuchEpoch {
        /// What was asked for.
        epoch: u64,
        /// The store.
        root: String,
        /// What there is.
        there: Vec<u64>,
    },
    /// The pipeline has changed since the state was saved.
    #[error("{0}")]
    Changed(Box<super::protocol::Changed>),
    /// A table of an operator cannot be encoded or decoded.
    #[error("the state of `{node}`, {what}: {reason}")]
    Content {
        /// The node.
        node: String,
        /// Which part.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A URL of a store that cannot be opened.
    #[error("cannot open the state directory `{url}`: {source}")]
    Url {
        /// As given.
        url: String,
        /// What the store says.
        source: Box<object_store::Error>,
    },
}

fn list(epochs: &[u64]) -> String {
    match epochs {
        [] => "none".to_owned(),
        all => all.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
    }
}
