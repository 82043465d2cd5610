//! From the start of a process to its first row, and what planning takes.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::Failure;

/// One row to standard output.
const PIPELINE: &str = "CREATE TABLE beats WITH (connector = 'impulse', message_count = '1');
CREATE TABLE out WITH (connector = 'stdout', format = 'json');
INSERT INTO out SELECT counter FROM beats;
";

/// Milliseconds until the process has printed a line.
async fn first_line(program: &Path, args: &[&str]) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut command = Command::new(program);
    // What the influencer pipeline names; planning asks nobody there.
    command
        .env("CLICKHOUSE_URL", "http://127.0.0.1:1")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let Some(stdout) = child.stdout.take() else { return Err("the process has no standard output".into()) };
    let line = BufReader::new(stdout).lines().next_line().await?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let output = child.wait_with_output().await?;
    if line.is_none() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("tickhouse {} printed nothing: {}", args.join(" "), said.trim()).into());
    }
    Ok(took)
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let runs = bench.size(20, 5);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("one_row.sql");
    std::fs::write(&file, PIPELINE)?;
    let file = file.display().to_string();
    let program = std::env::current_exe()?;
    let job = bench.args.programs.sql.join("pipeline.sql").display().to_string();
    let udf = bench.args.programs.udf.display().to_string();
    let (mut version, mut row, mut check) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        version.push(first_line(&program, &["--version"]).await?);
        row.push(first_line(&program, &["run", &file, "--log", "error"]).await?);
        check.push(first_line(&program, &["check", &job, "--udf", &udf]).await?);
    }
    let mut section = Section::new("Start-up");
    let figure = Figure::new("from the start of the process to the first row", median(row), "ms");
    let version = median(version);
    section.tell(figure.limit("the process alone (--version)", version));
    let figure = Figure::new("checking the influencer pipeline: planning, and the UDF libraries", median(check), "ms");
    section.tell(figure.limit("the process alone (--version)", version));
    Ok(section)
}
