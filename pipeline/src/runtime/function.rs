//! The contract between an async UDF and the operator that calls it.

use std::fmt::Debug;
use std::task::{self, Poll};

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use super::{OperatorError, Subtask};

/// A function whose calls take time: one row in, one value out, many calls at once.
pub trait AsyncFunction: Debug + Send + Sync {
    /// The function's name in SQL.
    fn name(&self) -> &str;

    /// The types of its arguments. What is sent has exactly these types.
    fn argument_types(&self) -> &[DataType];

    /// The type of its results.
    fn result_type(&self) -> &DataType;

    /// Whether a result may be null.
    fn is_nullable(&self) -> bool;

    /// Whether rows must leave in the order in which they came.
    fn is_ordered(&self) -> bool;

    /// The most calls that one subtask has in flight; at least 1.
    fn max_in_flight(&self) -> usize;

    /// Makes the instance of one subtask. May not block or do I/O.
    fn start(&self, subtask: &Subtask) -> Result<Box<dyn AsyncCalls>, OperatorError>;
}

/// One instance of an [`AsyncFunction`] and its calls in flight.
///
/// An instance that has died, and a call that outlives the function's timeout, are errors.
pub trait AsyncCalls: Send {
    /// Whether a call can be started now. `Pending` while the instance has not taken in the last one: the waker in `task`
    /// is called when to ask again.
    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), OperatorError>>;

    /// Starts a call with the values of row `row` of `args`, which have the function's argument types. `id` comes
    /// back with the result; ids of calls in flight differ, and rise. Called after [`AsyncCalls::poll_ready`] was ready, and
    /// never for more calls than [`AsyncFunction::max_in_flight`] at once. May not block.
    fn send(&mut self, id: u64, args: &[ArrayRef], row: usize) -> Result<(), OperatorError>;

    /// The results that have come since the last call: the ids of the calls and, at the same positions, their results, in
    /// the function's result type; at least one. `Pending` when there are none: the waker in `task` is called when to
    /// ask again. Each id comes back once; those of an ordered function in any order. Without calls in flight: `Pending`.
    fn poll_results(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(Vec<u64>, ArrayRef), OperatorError>>;
}
