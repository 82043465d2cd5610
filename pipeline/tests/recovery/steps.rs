//! The steps of random pipelines: what each chooses, and how choices are drawn. What comes first in a strategy is what a
//! failure shrinks to.

use proptest::collection::vec;
use proptest::prelude::*;

use super::expressions::{Condition, Moment, Number, Text, condition, moment, number, pick, text};

/// How deep expressions are.
const DEPTH: u32 = 2;

#[derive(Debug, Clone)]
pub enum Step {
    Filter(Condition),
    Project(Vec<Item>),
    /// SELECT DISTINCT of these columns.
    Distinct(Vec<u8>),
    Window(Window),
    Aggregate(Grouping),
    /// Calls the async UDF.
    Later(Number),
    Unnest(Unnest),
    /// A table between two queries.
    Memory,
}

/// What a projection gives.
#[derive(Debug, Clone)]
pub enum Item {
    Keep(u8),
    Number(Number),
    Text(Text),
    Truth(Condition),
    Time(Moment),
}

/// An aggregate by tumbling windows.
#[derive(Debug, Clone)]
pub struct Window {
    pub seconds: u32,
    /// Where the window stands among the keys.
    pub position: u8,
    /// Whether rows that have a window are grouped by its column, rather than by the same call once more.
    pub by_column: bool,
    pub grouping: Grouping,
}

#[derive(Debug, Clone)]
pub struct Grouping {
    pub keys: Vec<u8>,
    pub aggregates: Vec<Aggregate>,
    /// HAVING more rows than this.
    pub having: Option<u8>,
}

#[derive(Debug, Clone)]
pub struct Aggregate {
    pub function: Function,
    pub filter: Option<Condition>,
}

#[derive(Debug, Clone)]
pub enum Function {
    Rows,
    Count(u8),
    CountDistinct(u8),
    Sum(Number),
    SumDistinct(Number),
    Min(u8),
    Max(u8),
    Average(Number),
    LastTime,
    Any(Condition),
}

/// One row for each of some numbers.
#[derive(Debug, Clone)]
pub struct Unnest {
    pub numbers: Vec<Number>,
    /// There is no list for other rows.
    pub condition: Option<Condition>,
    /// Whether the list is read beside.
    pub beside: bool,
}

/// A step, and what it stands over.
#[derive(Debug, Clone)]
pub struct Placed {
    pub step: Step,
    /// The how manieth relation it reads, of those that it can read, from the last one back.
    pub from: u8,
    /// Whether it is written as a subquery where it is read, rather than as a view.
    pub inline: bool,
}

/// An INSERT from the inside of the pipeline.
#[derive(Debug, Clone)]
pub struct Tap {
    pub from: u8,
    /// Whether it goes to the first sink, rather than to one of its own.
    pub shared: bool,
}

/// The source: its watermark's delay in seconds (1 is the default), and whether it has a generated column.
#[derive(Debug, Clone)]
pub struct Origin {
    pub delay: u32,
    pub generated: bool,
}

/// All that is chosen of a pipeline.
#[derive(Debug, Clone)]
pub struct Choices {
    pub origin: Origin,
    pub steps: Vec<Placed>,
    pub taps: Vec<Tap>,
    /// Whether memory tables are read before the statement that fills them.
    pub reversed: bool,
}

pub fn choices() -> impl Strategy<Value = Choices> {
    let origin = (prop_oneof![2 => Just(1_u32), 1 => Just(0), 1 => Just(5)], proptest::bool::weighted(0.2))
        .prop_map(|(delay, generated)| Origin { delay, generated });
    let placed = (step(), prop_oneof![4 => Just(0_u8), 1 => 0..4_u8], proptest::bool::weighted(0.2))
        .prop_map(|(step, from, inline)| Placed { step, from, inline });
    let tap = (0..6_u8, any::<bool>()).prop_map(|(from, shared)| Tap { from, shared });
    (origin, vec(placed, 1..=5), vec(tap, 0..=2), any::<bool>()).prop_map(|(origin, steps, taps, reversed)| Choices {
        origin,
        steps,
        taps,
        reversed,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => condition(DEPTH).prop_map(Step::Filter),
        2 => vec(item(), 1..5).prop_map(Step::Project),
        1 => vec(pick(), 1..3).prop_map(Step::Distinct),
        3 => window().prop_map(Step::Window),
        2 => grouping().prop_map(Step::Aggregate),
        2 => number(DEPTH).prop_map(Step::Later),
        2 => unnest().prop_map(Step::Unnest),
        2 => Just(Step::Memory),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => pick().prop_map(Item::Keep),
        3 => number(DEPTH).prop_map(Item::Number),
        2 => text(DEPTH).prop_map(Item::Text),
        1 => condition(DEPTH).prop_map(Item::Truth),
        1 => moment().prop_map(Item::Time),
    ]
}

fn window() -> impl Strategy<Value = Window> {
    (prop_oneof![Just(10_u32), Just(7), Just(1), Just(60)], 0..4_u8, any::<bool>(), grouping())
        .prop_map(|(seconds, position, by_column, grouping)| Window { seconds, position, by_column, grouping })
}

fn grouping() -> impl Strategy<Value = Grouping> {
    let having = proptest::option::weighted(0.2, 0..5_u8);
    (vec(pick(), 0..3), vec(aggregate(), 0..4), having).prop_map(|(keys, aggregates, having)| Grouping {
        keys,
        aggregates,
        having,
    })
}

fn aggregate() -> impl Strategy<Value = Aggregate> {
    let function = prop_oneof![
        2 => Just(Function::Rows),
        1 => pick().prop_map(Function::Count),
        2 => pick().prop_map(Function::CountDistinct),
        3 => number(1).prop_map(Function::Sum),
        1 => number(1).prop_map(Function::SumDistinct),
        1 => pick().prop_map(Function::Min),
        1 => pick().prop_map(Function::Max),
        2 => number(1).prop_map(Function::Average),
        1 => Just(Function::LastTime),
        1 => condition(1).prop_map(Function::Any),
    ];
    (function, proptest::option::weighted(0.25, condition(1)))
        .prop_map(|(function, filter)| Aggregate { function, filter })
}

fn unnest() -> impl Strategy<Value = Unnest> {
    (vec(number(1), 1..4), proptest::option::weighted(0.3, condition(1)), proptest::bool::weighted(0.3))
        .prop_map(|(numbers, condition, beside)| Unnest { numbers, condition, beside })
}
