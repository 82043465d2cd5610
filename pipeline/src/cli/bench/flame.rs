//! A flame graph of a running process, by `perf`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use inferno::collapse::Collapse;
use inferno::collapse::perf::Folder;
use tokio::process::Command;

use crate::cli::Failure;

/// Looks at the process for `time` and draws `folder/file`.
///
/// # Errors
/// `perf` is not there, is not allowed to look, or saw nothing.
pub async fn draw(id: Option<u32>, time: Duration, folder: &Path, file: &str) -> Result<(), Failure> {
    let Some(id) = id else { return Err("the process has ended".into()) };
    let data = folder.join("perf.data");
    let record = perf(&["record", "--freq=199", "-g", "--pid", &id.to_string(), "--output"])
        .arg(&data)
        .args(["--", "sleep", &time.as_secs().to_string()])
        .output()
        .await
        .map_err(|error| format!("perf cannot be run ({error}): apt-get install linux-perf"))?;
    if !record.status.success() {
        return Err(format!("perf record: {}", String::from_utf8_lossy(&record.stderr).trim()).into());
    }
    // Without line tables: they take minutes to read, and functions are enough.
    let script = perf(&["script", "--no-inline", "--fields", "comm,pid,tid,time,event,ip,sym,dso", "--input"])
        .arg(&data)
        .output()
        .await?;
    let _ = std::fs::remove_file(&data);
    let mut folded = Vec::new();
    Folder::default().collapse(script.stdout.as_slice(), &mut folded)?;
    let text = String::from_utf8_lossy(&folded);
    let path = folder.join(file);
    let mut options = inferno::flamegraph::Options::default();
    options.title = "The pipeline".to_owned();
    let out = std::fs::File::create(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    inferno::flamegraph::from_lines(&mut options, text.lines(), out)?;
    Ok(())
}

fn perf(args: &[&str]) -> Command {
    let mut command = Command::new("perf");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}
