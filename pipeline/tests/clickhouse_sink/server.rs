//! ClickHouse in a process of its own, so that it can be killed: this test binary, started again.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tickhouse_embedded::{ServeOptions, Server};

const DATA: &str = "TICKHOUSE_TEST_SERVE_DATA";
const ADDRESS: &str = "TICKHOUSE_TEST_SERVE_ADDRESS";
const READY: &str = "ClickHouse serves ";

/// Not a test of its own: what [`Process::start`] runs. Serves until its standard input is closed.
#[test]
fn serve_for_other_tests() {
    let (Ok(data), Ok(http)) = (std::env::var(DATA), std::env::var(ADDRESS)) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::start(ServeOptions { http, ..ServeOptions::new(data) }).await.unwrap();
        println!("\n{READY}{}", server.url());
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        server.shutdown().await.unwrap();
    });
    // Whoever started this process reads no more of what a test prints.
    std::process::exit(0);
}

/// A running ClickHouse. Killed when dropped.
pub struct Process {
    child: Child,
    pub url: String,
}

impl Process {
    /// Starts ClickHouse over `data` at `address` and waits until it serves.
    pub fn start(data: &Path, address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server::serve_for_other_tests", "--exact", "--nocapture"])
            .envs([(DATA, data.as_os_str()), (ADDRESS, address.as_ref())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(READY).map(str::to_owned));
        Self { child, url: url.expect("ClickHouse starts: is its library there?") }
    }

    /// SIGKILL.
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

/// An address where nothing listens.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The URL of a ClickHouse that the tests of this process share. It ends with this process.
fn shared_url() -> &'static str {
    static SERVER: OnceLock<(Process, tempfile::TempDir)> = OnceLock::new();
    let (server, _) = SERVER.get_or_init(|| {
        let data = tempfile::tempdir().unwrap();
        (Process::start(&data.path().join("data"), "127.0.0.1:0"), data)
    });
    &server.url
}

/// A database of a test's own.
pub struct Database {
    pub name: String,
    pub url: String,
}

impl Database {
    /// A new one on the shared ClickHouse.
    pub async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = tokio::task::spawn_blocking(shared_url).await.unwrap();
        Self::on(url, &name).await
    }

    /// A new one on the ClickHouse at `url`.
    pub async fn on(url: &str, name: &str) -> Self {
        let database = Self { name: name.to_owned(), url: url.to_owned() };
        send(url, "default", &format!("CREATE DATABASE IF NOT EXISTS {name}")).await;
        database
    }

    /// Runs a query in the database; its result without the last newline.
    pub async fn run(&self, query: &str) -> String {
        send(&self.url, &self.name, query).await
    }
}

async fn send(url: &str, database: &str, query: &str) -> String {
    let address = reqwest::Url::parse_with_params(url, [("database", database)]).unwrap();
    let response = reqwest::Client::new().post(address).body(query.to_owned()).send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{query}: {text}");
    text.trim_end().to_owned()
}
