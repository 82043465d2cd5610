//! The functions of the dialect: DataFusion's, the JSON ones, placeholders for what operators compute, and the user's.

mod json;
mod json_path;
mod not_null;
mod placeholder;

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::execution::context::SessionState;
use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::SessionConfig;

use crate::runtime::AsyncFunction;

pub(super) use not_null::not_null;
pub(super) use placeholder::{AsyncCall, RowTime, Tumble, interval};

/// The user's functions, as the planner needs them.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    /// Called with whole columns, in expressions.
    pub scalar: Vec<Arc<ScalarUDF>>,
    /// One value from all rows of a group.
    pub aggregate: Vec<Arc<AggregateUDF>>,
    /// Called once per row, by an operator of their own.
    pub asynchronous: Vec<Arc<dyn AsyncFunction>>,
}

/// What DataFusion knows while a file is planned: all functions, the rules of its analyzer, its options.
pub(super) fn session(functions: &Functions) -> Result<SessionState> {
    let mut config = SessionConfig::new();
    let options = config.options_mut();
    // TEXT is Utf8 everywhere, as in Arroyo; positions of columns are for our messages.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.optimizer.skip_failed_rules = false;
    // A dataflow has no use for plans that are split for a batch engine.
    options.execution.target_partitions = 1;
    let mut state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    datafusion_functions_json::register_all(&mut state)?;
    for function in json::all() {
        state.register_udf(function)?;
    }
    for function in [ScalarUDF::from(Tumble::default()), ScalarUDF::from(RowTime::default())] {
        state.register_udf(Arc::new(function))?;
    }
    for function in &functions.scalar {
        state.register_udf(Arc::clone(function))?;
    }
    for function in &functions.aggregate {
        state.register_udaf(Arc::clone(function))?;
    }
    for function in &functions.asynchronous {
        state.register_udf(Arc::new(ScalarUDF::from(AsyncCall::new(Arc::clone(function)))))?;
    }
    Ok(state)
}
