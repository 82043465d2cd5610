//! What a random pipeline is composed over: relations and their columns, as far as they decide which steps may follow.

/// The text that a step is written into: the pipeline's SQL, or the batch engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Pipeline,
    Batch,
}

/// The column of the batch engine's texts that holds what event time is in the pipeline.
pub const ROW_TIME: &str = "rt";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// BIGINT.
    Number,
    Text,
    Time,
    /// DOUBLE: an average. Never added up, since sums of it depend on their order.
    Float,
    Truth,
    /// A window: `start` and `end`.
    Window,
}

impl Kind {
    /// The type in CREATE TABLE.
    pub fn sql(self) -> &'static str {
        match self {
            Kind::Number => "BIGINT",
            Kind::Text => "TEXT",
            Kind::Time => "TIMESTAMP",
            Kind::Float => "DOUBLE",
            Kind::Truth => "BOOLEAN",
            Kind::Window => unreachable!("windows are not kept in tables"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    /// The most that a number can be away from 0.
    pub bound: i64,
    pub nullable: bool,
}

impl Column {
    pub fn new(name: &str, kind: Kind, bound: i64, nullable: bool) -> Self {
        Self { name: name.to_owned(), kind, bound, nullable }
    }
}

/// A view, a memory table or the source.
#[derive(Debug, Clone)]
pub struct Relation {
    pub name: String,
    pub columns: Vec<Column>,
    /// Whether rows may be withdrawn.
    pub updating: bool,
    /// The width, in seconds, of the windows that the rows belong to since an aggregate.
    pub window: Option<u32>,
    /// Whether it has one row, of all rows of another, as far as the planner sees.
    pub total: bool,
    /// The most rows that there can be.
    pub rows: i64,
}

impl Relation {
    /// The columns of one of `kinds`.
    pub fn of(&self, kinds: &[Kind]) -> Vec<&Column> {
        self.columns.iter().filter(|column| kinds.contains(&column.kind)).collect()
    }

    /// The column of one of `kinds` that `pick` means.
    pub fn pick(&self, kinds: &[Kind], pick: u8) -> Option<&Column> {
        let columns = self.of(kinds);
        columns.get(usize::from(pick) % columns.len().max(1)).copied()
    }

    /// The columns of `kinds` that `picks` mean, each once.
    pub fn picks(&self, kinds: &[Kind], picks: &[u8]) -> Vec<Column> {
        let mut picked: Vec<Column> = Vec::new();
        for column in picks.iter().filter_map(|pick| self.pick(kinds, *pick)) {
            if picked.iter().all(|known| known.name != column.name) {
                picked.push(column.clone());
            }
        }
        picked
    }

    /// A name that no column has.
    pub fn free_name(&self, others: &[Column]) -> String {
        let taken = |name: &String| self.columns.iter().chain(others).any(|column| column.name == *name);
        ('a'..='z').map(String::from).find(|name| !taken(name)).expect("a relation has few columns")
    }

    /// The width of the windows, when the rows belong to some and a column holds it.
    pub fn held_window(&self) -> Option<u32> {
        self.window.filter(|_| !self.of(&[Kind::Window]).is_empty())
    }
}

/// All that rows can be told apart and grouped by, but for windows, which have rules of their own.
pub const KEYS: &[Kind] = &[Kind::Number, Kind::Text, Kind::Time, Kind::Float, Kind::Truth];

/// The columns' names.
pub fn names(columns: &[Column]) -> Vec<String> {
    columns.iter().map(|column| column.name.clone()).collect()
}
