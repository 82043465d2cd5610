//! Whole files through the planner: what is refused and how, what plans look like, what expressions compute.
//!
//! `refused/NAME.sql` must give the error in `refused/NAME.txt`; `planned/NAME.sql` the plan in `planned/NAME.txt`. With
//! `UPDATE_EXPECTED=1` in the environment the `.txt` files are written instead of compared: read the difference.

mod evaluated;
mod fakes;

use std::fs;
use std::path::{Path, PathBuf};

use super::{Pipeline, Planner, SqlError};
use crate::plan::{Format, explain};

fn env(name: &str) -> Option<String> {
    let value = match name {
        "CLICKHOUSE_URL" => "http://localhost:8123",
        "INFLUENCERS" => "10000",
        _ => return None,
    };
    Some(value.to_owned())
}

pub(super) fn plan(file: &str, text: &str) -> Result<Pipeline, SqlError> {
    Planner::new(fakes::connectors(), fakes::functions()).plan(file, text, &env)
}

/// The `.sql` files of a folder beside this file, in order.
fn cases(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sql/tests").join(folder);
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    files
}

/// Compares `actual` with the `.txt` beside `case`, or writes it; returns what is wrong.
fn compare(case: &Path, actual: &str) -> Option<String> {
    let expected = case.with_extension("txt");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&expected, actual).unwrap();
        return None;
    }
    let expected = fs::read_to_string(&expected).unwrap_or_default();
    (expected != actual).then(|| format!("{}\n--- expected\n{expected}--- actual\n{actual}", case.display()))
}

fn name(case: &Path) -> String {
    case.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn refusals_show_place_and_remedy() {
    let mut wrong = Vec::new();
    for case in cases("refused") {
        let text = fs::read_to_string(&case).unwrap();
        match plan(&name(&case), &text) {
            Ok(pipeline) => {
                wrong.push(format!("{} was planned:\n{}", name(&case), explain(&pipeline.job, Format::Text)))
            }
            Err(error) => {
                if error.hint.is_none() {
                    wrong.push(format!("{} has no hint:\n{error}", name(&case)));
                }
                wrong.extend(compare(&case, &error.to_string()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plans_are_as_expected() {
    let mut wrong = Vec::new();
    for case in cases("planned") {
        let text = fs::read_to_string(&case).unwrap();
        match plan(&name(&case), &text) {
            Ok(pipeline) => wrong.extend(compare(&case, &explain(&pipeline.job, Format::Text))),
            Err(error) => wrong.push(format!("{} was refused:\n{error}", name(&case))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_pipelines_of_the_repository_are_planned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/influencers");
    let mut wrong = Vec::new();
    for file in ["pipeline.sql", "bootstrap.sql"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sql/tests/influencers").join(file);
        match plan(file, &text) {
            Ok(pipeline) => wrong.extend(compare(&expected, &explain(&pipeline.job, Format::Text))),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn planning_twice_gives_the_same_fingerprints() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/influencers/pipeline.sql")).unwrap();
    let prints = || {
        let pipeline = plan("pipeline.sql", &text).unwrap();
        pipeline.job.nodes().map(|(_, node)| (node.name.clone(), node.fingerprint)).collect::<Vec<_>>()
    };
    assert_eq!(prints(), prints());
}
