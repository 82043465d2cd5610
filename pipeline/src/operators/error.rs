//! Why a node cannot be made.

use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::DataFusionError;

use crate::plan::{SchemaError, StreamSchema};

/// Arguments of a node's constructor that do not fit its input, or a query that the node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An index past the last column.
    #[error("{node} reads column number {index}, but its input has {columns} columns")]
    NoColumn {
        /// The kind of node.
        node: &'static str,
        /// The index asked for, from 0.
        index: usize,
        /// How many columns there are, hidden ones included.
        columns: usize,
    },
    /// A column or expression of a type that the node cannot use.
    #[error("{node} needs {needed}, but `{what}` is {actual}")]
    Type {
        /// The kind of node.
        node: &'static str,
        /// The column or expression.
        what: String,
        /// The types that would do, in words.
        needed: &'static str,
        /// Its type.
        actual: DataType,
    },
    /// A node that only reads append-only streams, over one whose rows may be withdrawn.
    #[error("{node} cannot read an updating stream: its input has rows that are withdrawn and replaced")]
    Updating {
        /// The kind of node.
        node: &'static str,
    },
    /// An aggregate that would need its input sorted.
    #[error(
        "`{function}` cannot be used with ORDER BY in a streaming aggregate; leave the ORDER BY out, or use array_agg"
    )]
    Ordered {
        /// The function's name.
        function: String,
    },
    /// A width, limit or period of zero, or one that does not fit into 64 bits of nanoseconds.
    #[error("{node} needs a {what} between 1 nanosecond and 292 years")]
    Duration {
        /// The kind of node.
        node: &'static str,
        /// What the duration is.
        what: &'static str,
    },
    /// The number of arguments differs from the function's.
    #[error("`{function}` takes {expected} arguments, not {actual}")]
    Arguments {
        /// The function's name.
        function: String,
        /// How many it takes.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// An argument whose type is not the function's.
    #[error("argument {position} of `{function}` must be {expected}, but `{column}` is {actual}; cast it")]
    Argument {
        /// The function's name.
        function: String,
        /// From 1.
        position: usize,
        /// The function's type.
        expected: DataType,
        /// The column given.
        column: String,
        /// The column's type.
        actual: DataType,
    },
    /// An output column with a reserved name.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// An expression that does not fit the input.
    #[error("{}", .0.strip_backtrace())]
    Expression(#[from] DataFusionError),
}

/// Column `index` of a node's input, which may be a hidden one.
pub(super) fn column<'a>(node: &'static str, input: &'a StreamSchema, index: usize) -> Result<&'a FieldRef, NodeError> {
    let fields = input.schema().fields();
    fields.get(index).ok_or(NodeError::NoColumn { node, index, columns: fields.len() })
}
