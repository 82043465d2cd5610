//! The operators, one file each: the plan half (what the node is), the running half (what a subtask does), the tests.
//!
//! They compute on batches and know no channel, task, clock or connector: what they need of the world comes through
//! [`crate::runtime::Context`].

mod aggregate;
mod async_udf;
mod error;
mod gathered;
mod held;
mod latest;
mod memory_table;
mod partial_aggregate;
mod project;
mod reduction;
#[cfg(test)]
mod testing;
mod tumbling_aggregate;
mod unnest;
mod updating_aggregate;
mod updating_rows;
mod watermark;
mod window_groups;
mod windows;

pub use aggregate::{AggregateCall, AggregateInput};
pub use async_udf::AsyncUdf;
pub use error::NodeError;
pub use memory_table::MemoryTable;
pub use partial_aggregate::PartialAggregate;
pub use project::Project;
pub use tumbling_aggregate::TumblingAggregate;
pub use unnest::Unnest;
pub use updating_aggregate::UpdatingAggregate;
pub use watermark::Watermark;

/// The most rows that an operator puts into one batch when it is free to choose.
const BATCH_ROWS: usize = 8192;
