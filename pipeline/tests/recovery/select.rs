//! Writes one step: the SELECT of either side over a relation, and what is known of its rows.

use super::expressions::{Scope, Value};
use super::relation::{Column, KEYS, Kind, ROW_TIME, Relation, Side, names};
use super::steps::{Aggregate, Function, Grouping, Item, Step, Unnest, Window};

/// Relations that may have more rows than this are not multiplied further.
const ROWS: i64 = 2_000;

/// What a step gives: a query on each side.
pub struct Selected {
    pub pipeline: String,
    pub batch: String,
    /// Its name is still to be given.
    pub relation: Relation,
}

/// Whether the dialect lets `step` stand over `input`.
pub fn reads(step: &Step, input: &Relation) -> bool {
    match step {
        Step::Filter(_) | Step::Project(_) | Step::Memory => true,
        Step::Unnest(_) => input.rows <= ROWS,
        Step::Later(_) | Step::Window(_) => !input.updating,
        // Rows that have a window are grouped by it.
        Step::Distinct(_) => !input.updating && input.window.is_some() == input.held_window().is_some(),
        Step::Aggregate(_) => !input.updating && input.window.is_none(),
    }
}

/// Writes a step over one relation.
pub struct Select<'r> {
    pub input: &'r Relation,
    /// What stands behind FROM in the pipeline's text.
    pub source: &'r str,
}

impl Select<'_> {
    pub fn step(&self, step: &Step) -> Selected {
        let same = |columns| Relation { columns, ..self.input.clone() };
        match step {
            Step::Filter(condition) => self.on_both(same(self.input.columns.clone()), |side| {
                let condition = self.scope(side).condition(condition);
                self.select(side, &names(&self.input.columns), &format!(" WHERE {condition}"))
            }),
            // The planner refuses a query that reads no column of a total.
            Step::Project(items) if self.input.total => {
                let all = (0..self.input.columns.len() as u8).map(Item::Keep);
                self.project(&all.chain(items.iter().cloned()).collect::<Vec<_>>())
            }
            Step::Project(items) => self.project(items),
            Step::Distinct(picks) => self.distinct(picks),
            Step::Window(window) => self.window(window),
            Step::Aggregate(grouping) => self.aggregate(grouping),
            Step::Later(argument) => {
                let Value { bound, nullable, .. } = self.scope(Side::Pipeline).number(argument);
                let name = self.input.free_name(&[]);
                let mut columns = self.input.columns.clone();
                columns.push(Column::new(&name, Kind::Number, 2 * bound, nullable));
                self.on_both(same(columns), |side| {
                    let argument = self.scope(side).number(argument).sql;
                    let call = match side {
                        Side::Pipeline => format!("later({argument}) AS {name}"),
                        Side::Batch => format!("({argument}) * 2 AS {name}"),
                    };
                    self.select(side, &[names(&self.input.columns), vec![call]].concat(), "")
                })
            }
            Step::Unnest(unnest) => self.unnest(unnest),
            Step::Memory => self.memory(),
        }
    }

    fn scope(&self, side: Side) -> Scope<'_> {
        Scope { relation: self.input, side }
    }

    fn on_both(&self, relation: Relation, text: impl Fn(Side) -> String) -> Selected {
        Selected { pipeline: text(Side::Pipeline), batch: text(Side::Batch), relation }
    }

    fn from(&self, side: Side) -> &str {
        match side {
            Side::Pipeline => self.source,
            Side::Batch => &self.input.name,
        }
    }

    /// The hidden column of the batch engine's text, when the rows have one.
    fn hidden(&self, side: Side) -> &'static str {
        if side == Side::Batch && !self.input.updating { ", rt" } else { "" }
    }

    fn select(&self, side: Side, items: &[String], rest: &str) -> String {
        format!("SELECT {}{} FROM {}{rest}", items.join(", "), self.hidden(side), self.from(side))
    }

    fn project(&self, items: &[Item]) -> Selected {
        let mut columns: Vec<Column> = Vec::new();
        for item in items {
            columns.push(self.item(item, &columns));
        }
        let relation = Relation { columns, ..self.input.clone() };
        let names = names(&relation.columns);
        self.on_both(relation, |side| {
            let items = items.iter().zip(&names).map(|(item, name)| {
                let written = match item {
                    Item::Keep(pick) => self.kept(*pick).name.clone(),
                    Item::Number(number) => self.scope(side).number(number).sql,
                    Item::Text(text) => self.scope(side).text(text).sql,
                    Item::Truth(condition) => self.scope(side).condition(condition),
                    Item::Time(moment) => self.scope(side).moment(moment),
                };
                if written == *name { written } else { format!("{written} AS {name}") }
            });
            self.select(side, &items.collect::<Vec<_>>(), "")
        })
    }

    fn kept(&self, pick: u8) -> &Column {
        &self.input.columns[usize::from(pick) % self.input.columns.len()]
    }

    /// The column of `item` behind `others`.
    fn item(&self, item: &Item, others: &[Column]) -> Column {
        let scope = self.scope(Side::Pipeline);
        let free = self.input.free_name(others);
        match item {
            Item::Keep(pick) => {
                let column = self.kept(*pick).clone();
                let is_taken = others.iter().any(|other| other.name == column.name);
                if is_taken { Column { name: free, ..column } } else { column }
            }
            Item::Number(number) => {
                let Value { bound, nullable, .. } = scope.number(number);
                Column::new(&free, Kind::Number, bound, nullable)
            }
            Item::Text(text) => Column::new(&free, Kind::Text, 0, scope.text(text).nullable),
            Item::Truth(_) => Column::new(&free, Kind::Truth, 0, true),
            Item::Time(_) => Column::new(&free, Kind::Time, 0, true),
        }
    }

    fn distinct(&self, picks: &[u8]) -> Selected {
        let mut columns = self.input.picks(KEYS, picks);
        let window = self.input.held_window();
        let held = self.input.of(&[Kind::Window]).first().map(|column| (*column).clone());
        if window.is_some() {
            columns.extend(held.clone());
        } else if columns.is_empty() {
            columns = self.input.columns.clone();
        }
        let list = names(&columns).join(", ");
        let relation = Relation { columns, updating: window.is_none(), window, ..self.input.clone() };
        self.on_both(relation, |side| {
            let query = format!("SELECT DISTINCT {list} FROM {}", self.from(side));
            match &held {
                Some(held) => timed(side, query, &held.name),
                None => query,
            }
        })
    }

    fn window(&self, Window { seconds, position, by_column, grouping }: &Window) -> Selected {
        let seconds = self.input.window.unwrap_or(*seconds);
        let held = self.input.of(&[Kind::Window]).first().map(|column| column.name.clone()).filter(|_| *by_column);
        let mut keys = self.input.picks(KEYS, &grouping.keys);
        let name = held.clone().unwrap_or_else(|| self.input.free_name(&[]));
        let position = usize::from(*position) % (keys.len() + 1);
        keys.insert(position, Column::new(&name, Kind::Window, 0, false));
        let window = |side| match (&held, side) {
            (Some(held), _) => held.clone(),
            (None, Side::Pipeline) => format!("tumble(interval '{seconds} second') AS {name}"),
            (None, Side::Batch) => {
                let start = format!("date_bin(interval '{seconds} second', {ROW_TIME}, to_timestamp(0))");
                format!("named_struct('start', {start}, 'end', {start} + interval '{seconds} second') AS {name}")
            }
        };
        let columns = self.with_aggregates(&keys, &grouping.aggregates);
        let relation = Relation { columns, window: Some(seconds), ..self.input.clone() };
        let grouped = names(&keys);
        self.on_both(relation.clone(), |side| {
            let mut items = grouped.clone();
            items[position] = window(side);
            items.extend(self.calls(side, &grouping.aggregates, &relation.columns[keys.len()..]));
            timed(side, self.grouped(side, &items, &grouped, grouping.having), &name)
        })
    }

    fn aggregate(&self, grouping: &Grouping) -> Selected {
        let keys = self.input.picks(KEYS, &grouping.keys);
        let mut aggregates = grouping.aggregates.clone();
        if keys.is_empty() && aggregates.is_empty() {
            aggregates.push(Aggregate { function: Function::Rows, filter: None });
        }
        let columns = self.with_aggregates(&keys, &aggregates);
        let relation = Relation { columns, updating: true, total: keys.is_empty(), ..self.input.clone() };
        let grouped = names(&keys);
        self.on_both(relation.clone(), |side| {
            // A stream without a row has no total yet; a table without a row has one.
            let having = grouping.having.or((side == Side::Batch && keys.is_empty()).then_some(0));
            let mut items = grouped.clone();
            items.extend(self.calls(side, &aggregates, &relation.columns[keys.len()..]));
            self.grouped(side, &items, &grouped, having)
        })
    }

    fn grouped(&self, side: Side, items: &[String], keys: &[String], having: Option<u8>) -> String {
        let keys = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) };
        let having = having.map(|rows| format!(" HAVING count(*) > {rows}")).unwrap_or_default();
        format!("SELECT {} FROM {}{keys}{having}", items.join(", "), self.from(side))
    }

    /// `keys`, and behind them a column for each of `aggregates`.
    fn with_aggregates(&self, keys: &[Column], aggregates: &[Aggregate]) -> Vec<Column> {
        let mut columns = keys.to_vec();
        for aggregate in aggregates {
            let name = self.input.free_name(&columns);
            let rows = self.input.rows;
            let sum = |number| self.scope(Side::Pipeline).number(number).bound * rows;
            let column = match &aggregate.function {
                Function::Rows | Function::Count(_) | Function::CountDistinct(_) => {
                    Column::new(&name, Kind::Number, rows, false)
                }
                Function::Sum(number) | Function::SumDistinct(number) => {
                    Column::new(&name, Kind::Number, sum(number), true)
                }
                Function::Min(pick) | Function::Max(pick) => {
                    let column = self.input.pick(KEYS, *pick).cloned();
                    let column = column.unwrap_or_else(|| Column::new("1", Kind::Number, 1, false));
                    Column { name, nullable: true, ..column }
                }
                Function::Average(_) => Column::new(&name, Kind::Float, 0, true),
                Function::LastTime => Column::new(&name, Kind::Time, 0, true),
                Function::Any(_) => Column::new(&name, Kind::Truth, 0, true),
            };
            columns.push(column);
        }
        columns
    }

    /// Each of `aggregates`, under the name of its column.
    fn calls(&self, side: Side, aggregates: &[Aggregate], columns: &[Column]) -> Vec<String> {
        let scope = self.scope(side);
        let picked = |pick| self.input.pick(KEYS, pick).map_or("1", |column| &column.name);
        let calls = aggregates.iter().zip(columns).map(|(Aggregate { function, filter }, column)| {
            let call = match function {
                Function::Rows => "count(*)".to_owned(),
                Function::Count(pick) => format!("count({})", picked(*pick)),
                Function::CountDistinct(pick) => format!("count(DISTINCT {})", picked(*pick)),
                Function::Sum(number) => format!("sum({})", scope.number(number).sql),
                Function::SumDistinct(number) => format!("sum(DISTINCT {})", scope.number(number).sql),
                Function::Min(pick) => format!("min({})", picked(*pick)),
                Function::Max(pick) => format!("max({})", picked(*pick)),
                Function::Average(number) => format!("avg({})", scope.number(number).sql),
                Function::LastTime => format!("max({})", scope.row_time()),
                Function::Any(condition) => format!("bool_or({})", scope.condition(condition)),
            };
            let filter = filter.as_ref().map(|filter| format!(" FILTER (WHERE {})", scope.condition(filter)));
            format!("{call}{} AS {}", filter.unwrap_or_default(), column.name)
        });
        calls.collect()
    }

    fn unnest(&self, Unnest { numbers, condition, beside }: &Unnest) -> Selected {
        let values: Vec<Value> = numbers.iter().map(|number| self.scope(Side::Pipeline).number(number)).collect();
        let bound = values.iter().map(|value| value.bound).max().unwrap_or_default();
        let nullable = values.iter().any(|value| value.nullable);
        let mut columns = self.input.columns.clone();
        let mut add = |nullable| {
            let name = self.input.free_name(&columns);
            columns.push(Column::new(&name, Kind::Number, bound, nullable));
            name
        };
        let item = add(nullable);
        // The first element, read from the list that is unnested.
        let first = beside.then(|| add(true));
        let rows = self.input.rows * numbers.len() as i64;
        let relation = Relation { columns, rows, ..self.input.clone() };
        self.on_both(relation, |side| {
            let scope = self.scope(side);
            let numbers: Vec<_> = numbers.iter().map(|number| scope.number(number).sql).collect();
            let list = format!("make_array({})", numbers.join(", "));
            let list = match condition {
                Some(condition) => format!("CASE WHEN {} THEN {list} END", scope.condition(condition)),
                None => list,
            };
            let names = names(&self.input.columns);
            let Some(first) = &first else {
                return self.select(side, &[names, vec![format!("unnest({list}) AS {item}")]].concat(), "");
            };
            let lists = self.select(side, &[names.clone(), vec![format!("{list} AS list")]].concat(), "");
            let names = names.join(", ");
            let hidden = self.hidden(side);
            format!("SELECT {names}, unnest(list) AS {item}, list[1] AS {first}{hidden} FROM ({lists})")
        })
    }

    /// Windows cannot be kept: their starts are.
    fn memory(&self) -> Selected {
        let kept = |column: &Column| match column.kind {
            Kind::Window => Column { kind: Kind::Time, ..column.clone() },
            _ => column.clone(),
        };
        let columns: Vec<Column> = self.input.columns.iter().map(kept).collect();
        let items = self.input.columns.iter().map(|column| match (column.kind, &column.name) {
            (Kind::Window, name) => format!("{name}.start AS {name}"),
            (_, name) => name.clone(),
        });
        let items: Vec<String> = items.collect();
        let relation = Relation { columns, window: None, total: false, ..self.input.clone() };
        self.on_both(relation, |side| self.select(side, &items, ""))
    }
}

/// On the batch side, `query` with the event time of rows that a window gives.
fn timed(side: Side, query: String, window: &str) -> String {
    match side {
        Side::Pipeline => query,
        Side::Batch => format!("SELECT *, {window}['end'] - interval '1 nanosecond' AS {ROW_TIME} FROM ({query})"),
    }
}
