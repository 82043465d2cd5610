//! The dataflow graph that SQL is turned into: nodes, edges, and what flows along them.
//!
//! A plan is data. It holds typed expressions, never SQL text; it knows no connector and no operator by name, and
//! nothing here runs. [`crate::runtime`] runs a [`Dataflow`] whose nodes can be built into operators.

mod explain;
mod fingerprint;
mod graph;
mod schema;
mod sql_type;

pub use explain::{Format, explain};
pub use fingerprint::Fingerprint;
pub use graph::{Dataflow, Edge, Exchange, GraphError, Node, NodeId};
pub use schema::{RETRACT_COLUMN, SchemaError, StreamKind, StreamSchema, TIMESTAMP_COLUMN};
pub use sql_type::{is_bytes, is_text, sql_name};

use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// What a node does with the event time of the rows that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventTimeUse {
    /// What it does depends on it.
    Read,
    /// It is nothing but the event time of the rows that leave, at once: rows that are saved may be read by more after a restart.
    PassedOn,
    /// Nothing.
    Ignored,
}

/// A file that a node reads or writes. One that is written has no other reader or writer in a pipeline: they would be in each other's
/// way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileUse {
    /// From its first line on.
    Read(PathBuf),
    /// Anew.
    Write(PathBuf),
}

impl FileUse {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read(path) | Self::Write(path) => path,
        }
    }
}

/// What every node of a plan can say of itself without being run.
pub trait NodePlan: Debug + Send + Sync {
    /// The kind of node in the field's words, in snake case: `tumbling_aggregate`, `clickhouse_sink`.
    fn kind(&self) -> &'static str;

    /// What the node does in particular, one `(label, value)` per line of `explain`: expressions, keys, options.
    ///
    /// Values hold no secrets: this text is shown, and it is what [`Fingerprint`] is computed from, so it names
    /// everything that decides the node's result and its state, and nothing else.
    fn details(&self) -> Vec<(&'static str, String)>;

    /// The rows that leave the node; `None` for a sink.
    fn output(&self) -> Option<&StreamSchema>;

    /// The most subtasks that the node can be split into; `None` when there is no bound.
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    /// What the node does with its input's event time.
    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::Read
    }

    /// The file that it reads or writes, if it does.
    fn file(&self) -> Option<FileUse> {
        None
    }

    /// Whether two nodes with the same fingerprint over the same inputs may be merged into one.
    ///
    /// False for whatever has effects of its own (sinks, calls to the outside).
    fn can_be_shared(&self) -> bool {
        true
    }
}
