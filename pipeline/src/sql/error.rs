//! Errors in a pipeline's text: what, where, and what to write instead.

use std::fmt;

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span};

/// Why a file was refused. Printed as a few lines that show the place:
///
/// ```text
/// error: column 'folowers' not found
///  --> pipeline.sql:7:8
///   |
/// 7 | SELECT folowers FROM readings
///   |        ^^^^^^^^
///   = help: did you mean 'followers'?
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SqlError {
    /// The file, as it was named to the planner.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// In characters, from 1.
    pub column: u64,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    shown: Box<Shown>,
}

/// The lines of the file that are printed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    place: Excerpt,
    related: Option<(String, Excerpt)>,
}

/// A line of the file and the part of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    line: u64,
    column: u64,
    width: usize,
    text: String,
}

impl Excerpt {
    fn new(text: &str, span: Span) -> Self {
        let Location { line, column } = span.start;
        let text = text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().to_owned();
        let end = if span.end.line == line { span.end.column } else { text.chars().count() as u64 + 1 };
        Self { line, column, width: end.saturating_sub(column).max(1) as usize, text }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, margin: usize) -> fmt::Result {
        // Tabs are kept so that the caret stands under what it means.
        let before = self.text.chars().take(self.column.saturating_sub(1) as usize);
        let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{:margin$} |", "")?;
        writeln!(f, "{:margin$} | {}", self.line, self.text)?;
        writeln!(f, "{:margin$} | {indent}{}", "", "^".repeat(self.width))
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown { place, related } = self.shown.as_ref();
        let last = related.as_ref().map_or(0, |(_, excerpt)| excerpt.line);
        let margin = self.line.max(last).to_string().len();
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{:margin$}--> {}:{}:{}", "", self.file, self.line, self.column)?;
        place.print(f, margin)?;
        if let Some((note, excerpt)) = related {
            writeln!(f, "{:margin$} = note: {note}", "")?;
            writeln!(f, "{:margin$}--> {}:{}:{}", "", self.file, excerpt.line, excerpt.column)?;
            excerpt.print(f, margin)?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "{:margin$} = help: {hint}", ""),
            None => Ok(()),
        }
    }
}

/// A refusal on its way to becoming a [`SqlError`]: it knows its place, not yet the file.
#[derive(Debug, Clone)]
pub(super) struct Refusal(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    span: Span,
    message: String,
    hint: Option<String>,
    related: Option<(String, Span)>,
}

pub(super) type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    pub(super) fn new(span: Span, message: impl Into<String>) -> Self {
        Self(Box::new(Parts { span, message: message.into(), hint: None, related: None }))
    }

    /// What to write instead.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Another place that has to do with it.
    pub(super) fn related(mut self, span: Span, note: impl Into<String>) -> Self {
        self.0.related = Some((note.into(), span));
        self
    }

    /// Whether this is its place.
    pub(super) fn is_at(&self, span: Span) -> bool {
        self.0.span == span
    }

    /// A DataFusion error. Its own place is used where it has one, else what `locate` finds for its message.
    pub(super) fn from_datafusion(error: &DataFusionError, locate: impl Fn(&str) -> Span) -> Self {
        let message = message(error);
        let Some(diagnostic) = error.diagnostic() else {
            let (message, hint) = split_hint(&message);
            let hint = hint.unwrap_or_else(|| advice(error).to_owned());
            return Self::new(locate(&message), message).hint(hint);
        };
        let span = match diagnostic.span {
            Some(span) => Span::new(
                Location::new(span.start.line, span.start.column),
                Location::new(span.end.line, span.end.column),
            ),
            None => locate(&message),
        };
        let mut refusal = Self::new(span, diagnostic.message.clone());
        let helps = diagnostic.helps.iter().map(|help| &help.message);
        let notes = diagnostic.notes.iter().map(|note| &note.message);
        let mut hints: Vec<_> = helps.chain(notes).map(|text| uncapitalized(text)).collect();
        if diagnostic.message.starts_with("Invalid function") {
            hints.push("functions of your own come with --udf DIR".to_owned());
        }
        if !hints.is_empty() {
            refusal = refusal.hint(hints.join("; "));
        }
        refusal
    }

    pub(super) fn into_error(self, file: &str, text: &str) -> SqlError {
        let Parts { span, message, hint, related } = *self.0;
        // An empty span means that nothing better is known than the file.
        let span = if span.start.line == 0 { Span::new(Location::new(1, 1), Location::new(1, 1)) } else { span };
        SqlError {
            file: file.to_owned(),
            line: span.start.line,
            column: span.start.column,
            message,
            hint,
            shown: Box::new(Shown {
                place: Excerpt::new(text, span),
                related: related.map(|(note, span)| (note, Excerpt::new(text, span))),
            }),
        }
    }
}

/// The innermost message, without DataFusion's prefixes.
fn message(error: &DataFusionError) -> String {
    let root = error.find_root();
    let text = match root {
        DataFusionError::Plan(text) | DataFusionError::NotImplemented(text) | DataFusionError::Execution(text) => {
            text.clone()
        }
        other => other.strip_backtrace(),
    };
    let text = without_blame(text.split("\n\nbacktrace:").next().unwrap_or_default().trim());
    match text.strip_suffix('.') {
        Some(stripped) => stripped.to_owned(),
        None => text,
    }
}

/// A message that DataFusion takes for a fault of its own, such as a function that does not fit its arguments, without what it
/// has tried and whom to tell.
fn without_blame(text: &str) -> String {
    let Some(text) = text.strip_prefix("Internal error: ") else { return text.to_owned() };
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let first = first.split(", errors:").next().unwrap_or_default();
    let rest = rest.split_once("datafusion/issues.").map_or(rest, |(_, rest)| rest.trim_start());
    if rest.is_empty() { first.to_owned() } else { format!("{first}\n{rest}") }
}

/// What helps against an error for which DataFusion has no advice.
fn advice(error: &DataFusionError) -> &'static str {
    match error.find_root() {
        DataFusionError::SchemaError(..) => "give each column a name of its own: `expression AS name`",
        _ => "write this part in another way: `CAST(x AS TYPE)` converts, `expression AS name` names a column",
    }
}

/// DataFusion puts its advice behind the message, on a line of its own.
fn split_hint(message: &str) -> (String, Option<String>) {
    match message.split_once('\n') {
        Some((message, hint)) => {
            let hint = hint.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
            (message.trim_end_matches('.').to_owned(), (!hint.is_empty()).then(|| uncapitalized(&hint)))
        }
        None => (message.to_owned(), None),
    }
}

fn uncapitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Of `names`, the one most like `name`, when it is like enough to be meant.
pub(super) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| edit_distance(&name.to_lowercase(), &other.to_lowercase());
    let nearest = names.into_iter().map(|other| (distance(other), other)).min()?;
    (nearest.0 <= name.chars().count().max(3) / 3).then_some(nearest.1)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let next = (diagonal + usize::from(x != *y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = next;
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(line: u64, from: u64, to: u64) -> Span {
        Span::new(Location::new(line, from), Location::new(line, to))
    }

    #[test]
    fn an_error_shows_its_place() {
        let text = "SELECT a\nFROM\tt;\n";
        let refusal = Refusal::new(span(2, 6, 7), "table `t` is not there").hint("write `u`");
        let shown = refusal.related(span(1, 8, 9), "read here").into_error("x.sql", text).to_string();
        let expected = "error: table `t` is not there\n --> x.sql:2:6\n  |\n2 | FROM\tt;\n  |     \t^\n  = note: read here\n \
                        --> x.sql:1:8\n  |\n1 | SELECT a\n  |        ^\n  = help: write `u`\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        assert_eq!(nearest("folowers", ["following", "followers", "pk"]), Some("followers"));
        assert_eq!(nearest("x", ["following", "pk"]), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "ab"), 2);
    }
}
