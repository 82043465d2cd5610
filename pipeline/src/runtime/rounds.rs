//! Which epoch is being completed, who is missing, and what the subtasks have handed over for it. Decides; does nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::subtask::{Outcome, Report, Said};
use super::{Barrier, Epoch, Metrics};
use crate::state::{SubtaskSnapshot, Written};

/// An epoch that is being completed.
#[derive(Debug)]
struct Round {
    barrier: Barrier,
    started: Instant,
    /// Subtasks that have neither passed the barrier nor ended.
    missing: HashSet<usize>,
    /// Whether the barrier has passed anyone: the sources may all have ended before they took it.
    passed: bool,
}

/// What a checkpoint is made of.
#[derive(Debug)]
pub struct Complete {
    /// The epoch.
    pub epoch: Epoch,
    /// When its barrier left.
    pub started: Instant,
    /// What each subtask has handed over for it; none where its state stays as it is.
    pub snapshots: Vec<Option<SubtaskSnapshot>>,
    /// The subtasks that have handed something over.
    pub from: Vec<usize>,
}

/// The epochs of a pipeline that runs. At most one is being completed.
#[derive(Debug)]
pub struct Rounds {
    sources: Vec<mpsc::UnboundedSender<Barrier>>,
    /// Subtasks that have not ended.
    live: HashSet<usize>,
    /// What each subtask has handed over and no checkpoint has taken yet: its state at the end of the current epoch, and its
    /// last.
    handed: Vec<VecDeque<SubtaskSnapshot>>,
    current: Option<Round>,
    next: Epoch,
    /// Whether somebody cannot wait for the interval.
    is_wanted: bool,
    /// The last epoch that was completed.
    pub last: Option<Epoch>,
    metrics: Arc<Metrics>,
}

impl Rounds {
    /// Of a pipeline of so many subtasks; `next` is the number of the first epoch.
    pub fn new(
        sources: Vec<mpsc::UnboundedSender<Barrier>>,
        subtasks: usize,
        next: Epoch,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            sources,
            live: (0..subtasks).collect(),
            handed: (0..subtasks).map(|_| VecDeque::new()).collect(),
            current: None,
            next,
            is_wanted: false,
            last: None,
            metrics,
        }
    }

    /// Whether no barrier is on its way.
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// Whether a subtask waits for a checkpoint.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Whether every subtask has ended and some have handed over state that is in no checkpoint.
    pub fn has_last_words(&self) -> bool {
        self.live.is_empty() && self.handed.iter().any(|handed| !handed.is_empty())
    }

    /// Sends a barrier to every source that has not ended. Without any the pipeline is ending by itself: nothing to do.
    pub fn begin(&mut self, stop: bool) {
        let barrier = Barrier { epoch: self.next, stop };
        self.is_wanted = false;
        self.sources.retain(|source| source.send(barrier).is_ok());
        if !self.sources.is_empty() {
            let missing = self.live.clone();
            self.current = Some(Round { barrier, started: Instant::now(), missing, passed: false });
        }
    }

    /// A subtask has something to say. Returns what the epoch's checkpoint is made of when that completes it.
    pub fn hear(&mut self, report: Report) -> Option<Complete> {
        let Report { subtask, said } = report;
        let handed = self.handed.get_mut(subtask)?;
        match said {
            Said::Passed(epoch, snapshot) => {
                handed.push_back(snapshot);
                if let Some(round) = self.current.as_mut().filter(|round| round.barrier.epoch == epoch) {
                    round.passed = true;
                    round.missing.remove(&subtask);
                }
            }
            Said::Ended(snapshot) => {
                handed.push_back(snapshot);
                self.live.remove(&subtask);
                if let Some(round) = &mut self.current {
                    round.missing.remove(&subtask);
                }
            }
            Said::WantsCheckpoint => self.is_wanted = true,
        }
        self.complete()
    }

    /// A subtask is over.
    pub fn end(&mut self, subtask: usize, outcome: Outcome) -> Option<Complete> {
        self.live.remove(&subtask);
        if outcome == Outcome::Cut {
            return None;
        }
        if let Some(round) = &mut self.current {
            round.missing.remove(&subtask);
        }
        self.complete()
    }

    fn complete(&mut self) -> Option<Complete> {
        let round = self.current.take_if(|round| round.missing.is_empty())?;
        // A barrier that passed nobody ends no epoch; its number is given again.
        round.passed.then(|| self.take(round.started))
    }

    /// The last words of all subtasks, as a checkpoint behind all others.
    pub fn take_last_words(&mut self) -> Complete {
        self.take(Instant::now())
    }

    fn take(&mut self, started: Instant) -> Complete {
        let epoch = self.next;
        self.next = Epoch(epoch.0 + 1);
        // Whoever has passed the barrier and ended since has handed over both, in this order.
        let snapshots: Vec<_> = self.handed.iter_mut().map(VecDeque::pop_front).collect();
        let from = snapshots.iter().enumerate().filter(|(_, snapshot)| snapshot.is_some()).map(|(at, _)| at).collect();
        Complete { epoch, started, snapshots, from }
    }

    /// The checkpoint of `epoch` is written.
    pub fn completed(&mut self, epoch: Epoch, started: Instant, written: Written) {
        self.last = Some(epoch);
        self.metrics.complete_epoch(epoch, started.elapsed(), written);
    }
}
