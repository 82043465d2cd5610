//! The tables and views of a file, as DataFusion's planner sees them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::TableReference;
use datafusion::common::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::error::nearest;
use super::parse::Places;
use super::table::ConnectorTable;

/// A name that queries can use.
pub(super) struct Table<'a> {
    /// The name in the statement that declares it.
    pub(super) span: Span,
    pub(super) kind: TableKind<'a>,
}

pub(super) enum TableKind<'a> {
    /// `WITH (connector = ...)`.
    Connector(Box<ConnectorTable<'a>>),
    /// Without options: filled by one INSERT of this file.
    Memory(SchemaRef),
    /// Takes the place of its name wherever it is read.
    View(LogicalPlan, Places),
}

/// Everything declared so far.
pub(super) struct Catalog<'a> {
    pub(super) session: &'a SessionState,
    tables: BTreeMap<String, Table<'a>>,
    /// What the planner sees of those tables that can be read.
    relations: BTreeMap<String, Arc<dyn TableSource>>,
}

impl<'a> Catalog<'a> {
    pub(super) fn new(session: &'a SessionState) -> Self {
        Self { session, tables: BTreeMap::new(), relations: BTreeMap::new() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Table<'a>> {
        self.tables.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Table<'a>> {
        self.tables.get_mut(name)
    }

    pub(super) fn insert(&mut self, name: String, table: Table<'a>) {
        match &table.kind {
            TableKind::Memory(schema) => self.make_readable(&name, Arc::clone(schema), None),
            TableKind::View(plan, _) => {
                let schema = Arc::new(plan.schema().as_arrow().clone());
                self.make_readable(&name, schema, Some(plan.clone()));
            }
            TableKind::Connector(_) => {}
        }
        self.tables.insert(name, table);
    }

    /// Lets queries read `name`.
    pub(super) fn make_readable(&mut self, name: &str, schema: SchemaRef, plan: Option<LogicalPlan>) {
        self.relations.insert(name.to_owned(), Arc::new(Relation { name: name.to_owned(), schema, plan }));
    }

    /// The declared name most like `name`.
    pub(super) fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.tables.keys().map(String::as_str))
    }
}

/// A table or view in a logical plan.
pub(super) struct Relation {
    /// Its name in the [`Catalog`].
    pub(super) name: String,
    schema: SchemaRef,
    plan: Option<LogicalPlan>,
}

impl Relation {
    /// The name of the table that `source` stands for.
    pub(super) fn name_of(source: &Arc<dyn TableSource>) -> Option<&str> {
        source.downcast_ref::<Self>().map(|relation| relation.name.as_str())
    }

    /// A relation that is in no catalog.
    pub(super) fn detached(name: &str, schema: SchemaRef) -> Arc<dyn TableSource> {
        Arc::new(Self { name: name.to_owned(), schema, plan: None })
    }
}

impl TableSource for Relation {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.plan.as_ref().map(Cow::Borrowed)
    }
}

impl ContextProvider for Catalog<'_> {
    fn get_table_source(&self, name: TableReference) -> DataFusionResult<Arc<dyn TableSource>> {
        let missing = || DataFusionError::Plan(format!("table '{name}' not found"));
        self.relations.get(name.table()).map(Arc::clone).ok_or_else(missing)
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.session.expr_planners()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.session.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.session.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.session.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.session.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.session.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        in_order(self.session.scalar_functions().keys())
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        in_order(self.session.higher_order_functions().keys())
    }

    fn udaf_names(&self) -> Vec<String> {
        in_order(self.session.aggregate_functions().keys())
    }

    fn udwf_names(&self) -> Vec<String> {
        in_order(self.session.window_functions().keys())
    }
}

/// Names in the order of the alphabet: of several that are equally like a misspelt one, the first is suggested.
fn in_order<'n>(names: impl Iterator<Item = &'n String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    names.sort_unstable();
    names
}
