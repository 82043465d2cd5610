//! JSONPath (RFC 9535) over JSON text.
//!
//! Paths of names, positions and `[*]` on arrays, which is what pipelines use, are followed in the text itself; others
//! go through `serde_json_path`. Results are those of `serde_json` either way: compact text, keys in order.

use datafusion::error::{DataFusionError, Result};
use jiter::{Jiter, Peek};
use serde_json::Value;
use serde_json_path::JsonPath as GeneralPath;

/// A compiled path.
#[derive(Debug)]
pub(super) struct JsonPath {
    /// The path in steps that need no tree of values.
    steps: Option<Vec<Step>>,
    general: GeneralPath,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
    All,
}

/// Why the text could not be followed.
enum Stop {
    /// It is not JSON.
    Invalid,
    /// The path has a meaning here that only the general form knows.
    NotSimple,
}

impl From<jiter::JiterError> for Stop {
    fn from(_: jiter::JiterError) -> Self {
        Self::Invalid
    }
}

impl JsonPath {
    /// Compiles `path`.
    pub(super) fn parse(path: &str) -> Result<Self> {
        let general = GeneralPath::parse(path).map_err(|error| {
            let at = error.position() + 1;
            let reason = error.message();
            DataFusionError::Plan(format!("the JSON path '{path}' is not valid at character {at}: {reason}\nJSONPath is RFC 9535: `$.name`, `$[0]`, `$[*]`"))
        })?;
        Ok(Self { steps: simple_steps(path), general })
    }

    /// Gives the JSON text of every match in `document` to `found`, in the order of the document. False when the document is
    /// not JSON; nothing was given then.
    pub(super) fn query(&self, document: &str, found: &mut impl FnMut(&str)) -> bool {
        if let Some(steps) = &self.steps {
            let mut matches = Vec::new();
            match follow(document, steps, &mut matches) {
                Ok(()) => {
                    matches.into_iter().for_each(|text| give(text, found));
                    return true;
                }
                Err(Stop::Invalid) => return false,
                Err(Stop::NotSimple) => {}
            }
        }
        let Ok(value) = serde_json::from_str::<Value>(document) else { return false };
        self.general.query(&value).iter().for_each(|value| found(&value.to_string()));
        true
    }
}

/// The text of a match as `serde_json` would print it.
fn give(text: &str, found: &mut impl FnMut(&str)) {
    if is_canonical(text) {
        return found(text);
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) => found(&value.to_string()),
        Err(_) => found(text),
    }
}

/// Whether printing the parsed text surely gives the same text again.
fn is_canonical(text: &str) -> bool {
    match text.as_bytes() {
        [b'"', ..] => !text.contains('\\'),
        [b'-', rest @ ..] => is_short_integer(rest) && !rest.starts_with(b"0"),
        [b'0'..=b'9', ..] => is_short_integer(text.as_bytes()),
        _ => matches!(text, "true" | "false" | "null"),
    }
}

fn is_short_integer(digits: &[u8]) -> bool {
    digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit)
}

/// Follows `steps` into `document`, which is read to its end.
fn follow<'j>(document: &'j str, steps: &[Step], matches: &mut Vec<&'j str>) -> std::result::Result<(), Stop> {
    let Some((step, rest)) = steps.split_first() else {
        let mut reader = Jiter::new(document.as_bytes());
        reader.next_skip()?;
        reader.finish()?;
        matches.push(document.trim());
        return Ok(());
    };
    let mut reader = Jiter::new(document.as_bytes());
    match (step, reader.peek()?) {
        (Step::Name(name), Peek::Object) => {
            if let Some(value) = member(document, &mut reader, name)? {
                follow(value, rest, matches)?;
            }
        }
        (Step::Index(_) | Step::All, Peek::Array) => elements(document, &mut reader, step, rest, matches)?,
        (Step::All, Peek::Object) => return Err(Stop::NotSimple),
        (_, peek) => reader.known_skip(peek)?,
    }
    reader.finish()?;
    Ok(())
}

/// The text of an object's member; of several with one name the last counts.
fn member<'j>(document: &'j str, reader: &mut Jiter<'j>, name: &str) -> std::result::Result<Option<&'j str>, Stop> {
    let mut value = None;
    let mut wanted = reader.known_object()?.map(|key| key == name);
    while let Some(is_wanted) = wanted {
        let peek = reader.peek()?;
        let start = reader.current_index();
        reader.known_skip(peek)?;
        if is_wanted {
            value = Some(document.get(start..reader.current_index()).ok_or(Stop::Invalid)?);
        }
        wanted = reader.next_key()?.map(|key| key == name);
    }
    Ok(value)
}

fn elements<'j>(
    document: &'j str,
    reader: &mut Jiter<'j>,
    step: &Step,
    rest: &[Step],
    matches: &mut Vec<&'j str>,
) -> std::result::Result<(), Stop> {
    let mut peek = reader.known_array()?;
    let mut position = 0;
    while let Some(element) = peek {
        let start = reader.current_index();
        reader.known_skip(element)?;
        if *step == Step::All || *step == Step::Index(position) {
            let text = document.get(start..reader.current_index()).ok_or(Stop::Invalid)?;
            if rest.is_empty() {
                matches.push(text);
            } else {
                follow(text, rest, matches)?;
            }
        }
        position += 1;
        peek = reader.array_step()?;
    }
    Ok(())
}

/// The steps of a path of plain names, positions from 0 and `[*]`; `None` for any other. The path is known to be valid.
fn simple_steps(path: &str) -> Option<Vec<Step>> {
    let mut rest = path.trim().strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if let Some(after) = rest.strip_prefix("[*]") {
            steps.push(Step::All);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("['") {
            let (name, after) = after.split_once("']")?;
            if !name.chars().all(|c| is_name(c) || c == '-' || c == ' ') {
                return None;
            }
            steps.push(Step::Name(name.to_owned()));
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']')?;
            steps.push(Step::Index(index.parse().ok()?));
            rest = after;
        } else {
            let name = rest.strip_prefix('.')?;
            let end = name.find(|c| !is_name(c)).unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Name(name.to_owned()));
            rest = after;
        }
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTS: &[&str] = &[
        r#"[1000000, 1000003 ,-7]"#,
        r#"{"a": {"b": [1, {"c": "x\u00e9\n"}, 2.50, 1e3, -0, 123456789012345678901]}, "z": null}"#,
        r#" {"a":[{"b":1},{"b":[true, false]},{"c":3}], "a b": "plain"} "#,
        r#"{"a":1,"a":{"b":2}}"#,
        r#""text""#,
        "[]",
        "{}",
        "12",
        "[1,2",
        "[1] 2",
        "{'a':1}",
        "",
    ];

    /// What Arroyo computes: the whole document as a tree.
    fn by_tree(document: &str, path: &str) -> Option<Vec<String>> {
        let value: Value = serde_json::from_str(document).ok()?;
        Some(GeneralPath::parse(path).unwrap().query(&value).iter().map(|v| v.to_string()).collect())
    }

    #[test]
    fn following_the_text_gives_what_the_tree_gives() {
        let paths = [
            "$",
            "$[*]",
            "$.a",
            "$.a.b",
            "$.a[*]",
            "$.a[*].b",
            "$.a[1].b[0]",
            "$['a b']",
            "$['a'].b[*]",
            "$.a.b[*].c",
            "$[1]",
            "$[-1]",
            "$..b",
            "$.a[0:2]",
            "$.*",
            "$.a[?@.b == 1]",
        ];
        for path in paths {
            let compiled = JsonPath::parse(path).unwrap();
            for document in DOCUMENTS {
                let mut found = Vec::new();
                let valid = compiled.query(document, &mut |text| found.push(text.to_owned()));
                assert_eq!(valid.then_some(found), by_tree(document, path), "{path} in {document}");
            }
        }
    }

    #[test]
    fn only_plain_paths_are_simple() {
        assert_eq!(simple_steps("$.a[*]"), Some(vec![Step::Name("a".into()), Step::All]));
        assert_eq!(simple_steps("$['x y'][3]"), Some(vec![Step::Name("x y".into()), Step::Index(3)]));
        for path in ["$..a", "$.*", "$[-1]", "$[1:2]", "$['a','b']", "$[?@.a]", r"$['\u0061']"] {
            assert_eq!(simple_steps(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_is_none_is_refused() {
        let error = JsonPath::parse("$.a[").unwrap_err().to_string();
        assert!(error.contains("'$.a['") && error.contains("not valid"), "{error}");
    }
}
