//! Rows out of several batches, and their results.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::runtime::{OperatorError, Time};

/// Rows with their results that leave together in one batch.
#[derive(Default)]
pub(super) struct Gathered {
    batches: Vec<RecordBatch>,
    /// The position in `batches` of a batch, by its number.
    positions: HashMap<u64, usize>,
    /// Where each row is: batch, row.
    rows: Vec<(usize, usize)>,
    results: Vec<ArrayRef>,
    /// Where each row's result is: array, position.
    answers: Vec<(usize, usize)>,
    /// When it must leave, full or not.
    pub(super) due: Option<Time>,
}

impl Gathered {
    /// Adds row `row` of `batch`, which is told apart by a number, and its result, number `answer` of `results`.
    pub(super) fn push(&mut self, batch: (u64, &RecordBatch), row: usize, results: &ArrayRef, answer: usize) {
        let batch = *self.positions.entry(batch.0).or_insert_with(|| {
            self.batches.push(batch.1.clone());
            self.batches.len() - 1
        });
        self.rows.push((batch, row));
        if !self.results.last().is_some_and(|last| Arc::ptr_eq(last, results)) {
            self.results.push(Arc::clone(results));
        }
        self.answers.push((self.results.len() - 1, answer));
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows with their results put in as column `result`; nothing is left.
    pub(super) fn take(&mut self, result: usize, output: &SchemaRef) -> Result<RecordBatch, OperatorError> {
        let Self { batches, rows, results, answers, .. } = std::mem::take(self);
        let results: Vec<&dyn Array> = results.iter().map(AsRef::as_ref).collect();
        let width = output.fields().len() - 1;
        let mut columns = Vec::with_capacity(width + 1);
        for column in 0..width {
            let sources: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
            columns.push(interleave(&sources, &rows)?);
        }
        columns.insert(result, interleave(&results, &answers)?);
        Ok(RecordBatch::try_new(Arc::clone(output), columns)?)
    }
}
