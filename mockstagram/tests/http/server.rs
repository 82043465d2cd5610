//! A running stand-in, and short ways to ask it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::Value;

/// The binary under test, without settings from the environment of whoever runs the tests.
pub fn mockstagram() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mockstagram"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// A stand-in on a free port; killed when dropped.
pub struct Server {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    pub base: String,
    client: Client,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(mockstagram().args(["--http", "127.0.0.1:0"]).args(args))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let base = line.trim_end().strip_prefix("listening on ").expect("the first line on stdout").to_owned();
        Self { child, stdout, base, client: Client::new() }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.base.strip_prefix("http://").unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.client.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, body: impl ToString) -> (StatusCode, Value) {
        answer(self.client.post(self.url(path)).body(body.to_string())).await
    }

    pub async fn put(&self, path: &str, body: impl ToString) -> (StatusCode, Value) {
        answer(self.client.put(self.url(path)).body(body.to_string())).await
    }

    /// Changes settings, which must be accepted.
    pub async fn set(&self, settings: Value) {
        let (status, body) = self.put("/admin/settings", settings).await;
        assert_eq!(status, 200, "{body}");
    }

    /// A GET for an influencer, whatever comes of it.
    pub async fn influencer(&self, pk: u64) -> reqwest::Result<reqwest::Response> {
        self.client.get(self.url(&influencer(pk))).send().await
    }

    /// The counts that a GET for an influencer tells; it must be answered well.
    pub async fn counts(&self, pk: u64) -> [u64; 2] {
        let (status, body) = self.get(&influencer(pk)).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["pk"], pk);
        ["followerCount", "followingCount"].map(|name| body[name].as_u64().unwrap())
    }

    /// The first `n` counts that the stand-in says it tells for `pk`.
    pub async fn sequence(&self, pk: u64, n: usize) -> Vec<[u64; 2]> {
        let (status, body) = self.get(&format!("/admin/sequence?pk={pk}&n={n}")).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_value(body["values"].clone()).unwrap()
    }

    /// Waits until `GET path` has `value` at `pointer`.
    pub async fn wait_for(&self, path: &str, pointer: &str, value: u64) {
        let start = Instant::now();
        loop {
            let (_, body) = self.get(path).await;
            if body.pointer(pointer).and_then(Value::as_u64) == Some(value) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{pointer} never came to {value}: {body}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal, waits for the end, and returns what else was on standard output and on standard error.
    pub fn stop(mut self, signal: &str) -> (ExitStatus, String, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status, stdout, stderr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn influencer(pk: u64) -> String {
    format!("/api/v1/influencers/{pk}")
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    (response.status(), response.json().await.unwrap())
}
