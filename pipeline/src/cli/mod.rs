//! The command line: arguments, logging, the live view, and one file per command.

mod bench;
mod check;
mod clickhouse;
mod explain;
pub mod failure;
pub mod logging;
mod minutes;
mod output;
mod progress;
mod run;
mod service;
mod signals;
mod state;
mod summary;
mod up;

use std::error::Error;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

/// Any error, with its causes; [`failure::print`] shows it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What a command ends with.
pub type Outcome = Result<(), Failure>;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Streaming SQL pipelines into ClickHouse.
#[derive(Debug, Parser)]
#[command(version, styles = STYLES, max_term_width = 110, after_help = "\
Examples:
  tickhouse check pipeline.sql                       is the pipeline right?
  tickhouse explain pipeline.sql                     what would run
  tickhouse run pipeline.sql --udf target/udfs       run it
  tickhouse state list state/job                     the checkpoints of a pipeline
  tickhouse clickhouse serve --path data             a ClickHouse engine, with no server to install
  tickhouse up                                       the influencer pipeline with all it needs")]
pub struct Cli {
    #[command(flatten)]
    pub logging: logging::LogOptions,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline until its sources end or it is stopped (Ctrl-C stops it cleanly; twice, at once)
    Run(run::RunArgs),
    /// Say whether a pipeline is right, without running it or touching anything outside
    Check(check::CheckArgs),
    /// Show the dataflow graph of a pipeline
    Explain(explain::ExplainArgs),
    /// Serve and prepare ClickHouse
    #[command(subcommand)]
    Clickhouse(clickhouse::ClickhouseCommand),
    /// Look at saved state
    #[command(subcommand)]
    State(state::StateCommand),
    /// Measure what it costs, and write a report
    Bench(bench::BenchArgs),
    /// Start everything: ClickHouse, the stand-in for the upstream API, the registry and the influencer pipeline
    Up(up::UpArgs),
    /// The pipeline of `up`, in a process of its own
    #[command(hide = true)]
    UpPipeline(up::PipelineArgs),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> Outcome {
        match self {
            Self::Check(args) => check::check(&args),
            Self::Explain(args) => explain::explain(&args),
            Self::Run(args) => block_on(run::run(args)),
            Self::Clickhouse(command) => block_on(clickhouse::run(command)),
            Self::State(command) => block_on(state::run(command)),
            Self::Bench(args) => block_on(bench::run(args)),
            Self::Up(args) => block_on(up::up(args)),
            Self::UpPipeline(args) => block_on(up::pipeline(args)),
        }
    }
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    // A blocking call that does not end (a UDF, a query) must not keep a stopped process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_help_of_every_command_has_examples() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(command.is_hide_set() || help.starts_with("Examples:\n"), "`{}`: {help:?}", command.get_name());
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
