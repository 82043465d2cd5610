//! `WITH (...)`: options with their places, and the environment put into them.

use std::collections::BTreeMap;
use std::time::Duration;

use datafusion::sql::sqlparser::ast::{CreateTableOptions, Expr, Spanned, SqlOption, UnaryOperator, Value};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::error::{Refusal, Result};
use crate::connectors::{OptionError, Options};

/// One option as written, `{{ NAME }}` replaced.
#[derive(Debug, Clone)]
pub(super) struct OptionText {
    pub(super) text: String,
    /// The option's name.
    pub(super) key: Span,
    /// The option's value.
    pub(super) value: Span,
}

/// The options of one table.
#[derive(Debug, Clone, Default)]
pub(super) struct OptionTexts(BTreeMap<String, OptionText>);

impl OptionTexts {
    /// Reads the options of a statement.
    pub(super) fn read(
        options: &CreateTableOptions,
        table: Span,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let list = match options {
            CreateTableOptions::None => return Ok(Self::default()),
            CreateTableOptions::With(list) => list,
            _ => {
                return Err(Refusal::new(table, "the table's options are not in a form that is known here")
                    .hint("write them as `WITH (connector = '...', ...)`"));
            }
        };
        let mut texts: BTreeMap<String, OptionText> = BTreeMap::new();
        for option in list {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(Refusal::new(table, format!("`{option}` is not an option"))
                    .hint("write options as `name = 'value'`"));
            };
            let (text, span) = literal(value)?;
            if let Some(first) = texts.get(&key.value) {
                return Err(Refusal::new(key.span, format!("the option `{}` is given twice", key.value))
                    .related(first.key, "first given here")
                    .hint("remove one of the two"));
            }
            let text = substitute(&text, span, env)?;
            texts.insert(key.value.clone(), OptionText { text, key: key.span, value: span });
        }
        Ok(Self(texts))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one that is the planner's.
    pub(super) fn take(&mut self, name: &str) -> Option<OptionText> {
        self.0.remove(name)
    }

    /// Takes one that is a number of microseconds.
    pub(super) fn take_micros(&mut self, name: &str) -> Result<Option<Duration>> {
        let Some(OptionText { text, value, .. }) = self.take(name) else { return Ok(None) };
        match text.trim().parse() {
            Ok(micros) if micros > 0 => Ok(Some(Duration::from_micros(micros))),
            _ => Err(Refusal::new(value, format!("`{name} = '{text}'` is not a number of microseconds"))
                .hint("write a whole number above 0, such as '300000000' for five minutes")),
        }
    }

    /// The rest, for the connector.
    pub(super) fn for_connector(&self) -> Options {
        Options::new(self.0.iter().map(|(name, option)| (name.clone(), option.text.clone())))
    }

    /// A connector's error at its place: the option that it names, else the table.
    pub(super) fn refusal(&self, error: OptionError, table: Span) -> Refusal {
        let span = error.option.as_ref().and_then(|name| self.0.get(name)).map_or(table, |option| option.key);
        match error.message.split_once(": ") {
            // The connectors' messages end in what to write.
            Some((what, hint)) => Refusal::new(span, what).hint(hint),
            None => Refusal::new(span, error.message),
        }
    }
}

/// The text of a literal, and its place.
fn literal(value: &Expr) -> Result<(String, Span)> {
    let refused = |span| {
        Err(Refusal::new(span, format!("`{value}` is not the value of an option")).hint("write a text in quotes"))
    };
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Ok((text.clone(), value.span)),
            Value::Number(number, _) => Ok((number.to_string(), value.span)),
            Value::Boolean(flag) => Ok((flag.to_string(), value.span)),
            _ => refused(value.span),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            literal(expr).map(|(text, span)| (format!("-{text}"), span))
        }
        other => refused(other.span()),
    }
}

/// Replaces each `{{ NAME }}` in `text` by the environment's value.
fn substitute(text: &str, span: Span, env: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, after)) = after.split_once("}}") else { break };
        let name = name.trim();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Refusal::new(span, format!("`{{{{ {name} }}}}` does not name an environment variable"))
                .hint("write `{{ NAME }}`, with letters, digits and underscores"));
        }
        let value = env(name).ok_or_else(|| {
            Refusal::new(span, format!("the environment variable `{name}` is not set"))
                .hint(format!("set it before the pipeline is started, as in `{name}=... tickhouse run ...`"))
        })?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "HOST").then(|| "db{{".to_owned())
    }

    #[test]
    fn the_environment_is_put_in_once() {
        let put = |text| substitute(text, Span::empty(), &env).map_err(|e| e.into_error("f", "").message);
        assert_eq!(put("http://{{HOST}}:{{ HOST }}/{x}").unwrap(), "http://db{{:db{{/{x}");
        assert_eq!(put("{{ HOST").unwrap(), "{{ HOST");
        assert_eq!(put("{{ PORT }}").unwrap_err(), "the environment variable `PORT` is not set");
        assert_eq!(put("{{ a b }}").unwrap_err(), "`{{ a b }}` does not name an environment variable");
    }
}
