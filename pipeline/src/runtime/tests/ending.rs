//! How pipelines end: by themselves, stopped, aborted, dropped.

use super::*;

/// One row every 10 ms, for ever.
fn ticking(subtask: usize, _: usize) -> Vec<Step> {
    let step = |n: i64| [Step::Wait(Duration::from_millis(10)), Step::Rows(rows([(n % 7, n * 10 + subtask as i64)]))];
    (0..100_000).flat_map(step).collect()
}

#[tokio::test(start_paused = true)]
async fn sources_that_end_end_the_pipeline_after_the_last_watermark() {
    let mut graph = Graph::default();
    let source = graph.source(None, |_, _| vec![Step::Rows(rows([(1, 1)])), Step::Watermark(Watermark::At(Time(2)))]);
    let pass = graph.operator(None, vec![(source, by_key())], |_| Pass);
    let log = graph.sink(Some(1), vec![(pass, FORWARD)]);
    let finished = graph.start(3).wait().await.unwrap();
    assert_eq!(finished, Finished { reason: Reason::SourcesEnded, last_epoch: None });
    assert_eq!(log.sorted(), [(1, 1); 3]);
    assert_eq!(log.watermarks(0), [Watermark::At(Time(2)), Watermark::At(Time::MAX)]);
    assert_eq!(log.all().last(), Some(&(0, Seen::Finished)));
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_drains_what_was_read_behind_a_last_barrier() {
    let mut graph = Graph::default();
    let source = graph.source(None, ticking);
    let pass = graph.operator(None, vec![(source, by_key())], |_| Pass);
    let log = graph.sink(None, vec![(pass, by_key())]);
    let running = graph.start(2);
    let metrics = running.metrics();
    let control = running.control();
    until(|| log.rows().len() > 500).await;
    control.stop();
    let finished = running.wait().await.unwrap();
    assert_eq!(finished.reason, Reason::Stopped);
    let read = metrics.snapshot().nodes[0].total(|s| s.rows_out);
    assert_eq!(log.rows().len() as u64, read, "all that was read was delivered");
    for subtask in 0..2 {
        let last = log.all().into_iter().rfind(|(s, _)| *s == subtask);
        let Some((_, Seen::Barrier(barrier))) = last else { panic!("a barrier comes last, not {last:?}") };
        assert!(barrier.stop);
        assert_eq!(Some(barrier.epoch), finished.last_epoch);
    }
}

/// A sink whose rows are never through.
struct Stuck;

impl Operator for Stuck {
    fn process(&mut self, _: usize, _: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }
    fn is_settled(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_read_while_a_stop_waits_for_a_sink() {
    let mut graph = Graph::default();
    let source = graph.source(None, ticking);
    let pass = graph.operator(None, vec![(source, FORWARD)], |_| Pass);
    graph.custom_sink(None, vec![(pass, FORWARD)], |_| Stuck);
    let options = Options { checkpoint_interval: Duration::from_millis(100), ..options(2) };
    let running = start(&graph.job, options).unwrap();
    let (metrics, control) = (running.metrics(), running.control());
    let read = || metrics.snapshot().nodes[0].total(|subtask| subtask.rows_out);
    // The sink holds the first checkpoint up, and the last barrier with it; the channels have room.
    tokio::time::sleep(Duration::from_millis(300)).await;
    control.stop();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let then = read();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(then > 0 && read() == then, "{then}, then {}", read());
    control.abort();
    assert_eq!(running.wait().await.unwrap().reason, Reason::Aborted);
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_even_what_cannot_be_stopped() {
    let mut graph = Graph::default();
    let source = graph.source(None, ticking);
    graph.custom_sink(None, vec![(source, FORWARD)], |_| Stuck);
    let running = graph.start(2);
    let control = running.control();
    control.stop();
    let end = tokio::time::timeout(Duration::from_secs(3600), running.wait());
    tokio::pin!(end);
    tokio::time::sleep(Duration::from_secs(60)).await;
    control.abort();
    let finished = end.await.unwrap().unwrap();
    assert_eq!(finished, Finished { reason: Reason::Aborted, last_epoch: None });
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_nobody_waits_for_is_aborted() {
    let mut graph = Graph::default();
    let source = graph.source(Some(1), ticking);
    let log = graph.sink(Some(1), vec![(source, FORWARD)]);
    let waited = tokio::time::timeout(Duration::from_secs(1), graph.start(1).wait()).await;
    assert!(waited.is_err());
    tokio::time::sleep(Duration::from_millis(1)).await;
    let seen = log.len();
    assert!(seen > 90, "{seen}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(log.len(), seen);
}
