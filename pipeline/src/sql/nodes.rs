//! Logical nodes for what DataFusion has none: the window aggregate and the async call.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Field, FieldRef};
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};

use crate::runtime::AsyncFunction;

type QualifiedField = (Option<TableReference>, FieldRef);

/// An aggregate by keys and a tumbling window. Its columns are those of the aggregate it comes from.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowAggregate {
    pub(super) input: LogicalPlan,
    pub(super) width: Duration,
    /// Where the window stands among the columns.
    pub(super) position: usize,
    /// The keys, without the window.
    pub(super) keys: Vec<Expr>,
    pub(super) aggregates: Vec<Expr>,
    pub(super) schema: DFSchemaRef,
}

/// A plan has no order: nothing asks for it, but the trait wants it.
impl PartialOrd for WindowAggregate {
    fn partial_cmp(&self, _: &Self) -> Option<Ordering> {
        None
    }
}

impl UserDefinedLogicalNodeCore for WindowAggregate {
    fn name(&self) -> &str {
        "WindowAggregate"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().chain(&self.aggregates).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WindowAggregate: {:?}, keys={:?}, aggregates={:?}", self.width, self.keys, self.aggregates)
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let aggregates = exprs.split_off(self.keys.len().min(exprs.len()));
        let (width, position, schema) = (self.width, self.position, Arc::clone(&self.schema));
        Ok(Self { input: only(inputs)?, width, position, keys: exprs, aggregates, schema })
    }

    fn necessary_children_exprs(&self, _: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![read_by(&self.expressions(), self.input.schema())])
    }
}

/// A call of an async UDF per row: the input's columns, then the result.
#[derive(Debug)]
pub(super) struct AsyncCallNode {
    pub(super) input: LogicalPlan,
    pub(super) function: Arc<dyn AsyncFunction>,
    /// Columns of the input.
    pub(super) args: Vec<Expr>,
    schema: DFSchemaRef,
}

impl AsyncCallNode {
    pub(super) fn try_new(input: LogicalPlan, function: Arc<dyn AsyncFunction>, args: Vec<Expr>) -> Result<Self> {
        let result = Self::result_column(function.as_ref());
        let result = Arc::new(Field::new(result.name, function.result_type().clone(), function.is_nullable()));
        let fields = input.schema().iter().map(|(relation, field)| (relation.cloned(), Arc::clone(field)));
        let fields: Vec<QualifiedField> = fields.chain([(None, result)]).collect();
        let schema = Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?);
        Ok(Self { input, function, args, schema })
    }

    /// The column that holds the result.
    pub(super) fn result_column(function: &dyn AsyncFunction) -> Column {
        Column::new_unqualified(format!("__{}", function.name()))
    }
}

impl PartialEq for AsyncCallNode {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name() && self.args == other.args && self.input == other.input
    }
}

impl Eq for AsyncCallNode {}

impl Hash for AsyncCallNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name().hash(state);
        self.args.hash(state);
        self.input.hash(state);
    }
}

impl PartialOrd for AsyncCallNode {
    fn partial_cmp(&self, _: &Self) -> Option<Ordering> {
        None
    }
}

impl UserDefinedLogicalNodeCore for AsyncCallNode {
    fn name(&self) -> &str {
        "AsyncCall"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.args.clone()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "AsyncCall: {}({:?})", self.function.name(), self.args)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        Self::try_new(only(inputs)?, Arc::clone(&self.function), exprs)
    }

    fn necessary_children_exprs(&self, output: &[usize]) -> Option<Vec<Vec<usize>>> {
        let input = self.input.schema();
        let mut needed = read_by(&self.args, input);
        needed.extend(output.iter().filter(|index| **index < input.fields().len()));
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}

fn only(mut inputs: Vec<LogicalPlan>) -> Result<LogicalPlan> {
    inputs.pop().ok_or_else(|| DataFusionError::Internal("a node lost its input".into()))
}

/// The indexes of the columns that `exprs` read, in order.
fn read_by(exprs: &[Expr], schema: &DFSchema) -> Vec<usize> {
    let columns = exprs.iter().flat_map(Expr::column_refs);
    let mut read: Vec<usize> = columns.filter_map(|column| schema.maybe_index_of_column(column)).collect();
    read.sort_unstable();
    read.dedup();
    read
}
