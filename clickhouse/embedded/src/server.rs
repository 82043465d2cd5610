//! The server: started in a process, stopped with all data kept.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use crate::auth::Account;
use crate::engine::Engine;
use crate::error::EmbeddedError;
use crate::handler::Service;
use crate::library::find_library;
use crate::running::Registry;
use crate::session::Sessions;

/// How long cancelled queries may take to end.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// How the embedded server is to run.
#[derive(Clone)]
pub struct ServeOptions {
    /// The data directory; made if it is not there.
    pub path: PathBuf,
    /// Where to listen, `host:port`; port 0 takes any free one.
    pub http: String,
    /// The one user; `default` if not set.
    pub user: Option<String>,
    /// The user's password; without it, none is asked for.
    pub password: Option<String>,
    /// The engine's library, if it is not to be looked for.
    pub library: Option<PathBuf>,
    /// How many queries may run at once; more are refused with Code 202.
    pub max_concurrent_queries: usize,
    /// How long [`Server::shutdown`] waits for running queries before it cancels them.
    pub grace: Duration,
}

impl ServeOptions {
    /// Options for a data directory, with what is usual for the rest: `127.0.0.1:8123`, no password, 100 queries at
    /// once, ten seconds of grace.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            http: "127.0.0.1:8123".to_owned(),
            user: None,
            password: None,
            library: None,
            max_concurrent_queries: 100,
            grace: Duration::from_secs(10),
        }
    }
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password.
        f.debug_struct("ServeOptions").field("path", &self.path).field("http", &self.http).finish_non_exhaustive()
    }
}

/// A running server. Dropped without [`Server::shutdown`] it stops at once; what was acknowledged is kept.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), EmbeddedError>>,
}

impl Server {
    /// Opens the engine and listens. Ready to serve when this returns.
    ///
    /// Needs a tokio runtime with I/O and time. One data directory can be open in a process at a time.
    ///
    /// # Errors
    /// Any [`EmbeddedError`] but `StillRunning`; nothing is left behind in a directory that is not ours.
    pub async fn start(options: ServeOptions) -> Result<Self, EmbeddedError> {
        let library = find_library(options.library.clone())?;
        let listener = listen(&options.http).await?;
        let listen_failed = |source| EmbeddedError::Listen { address: options.http.clone(), source };
        let address = listener.local_addr().map_err(listen_failed)?;
        let path = options.path.clone();
        let engine = task::spawn_blocking(move || Engine::open(&library, &path))
            .await
            .map_err(|error| EmbeddedError::Thread(io::Error::other(error)))??;
        let service = Arc::new(Service {
            engine: Arc::new(engine),
            registry: Registry::new(options.max_concurrent_queries),
            sessions: Sessions::new(),
            account: Account::new(options.user, options.password),
        });
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, service, stopped, options.grace));
        tracing::info!(%address, path = %options.path.display(), "ClickHouse is ready");
        Ok(Self { address, stop, serving })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops accepting, lets running queries end, cancels them after the grace period, and closes the engine.
    ///
    /// # Errors
    /// [`EmbeddedError::StillRunning`] if cancelled queries did not end.
    pub async fn shutdown(mut self) -> Result<(), EmbeddedError> {
        self.stop.send_replace(true);
        (&mut self.serving).await.unwrap_or_else(|error| Err(EmbeddedError::Thread(io::Error::other(error))))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn listen(http: &str) -> Result<TcpListener, EmbeddedError> {
    let bad = |reason: String| EmbeddedError::BadAddress { address: http.to_owned(), reason };
    let addresses: Vec<SocketAddr> = lookup_host(http).await.map_err(|error| bad(error.to_string()))?.collect();
    if addresses.is_empty() {
        return Err(bad("it has no address".to_owned()));
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => EmbeddedError::PortInUse { address: http.to_owned() },
        _ => EmbeddedError::Listen { address: http.to_owned(), source },
    })
}

async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
    grace: Duration,
) -> Result<(), EmbeddedError> {
    let mut connections = JoinSet::new();
    let mut expiry = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&service), stopped.clone()));
                }
                Err(error) => {
                    // Out of descriptors, most likely: others are being served, and give some back.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            },
            _ = expiry.tick() => drop(service.sessions.expire(Instant::now())),
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stop(&service, connections, grace).await
}

/// Serves one connection; when the server stops, up to the end of the request at hand.
async fn connection(stream: TcpStream, service: Arc<Service>, mut stopped: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let answer = service_fn(move |request| Arc::clone(&service).handle(request));
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Ends what runs, gently and then not, and closes the engine.
async fn stop(service: &Arc<Service>, mut connections: JoinSet<()>, grace: Duration) -> Result<(), EmbeddedError> {
    let gently = async {
        while connections.join_next().await.is_some() {}
        service.registry.idle().await;
    };
    if timeout(grace, gently).await.is_err() {
        tracing::warn!(running = service.registry.count(), "cancelling queries that still run");
        // This breaks the bodies of INSERTs off; queries in the engine are cancelled by a marker that all texts hold.
        connections.shutdown().await;
        let engine = Arc::clone(&service.engine);
        let _ = task::spawn_blocking(move || engine.cancel("")).await;
        if timeout(LAST_WAIT, service.registry.idle()).await.is_err() {
            return Err(EmbeddedError::StillRunning { running: service.registry.count() });
        }
    }
    let (engine, sessions) = (Arc::clone(&service.engine), Arc::clone(&service.sessions));
    let closed = task::spawn_blocking(move || {
        drop(sessions.clear());
        engine.close();
    });
    closed.await.map_err(|error| EmbeddedError::Thread(io::Error::other(error)))
}
