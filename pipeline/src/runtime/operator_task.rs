//! The life of one subtask of an operator or sink.
//!
//! One loop of turns. In each turn, in this order: what was sent moves on; work in flight is driven; the timer; the inputs.
//! While a reader is full, inputs and timer wait (that is back-pressure), but work in flight is driven all the same, so that
//! a call's own time limit does not run out only because nobody looked at its answer. What such work sends meanwhile
//! waits in the outbox: at most what was in flight, since no input is taken.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Instant;

use tokio::sync::mpsc;

use super::channel::Message;
use super::exchange::Outputs;
use super::inputs::{InputEvent, Inputs};
use super::metrics::SubtaskMetrics;
use super::saving::Saving;
use super::subtask::{Belongings, Halt, Outcome, Pace, Reporter, Said};
use super::timer::Timer;
use super::{Barrier, Clock, Context, Epoch, Operator, OperatorError, Outbox, Output};
use crate::state::SubtaskSnapshot;

/// Where a subtask is in its life.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Takes input.
    Running,
    /// A barrier has arrived on every input; waits until the operator is settled.
    Settling(Barrier),
    /// Every input has ended; waits until the operator is settled.
    Finishing,
    /// The last message is on its way; the subtask is over when it is sent and all that was staged is delivered.
    Leaving(Outcome),
}

/// The next thing to be done.
#[derive(Debug)]
enum Turn {
    /// The checkpoint of an epoch is complete.
    Completed(Epoch),
    /// Something in flight has finished.
    Worked,
    /// The timer is due.
    Timer,
    /// The inputs have something.
    Input(InputEvent),
    /// The operator is settled, and all that it sent is in the channels.
    Settled,
    /// The last message has been sent.
    Left(Outcome),
}

/// One subtask of an operator or sink.
pub struct OperatorTask {
    operator: Box<dyn Operator>,
    inputs: Inputs,
    outputs: Outputs,
    outbox: Outbox,
    timer: Timer,
    clock: Clock,
    completions: mpsc::UnboundedReceiver<Epoch>,
    reporter: Reporter,
    metrics: Arc<SubtaskMetrics>,
    saving: Saving,
    pace: Pace,
    phase: Phase,
    /// Whether something was staged when the last message left: what was reported then is not the last word.
    has_staged: bool,
    /// How many snapshots are in no complete checkpoint yet.
    unconfirmed: usize,
}

impl OperatorTask {
    /// `operator` between its channels.
    pub fn new(
        operator: Box<dyn Operator>,
        inputs: Inputs,
        outputs: Outputs,
        completions: mpsc::UnboundedReceiver<Epoch>,
        belongings: Belongings,
    ) -> Self {
        let Belongings { clock, reporter, metrics, saving } = belongings;
        Self {
            operator,
            inputs,
            outputs,
            outbox: Outbox::default(),
            timer: Timer::new(clock),
            clock,
            completions,
            reporter,
            metrics,
            saving,
            pace: Pace::default(),
            phase: Phase::Running,
            has_staged: false,
            unconfirmed: 0,
        }
    }

    /// Runs until the inputs end, a barrier stops the pipeline, or something fails.
    pub async fn run(mut self) -> Result<Outcome, Halt> {
        if let Some(restored) = self.saving.take_restored() {
            self.call(|operator, _| operator.restore(&restored))?;
        }
        self.call(|operator, cx| operator.start(cx))?;
        loop {
            match poll_fn(|task| self.poll_turn(task)).await? {
                Turn::Completed(epoch) => self.complete(epoch)?,
                Turn::Worked => {}
                Turn::Timer => self.call(|operator, cx| operator.timer(cx))?,
                Turn::Input(event) => self.take(event)?,
                Turn::Settled => self.move_on()?,
                Turn::Left(outcome) => {
                    if self.has_staged {
                        let snapshot = self.snapshot()?;
                        self.reporter.say(Said::Ended(snapshot));
                    }
                    return Ok(outcome);
                }
            }
            self.pace.breathe().await;
        }
    }

    fn poll_turn(&mut self, task: &mut task::Context<'_>) -> Poll<Result<Turn, Halt>> {
        if let Poll::Ready(Some(epoch)) = self.completions.poll_recv(task) {
            return Poll::Ready(Ok(Turn::Completed(epoch)));
        }
        let sent = self.poll_send(task)?;
        if let Poll::Ready(worked) = self.call(|operator, cx| operator.poll_work(task, cx)) {
            return Poll::Ready(worked.map(|()| Turn::Worked).map_err(Halt::from));
        }
        ready!(sent);
        if !self.outbox.is_empty() {
            return Poll::Ready(Ok(Turn::Worked));
        }
        if let Phase::Leaving(outcome) = self.phase
            && !self.operator.awaits_completion()
        {
            return Poll::Ready(Ok(Turn::Left(outcome)));
        }
        if self.timer.poll_due(task).is_ready() {
            return Poll::Ready(Ok(Turn::Timer));
        }
        match self.phase {
            Phase::Running if self.operator.accepts_input() => {
                Poll::Ready(Ok(Turn::Input(ready!(self.inputs.poll_next(task))?)))
            }
            Phase::Settling(_) | Phase::Finishing if self.operator.is_settled() => Poll::Ready(Ok(Turn::Settled)),
            _ => Poll::Pending,
        }
    }

    /// Moves what the operator has sent into the channels; ready when nothing is left.
    fn poll_send(&mut self, task: &mut task::Context<'_>) -> Result<Poll<()>, Halt> {
        loop {
            if self.outputs.poll_flush(task)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let message = match self.outbox.pop() {
                Some(Output::Batch(batch)) => Message::Batch(batch),
                Some(Output::Watermark(watermark)) => Message::Watermark(watermark),
                None => return Ok(Poll::Ready(())),
            };
            self.outputs.load(&message)?;
        }
    }

    fn take(&mut self, event: InputEvent) -> Result<(), OperatorError> {
        match event {
            InputEvent::Batch(input, batch) => {
                self.metrics.received(batch.num_rows());
                self.call(|operator, cx| operator.process(input, batch, cx))
            }
            InputEvent::Watermark(watermark) => {
                if self.outputs.is_empty() {
                    self.metrics.set_watermark(watermark);
                }
                self.call(|operator, cx| operator.watermark(watermark, cx))
            }
            InputEvent::Barrier(barrier) => {
                self.phase = Phase::Settling(barrier);
                self.call(|operator, cx| operator.barrier(barrier, cx))
            }
            InputEvent::Ended => {
                self.phase = Phase::Finishing;
                self.call(|operator, cx| operator.finish(cx))
            }
        }
    }

    /// The operator has settled: the barrier or the end passes on to the readers. All that belongs to the epoch has been
    /// sent and nothing of the next has been taken, so this is the moment at which state is the epoch's.
    fn move_on(&mut self) -> Result<(), OperatorError> {
        match self.phase {
            Phase::Settling(barrier) => {
                let snapshot = self.snapshot()?;
                self.reporter.say(Said::Passed(barrier.epoch, snapshot));
                self.phase = if barrier.stop { Phase::Leaving(Outcome::Stopped) } else { Phase::Running };
                self.has_staged = self.operator.awaits_completion();
                self.outputs.load(&Message::Barrier(barrier))
            }
            Phase::Finishing => {
                let snapshot = self.snapshot()?;
                self.reporter.say(Said::Ended(snapshot));
                self.phase = Phase::Leaving(Outcome::Ended);
                self.has_staged = self.operator.awaits_completion();
                self.outputs.load(&Message::End)
            }
            Phase::Running | Phase::Leaving(_) => Ok(()),
        }
    }

    /// A checkpoint is complete. An operator may have ended, and handed over a second snapshot, while the checkpoint with the
    /// first was being written: it is told when the last that it has handed over is safe.
    fn complete(&mut self, epoch: Epoch) -> Result<(), OperatorError> {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        if self.unconfirmed > 0 {
            return Ok(());
        }
        self.call(|operator, cx| operator.epoch_completed(epoch, cx))
    }

    fn snapshot(&mut self) -> Result<SubtaskSnapshot, OperatorError> {
        self.unconfirmed += 1;
        let operator = &mut self.operator;
        self.saving.take(|snapshot| operator.snapshot(snapshot))
    }

    /// Calls the operator, and takes down what it has asked for and counted.
    #[expect(clippy::disallowed_methods, reason = "how long a call took is no input to any result")]
    fn call<R>(&mut self, call: impl FnOnce(&mut dyn Operator, &mut Context<'_>) -> R) -> R {
        let now = self.clock.now();
        let started = Instant::now();
        let result = call(self.operator.as_mut(), &mut Context::new(now, &mut self.outbox));
        let busy = started.elapsed();
        self.pace.spend(busy);
        self.metrics.add_busy(busy);
        self.metrics.set_in_flight(self.operator.in_flight());
        self.metrics.count(self.outbox.take_counts(), now);
        self.outbox.take_calls().for_each(|took| self.metrics.called(took));
        if let Some(moment) = self.outbox.take_wake() {
            self.timer.ask(moment);
        }
        if self.outbox.take_wants_checkpoint() {
            self.reporter.say(Said::WantsCheckpoint);
        }
        result
    }
}
