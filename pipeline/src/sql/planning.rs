//! The statements of a file, one after the other, to one dataflow.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{self, CreateView, Query, Set, Spanned};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::analyze::{analyze, optimize};
use super::catalog::{Catalog, Relation, Table, TableKind};
use super::error::{Refusal, Result};
use super::functions::interval;
use super::insert::{self, Fill, Matching};
use super::lower::{LowerError, LowerResult, Lowering, Stream};
use super::parse::{Places, Statement};
use super::query::{self, Read};
use super::rewrite::Rewriter;
use super::source::SourcePlan;
use super::table::{create_table, normalized, parser_options, table_name};
use super::{Pipeline, UPDATING_TTL};
use crate::connectors::{Connector, Options, TableDefinition};
use crate::operators::MemoryTable;
use crate::plan::{Exchange, FileUse, NodeId};
use crate::runtime::Job;

/// The connector that a bare SELECT goes to.
const PREVIEW: &str = "stdout";

/// Plans the statements of a file.
pub(super) fn plan<'a>(
    statements: Vec<Statement>,
    session: &'a SessionState,
    connectors: &'a [Box<dyn Connector>],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Pipeline> {
    let mut file = File {
        catalog: Catalog::new(session),
        connectors,
        fills: Vec::new(),
        view_reads: Vec::new(),
        updating_ttl: UPDATING_TTL,
    };
    for statement in statements {
        file.statement(statement, env)?;
    }
    file.finish()
}

/// What was declared and asked for so far.
struct File<'a> {
    catalog: Catalog<'a>,
    connectors: &'a [Box<dyn Connector>],
    fills: Vec<Fill>,
    view_reads: Vec<Read>,
    updating_ttl: Duration,
}

impl<'a> File<'a> {
    fn statement(&mut self, statement: Statement, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        match &statement.ast {
            ast::Statement::CreateTable(create) => {
                let (name, table) = create_table(create, &statement, &self.catalog, self.connectors, env)?;
                self.declare(name, table)
            }
            ast::Statement::CreateView(create) => self.view(create, &statement.places),
            ast::Statement::Insert(insert) => self.insert(insert, &statement.places),
            ast::Statement::Query(query) => self.preview(query, &statement.places),
            ast::Statement::Set(set) => self.set(set, &statement.places),
            other => Err(unsupported(other, &statement.places)),
        }
    }

    fn declare(&mut self, name: String, table: Table<'a>) -> Result<()> {
        if let Some(first) = self.catalog.get(&name) {
            return Err(Refusal::new(table.span, format!("the name `{name}` is declared twice"))
                .related(first.span, "first declared here")
                .hint("rename one of the two"));
        }
        self.catalog.insert(name, table);
        Ok(())
    }

    fn view(&mut self, create: &CreateView, places: &Places) -> Result<()> {
        let (name, span) = table_name(&create.name)?;
        if create.materialized || create.or_replace || create.if_not_exists || create.temporary {
            return Err(Refusal::new(span, "this form of CREATE VIEW is not supported")
                .hint("write `CREATE VIEW name AS SELECT ...`"));
        }
        let (mut plan, reads) = self.query(&create.query, places)?;
        if !create.columns.is_empty() {
            let columns = plan.schema().columns();
            if columns.len() != create.columns.len() {
                let message =
                    format!("the view lists {} columns, and its query gives {}", create.columns.len(), columns.len());
                return Err(Refusal::new(span, message).hint("list as many columns as the query gives"));
            }
            let aliases = create.columns.iter().map(|column| normalized(&column.name));
            let exprs = columns.into_iter().zip(aliases).map(|(column, alias)| Expr::Column(column).alias(alias));
            let renamed = Projection::try_new(exprs.collect(), Arc::new(plan));
            plan = LogicalPlan::Projection(located(renamed, places)?);
        }
        self.view_reads.extend(reads);
        self.declare(name, Table { span, kind: TableKind::View(plan, places.clone()) })
    }

    fn insert(&mut self, insert: &ast::Insert, places: &Places) -> Result<()> {
        let (name, span, query) = insert::parts(insert)?;
        let columns = insert::target_columns(&self.catalog, &name, span)?;
        let is_memory = matches!(self.catalog.get(&name).map(|t| &t.kind), Some(TableKind::Memory(_)));
        if is_memory && let Some(first) = self.fills.iter().find(|fill| fill.target.as_ref() == Some(&name)) {
            return Err(Refusal::new(span, format!("the table `{name}` is filled twice"))
                .related(first.span, "first filled here")
                .hint("a table without a connector is filled by one INSERT: declare a second table"));
        }
        let (plan, reads) = self.query(query, places)?;
        let plan = match columns {
            Some(columns) => Matching { table: &name, span, query, listed: &insert.columns }.bring(plan, &columns)?,
            None if insert.columns.is_empty() => insert::undeclared(plan, span)?,
            None => {
                return Err(Refusal::new(span, format!("`{name}` declares no columns, so none can be listed"))
                    .hint("declare its columns in CREATE TABLE, or name the query's columns with AS"));
            }
        };
        self.fills.push(Fill { target: Some(name), span, plan, reads, places: places.clone() });
        Ok(())
    }

    fn preview(&mut self, query: &Query, places: &Places) -> Result<()> {
        let (plan, reads) = self.query(query, places)?;
        let plan = insert::undeclared(plan, places.start())?;
        self.fills.push(Fill { target: None, span: places.start(), plan, reads, places: places.clone() });
        Ok(())
    }

    fn set(&mut self, set: &Set, places: &Places) -> Result<()> {
        let refused = |message: String| {
            Err(Refusal::new(places.start(), message).hint("write `SET updating_ttl = interval '1 hour'`"))
        };
        let Set::SingleAssignment { variable, values, .. } = set else {
            return refused("this form of SET is not supported".into());
        };
        if !variable.to_string().eq_ignore_ascii_case("updating_ttl") {
            return Err(Refusal::new(variable.span(), format!("there is no setting `{variable}`"))
                .hint("the only setting is `updating_ttl`, as in `SET updating_ttl = interval '1 hour'`"));
        }
        let [value] = values.as_slice() else {
            return refused("`updating_ttl` takes one interval".into());
        };
        let planner = SqlToRel::new_with_options(&self.catalog, parser_options());
        let schema = datafusion::common::DFSchema::empty();
        let value = located(planner.sql_to_expr(value.clone(), &schema, &mut PlannerContext::new()), places)?;
        match interval("`updating_ttl`", Some(&value)) {
            Ok(ttl) => self.updating_ttl = ttl,
            Err(message) => return refused(message),
        }
        Ok(())
    }

    /// Checks a query, opens what it reads, and resolves its names and types.
    fn query(&mut self, query: &Query, places: &Places) -> Result<(LogicalPlan, Vec<Read>)> {
        let reads = query::check(query, places)?;
        for read in &reads {
            self.open(read, places)?;
        }
        let planner = SqlToRel::new_with_options(&self.catalog, parser_options());
        let statement = ast::Statement::Query(Box::new(query.clone()));
        let plan = located(planner.sql_statement_to_plan(statement), places)?;
        Ok((located(analyze(self.catalog.session, plan), places)?, reads))
    }

    /// Makes the table that `read` names readable.
    fn open(&mut self, read: &Read, places: &Places) -> Result<()> {
        let Some(table) = self.catalog.get(&read.table) else {
            let refusal = Refusal::new(read.span, format!("there is no table or view `{}`", read.table));
            return Err(match self.catalog.nearest(&read.table) {
                Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                None => refusal.hint("declare it above with CREATE TABLE or CREATE VIEW"),
            });
        };
        let TableKind::Connector(connector) = &table.kind else { return Ok(()) };
        if connector.source.is_some() {
            return Ok(());
        }
        let source = SourcePlan::open(connector, table.span, read.span, places, &self.catalog)?;
        self.catalog.make_readable(&read.table, Arc::clone(&source.schema), None);
        if let Some(TableKind::Connector(table)) = self.catalog.get_mut(&read.table).map(|table| &mut table.kind) {
            table.source = Some(source);
        }
        Ok(())
    }

    fn finish(self) -> Result<Pipeline> {
        self.check_memory_reads()?;
        if self.fills.is_empty() {
            return Err(
                Refusal::new(Span::empty(), "the file has nothing to run").hint("add `INSERT INTO table SELECT ...`")
            );
        }
        let mut job = Job::default();
        let mut nodes = Nodes {
            catalog: &self.catalog,
            connectors: self.connectors,
            ttl: self.updating_ttl,
            job: &mut job,
            tables: HashMap::new(),
            filled: HashMap::new(),
            sinks: Vec::new(),
        };
        for fill in self.ordered()? {
            nodes.fill(fill)?;
        }
        nodes.check_files()?;
        Ok(Pipeline { job, updating_ttl: self.updating_ttl })
    }

    /// A table without a connector that is read has to be filled.
    fn check_memory_reads(&self) -> Result<()> {
        let reads = self.fills.iter().flat_map(|fill| &fill.reads).chain(&self.view_reads);
        for read in reads {
            let is_memory = matches!(self.catalog.get(&read.table).map(|t| &t.kind), Some(TableKind::Memory(_)));
            if is_memory && !self.fills.iter().any(|fill| fill.target.as_ref() == Some(&read.table)) {
                return Err(Refusal::new(read.span, format!("the table `{}` is read and never filled", read.table))
                    .hint(format!("add `INSERT INTO {} SELECT ...`, or a connector to its CREATE TABLE", read.table)));
            }
        }
        Ok(())
    }

    /// The fills in an order in which every memory table is filled before it is read; otherwise that of the file.
    fn ordered(&self) -> Result<Vec<&Fill>> {
        let needs: Vec<(&Fill, Vec<String>)> =
            self.fills.iter().map(|fill| (fill, self.memory_tables(&fill.plan))).collect();
        let mut open: BTreeMap<usize, (&Fill, Vec<String>)> = needs.into_iter().enumerate().collect();
        let mut ordered = Vec::with_capacity(open.len());
        while !open.is_empty() {
            let waiting: Vec<&String> = open.values().filter_map(|(fill, _)| fill.target.as_ref()).collect();
            let ready = open.iter().find(|(_, (_, needs))| !needs.iter().any(|table| waiting.contains(&table)));
            match ready.map(|(index, _)| *index) {
                Some(index) => ordered.extend(open.remove(&index).map(|(fill, _)| fill)),
                None => {
                    let span = open.values().next().map_or(Span::empty(), |(fill, _)| fill.span);
                    return Err(Refusal::new(span, "this table is filled from itself")
                        .hint("rows cannot go in a circle: fill it from another table"));
                }
            }
        }
        Ok(ordered)
    }

    /// The tables without a connector that `plan` reads.
    fn memory_tables(&self, plan: &LogicalPlan) -> Vec<String> {
        let mut tables = Vec::new();
        let _ = plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && let Some(name) = Relation::name_of(&scan.source)
                && matches!(self.catalog.get(name).map(|table| &table.kind), Some(TableKind::Memory(_)))
            {
                tables.push(name.to_owned());
            }
            Ok(TreeNodeRecursion::Continue)
        });
        tables
    }
}

/// Adds the nodes of one INSERT after the other.
struct Nodes<'n, 'a> {
    catalog: &'n Catalog<'a>,
    connectors: &'a [Box<dyn Connector>],
    ttl: Duration,
    job: &'n mut Job,
    tables: HashMap<String, NodeId>,
    filled: HashMap<String, bool>,
    /// The sinks, and where their INSERTs are.
    sinks: Vec<(NodeId, Span)>,
}

impl Nodes<'_, '_> {
    fn fill(&mut self, fill: &Fill) -> Result<()> {
        let rewriter = Rewriter { catalog: self.catalog, filled: &self.filled, places: &fill.places };
        let flow = rewriter.rewrite(fill.plan.clone())?;
        let plan = located(optimize(self.catalog.session, flow.plan), &fill.places)?;
        let refused = |error: LowerError| {
            let message = error.to_string();
            Refusal::new(fill.places.meant_by(&message), message).hint(error.hint())
        };
        let stream = self.lower(&plan).map_err(refused)?;
        let exchange = Exchange::Forward;
        match &fill.target {
            None => self.preview(fill, stream.node),
            Some(name) => match self.catalog.get(name).map(|table| &table.kind) {
                Some(TableKind::Memory(_)) => {
                    let input = self
                        .job
                        .output(stream.node)
                        .ok_or_else(|| Refusal::new(fill.span, "the query sends nothing"))?;
                    let updating = input.is_updating();
                    let table = MemoryTable::try_new(input).map_err(|error| refused(error.into()))?;
                    let node = self.job.add(Some(name), Arc::new(table), vec![(stream.node, exchange)]);
                    self.tables.insert(name.clone(), node.map_err(|error| refused(error.into()))?);
                    self.filled.insert(name.clone(), updating);
                    Ok(())
                }
                _ => self.sink(fill, name, stream.node),
            },
        }
    }

    /// The plan's nodes; the last one's visible columns are the plan's, in number, order and name.
    fn lower(&mut self, plan: &LogicalPlan) -> LowerResult<Stream> {
        let mut lowering = Lowering { catalog: self.catalog, job: self.job, tables: &mut self.tables, ttl: self.ttl };
        let stream = lowering.lower(plan)?;
        let names: Vec<String> = stream.schema.fields().iter().map(|field| field.name().clone()).collect();
        let visible = lowering.output(stream.node)?.visible();
        let is_whole =
            stream.columns.iter().copied().eq(0..visible.len()) && visible.iter().map(|field| field.name()).eq(&names);
        if is_whole {
            return Ok(stream);
        }
        let exprs: Vec<Expr> = stream.schema.columns().into_iter().map(Expr::Column).collect();
        let schema = Arc::clone(&stream.schema);
        lowering.computed(&stream, &exprs, names, None, schema)
    }

    fn sink(&mut self, fill: &Fill, name: &str, input: NodeId) -> Result<()> {
        let Some(table) = self.catalog.get(name) else { return Ok(()) };
        let TableKind::Connector(connector) = &table.kind else { return Ok(()) };
        let mut options = connector.options.for_connector();
        let Some(schema) = self.job.output(input) else { return Ok(()) };
        let stage = connector.connector.sink(&connector.definition, &mut options, schema).and_then(|stage| {
            options.finish()?;
            Ok(stage)
        });
        let stage = stage.map_err(|error| connector.options.refusal(error, fill.span))?;
        let key = &connector.definition.primary_key;
        let exchange = match schema.is_updating() && !key.is_empty() {
            // All changes of a key go to one subtask, in their order.
            true => Exchange::Hash(
                schema.visible().iter().enumerate().filter(|(_, f)| key.contains(f.name())).map(|(i, _)| i).collect(),
            ),
            false => Exchange::Forward,
        };
        let node = self.job.add(Some(name), stage, vec![(input, exchange)]);
        let node = node.map_err(|error| Refusal::new(fill.span, error.to_string()))?;
        self.sinks.push((node, fill.span));
        Ok(())
    }

    /// Refuses a file that is written and used elsewhere too.
    fn check_files(&self) -> Result<()> {
        let full = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or(path.to_owned());
        let files: Vec<(NodeId, FileUse)> =
            self.job.nodes().filter_map(|(id, node)| Some((id, node.plan.file()?))).collect();
        for (sink, span) in &self.sinks {
            let Some((_, own)) = files.iter().find(|(id, _)| id == sink) else { continue };
            let others = || files.iter().filter(|(id, _)| id != sink);
            let Some((other, used)) = others().find(|(_, used)| full(used.path()) == full(own.path())) else {
                continue;
            };
            let path = own.path().display();
            let refusal = match used {
                FileUse::Read(_) => Refusal::new(*span, format!("the file {path} is read and written"))
                    .hint("it would be emptied before it is read: write into another file"),
                FileUse::Write(_) => Refusal::new(*span, format!("the file {path} is written twice"))
                    .hint("a file is filled by one INSERT: give each a file of its own"),
            };
            return Err(match self.sinks.iter().find(|(id, _)| id == other) {
                Some((_, first)) => refusal.related(*first, "written here too"),
                None => refusal,
            });
        }
        Ok(())
    }

    fn preview(&mut self, fill: &Fill, input: NodeId) -> Result<()> {
        let Some(connector) = self.connectors.iter().find(|connector| connector.name() == PREVIEW) else {
            return Err(Refusal::new(fill.span, "a SELECT alone has nowhere to go")
                .hint("write `INSERT INTO table SELECT ...`"));
        };
        let Some(schema) = self.job.output(input) else { return Ok(()) };
        let table = TableDefinition { name: PREVIEW.to_owned(), columns: Vec::new(), primary_key: Vec::new() };
        let stage = connector.sink(&table, &mut Options::default(), schema);
        let stage = stage.map_err(|error| Refusal::new(fill.span, error.to_string()))?;
        let added = self.job.add(Some(PREVIEW), stage, vec![(input, Exchange::Forward)]);
        added.map(drop).map_err(|error| Refusal::new(fill.span, error.to_string()))
    }
}

fn located<T>(result: datafusion::error::Result<T>, places: &Places) -> Result<T> {
    result.map_err(|error| Refusal::from_datafusion(&error, |message| places.meant_by(message)))
}

fn unsupported(statement: &ast::Statement, places: &Places) -> Refusal {
    let (what, hint) = match statement {
        ast::Statement::Explain { .. } | ast::Statement::ExplainTable { .. } => {
            ("EXPLAIN", "use the command `tickhouse explain FILE`")
        }
        ast::Statement::Analyze { .. } => ("ANALYZE", "remove it: there are no statistics to gather"),
        ast::Statement::Copy { .. } => ("COPY", "write `INSERT INTO table SELECT ...`"),
        ast::Statement::Drop { .. } | ast::Statement::AlterTable { .. } => {
            ("this statement", "tables belong to this file: change its CREATE TABLE")
        }
        ast::Statement::Update { .. } | ast::Statement::Delete { .. } | ast::Statement::Merge { .. } => {
            ("this statement", "streams are not changed in place: write `INSERT INTO table SELECT ...`")
        }
        _ => ("this statement", "a file holds CREATE TABLE, CREATE VIEW, INSERT INTO, SELECT and SET"),
    };
    Refusal::new(places.start(), format!("{what} is not supported")).hint(hint)
}
