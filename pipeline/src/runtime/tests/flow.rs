//! Back-pressure, watermarks, timers.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::barriers::Slow;
use super::*;

/// As many rows as are asked for, ten a batch.
fn flood(subtask: usize, _: usize) -> Vec<Step> {
    let batch = |n: i64| Step::Rows(rows((0..10).map(|i| (n * 10 + i, subtask as i64))));
    (0..10_000).map(batch).collect()
}

/// Takes no rows until the gate is opened.
struct Gated {
    closed: Option<BoxFuture<'static, ()>>,
    received: Arc<AtomicUsize>,
}

impl Operator for Gated {
    fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.received.fetch_add(batch.num_rows(), Ordering::Relaxed);
        Ok(())
    }
    fn poll_work(&mut self, task: &mut std::task::Context<'_>, _: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        let Some(closed) = &mut self.closed else { return Poll::Pending };
        std::task::ready!(closed.poll_unpin(task));
        self.closed = None;
        Poll::Ready(Ok(()))
    }
    fn accepts_input(&self) -> bool {
        self.closed.is_none()
    }
}

/// Adds a sink that takes no rows until the gate is opened; returns the gate and the number of rows taken.
fn gated_sink(graph: &mut Graph, input: (NodeId, Exchange)) -> (watch::Sender<bool>, Arc<AtomicUsize>) {
    let (gate, opened) = watch::channel(false);
    let received = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&received);
    graph.custom_sink(Some(1), vec![input], move |_| {
        let mut opened = opened.clone();
        let closed = async move { assert!(opened.wait_for(|opened| *opened).await.is_ok()) };
        Gated { closed: Some(closed.boxed()), received: Arc::clone(&count) }
    });
    (gate, received)
}

/// Lets all tasks run until none can.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_sink_stops_the_source_within_the_bound() {
    let mut graph = Graph::default();
    let source = graph.source(Some(2), flood);
    let pass = graph.operator(Some(3), vec![(source, by_key())], |_| Pass);
    let (gate, received) = gated_sink(&mut graph, (pass, by_key()));
    let running = start(&graph.job, Options { channel_rows: 300, ..options(3) }).unwrap();
    let metrics = running.metrics();
    settle().await;

    let stalled = metrics.snapshot();
    let [source, pass, sink] = &stalled.nodes[..] else { panic!("three nodes") };
    assert_eq!(received.load(Ordering::Relaxed), 0);
    let queued = pass.subtasks.iter().map(|s| s.queued_rows).max().unwrap();
    assert!(queued <= 300 && sink.total(|s| s.queued_rows) <= 300, "{stalled:#?}");
    // Four full channels, and in each of the five senders one batch of ten that found no room.
    let read = source.total(|s| s.rows_out);
    assert!((600..=4 * 300 + 5 * 10).contains(&read), "{read}");
    settle().await;
    let later = metrics.snapshot();
    assert_eq!(later.nodes[0].total(|s| s.rows_out), read, "nothing moves");
    assert!(later.nodes[0].subtasks.iter().all(|s| s.blocked > Duration::ZERO));
    let blocked = |snapshot: &metrics::Snapshot| snapshot.nodes[0].subtasks[0].blocked;
    assert!(blocked(&later) > blocked(&stalled), "a wait under way is counted");

    gate.send_replace(true);
    running.wait().await.unwrap();
    assert_eq!(received.load(Ordering::Relaxed), 200_000);
}

#[tokio::test(start_paused = true)]
async fn work_in_flight_goes_on_while_a_reader_is_full() {
    let mut graph = Graph::default();
    let source = graph.source(Some(1), flood);
    let slow = graph
        .operator(Some(1), vec![(source, FORWARD)], |subtask| Slow::new(subtask.clock, Duration::from_millis(1), 8));
    let (gate, received) = gated_sink(&mut graph, (slow, FORWARD));
    let running = start(&graph.job, Options { channel_rows: 10, ..options(1) }).unwrap();
    let metrics = running.metrics();
    settle().await;
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.nodes[1].total(|s| s.in_flight), 0, "every call has been seen to its end");
    let taken = snapshot.nodes[1].total(|s| s.rows_in);
    assert!(taken <= 10 * (8 + 8 + 2), "{taken} rows: no input while the reader is full");
    gate.send_replace(true);
    running.wait().await.unwrap();
    assert_eq!(received.load(Ordering::Relaxed), 100_000);
}

#[tokio::test(start_paused = true)]
async fn watermarks_are_merged_over_all_senders() {
    let mut graph = Graph::default();
    let at = |seconds: i64| Step::Watermark(Watermark::At(Time(seconds)));
    let wait = |millis| Step::Wait(Duration::from_millis(millis));
    let source = graph.source(Some(3), move |subtask, _| match subtask {
        0 => vec![at(10), wait(1000), at(20), wait(1000), at(30), wait(2000)],
        1 => vec![at(5), wait(1500), Step::Watermark(Watermark::Idle), wait(2000)],
        _ => vec![at(15), wait(2500)],
    });
    let log = graph.sink(Some(1), vec![(source, FORWARD)]);
    graph.start(3).wait().await.unwrap();
    // 5 is the least of 10, 5, 15. 15: sender 1 is idle. 30: sender 2 has ended.
    let expected = [Time(5), Time(15), Time(30), Time::MAX].map(Watermark::At);
    assert_eq!(log.watermarks(0), expected);
}

#[tokio::test(start_paused = true)]
async fn timers_fire_at_their_moment_through_simulated_hours() {
    /// Sends what it has once a minute.
    struct EachMinute {
        held: Vec<(i64, i64)>,
        waiting: bool,
    }
    impl Operator for EachMinute {
        fn start(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
            assert_eq!(cx.now(), START);
            cx.wake_at(START.after(Duration::from_millis(500)));
            Ok(())
        }
        fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
            self.held.extend(pairs(&batch));
            if !self.waiting {
                cx.wake_at(cx.now().after(Duration::from_secs(120)));
                cx.wake_at(cx.now().after(Duration::from_secs(60)));
                cx.wake_at(cx.now().after(Duration::from_secs(90)));
            }
            self.waiting = true;
            Ok(())
        }
        fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
            if !std::mem::take(&mut self.waiting) {
                assert_eq!(cx.now(), START.after(Duration::from_millis(500)), "the timer asked for at the start");
                return Ok(());
            }
            let since_start = cx.now().since(START).as_secs() as i64;
            cx.emit(rows([(self.held.len() as i64, since_start)]));
            self.held.clear();
            Ok(())
        }
    }
    let mut graph = Graph::default();
    let source = graph.source(Some(1), |_, _| {
        (0..7200).flat_map(|n| [Step::Wait(Duration::from_secs(1)), Step::Rows(rows([(n, n)]))]).collect()
    });
    let minutes = graph.operator(Some(1), vec![(source, FORWARD)], |_| EachMinute { held: Vec::new(), waiting: false });
    let log = graph.sink(Some(1), vec![(minutes, FORWARD)]);
    let running = graph.start(1);
    let metrics = running.metrics();
    running.wait().await.unwrap();
    let sent = log.rows();
    assert_eq!(sent.len(), 119);
    for (n, (_, count, at)) in (0..).zip(sent) {
        assert_eq!((count, at), (60, 61 + 60 * n), "number {n}");
    }
    assert!(metrics.snapshot().last_epoch >= Some(Epoch(719)), "a checkpoint every ten seconds");
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_makes_much_of_little_is_held_back_by_its_readers() {
    /// Sends each row a thousand times, a batch at a time.
    #[derive(Default)]
    struct Multiply {
        row: Vec<(i64, i64)>,
        left: usize,
    }
    impl Operator for Multiply {
        fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
            (self.row, self.left) = (pairs(&batch), 1000);
            Ok(())
        }
        fn poll_work(
            &mut self,
            _: &mut std::task::Context<'_>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), OperatorError>> {
            if self.left == 0 || cx.is_blocked() {
                return Poll::Pending;
            }
            self.left -= 1;
            cx.emit(rows(self.row.iter().copied()));
            Poll::Ready(Ok(()))
        }
        fn accepts_input(&self) -> bool {
            self.left == 0
        }
        fn is_settled(&self) -> bool {
            self.left == 0
        }
    }
    let mut graph = Graph::default();
    let source = graph.source(Some(1), |_, _| (0..5).map(|n| Step::Rows(rows([(n, n)]))).collect());
    let multiply = graph.operator(Some(1), vec![(source, FORWARD)], |_| Multiply::default());
    let (gate, received) = gated_sink(&mut graph, (multiply, FORWARD));
    let running = start(&graph.job, Options { channel_rows: 10, ..options(1) }).unwrap();
    let metrics = running.metrics();
    settle().await;
    assert_eq!(metrics.snapshot().nodes[1].total(|s| s.rows_out), 10 + 1, "a full channel, and one batch before it");
    gate.send_replace(true);
    running.wait().await.unwrap();
    assert_eq!(received.load(Ordering::Relaxed), 5000);
}
