//! `tickhouse up`: everything that the influencer pipeline needs, and the pipeline.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;

use super::progress::say;
use super::run::{RunArgs, run_until};
use super::service::{Child, Service, require};
use super::signals::Signals;
use super::{Failure, Outcome, minutes, summary};

/// Arguments of `up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse up --influencers 100000
  tickhouse up --for 230s --clickhouse-port 18123

Ctrl-C stops it cleanly. The data stays, and the last lines say how to query it.")]
pub struct UpArgs {
    /// How many influencers the registry is filled with
    #[arg(long, env = "INFLUENCERS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    influencers: u64,
    /// Stop cleanly after this time
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_after: Option<Duration>,
    /// ClickHouse's HTTP port
    #[arg(long, env = "CLICKHOUSE_PORT", default_value_t = 8123)]
    clickhouse_port: u16,
    /// The stand-in's port
    #[arg(long, env = "API_PORT", default_value_t = 3000)]
    api_port: u16,
    /// Port of /health, /metrics and /graph
    #[arg(long, env = "STATUS_PORT", default_value_t = 8080)]
    status_port: u16,
    /// Subtasks per operator
    #[arg(long, default_value_t = 2)]
    parallelism: usize,
    /// Folder that gets a folder per start, with the data and the logs
    #[arg(long, default_value = "tickhouse-demo", value_name = "DIR")]
    path: PathBuf,
    /// Folder of bootstrap.sql and pipeline.sql
    #[arg(long, default_value = "sql/influencers", value_name = "DIR")]
    sql: PathBuf,
    /// Folder of the UDF libraries
    #[arg(long, env = "TICKHOUSE_UDF", default_value = "target/udfs", value_name = "DIR")]
    udf: PathBuf,
}

/// Arguments of the process that runs the pipeline.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Where the readings are looked up
    #[arg(long, env = "CLICKHOUSE_URL")]
    url: String,
}

/// Runs the pipeline and tells about each minute.
pub async fn pipeline(args: PipelineArgs) -> Outcome {
    let mut signals = Signals::listen()?.and_parent(args.run.until_stdin_closes);
    let client = Endpoint::parse(&args.url)?.client();
    tokio::select! {
        outcome = run_until(args.run, &mut signals) => outcome,
        () = minutes::watch(client) => Ok(()),
    }
}

/// Starts everything, waits, stops everything in the order that loses nothing, and says where the data is.
pub async fn up(args: UpArgs) -> Outcome {
    let mut signals = Signals::listen()?;
    let tickhouse = std::env::current_exe()?;
    let mockstagram = tickhouse.with_file_name("mockstagram");
    require(&[&mockstagram, &args.sql.join("bootstrap.sql"), &args.sql.join("pipeline.sql"), &args.udf])?;
    let home = new_folder(&args.path)?;
    let bind = |port: u16| format!("127.0.0.1:{port}");

    say("starting ClickHouse");
    let data = home.join("clickhouse");
    let serve =
        ["clickhouse".as_ref(), "serve".as_ref(), "--until-stdin-closes".as_ref(), "--path".as_ref(), data.as_os_str()];
    let clickhouse = Service::new("clickhouse", &tickhouse).args(serve).args(["--http", &bind(args.clickhouse_port)]);
    let clickhouse = clickhouse.start(&home).await?;

    let endpoint = Endpoint::parse(clickhouse.url())?;
    say(format!("ClickHouse: {}", migrate::run(&endpoint, &migrate::Options::default()).await?));

    say("starting the stand-in for the upstream API");
    let mockstagram =
        Service::new("mockstagram", &mockstagram).args(["--until-stdin-closes", "--http", &bind(args.api_port)]);
    let mockstagram = mockstagram.start(&home).await?;

    let environment = Environment {
        tickhouse: &tickhouse,
        clickhouse: clickhouse.url(),
        mockstagram: mockstagram.url(),
        influencers: args.influencers,
    };
    say(format!("filling the registry with {} influencers", super::progress::grouped(args.influencers)));
    environment.bootstrap(&args)?.wait(&mut signals).await?;
    let client = endpoint.client();
    say(summary::ways_in(clickhouse.url(), mockstagram.url(), args.status_port));
    let outcome = environment.pipeline(&args, &home)?.wait(&mut signals).await;

    let report = summary::report(&client).await;
    mockstagram.stop().await?;
    clickhouse.stop().await?;
    say(report.unwrap_or_else(|error| format!("no summary: {error}")));
    say(summary::where_it_is(&data, args.clickhouse_port));
    outcome
}

/// What the pipelines are started with.
struct Environment<'a> {
    tickhouse: &'a Path,
    clickhouse: &'a str,
    mockstagram: &'a str,
    influencers: u64,
}

impl Environment<'_> {
    fn bootstrap(&self, args: &UpArgs) -> Result<Child, Failure> {
        let file = args.sql.join("bootstrap.sql");
        let mut command = self.command(args, "run", &file);
        command.args(["--log", "warn"]);
        Child::spawn("the registry's pipeline", command)
    }

    fn pipeline(&self, args: &UpArgs, home: &Path) -> Result<Child, Failure> {
        let file = args.sql.join("pipeline.sql");
        let mut command = self.command(args, "up-pipeline", &file);
        command.arg("--state-dir").arg(home.join("state"));
        // A reading belongs to its minute: no call goes on into the next.
        command.env("FETCH_WINDOW_MS", "60000");
        // Rows are visible when their checkpoint is complete, and whoever looks at a demo does not like to wait.
        command.args(["--http", &format!("127.0.0.1:{}", args.status_port), "--checkpoint-interval", "500ms"]);
        if let Some(time) = args.stop_after {
            command.arg("--stop-after").arg(humantime::format_duration(time).to_string());
        }
        Child::spawn("the pipeline", command)
    }

    fn command(&self, args: &UpArgs, subcommand: &str, file: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.tickhouse);
        command.arg(subcommand).arg(file).arg("--udf").arg(&args.udf);
        command.args(["--until-stdin-closes", "--parallelism", &args.parallelism.to_string()]);
        command.env("CLICKHOUSE_URL", self.clickhouse).env("MOCKSTAGRAM_URL", self.mockstagram);
        command.env("INFLUENCERS", self.influencers.to_string());
        command
    }
}

/// Makes the folder of this start, named after the time.
fn new_folder(parent: &Path) -> Result<PathBuf, Failure> {
    let name = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    let folder = parent.join(name);
    std::fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))?;
    Ok(folder)
}
