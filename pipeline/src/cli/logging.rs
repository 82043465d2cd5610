//! Logs: lines on stderr, or JSON.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::progress;

/// How logs are written.
#[derive(Debug, Args)]
pub struct LogOptions {
    /// How log lines look on stderr
    #[arg(long, global = true, env = "TICKHOUSE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or tracing's filter syntax
    #[arg(long, global = true, env = "TICKHOUSE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// The two looks of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// Starts logging to stderr. Lines pass above the live view when there is one.
pub fn start(options: &LogOptions) {
    let filter = EnvFilter::try_new(&options.log).unwrap_or_else(|error| {
        eprintln!("warning: --log '{}': {error}; logging at level info", options.log);
        EnvFilter::new("info")
    });
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(progress::writer).with_ansi(colour);
    match options.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
