//! A rewritten logical plan to nodes of the dataflow.
//!
//! Logical plans know visible columns only. The nodes' hidden columns stand behind the visible ones, and each node passes
//! them on. Columns are found by position: a logical node whose columns are merely picked and renamed adds no node.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, Unnest as LogicalUnnest};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::catalog::{Catalog, Relation, TableKind};
use super::functions::RowTime;
use super::nodes::{AsyncCallNode, WindowAggregate};
use super::rewrite::column_index;
use super::source::SourcePlan;
use crate::operators::{self, NodeError};
use crate::plan::{Exchange, GraphError, NodeId, StreamSchema};
use crate::runtime::{Job, Stage};

/// A plan that no node can be made for. It has no place: the caller knows the statement.
#[derive(Debug, thiserror::Error)]
pub(super) enum LowerError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("{}", .0.strip_backtrace())]
    Expression(#[from] DataFusionError),
    #[error("the query can never give a row")]
    Never,
    #[error("the query gives one row, whatever its tables hold")]
    Constant,
    #[error("{0}")]
    Unsupported(String),
}

impl LowerError {
    /// What the user can do.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Never => "change its condition: it is true of no row",
            Self::Constant => "select a column, not only constants",
            _ => "give the part that the message names the type that it needs: `CAST(x AS TYPE)`",
        }
    }
}

pub(super) type LowerResult<T> = std::result::Result<T, LowerError>;

/// The columns of a logical node, and where they are among those of a dataflow node.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) node: NodeId,
    pub(super) schema: DFSchemaRef,
    /// For each logical column its index in the node's output.
    pub(super) columns: Vec<usize>,
}

/// Adds the nodes of one plan after the other to a job.
pub(super) struct Lowering<'l, 'a> {
    pub(super) catalog: &'l Catalog<'a>,
    pub(super) job: &'l mut Job,
    /// The nodes behind tables: sources opened and memory tables filled so far.
    pub(super) tables: &'l mut HashMap<String, NodeId>,
    /// How long updating aggregates keep a key.
    pub(super) ttl: std::time::Duration,
}

impl Lowering<'_, '_> {
    pub(super) fn lower(&mut self, plan: &LogicalPlan) -> LowerResult<Stream> {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::SubqueryAlias(alias) => {
                Ok(Stream { schema: Arc::clone(&alias.schema), ..self.lower(&alias.input)? })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.lower(&filter.input)?;
                let columns = filter.input.schema().columns().into_iter().map(Expr::Column).collect::<Vec<_>>();
                self.project(input, &columns, Some(&filter.predicate), Arc::clone(filter.input.schema()))
            }
            LogicalPlan::Projection(projection) => {
                let (input, predicate) = self.filtered(&projection.input)?;
                self.project(input, &projection.expr, predicate, Arc::clone(&projection.schema))
            }
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::Aggregate(aggregate) => self.updating_aggregate(aggregate),
            LogicalPlan::Extension(extension) => {
                let node = extension.node.as_any();
                if let Some(aggregate) = node.downcast_ref::<WindowAggregate>() {
                    return self.window_aggregate(aggregate);
                }
                match node.downcast_ref::<AsyncCallNode>() {
                    Some(call) => self.async_call(call),
                    None => Err(LowerError::Unsupported(format!("no operator for {}", plan.display()))),
                }
            }
            LogicalPlan::EmptyRelation(one) if one.produce_one_row => Err(LowerError::Constant),
            LogicalPlan::EmptyRelation(_) => Err(LowerError::Never),
            other => Err(LowerError::Unsupported(format!("no operator for {}", other.display()))),
        }
    }

    /// A plan without the filter on top of it, and that filter's condition: both go into the node that reads them.
    pub(super) fn filtered<'p>(&mut self, plan: &'p LogicalPlan) -> LowerResult<(Stream, Option<&'p Expr>)> {
        match plan {
            LogicalPlan::Filter(filter) => Ok((self.lower(&filter.input)?, Some(&filter.predicate))),
            other => Ok((self.lower(other)?, None)),
        }
    }

    /// Adds a node that reads one other.
    pub(super) fn add(
        &mut self,
        stage: impl Stage + 'static,
        input: NodeId,
        exchange: Exchange,
    ) -> LowerResult<NodeId> {
        Ok(self.job.add(None, Arc::new(stage), vec![(input, exchange)])?)
    }

    pub(super) fn output(&self, node: NodeId) -> LowerResult<&StreamSchema> {
        let missing = || LowerError::Unsupported(format!("node number {} sends nothing", node.0));
        self.job.output(node).ok_or_else(missing)
    }

    fn scan(&mut self, scan: &TableScan) -> LowerResult<Stream> {
        let name = Relation::name_of(&scan.source).unwrap_or_default();
        let node = match self.tables.get(name) {
            Some(node) => *node,
            None => self.source(name)?,
        };
        let all = scan.source.schema().fields().len();
        let columns = scan.projection.clone().unwrap_or_else(|| (0..all).collect());
        let stream = Stream { node, schema: Arc::clone(&scan.projected_schema), columns };
        if scan.filters.is_empty() {
            return Ok(stream);
        }
        Err(LowerError::Unsupported(format!("a filter inside the scan of `{name}`")))
    }

    /// Adds the nodes that read table `name`: the connector's, generated columns, event time.
    fn source(&mut self, name: &str) -> LowerResult<NodeId> {
        let source = match self.catalog.get(name).map(|table| &table.kind) {
            Some(TableKind::Connector(table)) => table.source.clone(),
            _ => None,
        };
        let Some(SourcePlan { stage, columns, schema, event_time, watermark, idle }) = source else {
            return Err(LowerError::Unsupported(format!("the table `{name}` is read before it is filled")));
        };
        let mut node = self.job.add(Some(name), stage, Vec::new())?;
        if let Some(columns) = columns {
            let raw = arrow::datatypes::Schema::new(self.output(node)?.visible().to_vec());
            let stream = self.whole(node, Arc::new(DFSchema::try_from_qualified_schema(name, &raw)?))?;
            let exprs = columns.iter().map(|(expr, name)| Ok((self.physical(expr, &stream)?, name.clone())));
            let exprs = exprs.collect::<LowerResult<Vec<_>>>()?;
            let project = operators::Project::try_new(self.output(node)?, exprs, None)?;
            node = self.add(project, node, Exchange::Forward)?;
        }
        let stream = self.whole(node, Arc::new(DFSchema::try_from_qualified_schema(name, &schema)?))?;
        let watermark = watermark.map(|expr| self.physical(&expr, &stream)).transpose()?;
        let watermark = operators::Watermark::try_new(self.output(node)?, event_time, watermark, idle)?;
        let node = self.add(watermark, node, Exchange::Forward)?;
        self.tables.insert(name.to_owned(), node);
        Ok(node)
    }

    /// All visible columns of a node, under the names of `schema`.
    pub(super) fn whole(&self, node: NodeId, schema: DFSchemaRef) -> LowerResult<Stream> {
        let columns = (0..self.output(node)?.visible_len()).collect();
        Ok(Stream { node, schema, columns })
    }

    /// Picks `exprs` of the rows that `predicate` keeps; adds a node only when something is to be computed.
    pub(super) fn project(
        &mut self,
        input: Stream,
        exprs: &[Expr],
        predicate: Option<&Expr>,
        schema: DFSchemaRef,
    ) -> LowerResult<Stream> {
        let picked: Option<Vec<usize>> = exprs.iter().map(|e| column_index(e, &input.schema)).collect();
        if let (Some(picked), None) = (&picked, predicate) {
            let columns = picked.iter().filter_map(|index| input.columns.get(*index).copied()).collect();
            return Ok(Stream { node: input.node, schema, columns });
        }
        let names = schema.fields().iter().map(|field| field.name().clone());
        self.computed(&input, exprs, names.collect(), predicate, schema)
    }

    /// Adds the node that computes `exprs`, each with its column's name, over the rows that `predicate` keeps.
    pub(super) fn computed(
        &mut self,
        input: &Stream,
        exprs: &[Expr],
        names: Vec<String>,
        predicate: Option<&Expr>,
        schema: DFSchemaRef,
    ) -> LowerResult<Stream> {
        let predicate = predicate.map(|expr| self.physical(expr, input)).transpose()?;
        let exprs = exprs.iter().zip(names).map(|(expr, name)| Ok((self.physical(expr, input)?, name)));
        let exprs = exprs.collect::<LowerResult<Vec<_>>>()?;
        let project = operators::Project::try_new(self.output(input.node)?, exprs, predicate)?;
        let node = self.add(project, input.node, Exchange::Forward)?;
        self.whole(node, schema)
    }

    fn unnest(&mut self, unnest: &LogicalUnnest) -> LowerResult<Stream> {
        let mut input = self.lower(&unnest.input)?;
        let Some((list, _)) = unnest.list_type_columns.first() else {
            return Err(LowerError::Unsupported("unnest without a list".into()));
        };
        let physical = |input: &Stream| input.columns.get(*list).copied().unwrap_or_default();
        let column = physical(&input);
        if input.columns.iter().filter(|c| **c == column).count() > 1 {
            // The list is also wanted as it is: its elements need a column of their own.
            let exprs: Vec<Expr> = input.schema.columns().into_iter().map(Expr::Column).collect();
            let names = input.schema.fields().iter().map(|field| field.name().clone()).collect();
            let schema = Arc::clone(&input.schema);
            input = self.computed(&input, &exprs, names, None, schema)?;
        }
        let node = operators::Unnest::try_new(self.output(input.node)?, physical(&input))?;
        let node = self.add(node, input.node, Exchange::Forward)?;
        let columns = unnest.dependency_indices.iter().filter_map(|index| input.columns.get(*index).copied()).collect();
        Ok(Stream { node, schema: Arc::clone(&unnest.schema), columns })
    }

    fn async_call(&mut self, call: &AsyncCallNode) -> LowerResult<Stream> {
        use datafusion::logical_expr::UserDefinedLogicalNodeCore;
        let input = self.lower(&call.input)?;
        let args = call.args.iter().map(|arg| {
            let column = column_index(arg, &input.schema).and_then(|index| input.columns.get(index).copied());
            column.ok_or_else(|| LowerError::Unsupported(format!("the argument {arg} is not a column")))
        });
        let args = args.collect::<LowerResult<Vec<_>>>()?;
        let name = AsyncCallNode::result_column(call.function.as_ref()).name;
        let output = self.output(input.node)?;
        let result = output.visible_len();
        let node = operators::AsyncUdf::try_new(output, Arc::clone(&call.function), args, name)?;
        let node = self.add(node, input.node, Exchange::Forward)?;
        let mut columns = input.columns;
        columns.push(result);
        Ok(Stream { node, schema: Arc::clone(call.schema()), columns })
    }

    /// `expr` over the columns of the stream's node.
    pub(super) fn physical(&self, expr: &Expr, stream: &Stream) -> LowerResult<Arc<dyn PhysicalExpr>> {
        let output = self.output(stream.node)?;
        Ok(physical(expr, stream, output)?)
    }
}

/// `expr`, over a stream's logical columns, as an expression over the columns of its node's `output`.
fn physical(expr: &Expr, stream: &Stream, output: &StreamSchema) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    // `row_time()` reads a column that the logical plan does not know: it is put behind those that it knows.
    let fields = stream.schema.iter().map(|(relation, field)| (relation.cloned(), Arc::clone(field)));
    let hidden = output.schema().field(output.timestamp_index());
    let hidden_column = Expr::Column(datafusion::common::Column::new_unqualified(hidden.name()));
    let fields = fields.chain([(None, Arc::new(hidden.clone()))]).collect();
    let schema = DFSchema::new_with_metadata(fields, HashMap::new())?;
    let expr = expr.clone().transform(|expr| match expr {
        Expr::ScalarFunction(call) if call.func.inner().is::<RowTime>() => Ok(Transformed::yes(hidden_column.clone())),
        other => Ok(Transformed::no(other)),
    })?;
    let logical =
        create_physical_expr(&expr.data, &schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    let moved = logical.transform(|expr| {
        let Some(column) = expr.downcast_ref::<PhysicalColumn>() else { return Ok(Transformed::no(expr)) };
        let index = match stream.columns.get(column.index()) {
            Some(index) => *index,
            None => output.timestamp_index(),
        };
        let name = output.schema().field(index).name();
        Ok(Transformed::yes(Arc::new(PhysicalColumn::new(name, index)) as _))
    })?;
    Ok(moved.data)
}
