//! `tickhouse clickhouse serve` and `tickhouse clickhouse migrate`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;
use tickhouse_embedded::{ServeOptions, Server};

use super::signals::Signals;
use super::{Outcome, output};

/// The commands under `clickhouse`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tickhouse clickhouse serve --path data
  tickhouse clickhouse migrate --url http://127.0.0.1:8123")]
pub enum ClickhouseCommand {
    /// Serve a ClickHouse engine over ClickHouse's HTTP interface
    Serve(ServeArgs),
    /// Bring the schema up to date: apply the numbered migrations that are not applied yet
    Migrate(MigrateArgs),
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse clickhouse serve --path data
  curl 'http://127.0.0.1:8123/' --data-binary 'SELECT version()'
  tickhouse clickhouse serve --path data --http 0.0.0.0:8123 --user analyst --password \"$PASSWORD\"")]
pub struct ServeArgs {
    /// Folder of the data; made when missing. One server at a time
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Address to listen on; port 0 lets the system choose
    #[arg(long, default_value = "127.0.0.1:8123", value_name = "ADDR")]
    http: String,
    /// Demand this user
    #[arg(long, env = "TICKHOUSE_CLICKHOUSE_USER", requires = "password")]
    user: Option<String>,
    /// Demand this password (better given by the environment)
    #[arg(long, env = "TICKHOUSE_CLICKHOUSE_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Stop when standard input is closed: for a parent that must not leave us behind
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse clickhouse migrate --url http://localhost:8123
  tickhouse clickhouse migrate --url 'http://default:secret@db:8123/?database=metrics' --dir my/migrations")]
pub struct MigrateArgs {
    /// ClickHouse's HTTP address, with user, password and database if need be
    #[arg(long, env = "CLICKHOUSE_URL", hide_env_values = true)]
    url: String,
    /// Folder of migrations, instead of Tickhouse's own
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs one of the commands.
pub async fn run(command: ClickhouseCommand) -> Outcome {
    match command {
        ClickhouseCommand::Serve(args) => serve(args).await,
        ClickhouseCommand::Migrate(args) => migrate(args).await,
    }
}

async fn serve(args: ServeArgs) -> Outcome {
    let mut signals = Signals::listen()?.and_parent(args.until_stdin_closes);
    let server = Server::start(ServeOptions {
        path: args.path.clone(),
        http: args.http,
        user: args.user,
        password: args.password,
        ..ServeOptions::new(args.path.clone())
    })
    .await?;
    let address = server.local_addr();
    output::put(format!("listening on http://{address}\n"))?;
    eprintln!("ClickHouse is serving {} at http://{address}; Ctrl-C stops it", args.path.display());
    signals.next().await;
    eprintln!("stopping");
    tokio::select! {
        stopped = server.shutdown() => stopped?,
        () = signals.next() => return Err("stopped at once by a second signal; what was acknowledged is kept".into()),
    }
    Ok(())
}

async fn migrate(args: MigrateArgs) -> Outcome {
    let endpoint = Endpoint::parse(&args.url)?;
    let report = migrate::run(&endpoint, &migrate::Options { dir: args.dir, ..migrate::Options::default() }).await?;
    output::put(format!("{report}\n"))
}
