//! An error or a panic anywhere ends the pipeline, and says where it was.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Does `at` to the row with value 500.
struct At500(fn() -> Result<(), OperatorError>);

impl Operator for At500 {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if pairs(&batch).iter().any(|(_, value)| *value == 500) {
            (self.0)()?;
        }
        cx.emit(batch);
        Ok(())
    }
}

fn endless(subtask: usize, _: usize) -> Vec<Step> {
    let batch = |n: i64| Step::Rows(rows([(n, n)]));
    (0..1000).map(|n| batch(n * 2 + subtask as i64)).chain([Step::Forever]).collect()
}

async fn run(at: fn() -> Result<(), OperatorError>) -> PipelineError {
    let mut graph = Graph::default();
    let source = graph.source(None, endless);
    let failing = graph.operator(None, vec![(source, FORWARD)], move |_| At500(at));
    let pass = graph.operator(None, vec![(failing, by_key())], |_| Pass);
    graph.sink(None, vec![(pass, by_key())]);
    graph.start(2).wait().await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn an_error_names_node_and_subtask_and_its_causes() {
    let error = run(|| {
        let cause = OperatorError::external("connection refused").because(std::io::Error::other("no route"));
        Err(OperatorError::user("row 500 is too much").because(cause))
    })
    .await;
    assert_eq!(error.fault(), Fault::User);
    assert_eq!((error.node.as_str(), error.subtask), ("operator_1", Some(0)));
    assert_eq!(error.to_string(), "`operator_1` (subtask 0): row 500 is too much: connection refused: no route");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_with_the_panic_s_words() {
    let error = run(|| panic!("row {} broke it", 500)).await;
    assert_eq!(error.fault(), Fault::Internal);
    assert_eq!(error.to_string(), "`operator_1` (subtask 0): panicked: row 500 broke it");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_or_panics_is_named() {
    struct Failing(bool);
    impl Source for Failing {
        fn next<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
            let panics = self.0;
            async move { if panics { panic!("out of numbers") } else { Err(OperatorError::external("no more")) } }
                .boxed()
        }
    }
    for (panics, words) in [(true, "panicked: out of numbers"), (false, "no more")] {
        let mut graph = Graph::default();
        let quiet = graph.source(Some(1), |_, _| vec![Step::Forever]);
        let build = move |_: &Subtask| Body::Source(Box::new(Failing(panics)));
        let stage =
            TestStage { kind: "failing", output: Some(stream()), max_parallelism: Some(1), build: Box::new(build) };
        let failing = graph.add(stage, Vec::new());
        graph.sink(None, vec![(quiet, FORWARD), (failing, FORWARD)]);
        let error = graph.start(1).wait().await.unwrap_err();
        assert_eq!(error.to_string(), format!("`failing_1` (subtask 0): {words}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_building_is_an_error_and_nothing_starts() {
    let started = Arc::new(AtomicUsize::new(0));
    let mut graph = Graph::default();
    let count = Arc::clone(&started);
    let source = graph.source(Some(1), move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        vec![Step::Forever]
    });
    graph.custom_sink(None, vec![(source, FORWARD)], |_| -> Pass { panic!("no such table") });
    let error = start(&graph.job, options(1)).unwrap_err();
    assert_eq!(error.to_string(), "`sink_1` (subtask 0): panicked: no such table");
    assert_eq!(started.load(Ordering::Relaxed), 1, "built, and dropped");
}

#[tokio::test(start_paused = true)]
async fn when_one_subtask_fails_the_others_are_dropped() {
    /// Counts itself while it is alive.
    struct Alive(Arc<()>);
    impl Operator for Alive {
        fn process(&mut self, _: usize, _: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
            assert!(Arc::strong_count(&self.0) > 1);
            Ok(())
        }
    }
    let alive = Arc::new(());
    let mut graph = Graph::default();
    let source = graph.source(None, endless);
    let failing = graph.operator(Some(1), vec![(source, FORWARD)], |_| At500(|| Err(OperatorError::internal("oh"))));
    let counted = Arc::clone(&alive);
    graph.custom_sink(None, vec![(failing, by_key())], move |_| Alive(Arc::clone(&counted)));
    let running = graph.start(3);
    assert_eq!(Arc::strong_count(&alive), 5);
    running.wait().await.unwrap_err();
    assert_eq!(Arc::strong_count(&alive), 2, "only the plan is left");
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_hashed_are_refused_before_anything_starts() {
    let map = DataType::Map(
        Arc::new(Field::new(
            "entries",
            DataType::Struct(
                vec![Field::new("keys", DataType::Utf8, false), Field::new("values", DataType::Utf8, true)].into(),
            ),
            false,
        )),
        false,
    );
    let output = StreamSchema::new([Arc::new(Field::new("tags", map, true))], StreamKind::Append).unwrap();
    let mut graph = Graph::default();
    let build = |_: &Subtask| Body::Operator(Box::new(Pass));
    let stage = TestStage { kind: "tagged", output: Some(output), max_parallelism: None, build: Box::new(build) };
    let source = graph.add(stage, Vec::new());
    graph.sink(None, vec![(source, by_key())]);
    let error = start(&graph.job, options(1)).unwrap_err();
    assert_eq!(error.fault(), Fault::User);
    assert!(error.to_string().starts_with("`sink_1`: column `tags`: values of type Map("), "{error}");
}
