//! One embedded ClickHouse per test process, and a database of its own for every test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse_embedded::{ServeOptions, Server};

/// A database that no other test uses, not created yet, on this process's ClickHouse.
///
/// # Panics
/// If ClickHouse cannot be started: `make build` fetches its library.
pub fn fresh_database() -> Endpoint {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Endpoint::parse(server_url()).expect("the server's own URL").with_database(format!("test_{number}"))
}

/// The ClickHouse of this process; the first call starts it. It ends with the process: the engine takes one data folder per
/// process, so that it cannot be started again.
pub fn server_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (started, url) = mpsc::channel();
        // A thread and runtime of its own: a test's runtime ends with the test.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let options = ServeOptions { http: "127.0.0.1:0".to_owned(), ..ServeOptions::new(data_folder()) };
                let server = Server::start(options).await.expect("ClickHouse starts");
                started.send(server.url()).expect("a test that waits");
                std::future::pending::<()>().await;
            });
        });
        url.recv().expect("ClickHouse starts")
    })
}

/// A new folder for this process. The folders of processes that have ended are removed.
fn data_folder() -> PathBuf {
    let folders = std::env::temp_dir().join("tickhouse-test-clickhouse");
    for old in std::fs::read_dir(&folders).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(old.file_name()).exists() {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    folders.join(std::process::id().to_string())
}
