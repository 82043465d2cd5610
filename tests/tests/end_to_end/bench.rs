//! `tickhouse bench`: the report that it writes. What the figures are is no test's business.

use std::path::Path;

use serde_json::Value;
use tickhouse_tests::{Program, Stack, StackOptions};

/// Runs benchmarks in their short form; what they said.
fn bench(stack: &Stack, names: &[&str], out: &Path) -> tickhouse_tests::Output {
    let mut command = stack.tickhouse(&["bench", "--short", "--out"]);
    // Whatever a user has set for logs.
    command.arg(out).args(names).env("TICKHOUSE_LOG", "warn").current_dir(tickhouse_tests::root());
    Program::output(&mut command)
}

fn report(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// The names of the sections.
fn sections(report: &Value) -> Vec<&str> {
    report["sections"].as_object().expect("sections").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_benchmark_writes_its_section_and_leaves_the_others() {
    let stack = Stack::start(&StackOptions::default());
    let out = stack.folder().join("bench");
    for names in [&["boundary"] as &[_], &["startup", "startup"]] {
        let output = bench(&stack, names, &out);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(output.stderr.contains("report.md"), "{}", output.stderr);
        assert_eq!(output.stdout, "", "data only");
    }
    let report = report(&out);
    assert_eq!(sections(&report), ["boundary", "startup"]);
    let text = std::fs::read_to_string(out.join("report.md")).expect("a report for people");
    for section in report["sections"].as_object().expect("sections").values() {
        assert_eq!(section["short"], Value::Bool(true));
        assert!(section["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0), "{section}");
        let commit = section["commit"].as_str().expect("a commit");
        let digits = commit.strip_suffix('+').unwrap_or(commit);
        assert!(digits.len() >= 7 && digits.chars().all(|digit| digit.is_ascii_hexdigit()), "{section}");
        let date = section["date"].as_str().expect("a date").replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(date, "0000-00-00T00:00:00Z", "{section}");
        let figures = section["figures"].as_array().expect("figures");
        assert!(figures.len() >= 2, "{section}");
        for figure in figures {
            let value = figure["value"].as_f64().expect("a number");
            assert!(value.is_finite() && value > 0.0, "{figure}");
            if let Some(compared) = figure.get("compared") {
                let (other, ratio) = (compared["value"].as_f64().unwrap(), compared["ratio"].as_f64().unwrap());
                assert!((value / other - ratio).abs() < 1e-9, "{figure}");
            }
            assert!(text.contains(figure["name"].as_str().unwrap()), "{figure} is not in {text}");
        }
    }
}

/// Runs the main job for a minute with 500 influencers; how it ended, and its figures.
fn million(more: &[&str]) -> (tickhouse_tests::Output, Value, tempfile::TempDir) {
    let stack = Stack::start(&StackOptions::default());
    let out = tempfile::tempdir().expect("a folder");
    let million = ["million", "--minutes", "1", "--influencers", "500", "--checkpoint-interval", "1s"];
    let output = bench(&stack, &[&million, more].concat(), out.path());
    let last = output.stdout.lines().last().unwrap_or_else(|| panic!("no line: {}", output.stderr));
    let figures = serde_json::from_str(last).expect("one JSON object");
    (output, figures, out)
}

#[tokio::test]
async fn the_million_tells_its_figures_on_the_last_line() {
    let (output, figures, out) = million(&[]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    for (name, expected) in
        [("whole_minutes", 1), ("influencers", 500), ("failed_fetches", 0), ("read_unequally_often", 0)]
    {
        assert_eq!(figures[name].as_u64(), Some(expected), "{name} in {figures}");
    }
    assert_eq!(
        (figures["served"].as_u64(), figures["whole"].as_bool()),
        (figures["stored"].as_u64(), Some(true)),
        "{figures}"
    );
    let took = |share: &str| figures[share].as_f64().unwrap_or_else(|| panic!("{share} in {figures}"));
    let (half, most) = (took("fetch_p50_seconds"), took("fetch_p99_seconds"));
    assert!(half > 0.0 && half <= most && most < 60.0, "{figures}");
    assert_eq!(sections(&report(out.path())), ["million"]);
}

#[tokio::test]
async fn the_million_fails_when_a_minute_is_not_whole() {
    // One request a second: most influencers are not read.
    let (output, figures, out) = million(&["--fetch-spread", "500"]);
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert_eq!((figures["whole_minutes"].as_u64(), figures["whole"].as_bool()), (Some(0), Some(false)), "{figures}");
    assert!(output.stderr.contains("not every minute was whole"), "{}", output.stderr);
    let minute = figures["flaws"][0].as_str().expect("what is wrong");
    assert!(minute.starts_with("for the minute until ") && output.stderr.contains(minute), "{}", output.stderr);
    let report = report(out.path());
    let whole = &report["sections"]["million"]["figures"][0];
    assert_eq!((whole["name"].as_str(), whole["met"].as_bool()), (Some("whole minutes"), Some(false)), "{whole}");
    let folder = Path::new(figures["folder"].as_str().expect("what the run has left"));
    assert!(folder.join("pipeline.log").exists() && output.stderr.contains(&folder.display().to_string()), "{figures}");
    std::fs::remove_dir_all(folder).expect("a folder that nothing uses any more");
}

#[tokio::test]
async fn a_wrong_checkpoint_interval_is_refused_before_anything_is_started() {
    let stack = Stack::start(&StackOptions::default());
    let output = bench(&stack, &["million", "--checkpoint-interval", "0s"], &stack.folder().join("bench"));
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("--checkpoint-interval"), "{}", output.stderr);
}

#[tokio::test]
async fn a_wrong_name_is_refused_with_the_right_ones() {
    let stack = Stack::start(&StackOptions::default());
    let output = bench(&stack, &["milion"], &stack.folder().join("bench"));
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    for name in ["million", "streaming", "boundary"] {
        assert!(output.stderr.contains(name), "{}", output.stderr);
    }
}
