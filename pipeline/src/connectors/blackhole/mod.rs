//! `blackhole`: a sink that drops every row. What arrives is counted as for every node.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::{Connector, OptionError, Options, SourceTable, TableDefinition, cannot_read};
use crate::plan::{EventTimeUse, NodePlan, StreamSchema};
use crate::runtime::{Body, Context, Operator, OperatorError, Stage, Subtask};

/// The connector.
pub(super) struct Blackhole;

impl Connector for Blackhole {
    fn name(&self) -> &'static str {
        "blackhole"
    }

    fn source(&self, _: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        Err(cannot_read(self.name()))
    }

    fn sink(&self, _: &TableDefinition, _: &mut Options, _: &StreamSchema) -> Result<Arc<dyn Stage>, OptionError> {
        Ok(Arc::new(BlackholeSink))
    }
}

#[derive(Debug)]
struct BlackholeSink;

impl NodePlan for BlackholeSink {
    fn kind(&self) -> &'static str {
        "blackhole_sink"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::Ignored
    }

    fn output(&self) -> Option<&StreamSchema> {
        None
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for BlackholeSink {
    fn build(&self, _: &Subtask) -> Result<Body, OperatorError> {
        Ok(Body::Operator(Box::new(Self)))
    }
}

impl Operator for BlackholeSink {
    fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        cx.record_delivery(batch.num_rows());
        Ok(())
    }
}
