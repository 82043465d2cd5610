//! What a running pipeline counts, for the live view and for `/metrics`.
//!
//! Counters are relaxed atomics, touched once per batch by the subtask that owns them; a snapshot is therefore of no one
//! moment, but no counter in it ever goes back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, Instant};

use super::call_times::{CallTimes, CallTimesSnapshot};
use super::context::Counts;
use super::{Clock, Epoch, Time, Watermark};
use crate::state::Written;

/// Not a moment: no watermark has been seen.
const NO_WATERMARK: i64 = i64::MIN;
/// Not a moment either: the stream is idle.
const IDLE: i64 = i64::MIN + 1;

/// The counters of a running pipeline.
#[derive(Debug)]
pub struct Metrics {
    pipeline: String,
    clock: Clock,
    nodes: Vec<NodeMetrics>,
    /// 0 before the first.
    last_epoch: AtomicU64,
    last_epoch_duration: AtomicU64,
    last_checkpoint_bytes: AtomicU64,
    checkpoint_bytes: AtomicU64,
}

#[derive(Debug)]
struct NodeMetrics {
    name: String,
    kind: &'static str,
    subtasks: Vec<Arc<SubtaskMetrics>>,
}

/// The counters of one subtask.
#[derive(Debug)]
pub struct SubtaskMetrics {
    pub(super) rows_in: AtomicU64,
    pub(super) batches_in: AtomicU64,
    rows_out: AtomicU64,
    batches_out: AtomicU64,
    watermark: AtomicI64,
    in_flight: AtomicU64,
    calls: CallTimes,
    late_rows: AtomicU64,
    delivered_rows: AtomicU64,
    /// Nanoseconds since 1970; 0 before the first.
    last_delivery: AtomicI64,
    /// Rows in the channels in front of the subtask; counted by the channels.
    pub(super) queued_rows: AtomicU64,
    busy: AtomicU64,
    blocked: AtomicU64,
    /// When the subtask began to wait for a full channel, in nanoseconds since `started`, plus 1; 0 when it does not wait.
    blocked_since: AtomicU64,
    started: Instant,
}

impl SubtaskMetrics {
    /// All zero.
    #[expect(clippy::disallowed_methods, reason = "how long a call took is no input to any result")]
    pub(super) fn new() -> Self {
        Self {
            rows_in: AtomicU64::new(0),
            batches_in: AtomicU64::new(0),
            rows_out: AtomicU64::new(0),
            batches_out: AtomicU64::new(0),
            watermark: AtomicI64::new(NO_WATERMARK),
            in_flight: AtomicU64::new(0),
            calls: CallTimes::new(),
            late_rows: AtomicU64::new(0),
            delivered_rows: AtomicU64::new(0),
            last_delivery: AtomicI64::new(0),
            queued_rows: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    pub(super) fn received(&self, rows: usize) {
        self.rows_in.fetch_add(rows as u64, Relaxed);
        self.batches_in.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, rows: usize) {
        self.rows_out.fetch_add(rows as u64, Relaxed);
        self.batches_out.fetch_add(1, Relaxed);
    }

    pub(super) fn set_watermark(&self, watermark: Watermark) {
        let stored = match watermark {
            Watermark::At(Time(time)) => time.max(IDLE + 1),
            Watermark::Idle => IDLE,
        };
        self.watermark.store(stored, Relaxed);
    }

    pub(super) fn set_in_flight(&self, calls: usize) {
        self.in_flight.store(calls as u64, Relaxed);
    }

    pub(super) fn called(&self, took: Duration) {
        self.calls.add(took);
    }

    pub(super) fn count(&self, counts: Counts, now: Time) {
        if counts.late_rows > 0 {
            self.late_rows.fetch_add(counts.late_rows, Relaxed);
        }
        if counts.delivered_rows > 0 {
            self.delivered_rows.fetch_add(counts.delivered_rows, Relaxed);
            self.last_delivery.store(now.0, Relaxed);
        }
    }

    pub(super) fn add_busy(&self, busy: Duration) {
        self.busy.fetch_add(nanos(busy), Relaxed);
    }

    /// The subtask waits, or waits no longer, for a full channel.
    pub(super) fn set_blocked(&self, blocked: bool) {
        let since = self.blocked_since.load(Relaxed);
        if blocked == (since > 0) {
            return;
        }
        let now = nanos(self.started.elapsed()) + 1;
        if blocked {
            self.blocked_since.store(now, Relaxed);
        } else {
            self.blocked_since.store(0, Relaxed);
            self.blocked.fetch_add(now.saturating_sub(since), Relaxed);
        }
    }

    fn blocked(&self) -> Duration {
        let since = self.blocked_since.load(Relaxed);
        let waiting = if since == 0 { 0 } else { nanos(self.started.elapsed()).saturating_sub(since) };
        Duration::from_nanos(self.blocked.load(Relaxed) + waiting)
    }

    fn snapshot(&self, now: Time) -> SubtaskSnapshot {
        let watermark = match self.watermark.load(Relaxed) {
            NO_WATERMARK => None,
            IDLE => Some(Watermark::Idle),
            time => Some(Watermark::At(Time(time))),
        };
        let last_delivery = self.last_delivery.load(Relaxed);
        SubtaskSnapshot {
            rows_in: self.rows_in.load(Relaxed),
            batches_in: self.batches_in.load(Relaxed),
            rows_out: self.rows_out.load(Relaxed),
            batches_out: self.batches_out.load(Relaxed),
            watermark,
            watermark_lag: lag(watermark, now),
            in_flight: self.in_flight.load(Relaxed),
            calls: self.calls.snapshot(),
            late_rows: self.late_rows.load(Relaxed),
            delivered_rows: self.delivered_rows.load(Relaxed),
            last_delivery: (last_delivery != 0).then_some(Time(last_delivery)),
            queued_rows: self.queued_rows.load(Relaxed),
            busy: Duration::from_nanos(self.busy.load(Relaxed)),
            blocked: self.blocked(),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How far `watermark` is behind the clock; `None` when it says nothing about it (none yet, idle, or the end of time).
fn lag(watermark: Option<Watermark>, now: Time) -> Option<Duration> {
    match watermark {
        Some(Watermark::At(time)) if time != Time::MAX => Some(now.since(time)),
        _ => None,
    }
}

impl Metrics {
    /// All zero, without nodes.
    pub(super) fn new(pipeline: &str, clock: Clock) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            clock,
            nodes: Vec::new(),
            last_epoch: AtomicU64::new(0),
            last_epoch_duration: AtomicU64::new(0),
            last_checkpoint_bytes: AtomicU64::new(0),
            checkpoint_bytes: AtomicU64::new(0),
        }
    }

    /// Adds the next node, with `parallelism` subtasks, and returns their counters.
    pub(super) fn add_node(&mut self, name: &str, kind: &'static str, parallelism: usize) -> Vec<Arc<SubtaskMetrics>> {
        let subtasks: Vec<_> = (0..parallelism).map(|_| Arc::new(SubtaskMetrics::new())).collect();
        self.nodes.push(NodeMetrics { name: name.to_owned(), kind, subtasks: subtasks.clone() });
        subtasks
    }

    pub(super) fn complete_epoch(&self, epoch: Epoch, duration: Duration, written: Written) {
        self.last_checkpoint_bytes.store(written.bytes, Relaxed);
        self.checkpoint_bytes.fetch_add(written.bytes, Relaxed);
        self.last_epoch_duration.store(nanos(duration), Relaxed);
        self.last_epoch.store(epoch.0, Relaxed);
    }

    /// What is counted now.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.clock.now();
        let nodes = self.nodes.iter().map(|node| NodeSnapshot {
            name: node.name.clone(),
            kind: node.kind,
            subtasks: node.subtasks.iter().map(|subtask| subtask.snapshot(now)).collect(),
        });
        let last_epoch = self.last_epoch.load(Relaxed);
        Snapshot {
            pipeline: self.pipeline.clone(),
            time: now,
            last_epoch: (last_epoch > 0).then_some(Epoch(last_epoch)),
            last_epoch_duration: Duration::from_nanos(self.last_epoch_duration.load(Relaxed)),
            last_checkpoint_bytes: self.last_checkpoint_bytes.load(Relaxed),
            checkpoint_bytes: self.checkpoint_bytes.load(Relaxed),
            nodes: nodes.collect(),
        }
    }
}

/// A pipeline's counters at about one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The pipeline's name.
    pub pipeline: String,
    /// When the snapshot was taken.
    pub time: Time,
    /// The last epoch that every subtask has completed.
    pub last_epoch: Option<Epoch>,
    /// How long it took, from the barrier's leaving to the checkpoint's completion.
    pub last_epoch_duration: Duration,
    /// Bytes that the last checkpoint wrote; 0 when no state is saved.
    pub last_checkpoint_bytes: u64,
    /// Bytes that all checkpoints of this run wrote.
    pub checkpoint_bytes: u64,
    /// All nodes, in topological order.
    pub nodes: Vec<NodeSnapshot>,
}

/// One node's counters.
#[derive(Debug, Clone)]
pub struct NodeSnapshot {
    /// The node's name.
    pub name: String,
    /// The kind of node.
    pub kind: &'static str,
    /// By subtask.
    pub subtasks: Vec<SubtaskSnapshot>,
}

/// One subtask's counters. Durations add up over the subtask's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubtaskSnapshot {
    /// Rows taken from all inputs.
    pub rows_in: u64,
    /// Batches taken from all inputs.
    pub batches_in: u64,
    /// Rows sent; each counted once, however many read it.
    pub rows_out: u64,
    /// Batches sent.
    pub batches_out: u64,
    /// The last watermark sent (by a sink: received).
    pub watermark: Option<Watermark>,
    /// How far the watermark is behind the clock.
    pub watermark_lag: Option<Duration>,
    /// Calls or inserts under way.
    pub in_flight: u64,
    /// How long its calls took, from the call to its result.
    pub calls: CallTimesSnapshot,
    /// Rows left out because they came behind the watermark.
    pub late_rows: u64,
    /// Rows handed over for good, by a sink.
    pub delivered_rows: u64,
    /// When rows were last handed over.
    pub last_delivery: Option<Time>,
    /// Rows that wait in front of the subtask.
    pub queued_rows: u64,
    /// Time spent in the operator.
    pub busy: Duration,
    /// Time spent waiting for a reader: back-pressure.
    pub blocked: Duration,
}

impl NodeSnapshot {
    /// The sum of a counter over the node's subtasks.
    pub fn total(&self, counter: impl Fn(&SubtaskSnapshot) -> u64) -> u64 {
        self.subtasks.iter().map(counter).sum()
    }

    /// The least watermark of the subtasks that are not idle; idle when all are; `None` while one has none.
    pub fn watermark(&self) -> Option<Watermark> {
        let watermarks = self.subtasks.iter().map(|subtask| subtask.watermark);
        watermarks.reduce(|left, right| match (left?, right?) {
            (Watermark::Idle, other) | (other, Watermark::Idle) => Some(other),
            (Watermark::At(left), Watermark::At(right)) => Some(Watermark::At(left.min(right))),
        })?
    }

    /// How far the node's watermark is behind the clock: the furthest of its subtasks.
    pub fn watermark_lag(&self) -> Option<Duration> {
        self.subtasks.iter().filter_map(|subtask| subtask.watermark_lag).max()
    }

    /// When a subtask last handed rows over.
    pub fn last_delivery(&self) -> Option<Time> {
        self.subtasks.iter().filter_map(|subtask| subtask.last_delivery).max()
    }
}
