//! The options of `WITH (...)`: each is read exactly once, and what nobody reads is an error.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// An option, declared once: it is read by this, and the SQL reference is printed from it.
#[derive(Debug)]
pub struct OptionSpec {
    /// The name in `WITH (name = '...')`.
    pub name: &'static str,
    /// What a value looks like: "a number of messages per second".
    pub value: &'static str,
    /// The value when the option is not given, in words; `None` when it must be given.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
}

/// A table's options, taken one by one. What is left when the connector is done is unknown to it: a typo cannot survive.
#[derive(Debug, Clone, Default)]
pub struct Options {
    values: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

/// An option, or what it asks for, that cannot be. The caller adds table, line and column.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct OptionError {
    /// The option at fault; `None` when it is the table as a whole.
    pub option: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl OptionError {
    /// An error of the table as a whole.
    pub fn table(message: impl Into<String>) -> Self {
        Self { option: None, message: message.into() }
    }

    /// An error of one option.
    pub fn option(name: &str, message: impl Into<String>) -> Self {
        Self { option: Some(name.to_owned()), message: message.into() }
    }
}

impl Options {
    /// The options as written, `{{ ENV }}` already replaced, without `connector` and what else the planner takes.
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { values: values.into_iter().collect(), known: Vec::new() }
    }

    /// Takes an option's text.
    pub fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        self.values.remove(name)
    }

    /// Takes an option that must be there. `meaning` says what it is, for the message.
    pub fn require(&mut self, name: &'static str, meaning: &str) -> Result<String, OptionError> {
        self.take(name).ok_or_else(|| missing(name, meaning))
    }

    /// Takes an option as a `T`. `expected` says what a `T` looks like, for the message.
    pub fn parse<T>(&mut self, name: &'static str, expected: &str) -> Result<Option<T>, OptionError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = self.take(name) else { return Ok(None) };
        let parsed = text.trim().parse();
        parsed
            .map(Some)
            .map_err(|error| OptionError::option(name, format!("`{name} = '{text}'`: {error}; expected {expected}")))
    }

    /// Takes an option as a `T`, as declared. One without a default must be there.
    pub fn get<T>(&mut self, spec: &'static OptionSpec) -> Result<Option<T>, OptionError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let value = self.parse(spec.name, spec.value)?;
        match (value, spec.default) {
            (None, None) => Err(missing(spec.name, spec.value)),
            (value, _) => Ok(value),
        }
    }

    /// Takes an option that is one of a few words, each standing for a value.
    pub fn choice<T: Clone>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, OptionError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(value.clone())),
            None => {
                let words: Vec<_> = choices.iter().map(|(word, _)| format!("'{word}'")).collect();
                Err(OptionError::option(name, format!("`{name} = '{text}'`: expected {}", words.join(" or "))))
            }
        }
    }

    /// Ends the reading: an option that nobody took is an error that lists those that are known.
    pub fn finish(self) -> Result<(), OptionError> {
        let Some(unknown) = self.values.keys().next() else { return Ok(()) };
        let message = match self.known.as_slice() {
            [] => format!("unknown option `{unknown}`: this connector has none"),
            known => format!("unknown option `{unknown}`: the options here are {}", known.join(", ")),
        };
        Err(OptionError::option(unknown, message))
    }
}

fn missing(name: &str, meaning: &str) -> OptionError {
    OptionError::table(format!("the option `{name}` is missing: {meaning}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn a_misspelt_option_is_named_with_those_that_exist() {
        let mut given = options(&[("event_rat", "10")]);
        assert_eq!(given.parse::<f64>("event_rate", "a number"), Ok(None));
        let error = given.finish().unwrap_err();
        assert_eq!(error.option.as_deref(), Some("event_rat"));
        assert!(error.message.contains("event_rate"), "{error}");
    }

    #[test]
    fn a_value_that_does_not_parse_is_shown() {
        let error = options(&[("n", "ten")]).parse::<u64>("n", "a whole number").unwrap_err();
        assert_eq!(error.option.as_deref(), Some("n"));
        assert!(error.message.contains("'ten'") && error.message.contains("a whole number"), "{error}");
    }

    #[test]
    fn a_choice_lists_its_words() {
        let error = options(&[("type", "snik")]).choice("type", &[("source", 1), ("sink", 2)]).unwrap_err();
        assert!(error.message.contains("'source' or 'sink'"), "{error}");
    }
}
