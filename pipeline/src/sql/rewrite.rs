//! Turns an analyzed plan into one of nodes that operators can run, and checks what streams cannot do.
//!
//! Goes bottom up and knows of every node whether its rows may be withdrawn, and which of its columns are the window
//! that its rows belong to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::builder::add_group_by_exprs_from_dependencies;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, Extension, Filter, LogicalPlan, Projection, TableScan, Unnest,
};
use datafusion::sql::sqlparser::tokenizer::{Location, Span};

use super::catalog::{Catalog, Relation, TableKind};
use super::error::{Refusal, Result};
use super::functions::{AsyncCall, RowTime, Tumble, interval};
use super::nodes::{AsyncCallNode, WindowAggregate};
use super::parse::Places;
use crate::runtime::AsyncFunction;

/// A rewritten plan and what is known of its rows.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) plan: LogicalPlan,
    /// Whether rows may be withdrawn.
    pub(super) updating: bool,
    window: Option<Lineage>,
}

/// The window that rows belong to since they left its aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lineage {
    width: Duration,
    /// The columns that hold it.
    columns: BTreeSet<usize>,
}

impl Lineage {
    /// The same window where the columns are picked or moved: `source(i)` is where output column `i` comes from.
    fn carried(&self, outputs: usize, source: impl Fn(usize) -> Option<usize>) -> Self {
        let holds = |output: &usize| source(*output).is_some_and(|input| self.columns.contains(&input));
        Self { width: self.width, columns: (0..outputs).filter(holds).collect() }
    }
}

/// Rewrites the plan of one statement.
pub(super) struct Rewriter<'r, 'a> {
    pub(super) catalog: &'r Catalog<'a>,
    /// The memory tables that were filled so far, and whether their rows may be withdrawn.
    pub(super) filled: &'r HashMap<String, bool>,
    /// Where to look for what a message means: the statement, or the view that is being read.
    pub(super) places: &'r Places,
}

impl Rewriter<'_, '_> {
    pub(super) fn rewrite(&self, plan: LogicalPlan) -> Result<Flow> {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Projection(projection) => self.projection(projection),
            LogicalPlan::Filter(mut filter) => {
                self.refuse_placeholders(std::slice::from_ref(&filter.predicate), "a condition")?;
                let input = self.rewrite(Arc::unwrap_or_clone(filter.input))?;
                self.refuse_row_time_of_changes(std::slice::from_ref(&filter.predicate), &input)?;
                filter.input = Arc::new(input.plan);
                Ok(Flow { plan: LogicalPlan::Filter(filter), ..input })
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let view = self.catalog.get(alias.alias.table()).and_then(|table| match &table.kind {
                    TableKind::View(_, places) => Some(places),
                    _ => None,
                });
                let within = Rewriter { places: view.unwrap_or(self.places), ..*self };
                let input = within.rewrite(alias.input.as_ref().clone())?;
                let plan = LogicalPlan::SubqueryAlias(alias);
                let plan = self.checked(plan.with_new_exprs(Vec::new(), vec![input.plan]))?;
                Ok(Flow { plan, ..input })
            }
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let columns = input.schema().columns().into_iter().map(Expr::Column).collect();
                self.aggregate(self.checked(Aggregate::try_new(input, columns, Vec::new()))?)
            }
            LogicalPlan::EmptyRelation(_) => Err(Refusal::new(self.places.start(), "the query reads no table").hint(
                "add FROM; a stream of rows by the clock is `CREATE TABLE beats WITH (connector = 'impulse', ...)`",
            )),
            other => {
                let name = other.display().to_string();
                let name = name.split([':', ' ']).next().unwrap_or_default().to_owned();
                Err(Refusal::new(self.place(&other.expressions()), format!("{name} is not supported on streams")))
            }
        }
    }

    fn scan(&self, scan: TableScan) -> Result<Flow> {
        let name = Relation::name_of(&scan.source).unwrap_or_default();
        let updating = match self.catalog.get(name).map(|table| &table.kind) {
            Some(TableKind::Connector(table)) => {
                let source = table.source.as_ref();
                source.and_then(|source| source.stage.output()).is_some_and(|output| output.is_updating())
            }
            _ => self.filled.get(name).copied().unwrap_or(false),
        };
        Ok(Flow { plan: LogicalPlan::TableScan(scan), updating, window: None })
    }

    fn projection(&self, projection: Projection) -> Result<Flow> {
        let input = Arc::unwrap_or_clone(projection.input);
        let mut flow = self.rewrite(self.checked(without_implied_keys(&projection.expr, input))?)?;
        if let Some(call) = calls::<Tumble>(&projection.expr).first() {
            return Err(self.tumble_outside_group_by(call));
        }
        self.refuse_row_time_of_changes(&projection.expr, &flow)?;
        let sources: Vec<_> = projection.expr.iter().map(|expr| column_index(expr, flow.plan.schema())).collect();
        flow.window = flow.window.map(|w| w.carried(sources.len(), |output| sources.get(output).copied().flatten()));
        let mut calls = calls::<AsyncCall>(&projection.expr).into_iter();
        flow.plan = match (calls.next(), calls.next()) {
            (None, _) => {
                self.checked(Projection::try_new(projection.expr, Arc::new(flow.plan))).map(LogicalPlan::Projection)?
            }
            (Some(call), None) if flow.updating => {
                let name = call.func.name();
                return Err(Refusal::new(
                    self.call(name),
                    format!("the async UDF `{name}` cannot be called for rows that change"),
                )
                .hint("call it before the rows are grouped"));
            }
            (Some(call), None) if is_conditional(&projection.expr) => {
                let name = call.func.name();
                return Err(Refusal::new(
                    self.call(name),
                    format!("the async UDF `{name}` cannot be called within CASE"),
                )
                .hint("keep the rows that need the call with WHERE, and call it in their SELECT list"));
            }
            (Some(call), None) => self.checked(split_async_call(flow.plan, projection.expr, &call))?,
            (Some(_), Some(second)) => {
                let name = second.func.name();
                let mut places = self.places.calls(name);
                let span = places.next();
                let span = places.next().or(span).unwrap_or_else(|| self.place(&second.args));
                return Err(Refusal::new(span, format!("`{name}` is a second call of an async UDF in one SELECT"))
                    .hint("make one of the calls in a subquery or a view of its own"));
            }
        };
        Ok(flow)
    }

    fn unnest(&self, unnest: Unnest) -> Result<Flow> {
        let place = || self.places.calls("unnest").next().unwrap_or_else(|| self.places.start());
        if !unnest.struct_type_columns.is_empty() {
            return Err(Refusal::new(place(), "unnest of a STRUCT is not supported").hint("select its fields by name"));
        }
        let [(_, list)] = unnest.list_type_columns.as_slice() else {
            let span = self.places.calls("unnest").nth(1).unwrap_or_else(place);
            return Err(Refusal::new(span, "a SELECT can unnest one list").hint("unnest the other one in a subquery"));
        };
        if list.depth != 1 {
            return Err(Refusal::new(place(), "unnest of nested lists is not supported")
                .hint("unnest the outer list in a subquery"));
        }
        let dependencies = unnest.dependency_indices.clone();
        let flow = self.rewrite(unnest.input.as_ref().clone())?;
        let plan = LogicalPlan::Unnest(unnest);
        let plan = self.checked(plan.with_new_exprs(plan.expressions(), vec![flow.plan]))?;
        let window = flow.window.map(|w| w.carried(dependencies.len(), |output| dependencies.get(output).copied()));
        Ok(Flow { plan, window, ..flow })
    }

    fn aggregate(&self, aggregate: Aggregate) -> Result<Flow> {
        let place = place_of(&aggregate.group_expr).or_else(|| place_of(&aggregate.aggr_expr));
        let place = place.or_else(|| self.places.word("group")).unwrap_or_else(|| self.places.start());
        self.refuse_placeholders(&aggregate.aggr_expr, "an aggregate")?;
        let flow = self.rewrite(aggregate.input.as_ref().clone())?;
        if flow.updating {
            return Err(Refusal::new(place, "an aggregate cannot read rows that change")
                .hint("aggregate the rows before they are grouped without a window, or give the first GROUP BY a window such as \
                    `tumble(interval '1 minute')`"));
        }
        let windows = self.windows(&aggregate.group_expr, &flow)?;
        let width = match (windows.as_slice(), &flow.window) {
            ([], None) => {
                let aggregate = Aggregate::try_new(Arc::new(flow.plan), aggregate.group_expr, aggregate.aggr_expr);
                let plan = LogicalPlan::Aggregate(self.checked(aggregate)?);
                return Ok(Flow { plan, updating: true, window: None });
            }
            ([], Some(_)) => {
                return Err(Refusal::new(place, "an aggregate over rows of a window must be by a window as well")
                    .hint(
                        "add the window to GROUP BY, or put a table without a connector in between: `CREATE TABLE name \
                        (columns); INSERT INTO name SELECT ...`",
                    ));
            }
            ([(_, width)], lineage) => {
                if let Some(lineage) = lineage.as_ref().filter(|lineage| lineage.width != *width) {
                    let message =
                        format!("the rows belong to windows of {:?} already, not of {width:?}", lineage.width);
                    return Err(Refusal::new(place, message).hint("group by the same window"));
                }
                *width
            }
            _ => return Err(Refusal::new(place, "GROUP BY holds two windows").hint("group by one")),
        };
        let position = windows.first().map_or(0, |(position, _)| *position);
        let mut keys = aggregate.group_expr;
        keys.remove(position);
        self.refuse_placeholders(&keys, "GROUP BY")?;
        let (aggregates, schema) = (aggregate.aggr_expr, aggregate.schema);
        let node = WindowAggregate { input: flow.plan, width, position, keys, aggregates, schema };
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(Flow { plan, updating: false, window: Some(Lineage { width, columns: [position].into() }) })
    }

    /// The windows among the expressions of GROUP BY: their places in the list, and widths.
    fn windows(&self, group: &[Expr], input: &Flow) -> Result<Vec<(usize, Duration)>> {
        let mut windows = Vec::new();
        for (position, expr) in group.iter().enumerate() {
            if let Expr::GroupingSet(_) = expr {
                return Err(Refusal::new(self.place(group), "GROUPING SETS, ROLLUP and CUBE are not supported")
                    .hint("write one query for each set of columns"));
            }
            let column = column_index(expr, input.plan.schema());
            if let Some(lineage) = input.window.as_ref().filter(|w| column.is_some_and(|c| w.columns.contains(&c))) {
                windows.push((position, lineage.width));
            }
            if let Expr::ScalarFunction(call) = unaliased(expr)
                && call.func.inner().is::<Tumble>()
            {
                let width = interval("the width of a window", call.args.first()).map_err(|message| {
                    let span = self.places.calls("tumble").next().unwrap_or_else(|| self.places.start());
                    Refusal::new(span, message).hint("write it as in `tumble(interval '1 minute')`")
                })?;
                windows.push((position, width));
            } else {
                self.refuse_placeholders(std::slice::from_ref(expr), "GROUP BY")?;
            }
        }
        Ok(windows)
    }

    /// Refuses calls that only an operator can make, in a place that no operator computes.
    fn refuse_placeholders(&self, exprs: &[Expr], place: &str) -> Result<()> {
        if let Some(call) = calls::<AsyncCall>(exprs).first() {
            let name = call.func.name();
            let span = self.places.calls(name).next().unwrap_or_else(|| self.place(exprs));
            return Err(Refusal::new(span, format!("the async UDF `{name}` cannot be called in {place}"))
                .hint("call it in the SELECT list of a subquery or view, and use the result here"));
        }
        match calls::<Tumble>(exprs).first() {
            Some(call) => Err(self.tumble_outside_group_by(call)),
            None => Ok(()),
        }
    }

    /// The withdrawal of a row has another time than the row.
    fn refuse_row_time_of_changes(&self, exprs: &[Expr], input: &Flow) -> Result<()> {
        match calls::<RowTime>(exprs).first() {
            Some(call) if input.updating => {
                Err(Refusal::new(self.call(call.func.name()), "rows that change have no time of their own")
                    .hint("select max(row_time()) where the rows are grouped"))
            }
            _ => Ok(()),
        }
    }

    /// The first call of function `name`.
    fn call(&self, name: &str) -> Span {
        self.places.calls(name).next().unwrap_or_else(|| self.places.start())
    }

    fn tumble_outside_group_by(&self, call: &ScalarFunction) -> Refusal {
        let span = self.places.calls(call.func.name()).next().unwrap_or_else(|| self.places.start());
        Refusal::new(span, "a window can only be a term of its own in GROUP BY and the SELECT list of that GROUP BY")
            .hint("write `SELECT tumble(interval '1 minute') AS window, ... GROUP BY window, ...`")
    }

    /// The place of the first column among `exprs`.
    fn place(&self, exprs: &[Expr]) -> Span {
        place_of(exprs).unwrap_or_else(|| self.places.start())
    }

    fn checked<T>(&self, result: DataFusionResult<T>) -> Result<T> {
        result.map_err(|error| Refusal::from_datafusion(&error, |message| self.places.meant_by(message)))
    }
}

/// The place of the first column among `exprs` that has one.
pub(super) fn place_of(exprs: &[Expr]) -> Option<Span> {
    let mut found = None;
    for expr in exprs {
        let _ = expr.apply(|expr| {
            if let Expr::Column(column) = expr
                && let Some(span) = column.spans.first()
            {
                let location = |at: datafusion::common::Location| Location::new(at.line, at.column);
                found = Some(Span::new(location(span.start), location(span.end)));
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        });
        if found.is_some() {
            break;
        }
    }
    found
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// The column of `schema` that `expr` is, under whatever name.
pub(super) fn column_index(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match unaliased(expr) {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        _ => None,
    }
}

/// `plan` without the keys of an aggregate on top that neither the query names nor `exprs` read.
///
/// DataFusion's planner adds to GROUP BY every column that those in it determine, so that it can be selected: columns
/// beside the keys of an aggregate below, a second name of the window among them.
fn without_implied_keys(exprs: &[Expr], plan: LogicalPlan) -> DataFusionResult<LogicalPlan> {
    match plan {
        LogicalPlan::Filter(filter) => {
            let exprs = exprs.iter().chain([&filter.predicate]).cloned().collect::<Vec<_>>();
            let input = without_implied_keys(&exprs, Arc::unwrap_or_clone(filter.input))?;
            Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate, Arc::new(input))?))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let named = named_keys(&aggregate)?;
            if named == aggregate.group_expr.len() {
                return Ok(LogicalPlan::Aggregate(aggregate));
            }
            let read: HashSet<&Column> = exprs.iter().flat_map(Expr::column_refs).collect();
            let columns = aggregate.schema.columns();
            let is_kept = |position: usize| position < named || columns.get(position).is_some_and(|c| read.contains(c));
            let keys = aggregate.group_expr.into_iter().enumerate().filter(|(position, _)| is_kept(*position));
            let keys = keys.map(|(_, key)| key).collect();
            Ok(LogicalPlan::Aggregate(Aggregate::try_new(aggregate.input, keys, aggregate.aggr_expr)?))
        }
        other => Ok(other),
    }
}

/// How many of the aggregate's keys there are before those that they imply.
fn named_keys(aggregate: &Aggregate) -> DataFusionResult<usize> {
    let keys = &aggregate.group_expr;
    for named in 1..keys.len() {
        let first = keys.get(..named).unwrap_or_default().to_vec();
        if add_group_by_exprs_from_dependencies(first, aggregate.input.schema())? == *keys {
            return Ok(named);
        }
    }
    Ok(keys.len())
}

/// All calls of functions of type `F`.
fn calls<F: datafusion::logical_expr::ScalarUDFImpl>(exprs: &[Expr]) -> Vec<ScalarFunction> {
    let mut found = Vec::new();
    for expr in exprs {
        let _ = expr.apply(|expr| {
            if let Expr::ScalarFunction(call) = expr
                && call.func.inner().is::<F>()
            {
                found.push(call.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        });
    }
    found
}

/// Whether an async call is made for some rows only.
fn is_conditional(exprs: &[Expr]) -> bool {
    let has_call = |case: &Expr| !calls::<AsyncCall>(std::slice::from_ref(case)).is_empty();
    let conditional = |expr: &Expr| expr.exists(|expr| Ok(matches!(expr, Expr::Case(_)) && has_call(expr)));
    exprs.iter().any(|expr| conditional(expr).unwrap_or(false))
}

/// `SELECT exprs` with one async call inside becomes three nodes: the arguments, the call, the rest.
fn split_async_call(input: LogicalPlan, exprs: Vec<Expr>, call: &ScalarFunction) -> DataFusionResult<LogicalPlan> {
    let Some(placeholder) = call.func.inner().downcast_ref::<AsyncCall>() else {
        return Err(DataFusionError::Internal(format!("`{}` is not async", call.func.name())));
    };
    let function: Arc<dyn AsyncFunction> = Arc::clone(&placeholder.function);
    let mut args = Vec::with_capacity(call.args.len());
    let mut computed = Vec::new();
    for (i, arg) in call.args.iter().enumerate() {
        match unaliased(arg) {
            Expr::Column(_) => args.push(unaliased(arg).clone()),
            arg => {
                let name = format!("__{}_{}", function.name(), i + 1);
                computed.push(arg.clone().alias(&name));
                args.push(Expr::Column(Column::new_unqualified(name)));
            }
        }
    }
    let input = match computed.is_empty() {
        true => input,
        false => {
            let kept = input.schema().columns().into_iter().map(Expr::Column);
            LogicalPlan::Projection(Projection::try_new(kept.chain(computed).collect(), Arc::new(input))?)
        }
    };
    let result = Expr::Column(AsyncCallNode::result_column(function.as_ref()));
    let node = AsyncCallNode::try_new(input, function, args)?;
    let called = Arc::new(LogicalPlan::Extension(Extension { node: Arc::new(node) }));
    let names = NamePreserver::new_for_projection();
    let exprs = exprs.into_iter().map(|expr| {
        let name = names.save(&expr);
        let replaced = expr.transform(|expr| match expr {
            Expr::ScalarFunction(call) if call.func.inner().is::<AsyncCall>() => Ok(Transformed::yes(result.clone())),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(name.restore(replaced.data))
    });
    let exprs = exprs.collect::<DataFusionResult<Vec<_>>>()?;
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, called)?))
}
