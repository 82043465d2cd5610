//! A flame graph of a running process, by `perf`.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use inferno::collapse::Collapse;
use inferno::collapse::perf::Folder;
use tokio::process::{Child, Command};

use crate::cli::Failure;

/// A look at a running process by `perf`, which goes on by itself, beside whatever else is measured. Dropped, it ends.
pub struct Recording {
    perf: Child,
    data: PathBuf,
}

impl Recording {
    /// Looks at the process for `time`. What is seen goes into `folder`.
    ///
    /// # Errors
    /// The process has ended, or `perf` is not there.
    pub fn start(id: Option<u32>, time: Duration, folder: &Path) -> Result<Self, Failure> {
        let Some(id) = id else { return Err("the process has ended".into()) };
        let data = folder.join("perf.data");
        let perf = perf(&["record", "--freq=199", "-g", "--pid", &id.to_string(), "--output"])
            .arg(&data)
            .args(["--", "sleep", &time.as_secs().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot_run)?;
        Ok(Self { perf, data })
    }

    /// Waits for its end and draws `file`. That takes the processor for seconds: it is for when all else has been measured.
    ///
    /// # Errors
    /// `perf` is not allowed to look, or saw nothing.
    pub async fn draw(self, file: &Path) -> Result<(), Failure> {
        printed("perf record", self.perf.wait_with_output().await?)?;
        // Without line tables: they take minutes to read, and functions are enough.
        let script = perf(&["script", "--no-inline", "--fields", "comm,pid,tid,time,event,ip,sym,dso", "--input"])
            .arg(&self.data)
            .output()
            .await
            .map_err(cannot_run)?;
        let script = printed("perf script", script)?;
        let mut folded = Vec::new();
        Folder::default().collapse(script.as_slice(), &mut folded)?;
        let text = String::from_utf8_lossy(&folded);
        let mut options = inferno::flamegraph::Options::default();
        options.title = "The pipeline".to_owned();
        let out = std::fs::File::create(file).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        inferno::flamegraph::from_lines(&mut options, text.lines(), out)?;
        Ok(())
    }
}

fn perf(args: &[&str]) -> Command {
    let mut command = Command::new("perf");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn cannot_run(error: std::io::Error) -> String {
    format!("perf cannot be run ({error}): apt-get install linux-perf")
}

/// What the program `name` has printed, if it ended well.
fn printed(name: &str, output: Output) -> Result<Vec<u8>, Failure> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, said.trim()).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_program_that_failed_is_named_with_its_status_and_its_words() {
        // As `wait` has it: the exit code in the second byte.
        let ended = |code: i32| Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: b"out".to_vec(),
            stderr: b"no permission\n".to_vec(),
        };
        assert_eq!(printed("perf script", ended(0)).unwrap(), b"out");
        let error = printed("perf script", ended(255)).unwrap_err().to_string();
        assert_eq!(error, "perf script failed (exit status: 255): no permission");
    }
}
