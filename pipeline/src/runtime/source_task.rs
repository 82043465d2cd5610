//! The life of one subtask of a source.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::{mpsc, watch};

use super::channel::Message;
use super::coordinator::Command;
use super::exchange::Outputs;
use super::metrics::SubtaskMetrics;
use super::saving::Saving;
use super::subtask::{Belongings, Halt, Outcome, Pace, Reporter, Said};
use super::{Barrier, OperatorError, Source, SourceContext, SourceEvent, Time, Watermark};

/// The next thing to be done.
enum Turn {
    Barrier(Barrier),
    Event(SourceEvent),
    /// The pipeline is to stop.
    Told,
}

/// One subtask of a source.
pub struct SourceTask {
    source: Box<dyn Source>,
    outputs: Outputs,
    cx: SourceContext,
    barriers: mpsc::UnboundedReceiver<Barrier>,
    commands: watch::Receiver<Command>,
    reporter: Reporter,
    metrics: Arc<SubtaskMetrics>,
    saving: Saving,
    pace: Pace,
}

impl SourceTask {
    /// `source` in front of its channels, with the barriers of the coordinator.
    pub fn new(
        source: Box<dyn Source>,
        outputs: Outputs,
        barriers: mpsc::UnboundedReceiver<Barrier>,
        commands: watch::Receiver<Command>,
        belongings: Belongings,
    ) -> Self {
        let Belongings { clock, reporter, metrics, saving } = belongings;
        let cx = SourceContext { clock };
        Self { source, outputs, cx, barriers, commands, reporter, metrics, saving, pace: Pace::default() }
    }

    /// Runs until the source ends, a barrier stops the pipeline, or something fails.
    pub async fn run(mut self) -> Result<Outcome, Halt> {
        if let Some(restored) = self.saving.take_restored() {
            self.source.restore(&restored)?;
        }
        loop {
            match self.next().await? {
                Turn::Barrier(barrier) => {
                    // The rows returned so far are in the channels: this is the moment at which state is the epoch's.
                    let snapshot = self.saving.take(|snapshot| self.source.snapshot(snapshot))?;
                    self.reporter.say(Said::Passed(barrier.epoch, snapshot));
                    self.send(Message::Barrier(barrier)).await?;
                    if barrier.stop {
                        return Ok(Outcome::Stopped);
                    }
                }
                Turn::Told => {}
                Turn::Event(SourceEvent::Batch(batch)) if batch.num_rows() == 0 => {}
                Turn::Event(SourceEvent::Batch(batch)) => self.send(Message::Batch(batch)).await?,
                Turn::Event(SourceEvent::Watermark(watermark)) => self.send(Message::Watermark(watermark)).await?,
                Turn::Event(SourceEvent::End) => {
                    self.send(Message::Watermark(Watermark::At(Time::MAX))).await?;
                    self.send(Message::End).await?;
                    let snapshot = self.saving.take(|snapshot| self.source.snapshot(snapshot))?;
                    self.reporter.say(Said::Ended(snapshot));
                    return Ok(Outcome::Ended);
                }
            }
            self.pace.breathe().await;
        }
    }

    /// A barrier that is due, or else what the source has to say. Nothing more once the pipeline is to stop: the last barrier may
    /// be long in coming, when a sink waits for an earlier one.
    async fn next(&mut self) -> Result<Turn, OperatorError> {
        let mut busy = Duration::ZERO;
        if *self.commands.borrow() > Command::Run {
            return match self.barriers.recv().await {
                Some(barrier) => Ok(Turn::Barrier(barrier)),
                // Without a coordinator this task is about to be ended.
                None => pending().await,
            };
        }
        let turn = tokio::select! {
            biased;
            Some(barrier) = self.barriers.recv() => Ok(Turn::Barrier(barrier)),
            // An error says that nobody is left to command: the coordinator ends this task.
            Ok(_) = self.commands.wait_for(|command| *command > Command::Run) => Ok(Turn::Told),
            event = timed(self.source.next(&self.cx), &mut busy) => event.map(Turn::Event),
        };
        self.pace.spend(busy);
        self.metrics.add_busy(busy);
        turn
    }

    async fn send(&mut self, message: Message) -> Result<(), Halt> {
        self.outputs.load(&message)?;
        Ok(poll_fn(|task| self.outputs.poll_flush(task)).await?)
    }
}

/// Runs `future` and adds the time that it computes (not that it waits) to `busy`.
#[expect(clippy::disallowed_methods, reason = "how long a call took is no input to any result")]
async fn timed<F: Future + Unpin>(mut future: F, busy: &mut Duration) -> F::Output {
    poll_fn(|task| {
        let started = Instant::now();
        let polled = future.poll_unpin(task);
        *busy += started.elapsed();
        polled
    })
    .await
}
