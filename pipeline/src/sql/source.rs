//! What a table becomes when it is read: the connector's node, generated columns, event time.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, ExprSchemable, cast};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Span;

use super::analyze::typed;
use super::catalog::Catalog;
use super::error::{Refusal, Result};
use super::parse::Places;
use super::table::{ConnectorTable, EventTime, Role, parser_options};
use crate::plan::StreamSchema;
use crate::runtime::Stage;

/// A table that is read.
#[derive(Debug, Clone)]
pub(super) struct SourcePlan {
    /// The connector's node.
    pub(super) stage: Arc<dyn Stage>,
    /// The columns behind it, each with its name, over the node's; `None` when they are the node's.
    pub(super) columns: Option<Vec<(Expr, String)>>,
    /// The visible columns that queries read.
    pub(super) schema: SchemaRef,
    /// The column of event time.
    pub(super) event_time: Option<usize>,
    /// The watermark, over `schema`.
    pub(super) watermark: Option<Expr>,
    pub(super) idle: Duration,
}

impl SourcePlan {
    /// Opens `table` for a query that reads it at `used`.
    pub(super) fn open(
        table: &ConnectorTable,
        declared: Span,
        used: Span,
        places: &Places,
        catalog: &Catalog,
    ) -> Result<Self> {
        let name = &table.definition.name;
        if table.role == Some(Role::Sink) {
            return Err(Refusal::new(used, format!("the table `{name}` is a sink and cannot be read"))
                .related(declared, "declared here, with `type = 'sink'`")
                .hint("read the tables that fill it"));
        }
        let mut options = table.options.for_connector();
        let stage = table.connector.source(&table.definition, &mut options).and_then(|source| {
            options.finish()?;
            Ok(source.stage)
        });
        let stage = stage.map_err(|error| {
            let refusal = table.options.refusal(error, declared);
            if refusal.is_at(declared) { refusal.related(used, "read here") } else { refusal }
        })?;
        let Some(output) = stage.output() else {
            return Err(Refusal::new(used, format!("the table `{name}` sends no rows")));
        };
        Self::over(Arc::clone(&stage), &output.clone(), table, places, catalog)
    }

    fn over(
        stage: Arc<dyn Stage>,
        output: &StreamSchema,
        table: &ConnectorTable,
        places: &Places,
        catalog: &Catalog,
    ) -> Result<Self> {
        let raw: SchemaRef = Arc::new(Schema::new(output.visible().to_vec()));
        let generated = table.columns.iter().any(|column| column.generated.is_some());
        if output.is_updating() {
            let refused = table.columns.iter().find(|column| column.generated.is_some());
            let refused = refused.map(|column| (column.span, "a generated column"));
            let event_time = table.event_time.as_ref().map(|event_time| (event_time.span, "an event time column"));
            if let Some((span, what)) = refused.or(event_time) {
                return Err(Refusal::new(span, format!("a table of changes cannot have {what}"))
                    .hint("compute it in a view over the table"));
            }
        }
        let (columns, schema) = match generated {
            true => {
                let columns = generated_columns(table, &raw, places, catalog)?;
                let fields: Vec<_> = table.columns.iter().map(|column| Arc::clone(&column.field)).collect();
                (Some(columns), Arc::new(Schema::new(fields)))
            }
            false => (None, raw),
        };
        let (mut event_time, mut watermark) = (None, None);
        if let Some(declared) = &table.event_time {
            event_time =
                Some(schema.index_of(&declared.column).map_err(|_| {
                    Refusal::new(declared.span, format!("the table has no column `{}`", declared.column))
                })?);
            watermark = watermark_expr(declared, &table.definition.name, &schema, places, catalog)?;
        }
        Ok(Self { stage, columns, schema, event_time, watermark, idle: table.idle })
    }
}

fn generated_columns(
    table: &ConnectorTable,
    raw: &SchemaRef,
    places: &Places,
    catalog: &Catalog,
) -> Result<Vec<(Expr, String)>> {
    let mut columns = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        let field = &column.field;
        let expr = match &column.generated {
            None => Expr::from(datafusion::common::Column::new_unqualified(field.name())),
            Some(sql) => {
                let expr = over_table(sql, &table.definition.name, raw, catalog)
                    .map_err(|error| Refusal::from_datafusion(&error, |message| places.meant_by(message)))?;
                let same = DFSchema::try_from_qualified_schema(table.definition.name.as_str(), raw)
                    .and_then(|schema| expr.get_type(&schema))
                    .is_ok_and(|data_type| &data_type == field.data_type());
                if same { expr } else { cast(expr, field.data_type().clone()) }
            }
        };
        columns.push((expr, field.name().clone()));
    }
    let exprs = columns.iter().map(|(expr, name)| expr.clone().alias(name)).collect();
    let exprs = typed(catalog.session, &table.definition.name, raw, exprs)
        .map_err(|error| Refusal::from_datafusion(&error, |message| places.meant_by(message)))?;
    Ok(exprs.into_iter().zip(columns).map(|(expr, (_, name))| (expr.unalias(), name)).collect())
}

fn watermark_expr(
    event_time: &EventTime,
    name: &str,
    schema: &SchemaRef,
    places: &Places,
    catalog: &Catalog,
) -> Result<Option<Expr>> {
    let Some(sql) = &event_time.watermark else { return Ok(None) };
    let expr = over_table(sql, name, schema, catalog).and_then(|expr| {
        let mut typed = typed(catalog.session, name, schema, vec![expr.alias("watermark")])?;
        Ok(typed.pop().map(Expr::unalias))
    });
    expr.map_err(|error| Refusal::from_datafusion(&error, |message| places.meant_by(message)))
}

fn over_table(sql: &ast::Expr, name: &str, schema: &SchemaRef, catalog: &Catalog) -> DataFusionResult<Expr> {
    let schema = DFSchema::try_from_qualified_schema(name, schema)?;
    SqlToRel::new_with_options(catalog, parser_options()).sql_to_expr(sql.clone(), &schema, &mut PlannerContext::new())
}
