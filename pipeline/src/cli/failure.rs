//! One readable message for whatever went wrong.

use std::error::Error;
use std::fmt::Write as _;
use std::io::IsTerminal;

use super::logging::LogFormat;

/// Prints `error: ...` and its causes on stderr, each cause once; as a log event where logs are for programs.
pub fn print(error: &(dyn Error + Send + Sync + 'static), format: LogFormat) {
    if format == LogFormat::Json {
        return tracing::error!("{}", chain(error));
    }
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let label = if colour { "\x1b[1;31merror\x1b[0m" } else { "error" };
    let text = chain(error);
    // What is wrong in SQL is shown as a compiler would, label and all.
    eprintln!("{label}: {}", text.strip_prefix("error: ").unwrap_or(&text));
}

/// The message of `error` and of its causes, one per line; a cause that its parent already quotes is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            let _ = write!(text, "\n  caused by: {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn causes_follow_once() {
        let inner = Layer("refused", None);
        let quoting = Layer("cannot connect: refused", Some(Box::new(inner)));
        let outer = Layer("the pipeline stopped", Some(Box::new(quoting)));
        assert_eq!(chain(&outer), "the pipeline stopped\n  caused by: cannot connect: refused");
    }
}
