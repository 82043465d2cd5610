//! Serves a data directory until SIGINT or SIGTERM: `serve DIR ADDR [USER PASSWORD]`. Prints the URL once it is ready.

use std::process::ExitCode;

use tickhouse_embedded::{EmbeddedError, ServeOptions, Server};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), EmbeddedError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(http)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: serve DIR ADDR [USER PASSWORD]");
        return Ok(());
    };
    let (user, password) = (arguments.next(), arguments.next());
    let server = Server::start(ServeOptions { http, user, password, ..ServeOptions::new(path) }).await?;
    println!("{}", server.url());
    let mut terminate = signal(SignalKind::terminate()).map_err(EmbeddedError::Thread)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    server.shutdown().await
}
