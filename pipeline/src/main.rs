//! The `tickhouse` command.

mod cli;

use std::process::ExitCode;

use clap::Parser;

/// Gives freed memory back: the C library keeps what was staged for a checkpoint, up to as much again as is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's options, a C string that it looks for under this name; the environment (`_RJEM_MALLOC_CONF`) goes before them.
/// Pages that are free go back to the system after one second instead of ten: a tenth of the peak of the main job. Threads keep
/// free memory of up to 256 KiB a piece for themselves, not 32: a column of a batch has 64, and without that each column that
/// begins as zeros is given back to the system and fetched anew, with an interrupt for every other core.
// SAFETY: nothing else defines the name, and jemalloc reads it as a pointer to a string that ends with a zero byte.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 38] = b"dirty_decay_ms:1000,tcache_max:262144\0";

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli::logging::start(&cli.logging);
    let format = cli.logging.log_format;
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::failure::print(error.as_ref(), format);
            ExitCode::FAILURE
        }
    }
}
