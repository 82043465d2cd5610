//! The status server (`--http`): health, metrics and the graph of a running pipeline.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::runtime::{Metrics, exposition};

/// The address of a status server, taken before the pipeline starts, so that one in use stops nothing half-way.
#[derive(Debug)]
pub struct StatusListener {
    address: SocketAddr,
    listener: TcpListener,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct StatusServer {
    task: JoinHandle<std::io::Result<()>>,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the status at {address}: {source}; give --http another address, or port 0 for any free one")]
pub struct StatusError {
    address: String,
    source: std::io::Error,
}

impl StatusListener {
    /// Listens on `address`; port 0 takes a free one.
    pub async fn bind(address: &str) -> Result<Self, StatusError> {
        let failed = |source| StatusError { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self { address: listener.local_addr().map_err(failed)?, listener })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on:
    /// `/health` 200 `ok` while the pipeline runs; `/metrics` in Prometheus' text format; `/graph` as `explain --format json`.
    pub fn serve(self, metrics: Arc<Metrics>, graph: String) -> StatusServer {
        let app = Router::new()
            .route("/", get(|| text("/health\n/metrics\n/graph\n".to_owned())))
            .route("/health", get(|| text("ok\n".to_owned())))
            .route("/metrics", get(move || metrics_text(Arc::clone(&metrics))))
            .route("/graph", get(move || std::future::ready(([(CONTENT_TYPE, "application/json")], graph.clone()))));
        let listener = self.listener;
        #[allow(clippy::disallowed_methods, reason = "the status server is no part of the dataflow")]
        let task = tokio::spawn(async move { axum::serve(listener, app).await });
        StatusServer { task }
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Text = (StatusCode, [(HeaderName, &'static str); 1], String);

async fn text(body: String) -> Text {
    (StatusCode::OK, [(CONTENT_TYPE, "text/plain; charset=utf-8")], body)
}

async fn metrics_text(metrics: Arc<Metrics>) -> Text {
    match exposition::render(&metrics) {
        Ok(body) => (StatusCode::OK, [(CONTENT_TYPE, "text/plain; version=0.0.4")], body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], format!("{error}\n")),
    }
}
