//! Calls of UDFs in a process of its own: their settings are the process's environment.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray};

use super::{built, call_all, int64};
use crate::udf::UdfCatalog;

/// What a child did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The answers, in the order of the calls; empty if a call ended the instance.
    pub(super) answers: Vec<String>,
    /// Everything it wrote to standard error.
    pub(super) errors: String,
    /// How long the calls took, all together.
    pub(super) took: Duration,
}

/// Calls a UDF that answers TEXT, with rows of BIGINTs, all at once, in a child with this environment.
pub(super) async fn call(udf: &str, rows: &[&[i64]], environment: &[(&str, &str)]) -> Outcome {
    let rows: Vec<String> =
        rows.iter().map(|row| row.iter().map(i64::to_string).collect::<Vec<_>>().join(",")).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["udf::tests::child::body", "--exact", "--ignored", "--nocapture"]).env_remove("http_proxy");
    command.env("TEST_UDF", udf).env("TEST_ROWS", rows.join(" ")).envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = |prefix: &'static str| text.lines().filter_map(move |line| line.strip_prefix(prefix));
    Outcome {
        answers: lines("ANSWER ").map(str::to_owned).collect(),
        errors: String::from_utf8(output.stderr).unwrap(),
        took: lines("MICROS ").map(|micros| Duration::from_micros(micros.parse().unwrap())).next().unwrap_or_default(),
    }
}

#[tokio::test]
#[ignore = "the other tests run it in a process of its own"]
async fn body() {
    let Ok(name) = std::env::var("TEST_UDF") else {
        return;
    };
    let rows: Vec<Vec<i64>> = std::env::var("TEST_ROWS")
        .unwrap()
        .split(' ')
        .map(|row| row.split(',').map(|value| value.parse().unwrap()).collect())
        .collect();
    let columns = rows.first().map_or(0, Vec::len);
    let args: Vec<ArrayRef> = (0..columns).map(|c| int64(&rows.iter().map(|row| row[c]).collect::<Vec<_>>())).collect();
    let catalog = UdfCatalog::open(&built()).unwrap();
    let mut instance = Arc::clone(catalog.get(&name).unwrap()).start().unwrap();
    let began = Instant::now();
    let mut answers = call_all(&mut instance, &args).await;
    // A line of its own: the harness leaves its own line open.
    println!("\nMICROS {}", began.elapsed().as_micros());
    answers.sort_by_key(|(id, _)| *id);
    for (_, answer) in answers {
        println!("ANSWER {}", answer.as_string::<i32>().value(0));
    }
}
