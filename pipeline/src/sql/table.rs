//! CREATE TABLE: columns, keys, event time, and what a connector is told.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::sql::planner::{ParserOptions, SqlToRel};
use datafusion::sql::sqlparser::ast::{
    self, ColumnDef, ColumnOption, CreateTable, Expr, GeneratedAs, Ident, ObjectName, PrimaryKeyConstraint, Spanned,
    TableConstraint,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::catalog::{Catalog, Table, TableKind};
use super::error::{Refusal, Result, nearest};
use super::options::OptionTexts;
use super::parse::Statement;
use super::source::SourcePlan;
use crate::connectors::{Connector, TableDefinition};
use crate::plan::{RETRACT_COLUMN, TIMESTAMP_COLUMN};

/// How long a source is quiet before it holds no other back, unless `idle_micros` says otherwise.
const IDLE: Duration = Duration::from_secs(300);

/// A table of the outside world.
pub(super) struct ConnectorTable<'a> {
    pub(super) connector: &'a dyn Connector,
    /// `type = '...'`; without it the use decides.
    pub(super) role: Option<Role>,
    /// The plain columns; what the connector knows.
    pub(super) definition: TableDefinition,
    /// All columns, generated ones included, in the order of the statement. Empty when none are declared.
    pub(super) columns: Vec<Column>,
    pub(super) options: OptionTexts,
    pub(super) event_time: Option<EventTime>,
    pub(super) idle: Duration,
    /// What reading it takes, once a query reads it.
    pub(super) source: Option<SourcePlan>,
}

/// What a table may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Sink,
}

/// A declared column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) field: FieldRef,
    pub(super) span: Span,
    /// The expression of a generated column.
    pub(super) generated: Option<Expr>,
}

/// Where the event time of a table comes from.
#[derive(Debug, Clone)]
pub(super) struct EventTime {
    /// The column.
    pub(super) column: String,
    pub(super) span: Span,
    /// The watermark; by default event time - 1 s.
    pub(super) watermark: Option<Expr>,
}

/// An identifier as it is looked up: in lower case unless it is quoted.
pub(super) fn normalized(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The name of a table, which has one part.
pub(super) fn table_name(name: &ObjectName) -> Result<(String, Span)> {
    match name.0.as_slice() {
        [part] => match part.as_ident() {
            Some(ident) => Ok((normalized(ident), ident.span)),
            None => Err(Refusal::new(name.span(), format!("`{name}` is not the name of a table"))),
        },
        _ => Err(Refusal::new(name.span(), format!("`{name}` has a schema, and there are none here"))
            .hint("write the name of the table alone")),
    }
}

/// Turns CREATE TABLE into a table and its name.
pub(super) fn create_table<'a>(
    create: &CreateTable,
    statement: &Statement,
    catalog: &Catalog<'a>,
    connectors: &'a [Box<dyn Connector>],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, Table<'a>)> {
    let (name, span) = table_name(&create.name)?;
    refuse_clauses(create, statement, span)?;
    let columns = columns(create, catalog)?;
    let primary_key = primary_key(create, &columns)?;
    let mut options = OptionTexts::read(&create.table_options, span, env)?;
    if let Some(clause) = statement.metadata.first() {
        return Err(Refusal::new(
            clause.span,
            format!("`{}` takes metadata, and no connector here has any", clause.column),
        )
        .hint("make it a plain column, or remove it"));
    }
    if options.is_empty() {
        let kind = TableKind::Memory(memory_schema(&columns, statement, span)?);
        return Ok((name, Table { span, kind }));
    }
    let connector = connector(&mut options, span, connectors)?;
    let role = role(&mut options)?;
    let event_time = event_time(&mut options, statement, &columns)?;
    let idle = options.take_micros("idle_micros")?.unwrap_or(IDLE);
    let plain = columns.iter().filter(|column| column.generated.is_none());
    let definition =
        TableDefinition { name: name.clone(), columns: plain.map(|c| Arc::clone(&c.field)).collect(), primary_key };
    let source = None;
    let table = ConnectorTable { connector, role, definition, columns, options, event_time, idle, source };
    Ok((name, Table { span, kind: TableKind::Connector(Box::new(table)) }))
}

fn refuse_clauses(create: &CreateTable, statement: &Statement, span: Span) -> Result<()> {
    let word = |name| statement.places.word(name).unwrap_or(span);
    if create.temporary {
        return Err(Refusal::new(word("temporary"), "lookup tables are not supported")
            .hint("read the table with an async UDF, or remove TEMPORARY"));
    }
    if create.or_replace || create.if_not_exists {
        let place = word(if create.or_replace { "replace" } else { "if" });
        return Err(Refusal::new(place, "a table is declared once, in the file that uses it")
            .hint("write `CREATE TABLE name ...`"));
    }
    if create.query.is_some() {
        return Err(Refusal::new(word("as"), "CREATE TABLE ... AS is not supported")
            .hint("write `CREATE VIEW name AS SELECT ...`, or CREATE TABLE and INSERT INTO"));
    }
    if create.like.is_some() || create.clone.is_some() || create.partition_by.is_some() || create.external {
        return Err(Refusal::new(span, "this form of CREATE TABLE is not supported")
            .hint("write `CREATE TABLE name (columns) WITH (connector = '...', ...)`"));
    }
    Ok(())
}

fn columns(create: &CreateTable, catalog: &Catalog) -> Result<Vec<Column>> {
    let mut columns: Vec<Column> = Vec::with_capacity(create.columns.len());
    for definition in &create.columns {
        let column = column(definition, catalog)?;
        if let Some(first) = columns.iter().find(|c| c.field.name() == column.field.name()) {
            return Err(Refusal::new(column.span, format!("the column `{}` is declared twice", column.field.name()))
                .related(first.span, "first declared here")
                .hint("rename or remove one of the two"));
        }
        columns.push(column);
    }
    Ok(columns)
}

fn column(definition: &ColumnDef, catalog: &Catalog) -> Result<Column> {
    let span = definition.name.span;
    check_name(&normalized(&definition.name), span)?;
    let mut plain = definition.clone();
    if matches!(plain.data_type, ast::DataType::JSON | ast::DataType::JSONB) {
        plain.data_type = ast::DataType::Text;
    }
    plain.options.clear();
    let (mut nullable, mut generated) = (true, None);
    for option in &definition.options {
        match &option.option {
            ColumnOption::Null => {}
            ColumnOption::NotNull | ColumnOption::PrimaryKey(_) => nullable = false,
            ColumnOption::Generated {
                generated_as: GeneratedAs::Always | GeneratedAs::ExpStored,
                generation_expr: Some(expr),
                ..
            } => generated = Some(expr.clone()),
            other => {
                return Err(Refusal::new(span, format!("`{other}` is not supported on a column"))
                    .hint("a column may have NOT NULL, PRIMARY KEY or GENERATED ALWAYS AS (expression)"));
            }
        }
    }
    let schema = SqlToRel::new_with_options(catalog, parser_options()).build_schema(vec![plain]).map_err(|error| {
        let refusal = Refusal::from_datafusion(&error, |_| span);
        refusal.hint(
            "types are INT, BIGINT, SMALLINT, TINYINT (each also UNSIGNED), FLOAT, DOUBLE, DECIMAL(p, s), BOOLEAN, \
            TEXT, BYTEA, TIMESTAMP, DATE, INTERVAL, JSON, T[] and STRUCT<name T, ...>",
        )
    })?;
    let field = schema.field(0).clone().with_nullable(nullable);
    Ok(Column { field: Arc::new(field), span, generated })
}

/// How types and names are read.
pub(super) fn parser_options() -> ParserOptions {
    ParserOptions::new().with_map_string_types_to_utf8view(false).with_collect_spans(true)
}

/// Refuses the names of hidden columns.
pub(super) fn check_name(name: &str, span: Span) -> Result<()> {
    if [TIMESTAMP_COLUMN, RETRACT_COLUMN].iter().any(|hidden| name.eq_ignore_ascii_case(hidden)) {
        return Err(Refusal::new(span, format!("the column name `{name}` is reserved"))
            .hint("give the column another name; `row_time()` gives the event time"));
    }
    Ok(())
}

fn primary_key(create: &CreateTable, columns: &[Column]) -> Result<Vec<String>> {
    let has_key = |c: &&ColumnDef| c.options.iter().any(|o| matches!(o.option, ColumnOption::PrimaryKey(_)));
    let mut key: Vec<Ident> = create.columns.iter().filter(has_key).map(|c| c.name.clone()).collect();
    for constraint in &create.constraints {
        match constraint {
            TableConstraint::PrimaryKey(PrimaryKeyConstraint { columns, .. }) => {
                for column in columns {
                    match &column.column.expr {
                        Expr::Identifier(ident) => key.push(ident.clone()),
                        other => {
                            return Err(Refusal::new(other.span(), "a PRIMARY KEY is made of columns")
                                .hint("write `PRIMARY KEY (column, ...)`"));
                        }
                    }
                }
            }
            other => {
                return Err(Refusal::new(other.span(), format!("`{other}` is not supported"))
                    .hint("a table may have a PRIMARY KEY and a WATERMARK"));
            }
        }
    }
    for ident in &key {
        find(columns, &normalized(ident), ident.span)?;
    }
    Ok(key.iter().map(normalized).collect())
}

fn find<'c>(columns: &'c [Column], name: &str, span: Span) -> Result<&'c Column> {
    columns.iter().find(|column| column.field.name() == name).ok_or_else(|| {
        let refusal = Refusal::new(span, format!("the table has no column `{name}`"));
        let names: Vec<&str> = columns.iter().map(|column| column.field.name().as_str()).collect();
        match nearest(name, names.iter().copied()) {
            Some(near) => refusal.hint(format!("did you mean `{near}`?")),
            None if names.is_empty() => refusal.hint("declare it"),
            None => refusal.hint(format!("its columns are {}", names.join(", "))),
        }
    })
}

fn memory_schema(columns: &[Column], statement: &Statement, span: Span) -> Result<SchemaRef> {
    if columns.is_empty() {
        return Err(Refusal::new(span, "a table without a connector needs its columns declared")
            .hint("write `CREATE TABLE name (column TYPE, ...)`, or add `WITH (connector = '...')`"));
    }
    if let Some(column) = columns.iter().find(|column| column.generated.is_some()) {
        return Err(Refusal::new(column.span, "a table without a connector cannot have generated columns")
            .hint("compute it in the query that fills the table"));
    }
    if let Some(watermark) = &statement.watermark {
        return Err(Refusal::new(watermark.column.span, "a table without a connector cannot have a watermark")
            .hint("it keeps that of the query that fills it"));
    }
    let fields: Vec<FieldRef> = columns.iter().map(|column| Arc::clone(&column.field)).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn connector<'a>(
    options: &mut OptionTexts,
    table: Span,
    connectors: &'a [Box<dyn Connector>],
) -> Result<&'a dyn Connector> {
    let names = || connectors.iter().map(|connector| connector.name());
    let Some(option) = options.take("connector") else {
        return Err(Refusal::new(table, "the option `connector` is missing")
            .hint(format!("add `connector = '...'`: one of {}", names().collect::<Vec<_>>().join(", "))));
    };
    let found = connectors.iter().find(|connector| connector.name() == option.text);
    found.map(AsRef::as_ref).ok_or_else(|| {
        let refusal = Refusal::new(option.value, format!("there is no connector `{}`", option.text));
        match nearest(&option.text, names()) {
            Some(near) => refusal.hint(format!("did you mean '{near}'?")),
            None => refusal.hint(format!("the connectors are {}", names().collect::<Vec<_>>().join(", "))),
        }
    })
}

fn role(options: &mut OptionTexts) -> Result<Option<Role>> {
    let Some(option) = options.take("type") else { return Ok(None) };
    match option.text.as_str() {
        "source" => Ok(Some(Role::Source)),
        "sink" => Ok(Some(Role::Sink)),
        "lookup" => {
            Err(Refusal::new(option.value, "lookup tables are not supported").hint("read the table with an async UDF"))
        }
        other => {
            Err(Refusal::new(option.value, format!("`type = '{other}'` is not known")).hint("write 'source' or 'sink'"))
        }
    }
}

fn event_time(options: &mut OptionTexts, statement: &Statement, columns: &[Column]) -> Result<Option<EventTime>> {
    let option = options.take("event_time_field");
    let watermark_option = options.take("watermark_field");
    let event_time = match (&statement.watermark, option) {
        (Some(clause), Some(option)) => {
            return Err(Refusal::new(option.key, "event time is declared twice")
                .related(clause.column.span, "here as well")
                .hint("keep WATERMARK FOR and remove the option `event_time_field`"));
        }
        (Some(clause), None) => {
            EventTime { column: normalized(&clause.column), span: clause.column.span, watermark: clause.expr.clone() }
        }
        (None, Some(option)) => EventTime { column: option.text, span: option.value, watermark: None },
        (None, None) => match watermark_option {
            None => return Ok(None),
            Some(option) => {
                return Err(Refusal::new(option.key, "`watermark_field` needs `event_time_field` beside it")
                    .hint("add `event_time_field = 'column'`"));
            }
        },
    };
    let mut event_time = event_time;
    if let Some(option) = watermark_option {
        if event_time.watermark.is_some() {
            return Err(Refusal::new(option.key, "the watermark is declared twice").hint("remove this option"));
        }
        check_timestamp(find(columns, &option.text, option.value)?, option.value)?;
        event_time.watermark = Some(Expr::Identifier(Ident::with_quote('"', option.text)));
    }
    check_timestamp(find(columns, &event_time.column, event_time.span)?, event_time.span)?;
    Ok(Some(event_time))
}

fn check_timestamp(column: &Column, span: Span) -> Result<()> {
    match column.field.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond | TimeUnit::Microsecond | TimeUnit::Millisecond, None) => Ok(()),
        other => Err(Refusal::new(span, format!("`{}` cannot be the event time: it is {other}", column.field.name()))
            .hint("declare it as TIMESTAMP")),
    }
}
