//! Writes what was chosen of a random pipeline down twice: as the pipeline's SQL, and as queries of the batch engine.
//!
//! The two are the same SELECTs, but for what streams have of their own. In the batch engine's, event time is a column of its
//! own, `rt`, that each step over an append-only relation hands on; `tumble()` is a struct around `date_bin()`.

use super::relation::{Column, Kind, ROW_TIME, Relation, names};
use super::select::{Select, Selected, reads};
use super::steps::{Choices, Origin, Step, Tap};

/// The events that there may be.
pub const EVENTS: usize = 200;

/// A pipeline, and what its sinks are to have.
pub struct Script {
    pub pipeline: String,
    /// What the batch engine computes first, by name. Each relation is a table of its own, so that its optimizer sees one
    /// SELECT at a time: across several it leaves out a DISTINCT that an unnest below needs.
    pub tables: Vec<(String, String)>,
    pub outputs: Vec<Output>,
}

/// A sink, and the queries whose rows it is to have.
pub struct Output {
    pub sink: String,
    pub batch: Vec<String>,
}

/// A relation as it was written down.
struct Written {
    relation: Relation,
    /// What stands behind FROM in the pipeline's text.
    source: String,
    /// The batch engine's query.
    batch: String,
    is_read: bool,
}

/// Writes what was chosen.
pub fn write(choices: &Choices) -> Script {
    let mut writer = Writer { written: vec![events(&choices.origin)], creates: Vec::new(), inserts: Vec::new() };
    choices.steps.iter().for_each(|placed| writer.step(&placed.step, placed.from, placed.inline));
    writer.finish(choices)
}

/// The table `events`.
fn events(origin: &Origin) -> Written {
    let mut columns = vec![
        Column::new("k", Kind::Number, 10, true),
        Column::new("s", Kind::Text, 0, true),
        Column::new("v", Kind::Number, 50, false),
        Column::new("t", Kind::Time, 0, false),
    ];
    let mut batch = format!("SELECT k, s, v, t, t AS {ROW_TIME} FROM events");
    if origin.generated {
        columns.push(Column::new("g", Kind::Number, 5, false));
        batch = format!("SELECT k, s, v, t, v % 5 AS g, t AS {ROW_TIME} FROM events");
    }
    let relation =
        Relation { name: "rows".to_owned(), columns, updating: false, window: None, total: false, rows: EVENTS as i64 };
    Written { relation, source: "events".to_owned(), batch, is_read: false }
}

struct Writer {
    written: Vec<Written>,
    creates: Vec<String>,
    inserts: Vec<String>,
}

impl Writer {
    fn step(&mut self, step: &Step, from: u8, inline: bool) {
        let fitting: Vec<usize> =
            (0..self.written.len()).rev().filter(|at| reads(step, &self.written[*at].relation)).collect();
        let from = fitting[usize::from(from) % fitting.len()];
        self.written[from].is_read = true;
        let selected = Select { input: &self.written[from].relation, source: &self.written[from].source }.step(step);
        let Selected { pipeline, batch, mut relation } = selected;
        let number = self.written.len();
        let source = match step {
            Step::Memory => {
                relation.name = format!("m{number}");
                let null = |column: &Column| if column.nullable { "" } else { " NOT NULL" };
                let columns = relation.columns.iter().map(|c| format!("{} {}{}", c.name, c.kind.sql(), null(c)));
                let columns = columns.collect::<Vec<_>>().join(", ");
                self.creates.push(format!("CREATE TABLE {} ({columns})", relation.name));
                self.inserts.push(format!("INSERT INTO {} {pipeline}", relation.name));
                relation.name.clone()
            }
            _ => {
                relation.name = format!("r{number}");
                if inline {
                    format!("({pipeline}) AS {}", relation.name)
                } else {
                    self.creates.push(format!("CREATE VIEW {} AS {pipeline}", relation.name));
                    relation.name.clone()
                }
            }
        };
        self.written.push(Written { relation, source, batch, is_read: false });
    }

    /// Every relation that no other reads goes to a sink, and what is tapped.
    fn finish(mut self, choices: &Choices) -> Script {
        let ends: Vec<usize> = (0..self.written.len()).filter(|at| !self.written[*at].is_read).collect();
        let mut outputs: Vec<Output> = Vec::new();
        let ends = ends.into_iter().map(|from| (from, false));
        let tapped = |Tap { from, shared }: &Tap| (usize::from(*from) % self.written.len(), *shared);
        for (from, shared) in ends.chain(choices.taps.iter().map(tapped)).collect::<Vec<_>>() {
            let at = if shared { 0 } else { outputs.len() };
            if at == outputs.len() {
                outputs.push(Output { sink: format!("out{at}"), batch: Vec::new() });
            }
            let Written { relation, source, .. } = &self.written[from];
            let columns = names(&relation.columns).join(", ");
            outputs[at].batch.push(format!("SELECT {columns} FROM {}", relation.name));
            self.inserts.push(format!("INSERT INTO {} SELECT {columns} FROM {source}", outputs[at].sink));
        }
        if choices.reversed {
            self.inserts.reverse();
        }
        let generated = if choices.origin.generated { ", g BIGINT GENERATED ALWAYS AS (v % 5)" } else { "" };
        let watermark = match choices.origin.delay {
            1 => String::new(),
            0 => " AS t".to_owned(),
            seconds => format!(" AS t - interval '{seconds} second'"),
        };
        let events = format!(
            "CREATE TABLE events (k BIGINT, s TEXT, v BIGINT, t TIMESTAMP NOT NULL{generated}, WATERMARK FOR t{watermark}) WITH (connector = 'replay')"
        );
        let sinks = outputs.iter().map(|output| format!("CREATE TABLE {} WITH (connector = 'collect')", output.sink));
        let statements = std::iter::once(events).chain(sinks).chain(self.creates).chain(self.inserts);
        let tables = self.written.into_iter().map(|written| (written.relation.name, written.batch)).collect();
        Script { pipeline: statements.collect::<Vec<_>>().join(";\n"), tables, outputs }
    }
}
