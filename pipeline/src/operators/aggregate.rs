//! What the aggregates share: their calls, and the accumulation of rows by key.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, FieldRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};

use super::NodeError;
use super::error::column;
use crate::plan::StreamSchema;
use crate::runtime::OperatorError;
use crate::state::KeyIndex;

/// One aggregate function over the input's columns.
#[derive(Debug, Clone)]
pub struct AggregateCall {
    /// The function and its arguments; its name is the output column's.
    pub expr: Arc<AggregateFunctionExpr>,
    /// The boolean column of the input whose true rows are aggregated (`FILTER (WHERE ...)`); all rows without one.
    pub filter: Option<usize>,
}

impl AggregateCall {
    /// The output column.
    pub(super) fn field(&self) -> FieldRef {
        self.expr.field()
    }

    /// What the function is computed from: its arguments, then what it orders by.
    fn inputs(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        let mut inputs = self.expr.expressions();
        inputs.extend(self.expr.order_bys().iter().map(|order| Arc::clone(&order.expr)));
        inputs
    }

    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
        if self.expr.groups_accumulator_supported() {
            return self.expr.create_groups_accumulator();
        }
        let expr = Arc::clone(&self.expr);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || expr.create_accumulator())))
    }
}

impl fmt::Display for AggregateCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<_> = self.expr.expressions().iter().map(ToString::to_string).collect();
        write!(f, "{}({}", self.expr.fun().name(), if self.expr.is_distinct() { "DISTINCT " } else { "" })?;
        write!(f, "{}", args.join(", "))?;
        for (i, order) in self.expr.order_bys().iter().enumerate() {
            write!(f, "{}{order}", if i == 0 { " ORDER BY " } else { ", " })?;
        }
        f.write_str(if self.expr.ignore_nulls() { ") IGNORE NULLS" } else { ")" })?;
        if let Some(filter) = self.filter {
            write!(f, " FILTER (@{filter})")?;
        }
        write!(f, " AS {}", self.expr.name())
    }
}

/// An aggregation's keys and calls, checked against its input.
#[derive(Debug, Clone)]
pub(super) struct Aggregation {
    /// The key columns, as indexes into the input.
    pub(super) group: Vec<usize>,
    /// The key columns' fields.
    pub(super) keys: Vec<FieldRef>,
    pub(super) calls: Vec<AggregateCall>,
    /// The input's column of event time.
    pub(super) timestamp: usize,
}

impl Aggregation {
    pub(super) fn try_new(
        node: &'static str,
        input: &StreamSchema,
        group: Vec<usize>,
        calls: Vec<AggregateCall>,
    ) -> Result<Self, NodeError> {
        if input.is_updating() {
            return Err(NodeError::Updating { node });
        }
        let keys = group.iter().map(|index| column(node, input, *index).cloned()).collect::<Result<Vec<_>, _>>()?;
        for call in &calls {
            // Functions with WITHIN GROUP sort by themselves.
            if call.expr.order_sensitivity().hard_requires() && !call.expr.fun().supports_within_group_clause() {
                return Err(NodeError::Ordered { function: call.expr.fun().name().to_owned() });
            }
            if let Some(filter) = call.filter {
                let field = column(node, input, filter)?;
                if field.data_type() != &DataType::Boolean {
                    let (what, actual) = (field.name().clone(), field.data_type().clone());
                    return Err(NodeError::Type { node, what, needed: "a Boolean", actual });
                }
            }
        }
        Ok(Self { group, keys, calls, timestamp: input.timestamp_index() })
    }

    /// For `explain` and the fingerprint.
    pub(super) fn details(&self) -> Vec<(&'static str, String)> {
        let keys: Vec<_> =
            self.keys.iter().zip(&self.group).map(|(f, index)| format!("{}@{index}", f.name())).collect();
        let calls: Vec<_> = self.calls.iter().map(ToString::to_string).collect();
        vec![("keys", keys.join(", ")), ("aggregates", calls.join(", "))]
    }
}

/// An aggregation's functions with the expressions that feed them, ready to run.
pub(super) struct Functions {
    functions: Vec<Function>,
}

struct Function {
    call: AggregateCall,
    inputs: Vec<Arc<dyn PhysicalExpr>>,
    /// The columns of its state; null where a function has not seen a value.
    state: Vec<FieldRef>,
}

impl Functions {
    pub(super) fn try_new(calls: &[AggregateCall]) -> Result<Self, OperatorError> {
        let nullable = |field: &FieldRef| Arc::new(field.as_ref().clone().with_nullable(true));
        let function = |call: &AggregateCall| -> Result<Function, DataFusionError> {
            let state = call.expr.state_fields()?.iter().map(nullable).collect();
            Ok(Function { inputs: call.inputs(), call: call.clone(), state })
        };
        Ok(Self { functions: calls.iter().map(function).collect::<Result<_, _>>()? })
    }

    /// The columns of all states, in order.
    pub(super) fn state_fields(&self) -> impl Iterator<Item = &FieldRef> {
        self.functions.iter().flat_map(|function| &function.state)
    }

    /// The functions whose value may differ between two evaluations of the same state, in order of their position: sets
    /// among the state's columns have no order.
    pub(super) fn unstable(&self) -> Vec<usize> {
        let nested = |function: &Function| function.state.iter().any(|field| field.data_type().is_nested());
        let functions = self.functions.iter().enumerate();
        functions.filter(|(_, function)| nested(function)).map(|(position, _)| position).collect()
    }

    /// Fresh accumulators, one per function.
    pub(super) fn accumulators(&self) -> Result<Accumulators, OperatorError> {
        let accumulators = self.functions.iter().map(|function| function.call.accumulator());
        Ok(Accumulators(accumulators.collect::<Result<_, _>>()?))
    }

    /// Adds the rows of `batch` to the groups with the numbers `groups`, of which there are `count`.
    pub(super) fn add(
        &self,
        accumulators: &mut Accumulators,
        batch: &RecordBatch,
        groups: &[usize],
        count: usize,
    ) -> Result<(), OperatorError> {
        for (function, accumulator) in self.functions.iter().zip(&mut accumulators.0) {
            let inputs = function.inputs.iter().map(|expr| expr.evaluate(batch)?.into_array(batch.num_rows()));
            let inputs = inputs.collect::<Result<Vec<_>, DataFusionError>>()?;
            let filter = function.call.filter.and_then(|index| batch.columns().get(index));
            let filter: Option<&BooleanArray> = filter.map(|column| column.as_boolean());
            accumulator.update_batch(&inputs, groups, filter, count)?;
        }
        Ok(())
    }
}

/// The state of an aggregation's functions, for numbered groups.
pub(super) struct Accumulators(Vec<Box<dyn GroupsAccumulator>>);

impl Accumulators {
    /// The functions' values, in order, one row per group; the accumulators are empty afterwards. There must be a group.
    pub(super) fn values(&mut self) -> Result<Vec<ArrayRef>, OperatorError> {
        Ok(self.0.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect::<Result<_, _>>()?)
    }

    /// The functions' states, as [`Functions::state_fields`] says, one row per group; the accumulators are empty
    /// afterwards. There must be a group.
    pub(super) fn states(&mut self) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut states = Vec::new();
        for accumulator in &mut self.0 {
            states.extend(accumulator.state(EmitTo::All)?);
        }
        Ok(states)
    }

    /// Merges states, one row for each of `groups`, into groups of which there are `count`.
    pub(super) fn merge(
        &mut self,
        functions: &Functions,
        states: &[ArrayRef],
        groups: &[usize],
        count: usize,
    ) -> Result<(), OperatorError> {
        let mut states = states;
        for (accumulator, function) in self.0.iter_mut().zip(&functions.functions) {
            let Some((own, rest)) = states.split_at_checked(function.state.len()) else {
                return Err(OperatorError::internal("an aggregate's state has too few columns"));
            };
            accumulator.merge_batch(own, groups, count)?;
            states = rest;
        }
        Ok(())
    }
}

/// Rows aggregated by key.
pub(super) struct Groups {
    keys: KeyIndex,
    accumulators: Accumulators,
    /// The group of each row of the last batch.
    numbers: Vec<usize>,
}

impl Groups {
    pub(super) fn try_new(aggregation: &Aggregation, functions: &Functions) -> Result<Self, OperatorError> {
        let keys = KeyIndex::try_new(&aggregation.keys)?;
        Ok(Self { keys, accumulators: functions.accumulators()?, numbers: Vec::new() })
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Adds the rows of `batch`. Returns the number of each row's group.
    pub(super) fn add(
        &mut self,
        aggregation: &Aggregation,
        functions: &Functions,
        batch: &RecordBatch,
    ) -> Result<&[usize], OperatorError> {
        let keys: Vec<_> = aggregation.group.iter().filter_map(|i| batch.columns().get(*i)).map(Arc::clone).collect();
        self.keys.intern(&keys, batch.num_rows(), &mut self.numbers)?;
        functions.add(&mut self.accumulators, batch, &self.numbers, self.keys.len())?;
        Ok(&self.numbers)
    }

    /// Merges the states of `rows` keys, as [`Groups::take_states`] gives them.
    pub(super) fn merge(
        &mut self,
        functions: &Functions,
        keys: &[ArrayRef],
        states: &[ArrayRef],
        rows: usize,
    ) -> Result<(), OperatorError> {
        self.keys.intern(keys, rows, &mut self.numbers)?;
        self.accumulators.merge(functions, states, &self.numbers, self.keys.len())
    }

    /// The key columns and the functions' values, one row per group; nothing is left. There must be a group.
    pub(super) fn take_values(&mut self) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>), OperatorError> {
        Ok((self.keys.take()?, self.accumulators.values()?))
    }

    /// The key columns and the functions' states, one row per group; nothing is left. There must be a group.
    pub(super) fn take_states(&mut self) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>), OperatorError> {
        Ok((self.keys.take()?, self.accumulators.states()?))
    }
}
