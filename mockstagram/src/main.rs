//! A fast stand-in for the upstream API, with faults on demand.
//!
//! [`args`] is the command line, [`server`] the sockets, [`api`] the two calls of the upstream contract, [`admin`] what
//! the stand-in adds. [`influencers`] holds what changes with every request, [`draws`] everything that is left to chance.

mod admin;
mod answer;
mod api;
mod args;
mod counters;
mod draws;
mod influencers;
mod server;
mod settings;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::server::App;

/// Why the stand-in could not start. Ends the process with exit code 1.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(
        "cannot listen on {address}: {source}; stop what listens there or choose another address with --http (port 0 \
         takes a free one)"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl StartError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

fn main() -> ExitCode {
    let args = Args::read();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mockstagram: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<(), StartError> {
    // One thread needs the least CPU per request: nothing wakes another core. More are there for whoever wants them.
    let mut runtime = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime
        .worker_threads(args.threads)
        .enable_all()
        .build()
        .map_err(StartError::system("start the runtime"))?
        .block_on(run(args))
}

/// Listens, says where, and serves until SIGINT or SIGTERM. Connections still open then are closed at once: whatever is
/// being answered at that moment is in the socket already, or is a fault or a delay that nobody needs to see the end of.
async fn run(args: &Args) -> Result<(), StartError> {
    let address = args.http;
    let listen_error = |source| StartError::Listen { address, source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::system("catch SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::system("catch SIGTERM"))?;
    let listener = TcpListener::bind(address).await.map_err(listen_error)?;
    let local = listener.local_addr().map_err(listen_error)?;
    let app = Arc::new(App::new(args));

    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on http://{local}")
        .and_then(|()| stdout.flush())
        .map_err(StartError::system("write to standard output"))?;
    drop(stdout);
    eprintln!(
        "mockstagram: listening on http://{local}, influencers {}, seed {}",
        app.influencers.range(),
        app.influencers.draws().seed()
    );

    tokio::select! {
        never = server::accept(listener, app) => match never {},
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = stdin_closed(), if args.until_stdin_closes => {}
    }
    eprintln!("mockstagram: stopped");
    Ok(())
}

/// Waits until the other end of standard input is gone.
async fn stdin_closed() {
    // An input that cannot be read is gone as well.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}
