//! The `tickhouse` command.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli::logging::start(&cli.logging);
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::failure::print(error.as_ref());
            ExitCode::FAILURE
        }
    }
}
