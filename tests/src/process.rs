//! Programs under test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::lines::Lines;

/// How long a program may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the built programs: `target/release`.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    // target/release/deps/NAME-HASH
    test.ancestors().nth(2).expect("tests lie in target/release/deps").to_owned()
}

/// A program that runs until it is stopped; killed when dropped.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: Lines,
    url: Option<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Program {
    /// A command for the program `name` (`tickhouse`, `mockstagram`).
    pub fn command(name: &str) -> Command {
        let path = programs().join(name);
        assert!(path.exists(), "{} is not built: run `make build`", path.display());
        Command::new(path)
    }

    /// Runs a command to its end.
    pub fn output(command: &mut Command) -> Output {
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a server and waits until it says where it listens.
    pub fn serve(mut command: Command) -> Self {
        let mut program = Self::spawn(command.stdout(Stdio::piped()));
        let stdout = program.child.stdout.take().expect("stdout is piped");
        let line = BufReader::new(stdout).lines().map_while(Result::ok).find(|l| l.starts_with("listening on "));
        match line {
            Some(line) => program.url = Some(line["listening on ".len()..].trim().to_owned()),
            None => {
                let name = program.name.clone();
                panic!("{name} did not start: {}", program.stop().stderr)
            }
        }
        program
    }

    /// Starts a program that is not a server.
    pub fn start(mut command: Command) -> Self {
        Self::spawn(command.stdout(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Self {
        let name = Path::new(command.get_program()).display().to_string();
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let stderr = Lines::of(child.stderr.take().expect("stderr is piped"));
        let stdin = child.stdin.take();
        Self { name, child, stdin, stderr, url: None }
    }

    /// Where a server listens.
    pub fn url(&self) -> &str {
        self.url.as_deref().expect("only servers have a URL")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// When it first said `text` on standard error; `None` when it has not so far.
    pub fn said(&self, text: &str) -> Option<SystemTime> {
        self.stderr.first(text)
    }

    /// Waits up to `patience` until it says `text` on standard error, and gives the time at which it did; `None` when it does
    /// not, or has ended without.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Option<SystemTime> {
        self.stderr.wait_for(text, patience)
    }

    /// Sends a signal by name (`TERM`, `INT`, `KILL`).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "{} is gone already", self.name);
    }

    /// Asks it to stop and waits for its end.
    pub fn stop(mut self) -> Output {
        if self.runs() {
            self.signal("TERM");
        }
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Output {
        let stdin = self.stdin.take();
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if started.elapsed() > PATIENCE => panic!("{} does not end within {PATIENCE:?}", self.name),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        drop(stdin);
        Output { code: status.code(), stdout: String::new(), stderr: self.stderr.whole(PATIENCE) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
