//! Pipelines composed at random out of all operators, over random events, through random crashes.

use std::cell::RefCell;
use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseError, TestRunner};

use super::run::{Agreed, Run, events, in_order, lengths, lives};
use super::script::{Script, write};
use super::steps::{Choices, choices};

/// Where the seeds of failures are kept.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/recovery/composed.txt");

#[derive(Clone)]
struct Case {
    choices: Choices,
    run: Run,
}

/// What is run, to be read and to be pasted, rather than what was chosen.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Script { pipeline, tables, outputs } = write(&self.choices);
        writeln!(f, "\n-- the pipeline\n{pipeline}\n-- the batch engine")?;
        for (name, query) in tables {
            writeln!(f, "CREATE TABLE {name} AS {query};")?;
        }
        for output in outputs {
            writeln!(f, "-- {} is to have\n{}", output.sink, output.batch.join(" UNION ALL "))?;
        }
        writeln!(f, "{}", self.run)
    }
}

fn case() -> impl Strategy<Value = Case> {
    (choices(), events(), lengths(), lives(), 0..15_u64).prop_map(|(choices, events, lengths, lives, write_millis)| {
        let events = in_order(events, choices.origin.delay);
        Case { choices, run: Run { events, lengths, lives, write_millis } }
    })
}

/// How many cases are run: RECOVERY_CASES, or few enough for every build.
fn cases() -> u32 {
    std::env::var("RECOVERY_CASES").map_or(1_000, |cases| cases.parse().expect("RECOVERY_CASES is a number"))
}

/// What the cases were worth.
#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    sinks: usize,
    sinks_with_rows: usize,
    restarts: usize,
    from_a_checkpoint: usize,
}

impl Tally {
    fn add(&mut self, Agreed { from, rows }: &Agreed) {
        self.cases += 1;
        self.sinks += rows.len();
        self.sinks_with_rows += rows.iter().filter(|rows| **rows > 0).count();
        self.restarts += from.len() - 1;
        self.from_a_checkpoint += from.iter().flatten().count();
    }
}

#[test]
fn what_a_composed_pipeline_commits_is_what_the_batch_engine_gives() {
    let config = ProptestConfig {
        cases: cases(),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(SEEDS))),
        source_file: Some(file!()),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    };
    let tally = RefCell::new(Tally::default());
    let result = TestRunner::new(config).run(&case(), |case| {
        let agreed = case.run.check(&write(&case.choices)).map_err(TestCaseError::fail)?;
        tally.borrow_mut().add(&agreed);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let tally = tally.into_inner();
    println!("{tally:?}");
    // So that the property does not hold for want of anything that could fail.
    assert!(tally.sinks_with_rows * 3 > tally.sinks * 2, "{tally:?}");
    assert!(tally.restarts > tally.cases && tally.from_a_checkpoint * 2 > tally.restarts, "{tally:?}");
}
