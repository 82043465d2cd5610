//! Rows reach the subtasks they belong to.

use std::collections::BTreeMap;

use super::*;

/// 40 batches of 25 rows; each row once, over all subtasks of the source.
fn numbers(subtask: usize, parallelism: usize) -> Vec<Step> {
    let batches = (0..40).filter(move |batch| batch % parallelism == subtask);
    batches.map(|batch| Step::Rows(rows((batch * 25..batch * 25 + 25).map(|n| (n as i64 % 97, n as i64))))).collect()
}

fn all_numbers() -> Vec<(i64, i64)> {
    let mut all: Vec<_> = (0..1000).map(|n| (n % 97, n)).collect();
    all.sort_unstable();
    all
}

#[tokio::test(start_paused = true)]
async fn every_row_arrives_once_and_equal_keys_meet() {
    for senders in 1..=4 {
        for receivers in 1..=4 {
            let mut graph = Graph::default();
            let source = graph.source(Some(senders), numbers);
            let log = graph.sink(Some(receivers), vec![(source, by_key())]);
            let finished = graph.start(4).wait().await.unwrap();
            assert_eq!(finished.reason, Reason::SourcesEnded);
            assert_eq!(log.sorted(), all_numbers(), "{senders} to {receivers}");

            let mut owners: BTreeMap<i64, usize> = BTreeMap::new();
            for (subtask, key, _) in log.rows() {
                assert_eq!(*owners.entry(key).or_insert(subtask), subtask, "key {key}, {senders} to {receivers}");
            }
            let used: std::collections::BTreeSet<_> = owners.values().collect();
            assert_eq!(used.len(), receivers, "97 keys reach every subtask");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn equal_keys_of_one_sender_stay_in_order() {
    let mut graph = Graph::default();
    let source = graph.source(Some(1), numbers);
    let log = graph.sink(None, vec![(source, by_key())]);
    graph.start(3).wait().await.unwrap();
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    for (_, key, value) in log.rows() {
        let before = last.insert(key, value);
        assert!(before.is_none_or(|before| before < value), "key {key}: {before:?}, then {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_sender_stay_in_order_on_their_way_to_more_receivers() {
    let column = |name| Arc::new(Field::new(name, DataType::Int64, false));
    for (kind, used) in [(StreamKind::Append, 3), (StreamKind::Updating, 1)] {
        let mut graph = Graph::default();
        let source = graph.source(Some(1), numbers);
        let output = StreamSchema::new([column("key"), column("value")], kind).unwrap();
        let build = Box::new(|_: &Subtask| Body::Operator(Box::new(Pass)));
        let stage = TestStage { kind: "changes", output: Some(output), max_parallelism: Some(1), build };
        let changes = graph.add(stage, vec![(source, FORWARD)]);
        let log = graph.sink(Some(3), vec![(changes, FORWARD)]);
        graph.start(3).wait().await.unwrap();
        assert_eq!(log.sorted(), all_numbers());
        let subtasks: std::collections::BTreeSet<_> = log.rows().into_iter().map(|(subtask, _, _)| subtask).collect();
        assert_eq!(subtasks.len(), used, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn forward_keeps_to_one_subtask_or_goes_round() {
    for (senders, receivers) in [(3, 3), (1, 4), (4, 1), (2, 3)] {
        let mut graph = Graph::default();
        let source = graph.source(Some(senders), numbers);
        let log = graph.sink(Some(receivers), vec![(source, FORWARD)]);
        graph.start(4).wait().await.unwrap();
        assert_eq!(log.sorted(), all_numbers(), "{senders} to {receivers}");
        let mut counts = vec![0; receivers];
        for (subtask, _, value) in log.rows() {
            counts[subtask] += 1;
            if senders == receivers {
                assert_eq!(value as usize / 25 % senders, subtask, "subtask i sends to subtask i");
            }
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 50, "{senders} to {receivers}: {counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_keys_everything_meets_in_one_subtask() {
    let mut graph = Graph::default();
    let source = graph.source(None, numbers);
    let log = graph.sink(None, vec![(source, Exchange::Hash(Vec::new()))]);
    graph.start(3).wait().await.unwrap();
    assert_eq!(log.sorted(), all_numbers());
    assert!(log.rows().iter().all(|(subtask, _, _)| *subtask == 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_read_twice_sends_every_row_to_both_and_they_can_be_joined_again() {
    for parallelism in [1, 3] {
        let mut graph = Graph::default();
        let source = graph.source(None, numbers);
        let left = graph.operator(None, vec![(source, by_key())], |_| Pass);
        let right = graph.operator(Some(2), vec![(source, FORWARD)], |_| Pass);
        let log = graph.sink(None, vec![(left, FORWARD), (right, by_key())]);
        graph.start(parallelism).wait().await.unwrap();
        let mut twice: Vec<_> = all_numbers().into_iter().flat_map(|row| [row, row]).collect();
        twice.sort_unstable();
        assert_eq!(log.sorted(), twice);
    }
}

#[tokio::test(start_paused = true)]
async fn the_metrics_count_what_passed() {
    let mut graph = Graph::default();
    let source = graph.source(Some(1), numbers);
    graph.sink(None, vec![(source, by_key())]);
    let running = graph.start(2);
    let metrics = running.metrics();
    running.wait().await.unwrap();
    let snapshot = metrics.snapshot();
    let [source, sink] = &snapshot.nodes[..] else { panic!("two nodes") };
    assert_eq!((source.total(|s| s.rows_out), source.total(|s| s.batches_out)), (1000, 40));
    assert_eq!((sink.total(|s| s.rows_in), sink.total(|s| s.delivered_rows)), (1000, 1000));
    assert_eq!(sink.total(|s| s.queued_rows), 0);
    assert_eq!(sink.watermark(), Some(Watermark::At(Time::MAX)));
    assert_eq!((sink.subtasks.len(), source.subtasks.len()), (2, 1));
    assert_eq!((sink.last_delivery(), source.last_delivery()), (Some(START), None));
}
