//! One server in this process for all tests of a binary, with a database for each test.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod process;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use reqwest::{Client, RequestBuilder, Response};
use tickhouse_embedded::{ServeOptions, Server};

/// A new directory, below one that the next run removes once this process is gone.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("embedded");
    for old in fs::read_dir(&root).into_iter().flatten().flatten() {
        let pid = old.file_name().to_string_lossy().split('-').next().map(str::to_owned).unwrap();
        if !PathBuf::from("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = root.join(format!("{}-{count}-{name}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// The URL of the server that all tests of this process share.
pub fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let options = ServeOptions { http: "127.0.0.1:0".into(), ..ServeOptions::new(scratch("shared")) };
                let server = Server::start(options).await.unwrap_or_else(|error| panic!("{error}"));
                sender.send(server.url()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        receiver.recv().expect("the server starts")
    })
}

/// A URL with parameters.
pub fn at(url: &str, parameters: &[(&str, &str)]) -> reqwest::Url {
    reqwest::Url::parse_with_params(url, parameters).unwrap()
}

/// A database of a test's own.
pub struct Database {
    pub name: String,
    pub http: Client,
}

impl Database {
    pub async fn new(name: &str) -> Self {
        let database = Self { name: name.to_owned(), http: Client::new() };
        let made = database.http.post(url()).body(format!("CREATE DATABASE {name}")).send().await.unwrap();
        assert_eq!(made.status(), 200, "{}", made.text().await.unwrap());
        database
    }

    /// A request with this database, further URL parameters, and a body still to be set.
    pub fn post(&self, parameters: &[(&str, &str)]) -> RequestBuilder {
        self.http.post(self.address(parameters))
    }

    pub fn get(&self, parameters: &[(&str, &str)]) -> RequestBuilder {
        self.http.get(self.address(parameters))
    }

    pub fn address(&self, parameters: &[(&str, &str)]) -> reqwest::Url {
        // Of a parameter given twice the first counts.
        at(url(), &[parameters, &[("database", self.name.as_str())]].concat())
    }

    pub async fn send(&self, parameters: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Response {
        self.post(parameters).body(body).send().await.unwrap()
    }

    /// The text of a query's result; the query must succeed.
    pub async fn ask(&self, query: &str) -> String {
        text(self.send(&[], query.to_owned()).await).await
    }
}

/// The text of a response that must have succeeded.
pub async fn text(response: Response) -> String {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    text
}

/// Status, exception code and text of a response that must have failed.
pub async fn failure(response: Response) -> (u16, u32, String) {
    let status = response.status().as_u16();
    let code = response.headers().get("X-ClickHouse-Exception-Code").map(|code| code.to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    let code = code.unwrap_or_else(|| panic!("no exception in {status}: {text}"));
    assert!(text.starts_with(&format!("Code: {code}. DB::Exception: ")), "{text}");
    (status, code.parse().unwrap(), text)
}
