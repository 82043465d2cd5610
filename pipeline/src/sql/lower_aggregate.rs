//! Aggregates: a projection of keys and arguments in front, a partial aggregate where the functions allow it, an exchange by
//! key, the operator.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::Field;
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;

use super::lower::{LowerError, LowerResult, Lowering, Stream};
use super::nodes::WindowAggregate;
use crate::operators::{AggregateCall, AggregateInput, PartialAggregate, TumblingAggregate, UpdatingAggregate};
use crate::plan::{Exchange, NodeId};

/// The columns that stand in front of an aggregate.
struct Arguments<'s> {
    input: &'s DFSchema,
    exprs: Vec<Expr>,
    names: Vec<String>,
    taken: HashSet<String>,
}

impl Arguments<'_> {
    /// The column of `expr`, added if there is none yet.
    fn column(&mut self, expr: &Expr) -> Column {
        if let Some(at) = self.exprs.iter().position(|known| known == expr)
            && let Some(name) = self.names.get(at)
        {
            return Column::new_unqualified(name);
        }
        let base = match expr {
            Expr::Column(column) => column.name.clone(),
            other => other.schema_name().to_string(),
        };
        let mut name = base.clone();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{base}_{number}");
        }
        self.exprs.push(expr.clone());
        self.names.push(name.clone());
        Column::new_unqualified(name)
    }

    /// `expr` itself when it is a constant, else its column.
    fn argument(&mut self, expr: Expr) -> Expr {
        match expr {
            Expr::Literal(..) => expr,
            Expr::Alias(alias) => self.argument(*alias.expr),
            other => Expr::Column(self.column(&other)),
        }
    }

    /// An aggregate with its arguments replaced by columns, under its old name.
    fn call(&mut self, expr: &Expr) -> LowerResult<Expr> {
        match expr {
            Expr::Alias(alias) => Ok(self.call(&alias.expr)?.alias(&alias.name)),
            Expr::AggregateFunction(AggregateFunction { func, params }) => {
                let mut params: AggregateFunctionParams = params.clone();
                params.args = params.args.into_iter().map(|arg| self.argument(arg)).collect();
                params.filter = params.filter.map(|filter| Box::new(Expr::Column(self.column(&filter))));
                for sort in &mut params.order_by {
                    sort.expr = self.argument(sort.expr.clone());
                }
                let call = Expr::AggregateFunction(AggregateFunction { func: Arc::clone(func), params });
                Ok(call.alias(expr.schema_name().to_string()))
            }
            other => Err(LowerError::Unsupported(format!("`{other}` is not an aggregate"))),
        }
    }

    fn schema(&self) -> LowerResult<DFSchemaRef> {
        let fields = self.exprs.iter().zip(&self.names).map(|(expr, name)| {
            let (_, field) = expr.to_field(self.input)?;
            Ok((None::<TableReference>, Arc::new(Field::clone(&field).with_name(name))))
        });
        let fields = fields.collect::<LowerResult<Vec<_>>>()?;
        Ok(Arc::new(DFSchema::new_with_metadata(fields, HashMap::new())?))
    }
}

/// What an aggregate reads: its keys' columns, and its calls over the others.
struct Prepared {
    node: NodeId,
    reads: AggregateInput,
    group: Vec<usize>,
    calls: Vec<AggregateCall>,
}

impl Lowering<'_, '_> {
    pub(super) fn updating_aggregate(&mut self, aggregate: &Aggregate) -> LowerResult<Stream> {
        let (input, predicate) = self.filtered(&aggregate.input)?;
        let prepared = self.prepare(&input, &aggregate.group_expr, &aggregate.aggr_expr, predicate)?;
        let Prepared { node: from, reads, group, calls } = self.partial(prepared, None)?;
        let node = UpdatingAggregate::try_new(self.output(from)?, reads, group.clone(), calls, self.ttl)?;
        let node = self.add(node, from, Exchange::Hash(group))?;
        self.whole(node, Arc::clone(&aggregate.schema))
    }

    pub(super) fn window_aggregate(&mut self, aggregate: &WindowAggregate) -> LowerResult<Stream> {
        let (input, predicate) = self.filtered(&aggregate.input)?;
        let (width, position) = (aggregate.width, aggregate.position);
        let prepared = self.prepare(&input, &aggregate.keys, &aggregate.aggregates, predicate)?;
        let Prepared { node: from, reads, group, calls } = self.partial(prepared, Some(width))?;
        let name = aggregate.schema.field(position).name().clone();
        let output = self.output(from)?;
        let node = TumblingAggregate::try_new(output, reads, width, group.clone(), position, name, calls)?;
        let node = self.add(node, from, Exchange::Hash(group))?;
        self.whole(node, Arc::clone(&aggregate.schema))
    }

    fn prepare(
        &mut self,
        input: &Stream,
        keys: &[Expr],
        aggregates: &[Expr],
        predicate: Option<&Expr>,
    ) -> LowerResult<Prepared> {
        let mut arguments =
            Arguments { input: &input.schema, exprs: Vec::new(), names: Vec::new(), taken: HashSet::new() };
        let keys: Vec<Column> = keys.iter().map(|key| arguments.column(key)).collect();
        let calls = aggregates.iter().map(|expr| arguments.call(expr)).collect::<LowerResult<Vec<_>>>()?;
        let schema = arguments.schema()?;
        let group = keys.iter().filter_map(|key| schema.maybe_index_of_column(key)).collect();
        let Arguments { exprs, names, .. } = arguments;
        let stream = self.computed(input, &exprs, names, predicate, schema)?;
        let calls = calls.iter().map(|call| self.aggregate_call(call, &stream)).collect::<LowerResult<_>>()?;
        Ok(Prepared { node: stream.node, reads: AggregateInput::Rows, group, calls })
    }

    /// Puts a partial aggregate, by windows of `width`, in front of the exchange, if all calls can be computed of states.
    fn partial(&mut self, prepared: Prepared, width: Option<Duration>) -> LowerResult<Prepared> {
        let Prepared { node: from, group, calls, .. } = &prepared;
        if !PartialAggregate::supports(calls)? {
            return Ok(prepared);
        }
        let node = PartialAggregate::try_new(self.output(*from)?, width, group.clone(), calls.clone())?;
        let node = self.add(node, *from, Exchange::Forward)?;
        let group = (0..group.len()).collect();
        Ok(Prepared { node, reads: AggregateInput::States, group, ..prepared })
    }

    /// An aggregate over columns of `stream`, which are those of its node.
    fn aggregate_call(&self, call: &Expr, stream: &Stream) -> LowerResult<AggregateCall> {
        let physical = self.output(stream.node)?.schema();
        let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        let lowered = LoweredAggregateBuilder::new(call, &stream.schema, physical, &props, &context).build()?;
        let filter = match lowered.filter {
            None => None,
            Some(filter) => match filter.downcast_ref::<PhysicalColumn>() {
                Some(column) => Some(column.index()),
                None => return Err(LowerError::Unsupported(format!("the filter {filter} is not a column"))),
            },
        };
        Ok(AggregateCall { expr: lowered.aggregate, filter })
    }
}
