//! Starts checkpoints, has them written, tells of their completion, and sees a running pipeline to its end.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::metrics::Metrics;
use super::rounds::{Complete, Rounds};
use super::run::{Finished, Reason};
use super::subtask::{Outcome, Report};
use super::{Barrier, Clock, Epoch, OperatorError, PipelineError};
use crate::state::{Checkpoints, StateError, SubtaskSnapshot, Written};

/// What the pipeline was told to do; only ever upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Run until the sources end.
    Run,
    /// Stop behind one last barrier.
    Stop,
    /// Stop now.
    Abort,
}

/// A subtask's number among all of the pipeline, and how it ended.
pub type Done = (usize, Result<Outcome, OperatorError>);

/// The name of a node and one of its subtasks.
pub type Place = (String, usize);

/// The one task that knows all subtasks.
#[derive(Debug)]
pub struct Coordinator {
    /// All subtasks, running.
    pub tasks: JoinSet<Done>,
    /// Where each subtask belongs, by its number: in the order of the nodes.
    pub places: Vec<Place>,
    /// Takes barriers to each subtask of a source; closed when it has ended.
    pub sources: Vec<mpsc::UnboundedSender<Barrier>>,
    /// By subtask: tells one of an operator that a checkpoint with something that it has handed over is complete.
    pub completions: Vec<Option<mpsc::UnboundedSender<Epoch>>>,
    /// From all subtasks.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// What the pipeline was told to do.
    pub commands: watch::Receiver<Command>,
    /// How often a checkpoint is started.
    pub checkpoint_interval: Duration,
    /// Whether checkpoints are written; if not, an epoch is complete when every subtask has passed its barrier.
    pub saves: bool,
    /// Where checkpoints are written; away while one is.
    pub checkpoints: Option<Checkpoints>,
    /// Tells when a checkpoint was completed.
    pub clock: Clock,
    /// Shows the last epoch.
    pub metrics: Arc<Metrics>,
}

/// A checkpoint that is being written: gives back what it was written with.
type Writing = BoxFuture<'static, (Option<Checkpoints>, Complete, Result<Written, StateError>)>;

impl Coordinator {
    /// Runs until every subtask is over. The first error ends them all.
    pub async fn run(mut self) -> Result<Finished, PipelineError> {
        let sources = std::mem::take(&mut self.sources);
        let first = self.checkpoints.as_ref().map_or(1, Checkpoints::next_epoch);
        let mut rounds = Rounds::new(sources, self.places.len(), Epoch(first), Arc::clone(&self.metrics));
        let result = self.supervise(&mut rounds).await;
        self.tasks.shutdown().await;
        let reason = result?;
        Ok(Finished { reason, last_epoch: rounds.last })
    }

    async fn supervise(&mut self, rounds: &mut Rounds) -> Result<Reason, PipelineError> {
        let mut ticks = self.ticks();
        let (mut stopping, mut stopped) = (false, false);
        let mut writing: Option<Writing> = None;
        loop {
            if rounds.is_idle() && writing.is_none() {
                if self.saves && rounds.has_last_words() {
                    writing = Some(self.write(rounds.take_last_words()));
                } else if stopping || rounds.is_wanted() {
                    rounds.begin(std::mem::take(&mut stopping));
                }
            }
            let complete = tokio::select! {
                biased;
                command = next_command(&mut self.commands) => {
                    match command {
                        Command::Run => {}
                        Command::Stop => stopping = true,
                        Command::Abort => return Ok(Reason::Aborted),
                    }
                    None
                }
                (checkpoints, complete, written) = pending_or(&mut writing) => {
                    writing = None;
                    self.checkpoints = checkpoints;
                    self.completed(rounds, &complete, written)?;
                    None
                }
                Some(report) = self.reports.recv() => rounds.hear(report),
                done = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // Whoever has ended has reported before.
                    let mut complete = None;
                    while let Ok(report) = self.reports.try_recv() {
                        complete = complete.or(rounds.hear(report));
                    }
                    if let Some((subtask, outcome)) = done.map(|done| self.ended(done)).transpose()?.flatten() {
                        stopped |= outcome == Outcome::Stopped;
                        complete = complete.or(rounds.end(subtask, outcome));
                    }
                    complete
                }
                _ = ticks.tick(), if rounds.is_idle() && writing.is_none() => {
                    rounds.begin(false);
                    None
                }
            };
            if let Some(complete) = complete {
                writing = Some(self.write(complete));
            }
            if self.tasks.is_empty() && writing.is_none() && !(self.saves && rounds.has_last_words()) {
                return Ok(if stopped { Reason::Stopped } else { Reason::SourcesEnded });
            }
        }
    }

    fn ticks(&self) -> Interval {
        let mut ticks = interval_at(Instant::now() + self.checkpoint_interval, self.checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    /// Begins to write a checkpoint.
    fn write(&mut self, mut complete: Complete) -> Writing {
        let Some(mut checkpoints) = self.checkpoints.take() else {
            return async move { (None, complete, Ok(Written::default())) }.boxed();
        };
        let snapshots = self.by_node(std::mem::take(&mut complete.snapshots));
        let micros = self.clock.now().0 / 1_000;
        async move {
            let written = checkpoints.write(complete.epoch.0, micros, snapshots).await;
            (Some(checkpoints), complete, written)
        }
        .boxed()
    }

    /// The snapshots of all subtasks, by node and subtask.
    fn by_node(&self, snapshots: Vec<Option<SubtaskSnapshot>>) -> Vec<Vec<Option<SubtaskSnapshot>>> {
        let mut nodes: Vec<Vec<Option<SubtaskSnapshot>>> = Vec::new();
        for ((_, index), snapshot) in self.places.iter().zip(snapshots) {
            if *index == 0 {
                nodes.push(Vec::new());
            }
            if let Some(node) = nodes.last_mut() {
                node.push(snapshot);
            }
        }
        nodes
    }

    /// A checkpoint is written, or cannot be.
    fn completed(
        &self,
        rounds: &mut Rounds,
        complete: &Complete,
        written: Result<Written, StateError>,
    ) -> Result<(), PipelineError> {
        let written = written.map_err(|error| {
            let text = format!("checkpoint {} cannot be saved: {error}", complete.epoch);
            PipelineError::at_start("checkpoints", OperatorError::external(text))
        })?;
        rounds.completed(complete.epoch, complete.started, written);
        for subtask in complete.from.iter().filter_map(|subtask| self.completions.get(*subtask)?.as_ref()) {
            // One that is gone need not know.
            let _ = subtask.send(complete.epoch);
        }
        Ok(())
    }

    /// Names the place of a subtask's error.
    fn ended(&self, done: Result<Done, JoinError>) -> Result<Option<(usize, Outcome)>, PipelineError> {
        // Subtasks are cancelled only after this has been asked for the last time, and their panics are errors already.
        let Ok((subtask, result)) = done else { return Ok(None) };
        match result {
            Ok(outcome) => Ok(Some((subtask, outcome))),
            Err(error) => {
                let (node, index) = self.places.get(subtask).cloned().unwrap_or_default();
                Err(PipelineError { node, subtask: Some(index), error })
            }
        }
    }
}

/// Waits for another command. When nobody can give one any more, the pipeline is nobody's: abort.
async fn next_command(commands: &mut watch::Receiver<Command>) -> Command {
    match commands.changed().await {
        Ok(()) => *commands.borrow_and_update(),
        Err(_) => Command::Abort,
    }
}

/// Waits for the checkpoint that is being written; for ever when none is.
async fn pending_or(writing: &mut Option<Writing>) -> (Option<Checkpoints>, Complete, Result<Written, StateError>) {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}
