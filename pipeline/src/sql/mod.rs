//! SQL text to a typed plan.
//!
//! A file goes through these stages, each in a file of its own:
//!
//! 1. `parse` (`dialect`): text to statements, with the places of all words;
//! 2. `query`: what a stream cannot do is refused, by its place in the text;
//! 3. `table` (`options`), `catalog`, `source`, `insert`: what is declared, what is read, what is filled;
//! 4. `analyze`: DataFusion resolves names, types and functions ([`Functions`], and those of `functions`);
//! 5. `rewrite` (`nodes`): window aggregates and async calls become nodes of their own; updating and append-only rows
//!    are told apart; then DataFusion's rules make the plan cheaper;
//! 6. `lower` (`lower_aggregate`): logical nodes to the nodes of a [`crate::plan::Dataflow`].
//!
//! Runs nothing and touches nothing outside the process. Every refusal is a [`SqlError`]: line, column, what to write.

mod analyze;
mod catalog;
mod dialect;
mod error;
mod functions;
mod insert;
mod lower;
mod lower_aggregate;
mod nodes;
mod options;
mod parse;
mod planning;
mod query;
mod rewrite;
mod source;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use error::SqlError;
pub use functions::Functions;

use crate::connectors::Connector;
use crate::runtime::Job;
use datafusion::sql::sqlparser::tokenizer::Span;
use error::Refusal;

/// How long updating queries keep a key that no row touches, unless `SET updating_ttl` says otherwise.
const UPDATING_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Plans pipelines over a set of connectors and functions.
pub struct Planner {
    connectors: Vec<Box<dyn Connector>>,
    functions: Functions,
}

/// A planned file.
#[derive(Debug)]
pub struct Pipeline {
    /// What is run.
    pub job: Job,
    /// `SET updating_ttl`: how long updating queries keep a key that no row touches.
    pub updating_ttl: Duration,
}

impl Planner {
    /// A planner that knows `connectors` and, beside its own, `functions`.
    pub fn new(connectors: Vec<Box<dyn Connector>>, functions: Functions) -> Self {
        Self { connectors, functions }
    }

    /// Plans `text`; `file` names it in messages. `env` gives the values for `{{ NAME }}` in options.
    ///
    /// # Errors
    /// The first thing in the file that cannot be: with its place and what to write instead.
    pub fn plan(&self, file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Pipeline, SqlError> {
        self.plan_text(text, env).map_err(|refusal| refusal.into_error(file, text))
    }

    fn plan_text(&self, text: &str, env: &dyn Fn(&str) -> Option<String>) -> error::Result<Pipeline> {
        let statements = parse::parse(text)?;
        let session =
            functions::session(&self.functions).map_err(|error| Refusal::from_datafusion(&error, |_| Span::empty()))?;
        planning::plan(statements, &session, &self.connectors, env)
    }
}
