//! What the aggregates share: their calls, and the accumulation of rows by key.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::datatypes::{DataType, FieldRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};

use super::error::column;
use super::{BATCH_ROWS, NodeError};
use crate::plan::StreamSchema;
use crate::runtime::OperatorError;
use crate::state::KeyIndex;

/// What the rows of an aggregate's input are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateInput {
    /// The rows that are aggregated.
    Rows,
    /// The output of a [`super::PartialAggregate`] of the same calls: its keys, then the calls' states over some rows of the
    /// keys.
    States,
}

/// One aggregate function over the input's columns.
#[derive(Debug, Clone)]
pub struct AggregateCall {
    /// The function and its arguments; its name is the output column's.
    pub expr: Arc<AggregateFunctionExpr>,
    /// The boolean column of the input whose true rows are aggregated (`FILTER (WHERE ...)`); all rows without one.
    pub filter: Option<usize>,
}

/// The functions whose states may be made of any rows in any order and merged in any order, and are a few values in size. (The
/// rounding of floats depends on the order, and what becomes of a NaN, as it does wherever rows have no order.)
const SPLITTABLE: [&str; 10] =
    ["sum", "count", "avg", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"];

impl AggregateCall {
    /// Whether it can be computed of states, each over some of the rows.
    pub(super) fn can_be_split(&self) -> Result<bool, DataFusionError> {
        let expr = &self.expr;
        let by_name = SPLITTABLE.contains(&expr.fun().name()) && expr.groups_accumulator_supported();
        let flat = || Ok(!self.state_fields()?.iter().any(|field| field.data_type().is_nested()));
        if by_name && !expr.is_distinct() && expr.order_bys().is_empty() { flat() } else { Ok(false) }
    }

    /// The output column.
    pub(super) fn field(&self) -> FieldRef {
        self.expr.field()
    }

    /// The columns of its state; null where the function has not seen a value.
    pub(super) fn state_fields(&self) -> Result<Vec<FieldRef>, DataFusionError> {
        let nullable = |field: &FieldRef| Arc::new(field.as_ref().clone().with_nullable(true));
        Ok(self.expr.state_fields()?.iter().map(nullable).collect())
    }

    /// What the function is computed from: its arguments, then what it orders by.
    fn inputs(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        let mut inputs = self.expr.expressions();
        inputs.extend(self.expr.order_bys().iter().map(|order| Arc::clone(&order.expr)));
        inputs
    }

    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
        // DataFusion's bit_xor says that it has one for distinct values too, and then gives the other.
        let is_wrong = self.expr.is_distinct() && self.expr.fun().name() == "bit_xor";
        if self.expr.groups_accumulator_supported() && !is_wrong {
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
    pub(super) reads: AggregateInput,
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
        reads: AggregateInput,
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
            if reads == AggregateInput::Rows
                && let Some(filter) = call.filter
            {
                let field = column(node, input, filter)?;
                if field.data_type() != &DataType::Boolean {
                    let (what, actual) = (field.name().clone(), field.data_type().clone());
                    return Err(NodeError::Type { node, what, needed: "a Boolean", actual });
                }
            }
        }
        Ok(Self { reads, group, keys, calls, timestamp: input.timestamp_index() })
    }

    /// For `explain` and the fingerprint.
    pub(super) fn details(&self) -> Vec<(&'static str, String)> {
        let keys: Vec<_> =
            self.keys.iter().zip(&self.group).map(|(f, index)| format!("{}@{index}", f.name())).collect();
        let calls: Vec<_> = self.calls.iter().map(ToString::to_string).collect();
        let mut details = vec![("keys", keys.join(", ")), ("aggregates", calls.join(", "))];
        if self.reads == AggregateInput::States {
            details.push(("reads", "states of these, made by a partial aggregate".to_owned()));
        }
        details
    }

    /// The key columns of a batch of the input.
    pub(super) fn keys_of(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        self.group.iter().filter_map(|index| batch.columns().get(*index)).map(Arc::clone).collect()
    }

    /// The columns of a batch of states that are the calls' states.
    fn states_of<'b>(&self, batch: &'b RecordBatch) -> &'b [ArrayRef] {
        batch.columns().get(self.keys.len()..self.timestamp).unwrap_or_default()
    }
}

/// An aggregation's functions with the expressions that feed them, ready to run.
pub(super) struct Functions {
    functions: Vec<Function>,
    /// What rows are counted by; over one row, also the count.
    ones: Int64Array,
}

struct Function {
    call: AggregateCall,
    inputs: Vec<Arc<dyn PhysicalExpr>>,
    state: Vec<FieldRef>,
}

impl Functions {
    pub(super) fn try_new(calls: &[AggregateCall]) -> Result<Self, OperatorError> {
        let function = |call: &AggregateCall| -> Result<Function, DataFusionError> {
            Ok(Function { inputs: call.inputs(), call: call.clone(), state: call.state_fields()? })
        };
        let functions = calls.iter().map(function).collect::<Result<_, _>>()?;
        Ok(Self { functions, ones: Int64Array::from_value(1, BATCH_ROWS) })
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

    /// What `function` is computed from over the rows of `batch`, and which of them count.
    fn inputs<'b>(
        &self,
        function: &Function,
        batch: &'b RecordBatch,
    ) -> Result<(Vec<ArrayRef>, Option<&'b BooleanArray>), DataFusionError> {
        let rows = batch.num_rows();
        let filter = function.call.filter.and_then(|index| batch.columns().get(index));
        let filter = filter.map(|column| column.as_boolean());
        if function.counts_rows() {
            let ones = match rows <= self.ones.len() {
                true => self.ones.slice(0, rows),
                false => Int64Array::from_value(1, rows),
            };
            return Ok((vec![Arc::new(ones)], filter));
        }
        let inputs = function.inputs.iter().map(|expr| expr.evaluate(batch)?.into_array(rows));
        Ok((inputs.collect::<Result<_, _>>()?, filter))
    }

    /// Adds the rows of `batch` to the groups with the numbers `groups`, of which there are `count`.
    fn add(
        &self,
        accumulators: &mut Accumulators,
        batch: &RecordBatch,
        groups: &[usize],
        count: usize,
    ) -> Result<(), OperatorError> {
        for (function, accumulator) in self.functions.iter().zip(&mut accumulators.0) {
            let (inputs, filter) = self.inputs(function, batch)?;
            accumulator.update_batch(&inputs, groups, filter, count)?;
        }
        Ok(())
    }

    /// The states over each row of `batch` alone, as [`Functions::state_fields`] says, made by `accumulators`, which stay
    /// as they are.
    pub(super) fn states_of_rows(
        &self,
        accumulators: &Accumulators,
        batch: &RecordBatch,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut states: Vec<ArrayRef> = Vec::new();
        for (function, accumulator) in self.functions.iter().zip(&accumulators.0) {
            let (inputs, filter) = self.inputs(function, batch)?;
            match inputs.as_slice() {
                [value] if filter.is_none() && function.keeps(value) => states.push(Arc::clone(value)),
                _ => states.extend(accumulator.convert_to_state(&inputs, filter)?),
            }
        }
        Ok(states)
    }
}

impl Function {
    /// Whether it counts rows, whatever is in them.
    fn counts_rows(&self) -> bool {
        let is_value = |expr: &Arc<dyn PhysicalExpr>| {
            expr.downcast_ref::<Literal>().is_some_and(|literal| !literal.value().is_null())
        };
        self.call.expr.fun().name() == "count" && !self.call.expr.is_distinct() && self.inputs.iter().all(is_value)
    }

    /// Whether its state over one row is the row's value: what the function would make of it takes memory and time.
    fn keeps(&self, value: &ArrayRef) -> bool {
        let [state] = self.state.as_slice() else { return false };
        let name = self.call.expr.fun().name();
        (self.counts_rows() || ["sum", "min", "max"].contains(&name)) && value.data_type() == state.data_type()
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
}

impl Groups {
    pub(super) fn try_new(aggregation: &Aggregation, functions: &Functions) -> Result<Self, OperatorError> {
        let keys = KeyIndex::try_new(&aggregation.keys)?;
        Ok(Self { keys, accumulators: functions.accumulators()? })
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Adds the rows, or states, of `batch`. Returns the number of each row's group, and how many groups there are.
    pub(super) fn add(
        &mut self,
        aggregation: &Aggregation,
        functions: &Functions,
        batch: &RecordBatch,
    ) -> Result<(Vec<usize>, usize), OperatorError> {
        let (keys, rows) = (aggregation.keys_of(batch), batch.num_rows());
        let numbers = match aggregation.reads {
            AggregateInput::States => self.merge(functions, &keys, aggregation.states_of(batch), rows)?,
            AggregateInput::Rows => {
                let numbers = self.number(&keys, rows)?;
                functions.add(&mut self.accumulators, batch, &numbers, self.keys.len())?;
                numbers
            }
        };
        Ok((numbers, self.keys.len()))
    }

    /// Merges the states of `rows` keys, as [`Groups::take_states`] gives them. Returns the number of each row's group.
    pub(super) fn merge(
        &mut self,
        functions: &Functions,
        keys: &[ArrayRef],
        states: &[ArrayRef],
        rows: usize,
    ) -> Result<Vec<usize>, OperatorError> {
        let numbers = self.number(keys, rows)?;
        self.accumulators.merge(functions, states, &numbers, self.keys.len())?;
        Ok(numbers)
    }

    /// The number of each row's group. Memory for each batch: there may be thousands of these, one for each open window.
    fn number(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<usize>, OperatorError> {
        let mut numbers = Vec::with_capacity(rows);
        self.keys.intern(keys, rows, &mut numbers)?;
        Ok(numbers)
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
