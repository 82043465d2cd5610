//! Sockets: takes connections in, serves HTTP/1.1 on them, resets those that a fault is to reset.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::answer::Answer;
use crate::args::Args;
use crate::counters::Tally;
use crate::draws::Draws;
use crate::influencers::Influencers;
use crate::settings::{Settings, SettingsError};
use crate::{admin, answer, api};

/// What all connections share.
pub struct App {
    /// The influencers and the requests for them.
    pub influencers: Influencers,
    /// Calls of `is_suspicious`.
    pub suspicious: Mutex<Tally>,
    settings: RwLock<Settings>,
}

impl App {
    /// With the seed of `args`, or one drawn at random.
    pub fn new(args: &Args) -> Self {
        // Of 32 bits, so that it is easily typed again and any JSON reader takes it whole.
        let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        Self {
            influencers: Influencers::new(args.first_pk, args.influencers, Draws::new(seed)),
            suspicious: Mutex::default(),
            settings: RwLock::new(args.settings),
        }
    }

    /// The settings in force, as a whole.
    pub fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the settings that the JSON object `patch` names; all of them, or none and an error.
    pub fn patch_settings(&self, patch: &[u8]) -> Result<Settings, SettingsError> {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        *settings = settings.patched(patch)?;
        Ok(*settings)
    }
}

/// Instead of an answer: the connection is to be reset.
#[derive(Debug, thiserror::Error)]
#[error("the connection is to be reset")]
pub struct ResetConnection;

/// What comes of a request.
pub type Replied = Result<Answer, ResetConnection>;

/// The way to an answer. What needs no waiting costs no allocation.
pub enum Reply {
    /// Here it is; taken when it is polled.
    Now(Option<Answer>),
    /// After a body was read, or after a wait.
    Later(Pin<Box<dyn Future<Output = Replied> + Send>>),
}

impl Reply {
    /// An answer that is there already.
    pub fn now(answer: Answer) -> Self {
        Self::Now(Some(answer))
    }

    /// An answer to be waited for.
    pub fn later(reply: impl Future<Output = Replied> + Send + 'static) -> Self {
        Self::Later(Box::pin(reply))
    }
}

impl Future for Reply {
    type Output = Replied;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Replied> {
        match self.get_mut() {
            Self::Now(answer) => answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer))),
            Self::Later(reply) => reply.as_mut().poll(context),
        }
    }
}

/// Takes connections in until it is dropped.
pub async fn accept(listener: TcpListener, app: Arc<App>) -> Infallible {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failing = false;
                tokio::spawn(serve(stream, Arc::clone(&app)));
            }
            Err(error) => {
                // A connection that was gone again, or no file descriptor left: say so once, and try again soon.
                if !std::mem::replace(&mut failing, true) {
                    eprintln!(
                        "mockstagram: cannot take a connection in: {error}; see `ulimit -n` for the most there can be"
                    );
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Serves one connection until its client or a fault ends it.
async fn serve(stream: TcpStream, app: Arc<App>) {
    // Only ever fails on a connection that is gone, which the first read will tell too.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| handle(&app, request));
    // An answer is so short that copying it behind its head costs less than a vectored write: 6.0 against 6.3
    // microseconds of CPU per request.
    let mut connection = http1::Builder::new().writev(false).serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let stream = connection.into_parts().io.into_inner();
    if ended.is_err_and(|error| error.source().is_some_and(|source| source.is::<ResetConnection>())) {
        // With it, closing sends RST instead of FIN. It fails only where the client has closed already.
        let _ = stream.set_zero_linger();
    }
}

fn handle(app: &Arc<App>, request: Request<Incoming>) -> Reply {
    match request.uri().path().strip_prefix(api::INFLUENCERS) {
        Some(pk) if request.method() == Method::GET && !pk.contains('/') => api::influencer(app, pk),
        Some("is_suspicious") if request.method() == Method::POST => {
            Reply::later(api::is_suspicious(Arc::clone(app), request))
        }
        Some("is_suspicious") => Reply::now(answer::method_not_allowed("POST")),
        Some(pk) if !pk.contains('/') => Reply::now(answer::method_not_allowed("GET")),
        _ => admin::handle(app, request),
    }
}
