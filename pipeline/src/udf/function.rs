//! An async UDF as the runtime calls it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use super::{AsyncUdf, Udf, UdfError, UdfKind};
use crate::runtime::{AsyncCalls, AsyncFunction, OperatorError, Subtask};

/// An async [`Udf`], as an [`AsyncFunction`].
#[derive(Debug)]
pub struct PluginFunction {
    udf: Arc<Udf>,
    arguments: Vec<DataType>,
    ordered: bool,
    max_in_flight: usize,
}

impl PluginFunction {
    /// The function that `udf` is; `None` when it is not async.
    pub fn new(udf: Arc<Udf>) -> Option<Self> {
        let UdfKind::Async { ordered, max_in_flight, .. } = udf.spec().kind else { return None };
        let arguments = udf.spec().args.iter().map(|arg| arg.data_type.clone()).collect();
        Some(Self { udf, arguments, ordered, max_in_flight })
    }
}

impl AsyncFunction for PluginFunction {
    fn name(&self) -> &str {
        &self.udf.spec().name
    }

    fn argument_types(&self) -> &[DataType] {
        &self.arguments
    }

    fn result_type(&self) -> &DataType {
        &self.udf.spec().result
    }

    fn is_nullable(&self) -> bool {
        // NULL for an argument that is not nullable gives NULL without a call.
        self.udf.spec().nullable || self.udf.spec().args.iter().any(|arg| !arg.nullable)
    }

    fn is_ordered(&self) -> bool {
        self.ordered
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn start(&self, _subtask: &Subtask) -> Result<Box<dyn AsyncCalls>, OperatorError> {
        Ok(Box::new(PluginCalls(self.udf.start()?)))
    }
}

/// One instance.
struct PluginCalls(AsyncUdf);

impl AsyncCalls for PluginCalls {
    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        Poll::Ready(Ok(ready!(self.0.poll_ready(task))?))
    }

    fn send(&mut self, id: u64, args: &[ArrayRef], row: usize) -> Result<(), OperatorError> {
        Ok(self.0.send(id, args, row)?)
    }

    fn poll_results(&mut self, task: &mut Context<'_>) -> Poll<Result<(Vec<u64>, ArrayRef), OperatorError>> {
        let finished = ready!(self.0.poll_drain(task))?;
        Poll::Ready(Ok((finished.ids, finished.results)))
    }
}

impl From<UdfError> for OperatorError {
    fn from(error: UdfError) -> Self {
        Self::user(error.to_string())
    }
}
