//! Random expressions. A column is a number: the how manieth of those that fit, counted around. So every expression fits
//! every relation, and stays valid when a step in front of it is taken away.

use proptest::prelude::*;

use super::relation::{Column, KEYS, Kind, ROW_TIME, Relation, Side};

/// Numbers further away from 0 are brought back: no sum can overflow, and every average is of numbers that are exact as
/// DOUBLE, whatever their order.
const BOUND: i64 = 1_000_000;

#[derive(Debug, Clone)]
pub enum Number {
    Column(u8),
    Literal(i8),
    Plus(Box<Number>, Box<Number>),
    Minus(Box<Number>, Box<Number>),
    Times(Box<Number>, Box<Number>),
    Length(Box<Text>),
    Coalesce(Box<Number>, i8),
    Case(Box<Condition>, Box<Number>, Option<Box<Number>>),
}

#[derive(Debug, Clone)]
pub enum Text {
    Column(u8),
    /// The letter of this number.
    Literal(u8),
    Of(Box<Number>),
    Upper(Box<Text>),
    First(Box<Text>),
    Join(Box<Text>, Box<Text>),
    Coalesce(Box<Text>, u8),
    Case(Box<Condition>, Box<Text>, Option<Box<Text>>),
}

#[derive(Debug, Clone)]
pub enum Condition {
    /// A column of TRUE and FALSE.
    Column(u8),
    Less(Box<Number>, Box<Number>),
    Equal(Box<Text>, Box<Text>),
    In(Box<Number>, Vec<i8>),
    Like(Box<Text>, u8),
    IsNull(u8),
    /// Before so many seconds of event time.
    Before(Moment, u8),
    Not(Box<Condition>),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
}

#[derive(Debug, Clone)]
pub enum Moment {
    Column(u8),
    RowTime,
    Start(u8),
    End(u8),
    Truncated(Box<Moment>),
}

/// An expression that was written down, and what it gives.
pub struct Value {
    pub sql: String,
    pub bound: i64,
    pub nullable: bool,
}

/// Writes expressions over a relation.
#[derive(Clone, Copy)]
pub struct Scope<'r> {
    pub relation: &'r Relation,
    pub side: Side,
}

fn letter(number: u8) -> char {
    char::from(b'a' + number % 4)
}

impl Scope<'_> {
    pub fn number(&self, number: &Number) -> Value {
        let value = |sql, bound, nullable| Value { sql, bound, nullable };
        let written = match number {
            Number::Column(pick) => match self.relation.pick(&[Kind::Number], *pick) {
                Some(column) => value(column.name.clone(), column.bound, column.nullable),
                None => value("1".to_owned(), 1, false),
            },
            Number::Literal(literal) => value(literal.to_string(), i64::from(*literal).abs(), false),
            Number::Plus(a, b) => self.binary(a, "+", b, |a, b| a + b),
            Number::Minus(a, b) => self.binary(a, "-", b, |a, b| a + b),
            Number::Times(a, b) => self.binary(a, "*", b, |a, b| a * b),
            Number::Length(text) => {
                let text = self.text(text);
                value(format!("character_length({})", text.sql), BOUND, text.nullable)
            }
            Number::Coalesce(inner, literal) => {
                let inner = self.number(inner);
                let bound = inner.bound.max(i64::from(*literal).abs());
                value(format!("coalesce({}, {literal})", inner.sql), bound, false)
            }
            Number::Case(condition, then, otherwise) => {
                let then = self.number(then);
                let otherwise = otherwise.as_ref().map(|otherwise| self.number(otherwise));
                self.case(condition, then, otherwise)
            }
        };
        if written.bound <= BOUND {
            return written;
        }
        Value { sql: format!("({} % 1000)", written.sql), bound: 999, nullable: written.nullable }
    }

    fn binary(&self, a: &Number, sign: &str, b: &Number, bound: impl Fn(i64, i64) -> i64) -> Value {
        let (a, b) = (self.number(a), self.number(b));
        Value {
            sql: format!("({} {sign} {})", a.sql, b.sql),
            bound: bound(a.bound, b.bound),
            nullable: a.nullable || b.nullable,
        }
    }

    fn case(&self, condition: &Condition, then: Value, otherwise: Option<Value>) -> Value {
        let condition = self.condition(condition);
        match otherwise {
            Some(otherwise) => Value {
                sql: format!("CASE WHEN {condition} THEN {} ELSE {} END", then.sql, otherwise.sql),
                bound: then.bound.max(otherwise.bound),
                nullable: then.nullable || otherwise.nullable,
            },
            None => Value { sql: format!("CASE WHEN {condition} THEN {} END", then.sql), nullable: true, ..then },
        }
    }

    pub fn text(&self, text: &Text) -> Value {
        let value = |sql, nullable| Value { sql, bound: 0, nullable };
        match text {
            Text::Column(pick) => match self.relation.pick(&[Kind::Text], *pick) {
                Some(column) => value(column.name.clone(), column.nullable),
                None => value("'a'".to_owned(), false),
            },
            Text::Literal(number) => value(format!("'{}'", letter(*number)), false),
            Text::Of(number) => {
                let number = self.number(number);
                value(format!("CAST({} AS TEXT)", number.sql), number.nullable)
            }
            Text::Upper(inner) => {
                let inner = self.text(inner);
                value(format!("upper({})", inner.sql), inner.nullable)
            }
            Text::First(inner) => {
                let inner = self.text(inner);
                value(format!("substr({}, 1, 1)", inner.sql), inner.nullable)
            }
            Text::Join(a, b) => {
                let (a, b) = (self.text(a), self.text(b));
                value(format!("({} || {})", a.sql, b.sql), a.nullable || b.nullable)
            }
            Text::Coalesce(inner, number) => {
                value(format!("coalesce({}, '{}')", self.text(inner).sql, letter(*number)), false)
            }
            Text::Case(condition, then, otherwise) => {
                let otherwise = otherwise.as_ref().map(|otherwise| self.text(otherwise));
                self.case(condition, self.text(then), otherwise)
            }
        }
    }

    pub fn condition(&self, condition: &Condition) -> String {
        let number = |number| self.number(number).sql;
        let text = |text| self.text(text).sql;
        match condition {
            Condition::Column(pick) => match self.relation.pick(&[Kind::Truth], *pick) {
                Some(column) => column.name.clone(),
                None => format!("{} > 0", number(&Number::Column(*pick))),
            },
            Condition::Less(a, b) => format!("{} < {}", number(a), number(b)),
            Condition::Equal(a, b) => format!("{} = {}", text(a), text(b)),
            Condition::In(a, list) => {
                let list: Vec<_> = list.iter().map(ToString::to_string).collect();
                format!("{} IN ({})", number(a), list.join(", "))
            }
            Condition::Like(a, pattern) => format!("{} LIKE '%{}%'", text(a), letter(*pattern)),
            Condition::IsNull(pick) => match self.relation.pick(KEYS, *pick) {
                Some(Column { name, .. }) => format!("{name} IS NULL"),
                None => "1 < 0".to_owned(),
            },
            Condition::Before(moment, seconds) => {
                let seconds = seconds % 60;
                format!("{} < TIMESTAMP '1970-01-01T00:00:{seconds:02}'", self.moment(moment))
            }
            Condition::Not(inner) => format!("NOT ({})", self.condition(inner)),
            Condition::And(a, b) => format!("({} AND {})", self.condition(a), self.condition(b)),
            Condition::Or(a, b) => format!("({} OR {})", self.condition(a), self.condition(b)),
        }
    }

    pub fn moment(&self, moment: &Moment) -> String {
        let window = |pick, bound| match self.relation.pick(&[Kind::Window], pick) {
            Some(column) => format!("{}.{bound}", column.name),
            None => self.moment(&Moment::Column(pick)),
        };
        match moment {
            Moment::Column(pick) => match self.relation.pick(&[Kind::Time], *pick) {
                Some(column) => column.name.clone(),
                None => "TIMESTAMP '1970-01-01T00:00:01'".to_owned(),
            },
            // Rows that change have no time of their own.
            Moment::RowTime if self.relation.updating => self.moment(&Moment::Column(0)),
            Moment::RowTime => self.row_time(),
            Moment::Start(pick) => window(*pick, "start"),
            Moment::End(pick) => window(*pick, "end"),
            Moment::Truncated(inner) => format!("date_trunc('second', {})", self.moment(inner)),
        }
    }

    /// The event time of a row.
    pub fn row_time(&self) -> String {
        match self.side {
            Side::Pipeline => "row_time()".to_owned(),
            Side::Batch => ROW_TIME.to_owned(),
        }
    }
}

/// Which of several.
pub fn pick() -> impl Strategy<Value = u8> + Clone {
    0..16_u8
}

/// Numbers, with expressions within expressions to this depth.
pub fn number(depth: u32) -> BoxedStrategy<Number> {
    let leaf = prop_oneof![4 => pick().prop_map(Number::Column), 1 => (-9..9_i8).prop_map(Number::Literal)];
    let Some(depth) = depth.checked_sub(1) else { return leaf.boxed() };
    let inner = || number(depth).prop_map(Box::new);
    prop_oneof![
        6 => leaf,
        1 => (inner(), inner()).prop_map(|(a, b)| Number::Plus(a, b)),
        1 => (inner(), inner()).prop_map(|(a, b)| Number::Minus(a, b)),
        1 => (inner(), inner()).prop_map(|(a, b)| Number::Times(a, b)),
        1 => text(depth).prop_map(|text| Number::Length(Box::new(text))),
        1 => (inner(), -9..9_i8).prop_map(|(a, literal)| Number::Coalesce(a, literal)),
        1 => (condition(depth), inner(), proptest::option::of(inner()))
            .prop_map(|(condition, then, otherwise)| Number::Case(Box::new(condition), then, otherwise)),
    ]
    .boxed()
}

/// Texts, to this depth.
pub fn text(depth: u32) -> BoxedStrategy<Text> {
    let leaf = prop_oneof![4 => pick().prop_map(Text::Column), 1 => (0..4_u8).prop_map(Text::Literal)];
    let Some(depth) = depth.checked_sub(1) else { return leaf.boxed() };
    let inner = || text(depth).prop_map(Box::new);
    prop_oneof![
        6 => leaf,
        1 => number(depth).prop_map(|number| Text::Of(Box::new(number))),
        1 => inner().prop_map(Text::Upper),
        1 => inner().prop_map(Text::First),
        1 => (inner(), inner()).prop_map(|(a, b)| Text::Join(a, b)),
        1 => (inner(), 0..4_u8).prop_map(|(a, number)| Text::Coalesce(a, number)),
        1 => (condition(depth), inner(), proptest::option::of(inner()))
            .prop_map(|(condition, then, otherwise)| Text::Case(Box::new(condition), then, otherwise)),
    ]
    .boxed()
}

/// Conditions, to this depth.
pub fn condition(depth: u32) -> BoxedStrategy<Condition> {
    let below = depth.saturating_sub(1);
    let number = || number(below).prop_map(Box::new);
    let text = || text(below).prop_map(Box::new);
    let leaf = prop_oneof![
        4 => (number(), number()).prop_map(|(a, b)| Condition::Less(a, b)),
        1 => pick().prop_map(Condition::Column),
        1 => (text(), text()).prop_map(|(a, b)| Condition::Equal(a, b)),
        1 => (number(), proptest::collection::vec(-9..9_i8, 1..4)).prop_map(|(a, list)| Condition::In(a, list)),
        1 => (text(), 0..4_u8).prop_map(|(a, pattern)| Condition::Like(a, pattern)),
        1 => pick().prop_map(Condition::IsNull),
        1 => (moment(), 0..60_u8).prop_map(|(moment, seconds)| Condition::Before(moment, seconds)),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let inner = || condition(below).prop_map(Box::new);
    prop_oneof![
        6 => leaf,
        1 => inner().prop_map(Condition::Not),
        1 => (inner(), inner()).prop_map(|(a, b)| Condition::And(a, b)),
        1 => (inner(), inner()).prop_map(|(a, b)| Condition::Or(a, b)),
    ]
    .boxed()
}

/// Times.
pub fn moment() -> impl Strategy<Value = Moment> + Clone {
    let plain = prop_oneof![
        pick().prop_map(Moment::Column),
        Just(Moment::RowTime),
        pick().prop_map(Moment::Start),
        pick().prop_map(Moment::End),
    ];
    (proptest::bool::weighted(0.2), plain).prop_map(|(truncated, moment)| match truncated {
        true => Moment::Truncated(Box::new(moment)),
        false => moment,
    })
}
