//! Connectors and functions to plan with.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::connectors::{Connector, OptionError, Options, Settings, SourceTable, TableDefinition};
use crate::plan::{NodePlan, StreamKind, StreamSchema};
use crate::runtime::{AsyncCalls, AsyncFunction, Body, OperatorError, Stage, Subtask};
use crate::sql::Functions;

/// The connectors that stand alone, and three that do not: `lines` is read and written, `changes` is a change feed,
/// `clickhouse` is written.
pub(super) fn connectors() -> Vec<Box<dyn Connector>> {
    let real = crate::connectors::all(&Settings::default());
    let standing_alone =
        real.into_iter().filter(|c| ["impulse", "stdout", "blackhole", "single_file"].contains(&c.name()));
    let fakes =
        [("lines", StreamKind::Append), ("changes", StreamKind::Updating), ("clickhouse", StreamKind::Updating)];
    let fakes = fakes.map(|(name, kind)| Box::new(Fake { name, kind }) as Box<dyn Connector>);
    standing_alone.chain(fakes).collect()
}

struct Fake {
    name: &'static str,
    kind: StreamKind,
}

impl Connector for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn source(&self, table: &TableDefinition, options: &mut Options) -> Result<SourceTable, OptionError> {
        if self.name == "clickhouse" {
            return Err(OptionError::table("a `clickhouse` table can only be written: use it in INSERT INTO"));
        }
        options.take("path");
        if table.columns.is_empty() {
            return Err(OptionError::table(format!("a `{}` table needs its columns declared", self.name)));
        }
        let output = StreamSchema::new(table.columns.iter().cloned(), self.kind);
        let output = output.map_err(|error| OptionError::table(error.to_string()))?;
        Ok(SourceTable { stage: Arc::new(FakeNode { kind: "fake_source", output: Some(output) }) })
    }

    fn sink(
        &self,
        _: &TableDefinition,
        options: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError> {
        for option in ["path", "url", "database", "table", "delivery"] {
            options.take(option);
        }
        if input.is_updating() && self.kind == StreamKind::Append {
            return Err(OptionError::table(format!("a `{}` table cannot take changes: group by a window", self.name)));
        }
        Ok(Arc::new(FakeNode { kind: "fake_sink", output: None }))
    }
}

#[derive(Debug)]
struct FakeNode {
    kind: &'static str,
    output: Option<StreamSchema>,
}

impl NodePlan for FakeNode {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn output(&self) -> Option<&StreamSchema> {
        self.output.as_ref()
    }

    fn can_be_shared(&self) -> bool {
        self.output.is_some()
    }
}

impl Stage for FakeNode {
    fn build(&self, _: &Subtask) -> Result<Body, OperatorError> {
        Err(OperatorError::internal("a fake is not run"))
    }
}

/// `twice(BIGINT)`, and the async `active_influencers(BIGINT, BIGINT)` and `fetch_influencer(BIGINT)`.
pub(super) fn functions() -> Functions {
    let twice = |args: &[ColumnarValue]| {
        let numbers = args
            .first()
            .map(|arg| arg.to_array(1))
            .transpose()?
            .unwrap_or_else(|| Arc::new(arrow::array::Int64Array::from(vec![0])));
        Ok(ColumnarValue::Array(arrow::compute::kernels::numeric::add(&numbers, &numbers)?))
    };
    let twice = create_udf("twice", vec![DataType::Int64], DataType::Int64, Volatility::Volatile, Arc::new(twice));
    Functions {
        scalar: vec![Arc::new(twice) as Arc<ScalarUDF>],
        aggregate: Vec::new(),
        asynchronous: vec![
            Arc::new(FakeFunction { name: "active_influencers", args: vec![DataType::Int64; 2] }),
            Arc::new(FakeFunction { name: "fetch_influencer", args: vec![DataType::Int64] }),
        ],
    }
}

#[derive(Debug)]
struct FakeFunction {
    name: &'static str,
    args: Vec<DataType>,
}

impl AsyncFunction for FakeFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn argument_types(&self) -> &[DataType] {
        &self.args
    }

    fn result_type(&self) -> &DataType {
        &DataType::Utf8
    }

    fn is_nullable(&self) -> bool {
        true
    }

    fn is_ordered(&self) -> bool {
        false
    }

    fn max_in_flight(&self) -> usize {
        8
    }

    fn start(&self, _: &Subtask) -> Result<Box<dyn AsyncCalls>, OperatorError> {
        Err(OperatorError::internal("a fake is not run"))
    }
}
