//! `stdout`: a sink that prints each row as a line of JSON.
//!
//! Rows of an updating query are printed as changes: see [`Shape::Changes`].

use std::sync::Arc;

use futures::FutureExt;

use super::json_lines::{JsonLines, Output};
use super::{Connector, OptionError, OptionSpec, Options, SourceTable, TableDefinition, cannot_read};
use crate::formats::json::{Encoder, Shape};
use crate::plan::{NodePlan, StreamSchema};
use crate::runtime::{Body, OperatorError, Stage, Subtask};

static FORMAT: OptionSpec = OptionSpec {
    name: "format",
    value: "'json' or 'debezium_json'",
    default: Some("'debezium_json' for an updating query, else 'json'"),
    doc: "How a row is printed: as an object, or as a change with `before`, `after` and `op`.",
};

static OPTIONS: &[&OptionSpec] = &[&FORMAT];

/// The connector.
pub(super) struct Stdout;

impl Connector for Stdout {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn options(&self) -> &'static [&'static OptionSpec] {
        OPTIONS
    }

    fn source(&self, _: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        Err(cannot_read(self.name()))
    }

    fn sink(
        &self,
        _: &TableDefinition,
        options: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError> {
        let default = if input.is_updating() { Shape::Changes } else { Shape::Rows };
        let format = options.choice(FORMAT.name, &[("json", Shape::Rows), ("debezium_json", Shape::Changes)])?;
        let encoder = Encoder::new(input, format.unwrap_or(default))
            .map_err(|error| OptionError::option(FORMAT.name, error.to_string()))?;
        Ok(Arc::new(StdoutSink { encoder }))
    }
}

#[derive(Debug)]
struct StdoutSink {
    encoder: Encoder,
}

impl NodePlan for StdoutSink {
    fn kind(&self) -> &'static str {
        "stdout_sink"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("format", self.encoder.shape().to_string())]
    }

    fn output(&self) -> Option<&StreamSchema> {
        None
    }

    /// Lines of several subtasks would cut into one another.
    fn max_parallelism(&self) -> Option<usize> {
        Some(1)
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for StdoutSink {
    fn build(&self, _: &Subtask) -> Result<Body, OperatorError> {
        let open = async { Ok(Box::new(tokio::io::stdout()) as Output) }.boxed();
        Ok(Body::Operator(Box::new(JsonLines::new("standard output".into(), self.encoder.clone(), open))))
    }
}
