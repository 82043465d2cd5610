//! Starts checkpoints, learns of their end, and sees a running pipeline to its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::metrics::Metrics;
use super::run::{Finished, Reason};
use super::subtask::{Outcome, Report};
use super::{Barrier, Epoch, OperatorError, PipelineError};

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
    /// Where each subtask belongs, by its number.
    pub places: Vec<Place>,
    /// Takes barriers to each subtask of a source; closed when it has ended.
    pub sources: Vec<mpsc::UnboundedSender<Barrier>>,
    /// From all subtasks.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// What the pipeline was told to do.
    pub commands: watch::Receiver<Command>,
    /// How often a checkpoint is started.
    pub checkpoint_interval: Duration,
    /// Shows the last epoch.
    pub metrics: Arc<Metrics>,
}

impl Coordinator {
    /// Runs until every subtask is over. The first error ends them all.
    pub async fn run(mut self) -> Result<Finished, PipelineError> {
        let sources = std::mem::take(&mut self.sources);
        let mut epochs = Epochs::new(sources, self.places.len(), Arc::clone(&self.metrics));
        let result = self.supervise(&mut epochs).await;
        self.tasks.shutdown().await;
        let reason = result?;
        Ok(Finished { reason, last_epoch: epochs.last })
    }

    async fn supervise(&mut self, epochs: &mut Epochs) -> Result<Reason, PipelineError> {
        let first_tick = Instant::now() + self.checkpoint_interval;
        let mut ticks = interval_at(first_tick, self.checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stopping, mut stopped) = (false, false);
        loop {
            if stopping && epochs.current.is_none() {
                stopping = false;
                epochs.begin(true);
            }
            tokio::select! {
                biased;
                command = next_command(&mut self.commands) => match command {
                    Command::Run => {}
                    Command::Stop => stopping = true,
                    Command::Abort => return Ok(Reason::Aborted),
                },
                Some(report) = self.reports.recv() => epochs.report(report),
                done = self.tasks.join_next() => {
                    // Whoever has ended has reported before.
                    while let Ok(report) = self.reports.try_recv() {
                        epochs.report(report);
                    }
                    let Some(done) = done else {
                        return Ok(if stopped { Reason::Stopped } else { Reason::SourcesEnded });
                    };
                    if let Some((subtask, outcome)) = self.ended(done)? {
                        stopped |= outcome == Outcome::Stopped;
                        epochs.end(subtask, outcome);
                    }
                }
                _ = ticks.tick(), if epochs.current.is_none() => epochs.begin(false),
            }
        }
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

/// An epoch that is being completed.
#[derive(Debug)]
struct Round {
    barrier: Barrier,
    started: Instant,
    /// Subtasks that have neither reported nor ended.
    missing: HashSet<usize>,
    /// Whether the barrier has passed anyone: the sources may all have ended before they took it.
    passed: bool,
}

/// Which epoch is under way and who is missing. At most one is.
#[derive(Debug)]
struct Epochs {
    sources: Vec<mpsc::UnboundedSender<Barrier>>,
    live: HashSet<usize>,
    current: Option<Round>,
    next: Epoch,
    /// The last one that was completed.
    last: Option<Epoch>,
    metrics: Arc<Metrics>,
}

impl Epochs {
    fn new(sources: Vec<mpsc::UnboundedSender<Barrier>>, subtasks: usize, metrics: Arc<Metrics>) -> Self {
        Self { sources, live: (0..subtasks).collect(), current: None, next: Epoch(1), last: None, metrics }
    }

    /// Sends a barrier to every source that has not ended. Without any the pipeline is ending by itself: nothing to do.
    fn begin(&mut self, stop: bool) {
        let barrier = Barrier { epoch: self.next, stop };
        self.sources.retain(|source| source.send(barrier).is_ok());
        if !self.sources.is_empty() {
            self.next = Epoch(barrier.epoch.0 + 1);
            let missing = self.live.clone();
            self.current = Some(Round { barrier, started: Instant::now(), missing, passed: false });
        }
    }

    /// A subtask has passed the barrier.
    fn report(&mut self, report: Report) {
        if let Some(round) = self.current.as_mut().filter(|round| round.barrier.epoch == report.epoch) {
            round.passed = true;
            round.missing.remove(&report.subtask);
        }
        self.complete();
    }

    /// A subtask is over. If it ended before the barrier reached it, the epoch does not wait for it.
    fn end(&mut self, subtask: usize, outcome: Outcome) {
        self.live.remove(&subtask);
        if outcome == Outcome::Cut {
            return;
        }
        if let Some(round) = &mut self.current {
            round.missing.remove(&subtask);
        }
        self.complete();
    }

    fn complete(&mut self) {
        let Some(round) = self.current.take_if(|round| round.missing.is_empty()) else { return };
        if round.passed {
            self.last = Some(round.barrier.epoch);
            self.metrics.complete_epoch(round.barrier.epoch, round.started.elapsed());
        }
    }
}
