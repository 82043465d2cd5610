//! Servers in processes of their own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::Client;

use super::text;

/// A server in a process of its own; killed when dropped.
pub struct Process {
    child: Child,
    pub url: String,
}

pub fn program() -> PathBuf {
    example("serve")
}

/// One of the programs in `examples`.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built; cargo build --examples does that", program.display());
    program
}

fn command(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg(path).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Process {
    pub fn start(path: &Path, arguments: &[&str]) -> Self {
        let mut child = command(path, arguments).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        if url.is_empty() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the server did not start: {said}");
        }
        Self { child, url: url.trim().to_owned() }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Resident memory, in MB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }

    /// Stops the server gently; it must succeed.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.child.wait().unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server that must not start says.
pub fn refusal(path: &Path, arguments: &[&str]) -> String {
    let output = command(path, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

pub async fn ask(url: &str, query: &str) -> String {
    text(Client::new().post(url).body(query.to_owned()).send().await.unwrap()).await
}

pub const ANY: &str = "127.0.0.1:0";
