//! The `tickhouse` command.

mod cli;

use std::process::ExitCode;

use clap::Parser;

/// Gives freed memory back: the C library keeps what was staged for a checkpoint, up to as much again as is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
