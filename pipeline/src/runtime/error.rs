//! What an operator reports when it cannot go on.

use std::any::Any;
use std::error::Error as _;
use std::fmt;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// Who has to act on an error, and whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The pipeline's text, options or data: somebody has to change them.
    User,
    /// Something outside that may come back: ClickHouse, an API, a disk.
    External,
    /// Tickhouse itself.
    Internal,
}

/// An operator's error. The runtime adds the operator's name and subtask; the message says what, where in the data,
/// and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OperatorError {
    /// Who has to act.
    pub fault: Fault,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl OperatorError {
    /// An error in what the user wrote or in the data.
    pub fn user(message: impl Into<String>) -> Self {
        Self { fault: Fault::User, message: message.into(), source: None }
    }

    /// An error of something outside.
    pub fn external(message: impl Into<String>) -> Self {
        Self { fault: Fault::External, message: message.into(), source: None }
    }

    /// An error of Tickhouse.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { fault: Fault::Internal, message: message.into(), source: None }
    }

    /// The same error, caused by `source`.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// Why a pipeline ended: the first error of any of its subtasks, and where it happened.
///
/// Printed, it is one line: the node, the subtask, the message and its causes.
#[derive(Debug)]
pub struct PipelineError {
    /// The name of the node in whose code the error arose.
    pub node: String,
    /// Which of the node's subtasks; `None` when the node could not be started at all.
    pub subtask: Option<usize>,
    /// What went wrong.
    pub error: OperatorError,
}

impl PipelineError {
    /// `error` of node `node`, which could not be started.
    pub fn at_start(node: &str, error: OperatorError) -> Self {
        Self { node: node.to_owned(), subtask: None, error }
    }

    /// Who has to act.
    pub fn fault(&self) -> Fault {
        self.error.fault
    }
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.node)?;
        if let Some(subtask) = self.subtask {
            write!(f, " (subtask {subtask})")?;
        }
        write!(f, ": {}", self.error)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

// The causes are part of the printed line, so they are not given a second time by `source`.
impl std::error::Error for PipelineError {}

/// The error that a panic with this payload is reported as.
pub(super) fn of_panic(payload: &(dyn Any + Send)) -> OperatorError {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    OperatorError::internal(format!("panicked: {}", text.as_deref().unwrap_or("(no message)")))
}

impl From<DataFusionError> for OperatorError {
    /// An expression that fails on a row (a cast, a division) is the user's to mend; the rest is ours.
    fn from(error: DataFusionError) -> Self {
        let root = error.find_root();
        let fault = match root {
            DataFusionError::Internal(_) | DataFusionError::NotImplemented(_) => Fault::Internal,
            _ => Fault::User,
        };
        Self { fault, message: root.strip_backtrace(), source: None }
    }
}

impl From<ArrowError> for OperatorError {
    fn from(error: ArrowError) -> Self {
        DataFusionError::from(error).into()
    }
}
