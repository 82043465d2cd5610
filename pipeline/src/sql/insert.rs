//! INSERT INTO: a query's columns brought to those of the table that it fills.

use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, cast};
use datafusion::sql::sqlparser::ast::{self, Insert, Query, SelectItem, SetExpr, Spanned, TableObject};
use datafusion::sql::sqlparser::tokenizer::Span;
use datafusion_functions_json::JSON_UNION_DATA_TYPE;
use datafusion_functions_json::udfs::json_union_to_text_udf;

use super::catalog::{Catalog, TableKind};
use super::error::{Refusal, Result, nearest};
use super::functions::not_null;
use super::parse::Places;
use super::query::Read;
use super::table::{Role, normalized, table_name};
use crate::plan::{is_text, sql_name};

/// A query and where its rows go.
pub(super) struct Fill {
    /// The table; `None` is standard output.
    pub(super) target: Option<String>,
    /// Where the statement names the table, or begins.
    pub(super) span: Span,
    /// The query, its columns those of the target.
    pub(super) plan: LogicalPlan,
    pub(super) reads: Vec<Read>,
    pub(super) places: Places,
}

/// The table that `insert` fills, and its query. Refuses what is no plain INSERT INTO ... SELECT.
pub(super) fn parts(insert: &Insert) -> Result<(String, Span, &Query)> {
    let TableObject::TableName(name) = &insert.table else {
        return Err(
            Refusal::new(insert.table.span(), "this is not a table").hint("write `INSERT INTO table SELECT ...`")
        );
    };
    let (name, span) = table_name(name)?;
    if insert.overwrite || insert.on.is_some() || insert.returning.is_some() || insert.partitioned.is_some() {
        return Err(
            Refusal::new(span, "this form of INSERT is not supported").hint("write `INSERT INTO table SELECT ...`")
        );
    }
    match &insert.source {
        Some(query) => Ok((name, span, query)),
        None => Err(Refusal::new(span, "the INSERT has no query").hint("write `INSERT INTO table SELECT ...`")),
    }
}

/// The columns that a table wants, when it says; refuses tables that cannot be written.
pub(super) fn target_columns(catalog: &Catalog, name: &str, span: Span) -> Result<Option<Vec<FieldRef>>> {
    let Some(table) = catalog.get(name) else {
        let refusal = Refusal::new(span, format!("there is no table `{name}`"));
        return Err(match catalog.nearest(name) {
            Some(near) => refusal.hint(format!("did you mean `{near}`?")),
            None => refusal.hint("declare it above with CREATE TABLE"),
        });
    };
    match &table.kind {
        TableKind::View(..) => Err(Refusal::new(span, format!("`{name}` is a view and cannot be filled"))
            .related(table.span, "declared here")
            .hint("fill a table")),
        TableKind::Memory(schema) => Ok(Some(schema.fields().iter().map(Arc::clone).collect())),
        TableKind::Connector(connector) => {
            if connector.role == Some(Role::Source) {
                return Err(Refusal::new(span, format!("the table `{name}` is a source and cannot be filled"))
                    .related(table.span, "declared here, with `type = 'source'`")
                    .hint("declare a table of its own with `type = 'sink'`"));
            }
            if let Some(column) = connector.columns.iter().find(|column| column.generated.is_some()) {
                return Err(Refusal::new(column.span, "a table that is filled cannot have generated columns")
                    .related(span, "filled here")
                    .hint("compute the column in the query"));
            }
            if let Some(event_time) = &connector.event_time {
                return Err(Refusal::new(event_time.span, "a table that is filled has no event time")
                    .related(span, "filled here")
                    .hint("remove it: only tables that are read have an event time and a watermark"));
            }
            let columns = &connector.definition.columns;
            Ok((!columns.is_empty()).then(|| columns.clone()))
        }
    }
}

/// What is known of an INSERT when its columns are matched.
pub(super) struct Matching<'m> {
    pub(super) table: &'m str,
    pub(super) span: Span,
    pub(super) query: &'m Query,
    /// The list of columns behind the table's name; may be empty.
    pub(super) listed: &'m [ast::ObjectName],
}

impl Matching<'_> {
    /// `plan`, with its columns named, ordered and typed as `columns`.
    pub(super) fn bring(&self, plan: LogicalPlan, columns: &[FieldRef]) -> Result<LogicalPlan> {
        let given = plan.schema().columns();
        let filled = self.filled(columns)?;
        if given.len() != filled.len() {
            let names = |fields: &[&FieldRef]| fields.iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
            let (count, wanted) = (given.len(), filled.len());
            let message = format!("the query gives {count} columns, and `{}` takes {wanted}", self.table);
            return Err(Refusal::new(self.too_many(wanted).unwrap_or(self.span), message)
                .hint(format!("select, in this order: {}", names(&filled))));
        }
        let mut exprs = Vec::with_capacity(columns.len());
        for column in columns {
            let position = filled.iter().position(|field| field.name() == column.name());
            let expr = match position.and_then(|position| Some((position, given.get(position)?))) {
                Some((position, source)) => self.fitted(&plan, position, source, column)?,
                None if column.is_nullable() => {
                    cast(Expr::Literal(ScalarValue::Null, None), column.data_type().clone())
                }
                None => {
                    let message = format!("the column `{}` is NOT NULL and is not filled", column.name());
                    return Err(Refusal::new(self.span, message).hint("add it to the list of columns and to the query"));
                }
            };
            exprs.push(expr.alias(column.name()));
        }
        projected(plan, exprs).map_err(|error| Refusal::from_datafusion(&error, |_| self.span))
    }

    /// The columns that the query's columns go to, in the query's order.
    fn filled<'c>(&self, columns: &'c [FieldRef]) -> Result<Vec<&'c FieldRef>> {
        if self.listed.is_empty() {
            return Ok(columns.iter().collect());
        }
        let mut filled: Vec<&FieldRef> = Vec::with_capacity(self.listed.len());
        for name in self.listed {
            let ident = name.0.last().and_then(|part| part.as_ident());
            let wanted = ident.map(normalized).unwrap_or_default();
            let Some(field) = columns.iter().find(|field| *field.name() == wanted) else {
                let refusal = Refusal::new(name.span(), format!("the table `{}` has no column `{wanted}`", self.table));
                return Err(match nearest(&wanted, columns.iter().map(|field| field.name().as_str())) {
                    Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                    None => refusal,
                });
            };
            if filled.iter().any(|known| known.name() == field.name()) {
                return Err(
                    Refusal::new(name.span(), format!("the column `{wanted}` is listed twice")).hint("list it once")
                );
            }
            filled.push(field);
        }
        Ok(filled)
    }

    /// Column `source` of the query as the table's `column`.
    fn fitted(&self, plan: &LogicalPlan, position: usize, source: &Column, column: &FieldRef) -> Result<Expr> {
        let (given, nullable) = match plan.schema().as_arrow().fields().get(position) {
            Some(field) => (field.data_type().clone(), field.is_nullable()),
            None => (DataType::Null, true),
        };
        let wanted = column.data_type();
        let mut expr = Expr::Column(source.clone());
        let given = if given == *JSON_UNION_DATA_TYPE {
            expr = json_union_to_text_udf().call(vec![expr]);
            DataType::Utf8
        } else {
            given
        };
        if given != *wanted {
            if !fits(&given, wanted) {
                let message = format!(
                    "the column `{}` of `{}` is {}, and the query gives {}",
                    column.name(),
                    self.table,
                    sql_name(wanted),
                    sql_name(&given)
                );
                return Err(Refusal::new(self.item(position).unwrap_or(self.span), message)
                    .hint(format!("write `CAST(... AS {})`, which fails on values that are none", sql_name(wanted))));
            }
            expr = cast(expr, wanted.clone());
        }
        // A cast of text or of a wider number may give no null where it fails: it is an error of the row.
        if nullable && !column.is_nullable() {
            expr = not_null(expr, format!("{}.{}", self.table, column.name()));
        }
        Ok(expr)
    }

    /// The place of the query's column `position`, when the SELECT list shows it.
    fn item(&self, position: usize) -> Option<Span> {
        let SetExpr::Select(select) = self.query.body.as_ref() else { return None };
        let plain = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
        if !select.projection.iter().all(plain) {
            return None;
        }
        select.projection.get(position).map(Spanned::span).filter(|span| *span != Span::empty())
    }

    /// The place of the first column too many.
    fn too_many(&self, wanted: usize) -> Option<Span> {
        self.item(wanted)
    }
}

/// Whether values of one type become another by themselves. Text may hold anything, and a moment is no number: what they are to
/// be is for the query to say.
fn fits(given: &DataType, wanted: &DataType) -> bool {
    let is_meant = (!is_text(given) || is_text(wanted)) && !(given.is_temporal() && wanted.is_numeric());
    is_meant && can_cast_types(given, wanted)
}

/// The columns of a query that goes where none are declared: JSON values become text; names must differ.
pub(super) fn undeclared(plan: LogicalPlan, span: Span) -> Result<LogicalPlan> {
    let columns = plan.schema().columns();
    for (i, column) in columns.iter().enumerate() {
        if columns.iter().take(i).any(|other| other.name == column.name) {
            let message = format!("two columns of the query are named `{}`", column.name);
            return Err(Refusal::new(span, message).hint("name one of them with AS"));
        }
    }
    let exprs = columns.into_iter().zip(plan.schema().fields()).map(|(column, field)| {
        let name = column.name.clone();
        match field.data_type() == &*JSON_UNION_DATA_TYPE {
            true => json_union_to_text_udf().call(vec![Expr::Column(column)]).alias(name),
            false => Expr::Column(column).alias(name),
        }
    });
    let exprs = exprs.collect();
    projected(plan, exprs).map_err(|error| Refusal::from_datafusion(&error, |_| span))
}

fn projected(plan: LogicalPlan, exprs: Vec<Expr>) -> DataFusionResult<LogicalPlan> {
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?))
}
