//! Wishes to stop: SIGINT, SIGTERM, and a parent that is gone.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The wishes of whoever runs the process, one by one as they arrive.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Standard input, while its end counts as a wish to stop.
    parent: Option<tokio::io::Stdin>,
}

impl Signals {
    /// Listens from now on; the signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, parent: None })
    }

    /// Takes the end of standard input for a wish to stop, once: for a parent that must not leave us behind.
    pub fn and_parent(mut self, wanted: bool) -> Self {
        self.parent = wanted.then(tokio::io::stdin);
        self
    }

    /// Waits for the next wish.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = closed(&mut self.parent) => self.parent = None,
        }
    }
}

/// Waits until the other end of `input` is gone; for ever without one.
async fn closed(input: &mut Option<tokio::io::Stdin>) {
    match input {
        Some(input) => drop(tokio::io::copy(input, &mut tokio::io::sink()).await),
        None => std::future::pending().await,
    }
}
