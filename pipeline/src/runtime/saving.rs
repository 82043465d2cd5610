//! The state of one subtask: what it goes on from, and how it is saved.

use super::OperatorError;
use crate::state::{Restored, Snapshot, StateLogs, SubtaskSnapshot, ValueError};

/// Whether and how a subtask's state is saved.
#[derive(Debug, Default)]
pub struct Saving {
    /// None when no state is saved.
    logs: Option<StateLogs>,
    restored: Option<Restored>,
}

impl Saving {
    /// State is saved; `restored` is what the subtask goes on from.
    pub fn new(restored: Option<Restored>) -> Self {
        let logs = restored.as_ref().map_or_else(StateLogs::default, Restored::logs);
        Self { logs: Some(logs), restored }
    }

    /// What the subtask goes on from; given once.
    pub fn take_restored(&mut self) -> Option<Restored> {
        self.restored.take()
    }

    /// What `save` saves; nothing when no state is saved.
    pub fn take(
        &mut self,
        save: impl FnOnce(&mut Snapshot<'_>) -> Result<(), OperatorError>,
    ) -> Result<SubtaskSnapshot, OperatorError> {
        let Some(logs) = &mut self.logs else { return Ok(SubtaskSnapshot::default()) };
        let mut snapshot = logs.snapshot();
        save(&mut snapshot)?;
        Ok(snapshot.finish())
    }
}

impl From<ValueError> for OperatorError {
    fn from(error: ValueError) -> Self {
        Self::internal(error.to_string())
    }
}
