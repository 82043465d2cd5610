//! Whether the random pipelines have in them what they are to test.

use std::collections::BTreeMap;
use std::fmt;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tickhouse::plan::NodeId;
use tickhouse::runtime::Job;

use super::collect::Committed;
use super::run::plan;
use super::script::write;
use super::steps::{Step, choices};

/// The operators that there are: the files of `src/operators` that have a node.
fn operators() -> Vec<String> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/operators")).unwrap();
    let files = folder.map(|file| file.unwrap().path()).filter(|path| path.is_file());
    let operators = files.filter(|path| std::fs::read_to_string(path).unwrap().contains("impl NodePlan for"));
    operators.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The name of the variant of an enum.
fn variant(value: &impl fmt::Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn count_step(step: &Step, counts: &mut BTreeMap<String, usize>) {
    let mut count = |what: String| *counts.entry(what).or_default() += 1;
    count(format!("step {}", variant(step)));
    let aggregates = match step {
        Step::Window(window) => &window.grouping.aggregates[..],
        Step::Aggregate(grouping) => &grouping.aggregates[..],
        Step::Project(items) => {
            items.iter().for_each(|item| count(format!("item {}", variant(item))));
            &[]
        }
        _ => &[],
    };
    for aggregate in aggregates {
        count(format!("function {}", variant(&aggregate.function)));
        if aggregate.filter.is_some() {
            count("FILTER".to_owned());
        }
    }
}

/// The kinds of the nodes that a node reads, projections passed over.
fn behind(job: &Job, id: NodeId) -> Vec<&'static str> {
    let kinds = job.inputs(id).flat_map(|edge| match job.node(edge.from).map(|node| node.plan.kind()) {
        Some("project") => behind(job, edge.from),
        kind => kind.into_iter().collect(),
    });
    kinds.collect()
}

#[test]
fn every_operator_and_every_step_is_composed() {
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..1000 {
        let choices = choices().new_tree(&mut runner).unwrap().current();
        choices.steps.iter().for_each(|placed| count_step(&placed.step, &mut counts));
        let text = write(&choices).pipeline;
        let pipeline = plan(&text, Vec::new(), &Committed::default());
        let pipeline = pipeline.unwrap_or_else(|refusal| panic!("{refusal}\n{text}"));
        for (id, node) in pipeline.job.nodes() {
            let mut count = |what: String| *counts.entry(what).or_default() += 1;
            count(node.plan.kind().to_owned());
            if node.plan.kind() != "project" {
                behind(&pipeline.job, id).iter().for_each(|kind| count(format!("{kind} > {}", node.plan.kind())));
            }
            if pipeline.job.outputs(id).count() > 1 {
                count(format!("shared {}", node.plan.kind()));
            }
        }
    }
    println!("{counts:#?}");
    let operators = operators();
    assert!(operators.len() >= 7, "{operators:?}");
    let steps = ["Filter", "Project", "Distinct", "Window", "Aggregate", "Later", "Unnest", "Memory"];
    let often = operators.iter().cloned().chain(steps.map(|step| format!("step {step}")));
    for kind in often.chain(["FILTER".to_owned()]) {
        let count = counts.get(&kind).copied().unwrap_or_default();
        assert!(count >= 200, "{kind} occurs {count} times in 1000 pipelines");
    }
    // Each that reads append-only rows over each that gives them, and each that reads any over all.
    let append = ["watermark", "tumbling_aggregate", "async_udf", "unnest", "memory_table"];
    let any = ["unnest", "memory_table", "collect_sink"];
    let over = |inputs: &[&str], readers: &[&str]| {
        let pair = |input: &&str| readers.iter().map(|reader| format!("{input} > {reader}")).collect::<Vec<_>>();
        inputs.iter().flat_map(pair).collect::<Vec<_>>()
    };
    let aggregates = ["tumbling_aggregate", "updating_aggregate"];
    let readers = [&["partial_aggregate", "async_udf"], &aggregates[..], &any].concat();
    let mut pairs =
        [over(&append, &readers), over(&["partial_aggregate"], &aggregates), over(&["updating_aggregate"], &any)]
            .concat();
    // A windowed aggregate's rows are aggregated by window, until a memory table.
    pairs.retain(|pair| pair != "tumbling_aggregate > updating_aggregate");
    pairs.extend(
        ["watermark", "tumbling_aggregate", "updating_aggregate", "unnest", "memory_table"]
            .map(|kind| format!("shared {kind}")),
    );
    for pair in pairs {
        let count = counts.get(&pair).copied().unwrap_or_default();
        assert!(count >= 5, "{pair} occurs {count} times in 1000 pipelines");
    }
}
