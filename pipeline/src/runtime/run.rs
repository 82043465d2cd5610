//! Starts a pipeline, and the handle by which it is watched, stopped and waited for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::coordinator::{Command, Coordinator, Done};
use super::error::of_panic;
use super::inputs::Inputs;
use super::metrics::Metrics;
use super::operator_task::OperatorTask;
use super::saving::Saving;
use super::source_task::SourceTask;
use super::subtask::{Belongings, Halt, Outcome, Reporter, guard};
use super::wiring::{Wires, wire};
use super::{Barrier, Body, Clock, Epoch, Job, OperatorError, PipelineError, Stage, Subtask};
use crate::plan::{Node, NodeId};
use crate::state::{Checkpoints, NodeIdentity, Restored, Resumed};

/// How a pipeline is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pipeline's name, in metrics and for [`Subtask::pipeline`].
    pub pipeline: String,
    /// How many subtasks each node has, where the node allows as many. At least 1.
    pub parallelism: usize,
    /// How often a checkpoint is started; the next waits until the last is complete. Default: 10 s.
    pub checkpoint_interval: Duration,
    /// How many rows may wait in front of a subtask, per input; divided evenly among those that send to it. One batch
    /// per sender may always wait, however large. Default: 16,384.
    pub channel_rows: usize,
    /// Default: the machine's clock.
    pub clock: Clock,
}

impl Options {
    /// The defaults, for a pipeline of this name and parallelism.
    pub fn new(pipeline: impl Into<String>, parallelism: usize) -> Self {
        Self {
            pipeline: pipeline.into(),
            parallelism,
            checkpoint_interval: Duration::from_secs(10),
            channel_rows: 16_384,
            clock: Clock::system(),
        }
    }
}

/// Why a pipeline ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Every source has ended, and every row has passed through.
    SourcesEnded,
    /// It was stopped by [`Control::stop`], cleanly.
    Stopped,
    /// It was stopped by [`Control::abort`]: rows under way are lost.
    Aborted,
}

/// The end of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: Reason,
    /// The last epoch that every subtask has completed.
    pub last_epoch: Option<Epoch>,
}

/// Stops a pipeline; for signal handlers. Clones stop the same one.
#[derive(Debug, Clone)]
pub struct Control(watch::Sender<Command>);

impl Control {
    /// Stops the pipeline cleanly: one last barrier flows from every source through everything, and each subtask ends
    /// behind it. As long as a sink cannot deliver, it takes that long.
    pub fn stop(&self) {
        self.raise(Command::Stop);
    }

    /// Stops the pipeline at once.
    pub fn abort(&self) {
        self.raise(Command::Abort);
    }

    fn raise(&self, command: Command) {
        self.0.send_if_modified(|current| {
            let higher = command > *current;
            if higher {
                *current = command;
            }
            higher
        });
    }
}

/// A running pipeline. Dropping it, or the future of [`Running::wait`], aborts it.
#[derive(Debug)]
pub struct Running {
    control: Control,
    metrics: Arc<Metrics>,
    coordinator: JoinHandle<Result<Finished, PipelineError>>,
}

impl Running {
    /// The pipeline's counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// A handle to stop the pipeline while somebody else waits for it.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// See [`Control::stop`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// See [`Control::abort`].
    pub fn abort(&self) {
        self.control.abort();
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The first error of any subtask; the others have been cancelled by then.
    pub async fn wait(mut self) -> Result<Finished, PipelineError> {
        let result = (&mut self.coordinator).await;
        result
            .unwrap_or_else(|error| Err(PipelineError::at_start("runtime", OperatorError::internal(error.to_string()))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.abort();
    }
}

/// Where a pipeline's state is saved, and what it goes on from.
#[derive(Debug)]
pub struct SavedState {
    /// What the state is known by: two that were begun apart differ.
    pub id: String,
    /// Opened for the nodes of the job, in their order.
    pub checkpoints: Checkpoints,
    /// The checkpoint to go on from.
    pub resumed: Option<Resumed>,
}

/// What a job's nodes are known by in saved state.
pub fn identities(job: &Job) -> Vec<NodeIdentity> {
    let identity =
        |node: &Node<dyn Stage>| NodeIdentity { name: node.name.clone(), fingerprint: node.fingerprint.to_string() };
    job.nodes().map(|(_, node)| identity(node)).collect()
}

/// Starts `job`, and saves no state. Must be called within a tokio runtime, on which all subtasks run.
///
/// # Errors
/// A node that cannot be built, or an exchange by columns that cannot be hashed. Nothing has been started then.
pub fn start(job: &Job, options: Options) -> Result<Running, PipelineError> {
    start_saving(job, options, None)
}

/// Starts `job`, from the checkpoint and with the checkpoints that are given. Must be called within a tokio runtime, on which
/// all subtasks run.
///
/// # Errors
/// A node that cannot be built, or an exchange by columns that cannot be hashed. Nothing has been started then.
pub fn start_saving(job: &Job, options: Options, mut saved: Option<SavedState>) -> Result<Running, PipelineError> {
    let mut metrics = Metrics::new(&options.pipeline, options.clock);
    let wires = wire(job, &options, &mut metrics)?;
    if let Some(saved) = &mut saved {
        saved.checkpoints.lay_out(&wires.iter().map(Vec::len).collect::<Vec<_>>());
    }
    // A run that completes no checkpoint has no effect that needs to be told apart from the next's.
    let run: Option<Arc<str>> =
        saved.as_ref().map(|saved| format!("{}-{}", saved.id, saved.checkpoints.next_epoch()).into());
    let (reports, receive_reports) = mpsc::unbounded_channel();
    let (commands, receive_commands) = watch::channel(Command::Run);
    let mut lives = Vec::new();
    let (mut places, mut sources, mut completions) = (Vec::new(), Vec::new(), Vec::new());
    for (((id, node), wires), event_time_is_read) in job.nodes().zip(wires).zip(job.event_times_read()) {
        let parallelism = wires.len();
        for (index, wires) in wires.into_iter().enumerate() {
            let subtask = Subtask {
                pipeline: options.pipeline.clone(),
                node: node.name.clone(),
                index,
                parallelism,
                event_time_is_read,
                clock: options.clock,
                run: run.clone(),
            };
            let reporter = Reporter { subtask: places.len(), reports: reports.clone() };
            let saving = saved.as_ref().map_or_else(Saving::default, |saved| saving(saved, id, &subtask));
            places.push((node.name.clone(), index));
            let life = build(node.plan.as_ref(), &subtask)
                .and_then(|body| prepare(body, wires, &receive_commands, reporter, options.clock, saving))
                .map_err(|error| PipelineError { node: node.name.clone(), subtask: Some(index), error })?;
            sources.extend(life.barriers.clone());
            completions.push(life.completions.clone());
            lives.push(life);
        }
    }
    let metrics = Arc::new(metrics);
    let mut tasks = JoinSet::new();
    lives.into_iter().enumerate().for_each(|(number, life)| life.spawn(number, &mut tasks));
    let coordinator = Coordinator {
        tasks,
        places,
        sources,
        completions,
        reports: receive_reports,
        commands: receive_commands,
        checkpoint_interval: options.checkpoint_interval,
        saves: saved.is_some(),
        checkpoints: saved.map(|saved| saved.checkpoints),
        clock: options.clock,
        metrics: Arc::clone(&metrics),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the runtime: the task is ended by the handle that it is kept in"
    )]
    let coordinator = tokio::spawn(coordinator.run());
    Ok(Running { control: Control(commands), metrics, coordinator })
}

/// A subtask that has not been started.
struct Life {
    future: BoxFuture<'static, Result<Outcome, Halt>>,
    /// The way of barriers into it, if it is a source's.
    barriers: Option<mpsc::UnboundedSender<Barrier>>,
    /// The way into it of the news that epochs are complete, if it is an operator's.
    completions: Option<mpsc::UnboundedSender<Epoch>>,
}

/// What a subtask goes on from.
fn saving(saved: &SavedState, node: NodeId, subtask: &Subtask) -> Saving {
    let shares = saved.resumed.as_ref().and_then(|resumed| resumed.nodes.get(node.0)?.clone());
    Saving::new(shares.map(|shares| Restored::new(shares, subtask.index, subtask.parallelism)))
}

impl Life {
    fn spawn(self, number: usize, tasks: &mut JoinSet<Done>) {
        tasks.spawn(guard(self.future).map(move |result| (number, result)));
    }
}

/// Builds the running half of a node; a panic becomes an error.
fn build(stage: &dyn Stage, subtask: &Subtask) -> Result<Body, OperatorError> {
    catch_unwind(AssertUnwindSafe(|| stage.build(subtask))).unwrap_or_else(|payload| Err(of_panic(payload.as_ref())))
}

/// Puts a node's running half between its channels.
fn prepare(
    body: Body,
    wires: Wires,
    commands: &watch::Receiver<Command>,
    reporter: Reporter,
    clock: Clock,
    saving: Saving,
) -> Result<Life, OperatorError> {
    let Wires { inputs, outputs, metrics } = wires;
    let belongings = Belongings { clock, reporter, metrics, saving };
    match body {
        Body::Source(source) if inputs.is_empty() => {
            let (barriers, receive) = mpsc::unbounded_channel();
            let task = SourceTask::new(source, outputs, receive, commands.clone(), belongings);
            Ok(Life { future: task.run().boxed(), barriers: Some(barriers), completions: None })
        }
        Body::Operator(operator) if !inputs.is_empty() => {
            let (completions, receive) = mpsc::unbounded_channel();
            let task = OperatorTask::new(operator, Inputs::new(inputs), outputs, receive, belongings);
            Ok(Life { future: task.run().boxed(), barriers: None, completions: Some(completions) })
        }
        Body::Source(_) => Err(OperatorError::internal("is a source, and yet has inputs")),
        Body::Operator(_) => Err(OperatorError::internal("has no inputs, and yet is no source")),
    }
}
