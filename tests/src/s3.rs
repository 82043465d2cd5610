//! An S3 server: moto, which `tests/setup` installs.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Keep in step with `tests/setup`.
const VERSION: &str = "5.2.5";

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// An S3 server with one bucket, in memory. Killed when dropped.
pub struct S3 {
    child: Child,
    url: String,
}

impl S3 {
    /// The bucket.
    pub const BUCKET: &str = "state";

    /// Starts it on a port that was free, and makes the bucket.
    pub async fn start() -> Self {
        let program = folder().join("bin/moto_server");
        assert!(program.exists(), "{} is not there: run tests/setup first", program.display());
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.expect("the S3 server starts"), url: format!("http://{address}") };
        let started = Instant::now();
        while !server.make_bucket().await {
            assert!(started.elapsed() < PATIENCE, "the S3 server does not answer within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        server
    }

    async fn make_bucket(&self) -> bool {
        let answer = reqwest::Client::new().put(format!("{}/{}", self.url, Self::BUCKET)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The environment that leads to it, or to what stands in front of it at `endpoint`.
    pub fn environment(endpoint: &str) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT", endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.expect("XDG_CACHE_HOME or HOME is set").join("tickhouse").join(format!("moto-{VERSION}"))
}
