//! Epochs: every row is in exactly one, on every way through the graph.

use super::*;

/// A row every `every`, with values of its own, for `rows_count` rows; then waits to be stopped.
fn ticking(every: Duration, count: i64) -> impl Fn(usize, usize) -> Vec<Step> + Send + Sync + 'static {
    move |subtask, parallelism| {
        let value = move |n: i64| n * parallelism as i64 + subtask as i64;
        let step = move |n| [Step::Wait(every), Step::Rows(rows([(value(n) % 11, value(n))]))];
        (0..count).flat_map(step).chain([Step::Forever]).collect()
    }
}

/// Sends each batch on after a while, a few at a time, in any order.
pub struct Slow {
    pub clock: Clock,
    pub delay: Duration,
    pub limit: usize,
    pub calls: futures::stream::FuturesUnordered<BoxFuture<'static, RecordBatch>>,
}

impl Slow {
    pub fn new(clock: Clock, delay: Duration, limit: usize) -> Self {
        Self { clock, delay, limit, calls: futures::stream::FuturesUnordered::new() }
    }
}

impl Operator for Slow {
    fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let (clock, done) = (self.clock, cx.now().after(self.delay));
        self.calls.push(
            async move {
                clock.sleep_until(done).await;
                batch
            }
            .boxed(),
        );
        Ok(())
    }

    fn poll_work(
        &mut self,
        task: &mut std::task::Context<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), OperatorError>> {
        match self.calls.poll_next_unpin(task) {
            Poll::Ready(Some(batch)) => {
                cx.emit(batch);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn accepts_input(&self) -> bool {
        self.calls.len() < self.limit
    }

    fn is_settled(&self) -> bool {
        self.calls.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.calls.len()
    }
}

/// No row's copies are in different epochs, and each row has `copies`.
pub fn assert_consistent(log: &Log, copies: usize) {
    let mut seen = BTreeMap::new();
    for (epoch, rows) in log.by_epoch() {
        for row in rows {
            let (first, count) = seen.entry(row).or_insert((epoch, 0));
            assert_eq!(*first, epoch, "row {row:?} is in two epochs");
            *count += 1;
        }
    }
    assert!(seen.values().all(|(_, count)| *count == copies), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn barriers_are_aligned_where_a_fast_and_a_slow_way_meet() {
    for parallelism in [1, 3] {
        let mut graph = Graph::default();
        let source = graph.source(None, ticking(Duration::from_millis(7), 2000));
        let slow = graph.operator(None, vec![(source, by_key())], |subtask| {
            Slow::new(subtask.clock, Duration::from_millis(300), 100)
        });
        let fast = graph.operator(None, vec![(source, FORWARD)], |_| Pass);
        let both = graph.operator(Some(2), vec![(slow, by_key()), (fast, by_key())], |_| Pass);
        let log = graph.sink(None, vec![(both, by_key())]);
        let running =
            start(&graph.job, Options { checkpoint_interval: Duration::from_secs(1), ..options(parallelism) });
        let running = running.unwrap();
        let (metrics, control) = (running.metrics(), running.control());
        let waiting = running.wait();
        tokio::pin!(waiting);
        let too_early = tokio::time::timeout(Duration::from_secs(60), &mut waiting).await;
        assert!(too_early.is_err());
        assert_eq!(metrics.snapshot().nodes[0].total(|s| s.rows_out), 2000 * parallelism as u64);
        control.stop();
        let finished = waiting.await.unwrap();
        assert!(finished.last_epoch.unwrap() >= Epoch(40), "{finished:?}");
        assert_eq!(log.rows().len(), 4000 * parallelism);
        assert_consistent(&log, 2);
        assert!(log.by_epoch().len() > 10, "rows are spread over the epochs");
    }
}

#[tokio::test(start_paused = true)]
async fn a_barrier_waits_until_the_operator_is_settled_and_takes_no_input_meanwhile() {
    /// Needs three seconds to settle.
    struct Settling {
        clock: Clock,
        wait: Option<BoxFuture<'static, ()>>,
    }
    impl Operator for Settling {
        fn process(&mut self, _: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
            assert!(self.wait.is_none(), "input while settling");
            cx.emit(batch);
            Ok(())
        }
        fn barrier(&mut self, _: Barrier, cx: &mut Context<'_>) -> Result<(), OperatorError> {
            let (clock, done) = (self.clock, cx.now().after(Duration::from_secs(3)));
            self.wait = Some(async move { clock.sleep_until(done).await }.boxed());
            Ok(())
        }
        fn poll_work(
            &mut self,
            task: &mut std::task::Context<'_>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), OperatorError>> {
            let Some(wait) = &mut self.wait else { return Poll::Pending };
            std::task::ready!(wait.poll_unpin(task));
            self.wait = None;
            cx.emit(rows([(-1, 0)]));
            Poll::Ready(Ok(()))
        }
        fn is_settled(&self) -> bool {
            self.wait.is_none()
        }
    }
    let mut graph = Graph::default();
    let source = graph.source(Some(1), ticking(Duration::from_millis(100), 10_000));
    let settling =
        graph.operator(Some(1), vec![(source, FORWARD)], |subtask| Settling { clock: subtask.clock, wait: None });
    let log = graph.sink(Some(1), vec![(settling, FORWARD)]);
    let running = start(&graph.job, Options { checkpoint_interval: Duration::from_secs(1), ..options(1) }).unwrap();
    let metrics = running.metrics();
    let control = running.control();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        control.stop();
    };
    let (finished, ()) = tokio::join!(running.wait(), stop);
    // A barrier each second would be 30: the next one waits for the last.
    let epochs = finished.unwrap().last_epoch.unwrap().0;
    assert!((8..=11).contains(&epochs), "{epochs}");
    let took = metrics.snapshot().last_epoch_duration;
    assert!(took >= Duration::from_secs(3) && took < Duration::from_millis(3100), "{took:?}");
    for (epoch, rows) in log.by_epoch() {
        let settled = rows.iter().filter(|(key, _)| *key == -1).count();
        assert_eq!(settled, 1, "what settling sends in epoch {epoch} belongs to it");
    }
}

#[tokio::test(start_paused = true)]
async fn epochs_go_on_when_a_source_has_ended() {
    let mut graph = Graph::default();
    let short = graph.source(Some(2), |_, _| vec![Step::Wait(Duration::from_secs(15)), Step::Rows(rows([(1, -1)]))]);
    let only_short = graph.operator(None, vec![(short, by_key())], |_| Pass);
    let long = graph.source(Some(1), ticking(Duration::from_secs(1), 1000));
    let log = graph.sink(None, vec![(only_short, by_key()), (long, by_key())]);
    let running = graph.start(2);
    let control = running.control();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(95)).await;
        control.stop();
    };
    let (finished, ()) = tokio::join!(running.wait(), stop);
    let finished = finished.unwrap();
    assert_eq!((finished.reason, finished.last_epoch), (Reason::Stopped, Some(Epoch(10))));
    let epochs = log.by_epoch();
    assert_eq!(epochs.keys().copied().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    let of_short: Vec<u64> =
        epochs.iter().flat_map(|(epoch, rows)| rows.iter().filter(|row| row.1 == -1).map(|_| *epoch)).collect();
    assert_eq!(of_short, [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_while_a_barrier_is_under_way_holds_nobody_up() {
    // The ends fall on the very moments at which barriers are sent.
    let mut graph = Graph::default();
    let source = graph.source(None, |subtask, _| vec![Step::Wait(Duration::from_secs(10 * (subtask as u64 + 1)))]);
    let log = graph.sink(Some(1), vec![(source, FORWARD)]);
    let finished = graph.start(4).wait().await.unwrap();
    assert_eq!(finished.reason, Reason::SourcesEnded);
    assert_eq!(log.all().last(), Some(&(0, Seen::Finished)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_an_epoch_is_under_way_waits_its_turn() {
    let mut graph = Graph::default();
    let source = graph.source(Some(1), ticking(Duration::from_millis(10), 100_000));
    let slow = graph
        .operator(Some(1), vec![(source, FORWARD)], |subtask| Slow::new(subtask.clock, Duration::from_secs(4), 1000));
    let log = graph.sink(Some(1), vec![(slow, FORWARD)]);
    let running = graph.start(1);
    let control = running.control();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(11)).await;
        control.stop();
    };
    let (finished, ()) = tokio::join!(running.wait(), stop);
    assert_eq!(finished.unwrap(), Finished { reason: Reason::Stopped, last_epoch: Some(Epoch(2)) });
    let barriers: Vec<_> = log.all().into_iter().filter(|(_, seen)| matches!(seen, Seen::Barrier(_))).collect();
    assert_eq!(
        barriers,
        [(1, false), (2, true)].map(|(epoch, stop)| (0, Seen::Barrier(Barrier { epoch: Epoch(epoch), stop })))
    );
}
