//! Any graph, any parallelism, any cut into batches: the same rows arrive, and every copy of a row in one epoch.

use proptest::prelude::*;

use super::barriers::Slow;
use super::*;

/// One node of a random graph: what it reads (by position among the nodes before it) and how.
#[derive(Debug, Clone)]
struct Shape {
    inputs: Vec<(prop::sample::Index, bool)>,
    max_parallelism: Option<usize>,
    /// Milliseconds that each batch takes; 0 passes at once.
    delay: u64,
}

/// A random pipeline.
#[derive(Debug, Clone)]
struct Case {
    /// The sizes of the batches of each source.
    sources: Vec<Vec<usize>>,
    nodes: Vec<Shape>,
    parallelism: usize,
    channel_rows: usize,
    checkpoint_millis: u64,
}

fn shape() -> impl Strategy<Value = Shape> {
    let inputs = prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..=2);
    let max_parallelism = prop::option::of(1..=3_usize);
    let delay = prop_oneof![Just(0_u64), 0..20_u64];
    (inputs, max_parallelism, delay).prop_map(|(inputs, max_parallelism, delay)| Shape {
        inputs,
        max_parallelism,
        delay,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let sources = prop::collection::vec(prop::collection::vec(1..40_usize, 0..25), 1..=2);
    let nodes = prop::collection::vec(shape(), 1..=5);
    (sources, nodes, 1..=4_usize, 1..100_usize, 1..30_u64).prop_map(
        |(sources, nodes, parallelism, channel_rows, checkpoint_millis)| Case {
            sources,
            nodes,
            parallelism,
            channel_rows,
            checkpoint_millis,
        },
    )
}

/// The batches of source `number`, dealt out over its subtasks, with a pause behind every third.
fn batches(number: usize, sizes: &[usize], subtask: usize, parallelism: usize) -> Vec<Step> {
    let mut next = number as i64 * 1_000_000;
    let mut steps = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let batch: Vec<_> = (next..next + *size as i64).map(|n| (n % 13, n)).collect();
        next += *size as i64;
        if index % parallelism == subtask {
            steps.push(Step::Rows(rows(batch)));
            if index % 3 == 0 {
                steps.push(Step::Wait(Duration::from_millis(2)));
            }
        }
    }
    steps
}

/// How many copies of each source's rows each node sends.
type Copies = Vec<usize>;

/// The graph of a case, the log of its sink, and how many copies of each source's rows the sink is to see.
fn build(case: &Case) -> (Graph, Log, Copies) {
    let mut graph = Graph::default();
    let mut made: Vec<(NodeId, Copies)> = Vec::new();
    for (number, sizes) in case.sources.iter().enumerate() {
        let sizes = sizes.clone();
        let id = graph.source(None, move |subtask, parallelism| batches(number, &sizes, subtask, parallelism));
        made.push((id, (0..case.sources.len()).map(|source| usize::from(source == number)).collect()));
    }
    let mut is_read = vec![false; made.len() + case.nodes.len()];
    for shape in &case.nodes {
        let mut copies = vec![0; case.sources.len()];
        let mut inputs = Vec::new();
        for (input, hashed) in &shape.inputs {
            let input = input.index(made.len());
            is_read[input] = true;
            copies.iter_mut().zip(&made[input].1).for_each(|(sum, more)| *sum += more);
            inputs.push((made[input].0, if *hashed { by_key() } else { FORWARD }));
        }
        let delay = Duration::from_millis(shape.delay);
        let id = match shape.delay {
            0 => graph.operator(shape.max_parallelism, inputs, |_| Pass),
            _ => graph.operator(shape.max_parallelism, inputs, move |subtask| Slow::new(subtask.clock, delay, 3)),
        };
        made.push((id, copies));
    }
    let mut copies = vec![0; case.sources.len()];
    let mut leaves = Vec::new();
    for ((id, of), _) in made.iter().zip(is_read).filter(|(_, is_read)| !is_read) {
        copies.iter_mut().zip(of).for_each(|(sum, more)| *sum += more);
        leaves.push((*id, by_key()));
    }
    let log = graph.sink(None, leaves);
    (graph, log, copies)
}

/// Runs a case to its end, and checks what arrived.
async fn check(case: &Case, clock: Clock) {
    let (graph, log, copies) = build(case);
    let options = Options {
        channel_rows: case.channel_rows,
        checkpoint_interval: Duration::from_millis(case.checkpoint_millis),
        clock,
        ..Options::new("random", case.parallelism)
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), start(&graph.job, options).unwrap().wait()).await;
    assert_eq!(ended.expect("ends").unwrap().reason, Reason::SourcesEnded);

    let mut expected = Vec::new();
    for (number, (sizes, copies)) in case.sources.iter().zip(copies).enumerate() {
        let first = number as i64 * 1_000_000;
        let values = first..first + sizes.iter().sum::<usize>() as i64;
        expected.extend(values.flat_map(|n| std::iter::repeat_n((n % 13, n), copies)));
    }
    expected.sort_unstable();
    assert_eq!(log.sorted(), expected);

    let mut epochs = BTreeMap::new();
    for (epoch, rows) in log.by_epoch() {
        for row in rows {
            assert_eq!(*epochs.entry(row).or_insert(epoch), epoch, "copies of row {row:?} are in two epochs");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_arrives_in_one_epoch(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { check(&case, Clock::simulated(START)).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_arrives_in_one_epoch_on_several_threads(case in case()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        runtime.block_on(async { check(&case, Clock::system()).await });
    }
}
