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
    #[arg(long, global = true, env = "TICKHOUSE_LOG", default_value = "info", value_name = "FILTER", value_parser = filter)]
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

/// The levels, each a filter by itself.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter that says of whom. tracing takes any word for a target, so that a level with a letter missing would silence everything.
fn filter(text: &str) -> Result<String, String> {
    let is_known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part.trim().to_lowercase().as_str());
    match text.split(',').find(|part| !is_known(part)) {
        Some(part) => Err(format!("`{part}` is no level ({}) and no TARGET=LEVEL", LEVELS.join(", "))),
        None => EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string()),
    }
}

/// Starts logging to stderr. Lines pass above the live view when there is one.
pub fn start(options: &LogOptions) {
    let filter = EnvFilter::new(&options.log);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(progress::writer).with_ansi(colour);
    match options.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_level_is_refused() {
        for fine in ["info", "WARN", "info,tickhouse=debug", "tickhouse::runtime=trace", "[span]=debug"] {
            assert_eq!(filter(fine).as_deref(), Ok(fine));
        }
        for wrong in ["inof", "", "warning", "info,tickhous", "a=nonsense", "a=b=c"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}
