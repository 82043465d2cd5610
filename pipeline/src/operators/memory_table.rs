//! A table that lives between the queries of one pipeline: what one INSERT writes, any number of queries read.

use arrow::record_batch::RecordBatch;

use super::NodeError;
use crate::plan::{EventTimeUse, NodePlan, StreamSchema};
use crate::runtime::{Body, Context, Operator, OperatorError, Stage, Subtask};

/// Passes its input on to every query that reads the table. It is a node of its own so that it has the table's name in
/// messages, metrics and `explain`, and so that what fills it is computed once.
#[derive(Debug)]
pub struct MemoryTable {
    output: StreamSchema,
}

impl MemoryTable {
    /// The table that is written by `input`, whose columns are already named and typed as the table declares them.
    pub fn try_new(input: &StreamSchema) -> Result<Self, NodeError> {
        Ok(Self { output: input.clone() })
    }
}

impl NodePlan for MemoryTable {
    fn kind(&self) -> &'static str {
        "memory_table"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::PassedOn
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    /// Tables are told apart by name, even where they hold the same rows.
    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for MemoryTable {
    fn build(&self, _subtask: &Subtask) -> Result<Body, OperatorError> {
        Ok(Body::Operator(Box::new(MemoryTableOperator)))
    }
}

/// One subtask of a [`MemoryTable`].
struct MemoryTableOperator;

impl Operator for MemoryTableOperator {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.emit(batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Driver, batch_of, event, events};
    use crate::plan::{Dataflow, Exchange};
    use crate::runtime::{Job, Time, Watermark};

    #[test]
    fn rows_and_watermarks_pass() {
        let mut driver = Driver::new(&MemoryTable::try_new(&events()).unwrap());
        let batch = batch_of(&[event(1, 2, 3), event(4, 5, 6)]);
        driver.rows(batch.clone()).unwrap();
        driver.watermark(Watermark::At(Time(3)));
        assert_eq!(driver.trace(), ["2 rows", "at 3"]);
        driver.rows(batch.clone()).unwrap();
        assert_eq!(driver.sent_rows(), batch);
    }

    #[test]
    fn two_tables_with_equal_rows_stay_two() {
        let table = || std::sync::Arc::new(MemoryTable::try_new(&events()).unwrap());
        let mut job: Job = Dataflow::default();
        let source = job.add(Some("source"), table(), vec![]).unwrap();
        let a = job.add(Some("replies"), table(), vec![(source, Exchange::Forward)]).unwrap();
        let b = job.add(Some("readings"), table(), vec![(source, Exchange::Forward)]).unwrap();
        assert_ne!(a, b);
        assert_eq!(job.node(b).unwrap().name, "readings");
    }
}
