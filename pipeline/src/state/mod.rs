//! State that operators keep between batches, as typed columns; and checkpoints of it.
//!
//! `protocol` decides, without I/O; `checkpoints` does. Knows no operator.

mod checkpoints;
mod error;
mod key_index;
mod keyed;
mod manifest;
mod primitive_index;
pub mod protocol;
mod restored;
mod segment;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;

pub use checkpoints::{Checkpoints, Resumed, StartFrom, Written, epochs, missed, read_file, read_manifest};
pub use error::{Damage, Place, StateError};
pub use key_index::KeyIndex;
pub use keyed::{KeyedTable, Stored};
pub use manifest::{FORMAT, FileRef, Manifest, NodeState, StagedRef, SubtaskState};
pub use protocol::NodeIdentity;
pub use restored::{Former, Restored, Share, ValueError};
pub use segment::decode;
pub use snapshot::{Part, Snapshot, Staged, StateLogs, SubtaskSnapshot, TableChange};
pub use store::Store;
