//! What a checkpoint consists of: one small file that names all others. It is written last, and in one step, so that a
//! checkpoint is either there or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Damage;
use super::segment::checksum;

/// The format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// The epoch that it is the end of.
    pub epoch: u64,
    /// The checkpoint that the state was carried on from; none when the pipeline had started anew.
    pub parent: Option<u64>,
    /// When it was completed, in microseconds since 1970, UTC.
    pub completed_at: i64,
    /// Every node, in topological order.
    pub nodes: Vec<NodeState>,
}

/// The state of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// The node's name.
    pub name: String,
    /// What the node does, and over what: [`crate::plan::Fingerprint`] as text.
    pub fingerprint: String,
    /// In order of their index.
    pub subtasks: Vec<SubtaskState>,
}

/// The state of one subtask.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubtaskState {
    /// Small values, such as positions and watermarks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Value>,
    /// Tables of rows, each a log: a later row of a key stands in place of an earlier one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, Vec<FileRef>>,
    /// What is to be delivered now that the checkpoint is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<StagedRef>,
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// From the root of the store.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// XXH64, in hexadecimal.
    pub checksum: String,
    /// Rows in it.
    pub rows: u64,
    /// How often files were merged to make it: see [`super::protocol::files_to_merge`].
    #[serde(default)]
    pub level: u8,
}

/// A piece of what is to be delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagedRef {
    /// What the sink needs to know of it.
    pub about: Value,
    /// Its bytes, as the sink gave them.
    pub file: FileRef,
}

impl SubtaskState {
    /// Every file that it needs.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.tables.values().flatten().chain(self.staged.iter().map(|staged| &staged.file))
    }

    /// Whether there is anything to be restored.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.tables.values().all(Vec::is_empty) && self.staged.is_empty()
    }
}

impl NodeState {
    /// Every file that it needs.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.subtasks.iter().flat_map(SubtaskState::files)
    }

    /// Whether there is anything to be restored.
    pub fn is_empty(&self) -> bool {
        self.subtasks.iter().all(SubtaskState::is_empty)
    }
}

impl Manifest {
    /// Every file that it needs.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.nodes.iter().flat_map(NodeState::files)
    }

    /// The file: one line of JSON, and a line with its checksum.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let mut bytes = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        let sum = checksum(&bytes);
        bytes.extend_from_slice(format!("\nxxh64 {sum}\n").as_bytes());
        Ok(bytes)
    }

    /// Reads what [`Manifest::encode`] wrote. The format may be another: its caller looks.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let text = std::str::from_utf8(bytes).map_err(|_| Damage::Checksum)?;
        let (json, rest) = text.split_once('\n').ok_or(Damage::Checksum)?;
        let recorded = rest.strip_prefix("xxh64 ").and_then(|sum| sum.strip_suffix('\n'));
        if recorded != Some(checksum(json.as_bytes()).as_str()) {
            return Err(Damage::Checksum);
        }
        serde_json::from_str(json).map_err(|error| Damage::Unreadable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |path: &str| FileRef { path: path.into(), bytes: 3, checksum: "00".into(), rows: 1, level: 0 };
        let subtask = SubtaskState {
            values: [("position".to_owned(), Value::from(7))].into(),
            tables: [("rows".to_owned(), vec![file("a"), file("b")])].into(),
            staged: vec![StagedRef { about: Value::from("x"), file: file("c") }],
        };
        let node = NodeState { name: "n".into(), fingerprint: "f".into(), subtasks: vec![subtask] };
        Manifest { format: FORMAT, pipeline: "p".into(), epoch: 3, parent: Some(2), completed_at: 1, nodes: vec![node] }
    }

    #[test]
    fn it_comes_back_and_names_every_file() {
        let bytes = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
        let paths: Vec<_> = manifest().files().map(|file| file.path.clone()).collect();
        assert_eq!(paths, ["a", "b", "c"]);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let bytes = manifest().encode().unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(Manifest::decode(&altered).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
