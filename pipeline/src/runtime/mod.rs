//! Runs a [`Dataflow`](crate::plan::Dataflow) of [`Stage`]s: subtasks joined by bounded channels, watermarks, aligned barriers, clean stops.
//!
//! Knows no operator and no connector by name. Read [`Operator`] and [`Source`] first: they are the contract that
//! everything else in the crate is written against.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod call_times;
mod channel;
mod clock;
mod context;
mod coordinator;
mod error;
mod exchange;
pub mod exposition;
mod function;
pub mod hash;
mod inputs;
pub mod metrics;
mod operator;
mod operator_task;
mod rounds;
mod run;
mod saving;
mod source_task;
mod subtask;
#[cfg(test)]
mod tests;
mod time;
mod timer;
mod watermarks;
mod wiring;

pub use clock::Clock;
pub use context::{Context, Counts, Outbox, Output};
pub use error::{Fault, OperatorError, PipelineError};
pub use function::{AsyncCalls, AsyncFunction};
pub use metrics::Metrics;
pub use operator::{Body, Operator, Source, SourceContext, SourceEvent, Stage, Subtask};
pub use run::{Control, Finished, Options, Reason, Running, SavedState, identities, start, start_saving};
pub use time::{Barrier, Epoch, Time, Watermark};

/// A dataflow that can be run.
pub type Job = crate::plan::Dataflow<dyn Stage>;
