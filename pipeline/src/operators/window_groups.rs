//! The groups of one open window, in the parts in which they are saved.

use std::sync::Arc;

use arrow::array::ArrayRef;

use super::aggregate::{Aggregation, Functions, Groups};
use crate::runtime::OperatorError;
use arrow::record_batch::RecordBatch;

/// How many pieces of one level are merged into one of the next.
const FAN_OUT: usize = 4;

/// Keys with the functions' states over some of the window's rows, one row per key.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) keys: Vec<ArrayRef>,
    pub(super) states: Vec<ArrayRef>,
    pub(super) rows: usize,
    /// How often pieces were merged to make it.
    level: u8,
}

/// The groups of a window: those of the rows since the last snapshot, and one piece for each snapshot before, of which
/// several become one now and then. A snapshot so costs what has come since the last.
pub(super) struct WindowGroups {
    fresh: Groups,
    pieces: Vec<Piece>,
}

impl WindowGroups {
    pub(super) fn try_new(aggregation: &Aggregation, functions: &Functions) -> Result<Self, OperatorError> {
        Ok(Self { fresh: Groups::try_new(aggregation, functions)?, pieces: Vec::new() })
    }

    /// Adds rows.
    pub(super) fn add(
        &mut self,
        aggregation: &Aggregation,
        functions: &Functions,
        batch: &RecordBatch,
    ) -> Result<(), OperatorError> {
        self.fresh.add(aggregation, functions, batch)?;
        Ok(())
    }

    /// Takes back a piece.
    pub(super) fn restore(&mut self, keys: Vec<ArrayRef>, states: Vec<ArrayRef>, rows: usize) {
        self.pieces.push(Piece { keys, states, rows, level: 0 });
    }

    /// All pieces.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Makes a piece of the rows since the last call; none when there were none.
    pub(super) fn save(
        &mut self,
        aggregation: &Aggregation,
        functions: &Functions,
    ) -> Result<Option<Piece>, OperatorError> {
        let rows = self.fresh.len();
        if rows == 0 {
            return Ok(None);
        }
        let (keys, states) = self.fresh.take_states()?;
        let piece = Piece { keys, states, rows, level: 0 };
        self.pieces.push(piece.clone());
        let mut level = 0;
        loop {
            let same = self.pieces.iter().rev().take_while(|piece| piece.level == level).count();
            if same < FAN_OUT {
                return Ok(Some(piece));
            }
            level = level.saturating_add(1);
            let merged = self.pieces.split_off(self.pieces.len() - same);
            let mut groups = merge(&merged, aggregation, functions)?;
            let rows = groups.len();
            let (keys, states) = groups.take_states()?;
            self.pieces.push(Piece { keys, states, rows, level });
        }
    }

    /// All groups: key columns, the functions' values, and how many there are; at least one.
    pub(super) fn into_values(
        mut self,
        aggregation: &Aggregation,
        functions: &Functions,
    ) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>, usize), OperatorError> {
        let mut groups = if self.pieces.is_empty() {
            self.fresh
        } else {
            self.save(aggregation, functions)?;
            merge(&self.pieces, aggregation, functions)?
        };
        let rows = groups.len();
        let (keys, values) = groups.take_values()?;
        Ok((keys, values, rows))
    }
}

fn merge(pieces: &[Piece], aggregation: &Aggregation, functions: &Functions) -> Result<Groups, OperatorError> {
    let mut groups = Groups::try_new(aggregation, functions)?;
    for piece in pieces {
        groups.merge(functions, &piece.keys, &piece.states, piece.rows)?;
    }
    Ok(groups)
}

impl Piece {
    /// Its columns behind one with the window's start.
    pub(super) fn columns(&self, start: ArrayRef) -> Vec<ArrayRef> {
        std::iter::once(start).chain(self.keys.iter().chain(&self.states).map(Arc::clone)).collect()
    }
}
