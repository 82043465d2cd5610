//! Turns the edges of a job into channels between subtasks.

use std::sync::Arc;

use super::channel::{Receiver, Sender, channel};
use super::exchange::Outputs;
use super::metrics::{Metrics, SubtaskMetrics};
use super::run::Options;
use super::{Job, OperatorError, PipelineError, Stage, hash};
use crate::plan::{Dataflow, Edge, Exchange, Node, StreamSchema};

/// All that joins one subtask to the rest.
#[derive(Debug)]
pub struct Wires {
    /// The channels into it, each with the number of the node's input.
    pub inputs: Vec<(usize, Receiver)>,
    /// The channels out of it.
    pub outputs: Outputs,
    /// What it counts.
    pub metrics: Arc<SubtaskMetrics>,
}

/// The wires of every subtask, by node and subtask.
///
/// # Errors
/// An exchange by columns that are not there or cannot be hashed.
pub fn wire(job: &Job, options: &Options, metrics: &mut Metrics) -> Result<Vec<Vec<Wires>>, PipelineError> {
    let mut wires: Vec<Vec<Wires>> = job.nodes().map(|(_, node)| ends(node, options, metrics)).collect();
    for edge in job.edges() {
        check_keys(job, edge)?;
        let is_updating = job.output(edge.from).is_some_and(StreamSchema::is_updating);
        connect(edge, is_updating, options.channel_rows, &mut wires);
    }
    Ok(wires)
}

/// One unconnected end per subtask of `node`.
fn ends(node: &Node<dyn Stage>, options: &Options, metrics: &mut Metrics) -> Vec<Wires> {
    let parallelism = options.parallelism.min(node.plan.max_parallelism().unwrap_or(usize::MAX)).max(1);
    let counters = metrics.add_node(&node.name, node.plan.kind(), parallelism);
    let wires = counters.into_iter().map(|metrics| Wires {
        inputs: Vec::new(),
        outputs: Outputs::new(Arc::clone(&metrics)),
        metrics,
    });
    wires.collect()
}

/// Connects every sender of `edge` with every receiver that it may send to.
fn connect(edge: &Edge, is_updating: bool, channel_rows: usize, wires: &mut [Vec<Wires>]) {
    let senders = wires.get(edge.from.0).map_or(0, Vec::len);
    let Some(receivers) = wires.get_mut(edge.to.0) else { return };
    let straight = edge.exchange == Exchange::Forward && senders == receivers.len();
    let bound = if straight { channel_rows } else { channel_rows.div_ceil(senders.max(1)) };
    let mut lanes: Vec<Vec<Sender>> = (0..senders).map(|_| Vec::new()).collect();
    for (from, lanes) in lanes.iter_mut().enumerate() {
        for (_, receiver) in receivers.iter_mut().enumerate().filter(|(to, _)| !straight || from == *to) {
            let (send, receive) = channel(bound, Arc::clone(&receiver.metrics));
            receiver.inputs.push((edge.input, receive));
            lanes.push(send);
        }
    }
    let ends = wires.get_mut(edge.from.0).into_iter().flatten();
    for (index, (wires, lanes)) in ends.zip(lanes).enumerate() {
        wires.outputs.add(edge.exchange.clone(), is_updating, lanes, index);
    }
}

/// Refuses keys that [`hash`] cannot route by.
fn check_keys(job: &Dataflow<dyn Stage>, edge: &Edge) -> Result<(), PipelineError> {
    let Exchange::Hash(keys) = &edge.exchange else { return Ok(()) };
    let Some(schema) = job.output(edge.from) else { return Ok(()) };
    let reader = job.node(edge.to).map_or("?", |node| node.name.as_str());
    for key in keys {
        let Some(field) = schema.schema().fields().get(*key) else {
            let error = OperatorError::internal(format!("its key is column {key}, which its input does not have"));
            return Err(PipelineError::at_start(reader, error));
        };
        hash::check(field.data_type()).map_err(|error| {
            PipelineError::at_start(reader, OperatorError::user(format!("column `{}`: {error}", field.name())))
        })?;
    }
    Ok(())
}
