//! What a query may not hold, found in its text, where places are known; and the tables that it reads.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, Function, GroupByExpr, ObjectName, Query, Select, SelectItem, SetExpr, SetOperator, Spanned,
    TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::error::Refusal;
use super::parse::Places;
use super::table::{check_name, normalized, table_name};

/// A table that a query names, and where.
#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) table: String,
    pub(super) span: Span,
}

/// Checks `query` and lists the tables that it reads, in the order of the text.
pub(super) fn check(query: &Query, places: &Places) -> Result<Vec<Read>, Refusal> {
    let mut visitor = Checks { places, reads: Vec::new(), names: BTreeSet::new() };
    match query.visit(&mut visitor) {
        ControlFlow::Break(refusal) => Err(refusal),
        ControlFlow::Continue(()) => {
            // A WITH name hides a table wherever it is visible; names are used once in one statement in practice.
            let Checks { mut reads, names, .. } = visitor;
            reads.retain(|read| !names.contains(&read.table));
            Ok(reads)
        }
    }
}

struct Checks<'p> {
    places: &'p Places,
    reads: Vec<Read>,
    /// Names defined by WITH.
    names: BTreeSet<String>,
}

fn refuse(span: Span, message: impl Into<String>, hint: &str) -> ControlFlow<Refusal> {
    ControlFlow::Break(Refusal::new(span, message).hint(hint))
}

impl Checks<'_> {
    /// The place of a word of this query: the first behind where the query starts.
    fn word(&self, within: Span, name: &str) -> Span {
        let behind = self.places.words(name).find(|span| span.start >= within.start);
        behind.unwrap_or(if within == Span::empty() { self.places.start() } else { within })
    }

    /// A word that stands at the end of a query: the last one that is in it.
    fn last_word(&self, name: &str) -> Span {
        self.places.words(name).last().unwrap_or_else(|| self.places.start())
    }

    fn body(&self, query: &Query) -> ControlFlow<Refusal> {
        let span = query.span();
        match query.body.as_ref() {
            SetExpr::Select(_) | SetExpr::Query(_) => ControlFlow::Continue(()),
            SetExpr::SetOperation { op: SetOperator::Union, .. } => refuse(
                self.word(span, "union"),
                "UNION is not supported",
                "write one INSERT INTO for each of the queries",
            ),
            SetExpr::SetOperation { op, .. } => refuse(
                self.word(span, &op.to_string()),
                format!("{op} is not supported"),
                "it would have to wait for the end of both streams; use a condition",
            ),
            SetExpr::Values(_) => refuse(
                self.word(span, "values"),
                "VALUES is not a stream",
                "read a table; a stream of rows by the clock is `connector = 'impulse'`",
            ),
            _ => refuse(span, "this is not a SELECT", "write `SELECT ... FROM ...`"),
        }
    }

    fn from(&self, select: &Select) -> ControlFlow<Refusal> {
        let span = select.span();
        let Some(first) = select.from.first() else {
            return refuse(
                span,
                "the query reads no table",
                "add FROM; a stream of rows by the clock is `CREATE TABLE beats WITH (connector = 'impulse', ...)`",
            );
        };
        const INSTEAD: &str =
            "read both tables into ClickHouse and join there, or look the other side up with an async UDF";
        if let Some(second) = select.from.get(1) {
            return refuse(second.relation.span(), "joins are not supported", INSTEAD);
        }
        match first.joins.first() {
            Some(join) => refuse(
                self.word(join.relation.span(), "join").min(join.relation.span()),
                "joins are not supported",
                INSTEAD,
            ),
            None => ControlFlow::Continue(()),
        }
    }

    fn clauses(&self, select: &Select) -> ControlFlow<Refusal> {
        let span = select.span();
        if let Some(Distinct::On(_)) = &select.distinct {
            let hint = "group by those columns, with first_value() or last_value() for the others";
            return refuse(self.word(span, "distinct"), "DISTINCT ON is not supported", hint);
        }
        if let Some(qualify) = &select.qualify {
            return refuse(qualify.span(), "QUALIFY is not supported", "there are no window functions with OVER yet");
        }
        if let Some(into) = &select.into {
            return refuse(into.name.span(), "SELECT INTO is not supported", "write `INSERT INTO table SELECT ...`");
        }
        if !select.sort_by.is_empty() || select.top.is_some() {
            return refuse(span, "a stream has no order", "remove SORT BY or TOP");
        }
        if let GroupByExpr::All(_) = &select.group_by {
            return refuse(self.word(span, "group"), "GROUP BY ALL is not supported", "name the columns");
        }
        ControlFlow::Continue(())
    }

    fn function(&self, function: &Function) -> ControlFlow<Refusal> {
        let span = function.name.span();
        if function.over.is_some() {
            return refuse(
                span,
                "functions OVER a window are not supported",
                "use GROUP BY, with a window such as `tumble(interval '1 minute')`",
            );
        }
        let name = function.name.to_string().to_lowercase();
        match name.as_str() {
            "hop" | "session" => {
                refuse(span, format!("`{name}` windows are not supported"), "use `tumble(interval '1 minute')`")
            }
            "now" | "current_timestamp" | "current_date" | "current_time" | "today" => refuse(
                span,
                format!("`{name}` is not supported: a pipeline that is run again must give the same rows"),
                "use `row_time()`, the event time of the row",
            ),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Visitor for Checks<'_> {
    type Break = Refusal;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Refusal> {
        if let Some(with) = &query.with {
            if with.recursive {
                return refuse(
                    self.word(Span::empty(), "recursive"),
                    "WITH RECURSIVE is not supported",
                    "a stream never ends: there is no last round",
                );
            }
            self.names.extend(with.cte_tables.iter().map(|cte| normalized(&cte.alias.name)));
        }
        self.body(query)?;
        if query.order_by.is_some() {
            let hint = "remove it: a stream has no end to sort at; sort when ClickHouse is queried";
            return refuse(self.last_word("order"), "ORDER BY is not supported", hint);
        }
        if query.limit_clause.is_some() || query.fetch.is_some() {
            let word = if query.fetch.is_some() { "fetch" } else { "limit" };
            let found = self.places.words(word).last();
            let span = found.or_else(|| self.places.word("offset")).unwrap_or_else(|| self.places.start());
            return refuse(
                span,
                format!("{} is not supported", word.to_uppercase()),
                "remove it; a bounded source ends by itself, as an impulse with `message_count` does",
            );
        }
        if !query.locks.is_empty() || query.for_clause.is_some() || !query.pipe_operators.is_empty() {
            return refuse(
                query.span(),
                "this form of query is not supported",
                "write `SELECT ... FROM ... WHERE ...`",
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Refusal> {
        self.from(select)?;
        self.clauses(select)?;
        for item in &select.projection {
            if let SelectItem::ExprWithAlias { alias, .. } = item
                && let Err(refusal) = check_name(&normalized(alias), alias.span)
            {
                return ControlFlow::Break(refusal);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Refusal> {
        match table_name(relation) {
            Ok((table, span)) => {
                self.reads.push(Read { table, span });
                ControlFlow::Continue(())
            }
            Err(refusal) => ControlFlow::Break(refusal),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Refusal> {
        match factor {
            TableFactor::Table { args: None, sample: None, version: None, .. }
            | TableFactor::Derived { lateral: false, sample: None, .. } => ControlFlow::Continue(()),
            TableFactor::UNNEST { .. } => refuse(
                factor.span(),
                "UNNEST in FROM is not supported",
                "write `SELECT unnest(list) AS item FROM table`",
            ),
            TableFactor::NestedJoin { .. } => refuse(factor.span(), "joins are not supported", "read one table"),
            _ => refuse(factor.span(), "this is not a table", "name a table or view, or write a subquery"),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Refusal> {
        const SUBQUERY: &str = "compute it in a view; joins of streams are not supported";
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::Subquery(query) => refuse(query.span(), "a subquery as a value is not supported", SUBQUERY),
            Expr::InSubquery { subquery, .. } => refuse(subquery.span(), "IN (SELECT ...) is not supported", SUBQUERY),
            Expr::Exists { subquery, .. } => refuse(subquery.span(), "EXISTS is not supported", SUBQUERY),
            Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_) => refuse(
                expr.span(),
                "GROUPING SETS, ROLLUP and CUBE are not supported",
                "write one query for each set of columns",
            ),
            _ => ControlFlow::Continue(()),
        }
    }
}
