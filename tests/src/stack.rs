//! ClickHouse, the stand-in and the pipeline, each in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::clickhouse::Client;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::job::InfluencerJob;
use crate::process::{Output, Program};
use crate::{influencers_sql, programs};

/// How a [`Stack`] is started.
#[derive(Debug, Clone, Default)]
pub struct StackOptions {
    /// Further arguments of the stand-in.
    pub mockstagram: Vec<String>,
}

/// A ClickHouse with the schema in place, and the stand-in. Everything ends and is removed with the value.
pub struct Stack {
    /// The engine; `None` while a test has stopped it.
    pub clickhouse: Option<Program>,
    /// The stand-in.
    pub mockstagram: Program,
    folder: TempDir,
    url: String,
}

impl Stack {
    /// Starts both and migrates.
    pub fn start(options: &StackOptions) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clickhouse = serve(folder.path(), "127.0.0.1:0");
        let mut command = Program::command("mockstagram");
        command.args(["--http", "127.0.0.1:0"]).args(&options.mockstagram);
        let mockstagram = Program::serve(command);
        let url = clickhouse.url().to_owned();
        let stack = Self { clickhouse: Some(clickhouse), mockstagram, folder, url };
        let mut migrate = Program::command("tickhouse");
        let migrated = Program::output(migrate.args(["clickhouse", "migrate", "--url", stack.url()]));
        assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
        stack
    }

    /// ClickHouse's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client whose database is the migrated one.
    pub fn client(&self) -> Client {
        Client::default().with_url(&self.url).with_database("tickhouse")
    }

    /// The folder of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts ClickHouse again on the same data and port.
    pub fn restart_clickhouse(&mut self) {
        self.clickhouse = None;
        let address = self.url.trim_start_matches("http://").to_owned();
        self.clickhouse = Some(serve(self.folder.path(), &address));
    }

    /// Writes `text` as a pipeline file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    /// A `tickhouse` command with the environment of the influencer pipeline.
    pub fn tickhouse(&self, args: &[&str]) -> Command {
        let mut command = Program::command("tickhouse");
        command.args(args);
        command.env("CLICKHOUSE_URL", &self.url).env("MOCKSTAGRAM_URL", self.mockstagram.url());
        command.env("TICKHOUSE_UDF", programs().parent().expect("target").join("udfs"));
        command
    }

    /// Fills the registry with `count` influencers by the bootstrap pipeline.
    pub fn bootstrap(&self, count: u64) -> Output {
        let file = self.write("bootstrap.sql", &influencers_sql("bootstrap.sql", "1 minute"));
        let file = file.display().to_string();
        Program::output(self.tickhouse(&["run", &file, "--parallelism", "2"]).env("INFLUENCERS", count.to_string()))
    }

    /// Starts the influencer pipeline with windows of `window`; [`InfluencerJob`] can say more.
    pub fn influencers(&self, window: &str, parallelism: usize) -> Program {
        InfluencerJob::every(window).parallelism(parallelism).start(self)
    }

    /// Changes the stand-in's settings.
    pub async fn set(&self, settings: serde_json::Value) {
        let url = format!("{}/admin/settings", self.mockstagram.url());
        let answer = reqwest::Client::new().put(url).json(&settings).send().await.expect("the stand-in answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// Asks the stand-in.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str) -> T {
        serde_json::from_str(&self.text(path).await).expect("the stand-in answers as documented")
    }

    /// Asks the stand-in for text.
    pub async fn text(&self, path: &str) -> String {
        let url = format!("{}{path}", self.mockstagram.url());
        let answer = reqwest::get(url).await.expect("the stand-in answers");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.text().await.expect("the stand-in answers whole")
    }

    /// One value from ClickHouse.
    pub async fn value<T>(&self, sql: &str) -> T
    where
        T: ::clickhouse::RowOwned + ::clickhouse::RowRead,
    {
        self.client().query(sql).fetch_one().await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// How many minutes have `rows` rows each in `from`, a table with a condition or without.
    pub async fn minutes(&self, from: &str, rows: u64) -> u64 {
        self.value(&format!(
            "SELECT countIf(n = {rows}) FROM (SELECT minute, count() AS n FROM {from} GROUP BY minute)"
        ))
        .await
    }

    /// Runs a statement in ClickHouse.
    pub async fn execute(&self, sql: &str) {
        self.client().query(sql).execute().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
}

fn serve(folder: &Path, address: &str) -> Program {
    let mut command = Program::command("tickhouse");
    command.args(["clickhouse", "serve", "--http", address, "--path"]).arg(folder.join("clickhouse"));
    Program::serve(command)
}

/// Asks `what` again and again until it is true; fails with `meaning` after `patience`.
pub async fn eventually<F>(meaning: &str, patience: Duration, mut what: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let started = Instant::now();
    while !what().await {
        assert!(started.elapsed() < patience, "not within {patience:?}: {meaning}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
