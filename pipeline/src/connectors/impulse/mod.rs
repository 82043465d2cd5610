//! `impulse`: a source that makes rows by the clock, or as fast as it can.
//!
//! Columns: `counter`, from 0, every number once over all subtasks, and `subtask_index`. Arroyo counts from 0 in each subtask
//! and applies `message_count` to each; here both belong to the table, so that the rows are the same at any parallelism.
//! With one subtask there is no difference.

mod source;

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, FieldRef};

use super::{Connector, OptionError, OptionSpec, Options, SourceTable, TableDefinition, cannot_write};
use crate::plan::{NodePlan, StreamKind, StreamSchema};
use crate::runtime::{Body, OperatorError, Stage, Subtask};
use source::ImpulseSource;

static EVENT_RATE: OptionSpec = OptionSpec {
    name: "event_rate",
    value: "a number of rows per second above 0, such as '10' or '0.5'",
    default: Some("no limit, when `message_count` is given"),
    doc: "Rows per second, over all subtasks together.",
};
static EVENT_TIME_INTERVAL: OptionSpec = OptionSpec {
    name: "event_time_interval",
    value: "a whole number of microseconds",
    default: Some("event time is the wall clock"),
    doc: "Event time from one row to the next; the first row has the time of the start.",
};
static MESSAGE_COUNT: OptionSpec = OptionSpec {
    name: "message_count",
    value: "a whole number of rows",
    default: Some("without end"),
    doc: "Rows in all, over all subtasks together; then the source ends.",
};

static OPTIONS: &[&OptionSpec] = &[&EVENT_RATE, &EVENT_TIME_INTERVAL, &MESSAGE_COUNT];

/// The connector.
pub(super) struct Impulse;

impl Connector for Impulse {
    fn name(&self) -> &'static str {
        "impulse"
    }

    fn options(&self) -> &'static [&'static OptionSpec] {
        OPTIONS
    }

    fn source(&self, table: &TableDefinition, options: &mut Options) -> Result<SourceTable, OptionError> {
        let rate = options.get::<f64>(&EVENT_RATE)?;
        let interval = options.get::<u64>(&EVENT_TIME_INTERVAL)?.map(Duration::from_micros);
        let count = options.get::<u64>(&MESSAGE_COUNT)?;
        if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(OptionError::option(EVENT_RATE.name, format!("`event_rate` must be {}", EVENT_RATE.value)));
        }
        if rate.is_none() && count.is_none() {
            return Err(OptionError::table(format!(
                "the option `event_rate` is missing: {}. Only a source with a `message_count` may do without",
                EVENT_RATE.value
            )));
        }
        check_columns(table)?;
        let output = StreamSchema::new(columns(), StreamKind::Append).map_err(|e| OptionError::table(e.to_string()))?;
        Ok(SourceTable { stage: Arc::new(ImpulseNode { schedule: Schedule { rate, interval, count }, output }) })
    }

    fn sink(&self, _: &TableDefinition, _: &mut Options, _: &StreamSchema) -> Result<Arc<dyn Stage>, OptionError> {
        Err(cannot_write(self.name()))
    }
}

fn columns() -> Vec<FieldRef> {
    ["counter", "subtask_index"].map(|name| Arc::new(Field::new(name, DataType::UInt64, false))).to_vec()
}

/// Columns may be left out; where they are declared they must be those that there are.
fn check_columns(table: &TableDefinition) -> Result<(), OptionError> {
    let same = |declared: &FieldRef, ours: &FieldRef| {
        declared.name() == ours.name() && declared.data_type() == ours.data_type()
    };
    let ours = columns();
    let matches = table.columns.len() == ours.len() && table.columns.iter().zip(&ours).all(|(d, o)| same(d, o));
    if matches || table.columns.is_empty() {
        return Ok(());
    }
    Err(OptionError::table(
        "an `impulse` table has the columns (counter BIGINT UNSIGNED, subtask_index BIGINT UNSIGNED): write these, or leave \
         the list of columns out",
    ))
}

/// Which rows are made, and when.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// Rows per second over all subtasks; `None` is as fast as possible.
    rate: Option<f64>,
    /// Event time between rows; `None` is the wall clock.
    interval: Option<Duration>,
    /// Rows in all; `None` is without end.
    count: Option<u64>,
}

#[derive(Debug)]
struct ImpulseNode {
    schedule: Schedule,
    output: StreamSchema,
}

impl NodePlan for ImpulseNode {
    fn kind(&self) -> &'static str {
        "impulse_source"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let Schedule { rate, interval, count } = self.schedule;
        let details = [
            ("event rate", rate.map(|rate| format!("{rate} rows/s"))),
            ("event time", interval.map(|step| format!("{step:?} from row to row"))),
            ("rows", count.map(|count| count.to_string())),
        ];
        details.into_iter().filter_map(|(label, value)| Some((label, value?))).collect()
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for ImpulseNode {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        let schema = Arc::clone(self.output.schema());
        Ok(Body::Source(Box::new(ImpulseSource::new(self.schedule, subtask.index, subtask.parallelism, schema))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pairs: &[(&str, &str)], columns: Vec<FieldRef>) -> Result<SourceTable, OptionError> {
        let table = TableDefinition { name: "beats".into(), columns, primary_key: Vec::new() };
        let mut options = Options::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let made = Impulse.source(&table, &mut options)?;
        options.finish()?;
        Ok(made)
    }

    #[test]
    fn options_are_read_and_shown() {
        let options = [("event_rate", "0.5"), ("event_time_interval", "1000000"), ("message_count", "3")];
        let details = source(&options, columns()).unwrap().stage.details();
        let values: Vec<_> = details.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["0.5 rows/s", "1s from row to row", "3"]);
    }

    #[test]
    fn a_rate_that_cannot_be_is_refused() {
        for rate in ["0", "-1", "inf", "NaN", "ten"] {
            let error = source(&[("event_rate", rate)], Vec::new()).unwrap_err();
            assert_eq!(error.option.as_deref(), Some("event_rate"), "{rate}");
        }
        assert!(source(&[], Vec::new()).unwrap_err().message.contains("event_rate"));
    }

    #[test]
    fn other_columns_are_refused() {
        let other = vec![Arc::new(Field::new("n", DataType::Int64, true))];
        let error = source(&[("event_rate", "1")], other).unwrap_err();
        assert!(error.message.contains("counter BIGINT UNSIGNED"), "{error}");
    }
}
