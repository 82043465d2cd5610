//! DataFusion's rules, as far as they hold for streams.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::Transformed;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{ApplyOrder, Optimizer, OptimizerConfig, OptimizerContext, OptimizerRule};

use super::catalog::Relation;

/// Resolves types and functions: adds casts, rewrites JSON operators, checks.
pub(super) fn analyze(session: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan> {
    session.analyzer().execute_and_check(plan, session.config_options(), |_, _| {})
}

/// Makes a rewritten plan cheaper. Only rules that keep one row's result a matter of that row: none that reads
/// statistics, orders or limits, splits aggregates, or takes the time of planning for now.
pub(super) fn optimize(session: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan> {
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(SimplifyExpressions::new()),
        Arc::new(PushDownFilterToNode(PushDownFilter::new())),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(OptimizeProjections::new()),
    ];
    let context = OptimizerContext::new_with_config_options(Arc::clone(session.config_options()))
        .without_query_execution_start_time();
    Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {})
}

/// [`PushDownFilter`], but for conditions over one of our nodes that read no column: DataFusion takes them for ones that
/// mean the same below it. `row_time()` does not: a window's rows have a time of their own.
#[derive(Debug)]
struct PushDownFilterToNode(PushDownFilter);

impl OptimizerRule for PushDownFilterToNode {
    fn name(&self) -> &str {
        "push_down_filter_to_node"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match is_without_columns_over_node(&plan, false) {
            true => Ok(Transformed::no(plan)),
            false => self.0.rewrite(plan, config),
        }
    }
}

/// Whether `plan` is filters over one of our nodes, and a condition in them, or one `above`, reads no column.
fn is_without_columns_over_node(plan: &LogicalPlan, above: bool) -> bool {
    match plan {
        LogicalPlan::Filter(filter) => {
            let reads_none = |expr: &&Expr| expr.column_refs().is_empty();
            let here = split_conjunction(&filter.predicate).iter().any(reads_none);
            is_without_columns_over_node(&filter.input, above || here)
        }
        LogicalPlan::Extension(_) => above,
        _ => false,
    }
}

/// `exprs` over the columns of table `name`, with types resolved and constants computed.
pub(super) fn typed(session: &SessionState, name: &str, schema: &SchemaRef, exprs: Vec<Expr>) -> Result<Vec<Expr>> {
    let relation = Relation::detached(name, Arc::clone(schema));
    let plan = LogicalPlanBuilder::scan(name, relation, None)?.project(exprs)?.build()?;
    match analyze(session, plan)? {
        LogicalPlan::Projection(projection) => Ok(projection.expr),
        other => Err(DataFusionError::Internal(format!("not a projection: {}", other.display()))),
    }
}
