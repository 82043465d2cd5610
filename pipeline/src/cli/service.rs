//! Processes that `up` starts. Each is told to stop by the end of its standard input, so that none outlives `up`, not even
//! one that was killed; each is in a process group of its own, so that Ctrl-C reaches `up` alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::signals::Signals;
use super::{Failure, Outcome};

/// How long a service may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a service prints on stdout when it is ready, before its address.
const READY: &str = "listening on ";

/// Refuses to begin when one of these files or folders is not there: nothing is to be half started.
pub fn require(paths: &[&Path]) -> Outcome {
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(()),
        Some(path) => {
            let path = path.display();
            Err(format!("{path} is not there: start from the repository's folder, after `make build`").into())
        }
    }
}

/// A server to be started.
pub struct Service {
    name: &'static str,
    command: Command,
}

impl Service {
    /// The program `path`, called `name` in messages.
    pub fn new(name: &'static str, path: &Path) -> Self {
        Self { name, command: Command::new(path) }
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Starts it, with its log in `folder`, and waits until it says where it listens.
    pub async fn start(mut self, folder: &Path) -> Result<RunningService, Failure> {
        let log = folder.join(format!("{}.log", self.name));
        let file = std::fs::File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        self.command.stdout(Stdio::piped()).stderr(file);
        let mut child = Child::spawn(self.name, self.command)?;
        let Some(stdout) = child.process.stdout.take() else {
            return Err(format!("{} has no standard output", self.name).into());
        };
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.strip_prefix(READY) {
                    return Ok(Some(url.trim().to_owned()));
                }
            }
            Ok::<_, std::io::Error>(None)
        };
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(Some(url))) => Ok(RunningService { child, url, log }),
            Ok(Ok(None)) => Err(format!("{} did not start:\n{}", self.name, tail(&log)).into()),
            Ok(Err(error)) => Err(format!("cannot read from {}: {error}", self.name).into()),
            Err(_) => Err(format!("{} is not ready after {PATIENCE:?}:\n{}", self.name, tail(&log)).into()),
        }
    }
}

/// A server that runs.
pub struct RunningService {
    child: Child,
    url: String,
    log: PathBuf,
}

impl RunningService {
    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The id of its process.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops it cleanly.
    pub async fn stop(mut self) -> Outcome {
        drop(self.child.process.stdin.take());
        match tokio::time::timeout(PATIENCE, self.child.process.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(|s| s.success()) => Ok(()),
            Ok(status) => Err(format!("{} ended badly ({status:?}):\n{}", self.child.name, tail(&self.log)).into()),
            Err(_) => Err(format!("{} does not stop; see {}", self.child.name, self.log.display()).into()),
        }
    }
}

/// A process of ours.
pub struct Child {
    name: &'static str,
    process: tokio::process::Child,
}

impl Child {
    /// Starts `command`, called `name` in messages. It is killed when the value is dropped.
    pub fn spawn(name: &'static str, mut command: Command) -> Result<Self, Failure> {
        let program = PathBuf::from(command.as_std().get_program());
        let process = command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true).spawn();
        let process = process
            .map_err(|error| format!("cannot start {name} ({}): {error}; `make build` builds it", program.display()))?;
        Ok(Self { name, process })
    }

    /// The id of the process; None once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Asks it to stop cleanly and waits until it has; whether it did so well.
    pub async fn stop(mut self) -> Result<bool, Failure> {
        drop(self.process.stdin.take());
        Ok(tokio::time::timeout(PATIENCE, self.process.wait())
            .await
            .is_ok_and(|status| status.is_ok_and(|s| s.success())))
    }

    /// Waits for its end. A signal asks it to stop cleanly, a second one kills it.
    pub async fn wait(mut self, signals: &mut Signals) -> Outcome {
        let mut stdin = self.process.stdin.take();
        loop {
            tokio::select! {
                status = self.process.wait() => {
                    return match status? {
                        status if status.success() => Ok(()),
                        status => Err(format!("{} failed ({status}); its message is above", self.name).into()),
                    };
                }
                () = signals.next() => {
                    if stdin.take().is_none() {
                        self.process.kill().await?;
                        return Err(format!("{} was stopped at once by a second signal", self.name).into());
                    }
                }
            }
        }
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(10);
    lines.iter().skip(from).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
