//! A real ClickHouse engine with no server to install: `libchdb` behind ClickHouse's own HTTP interface, so that the
//! official clients, curl and Grafana cannot tell.
//!
//! ```no_run
//! # async fn example() -> Result<(), tickhouse_embedded::EmbeddedError> {
//! use tickhouse_embedded::{ServeOptions, Server};
//!
//! let server = Server::start(ServeOptions { http: "127.0.0.1:0".into(), ..ServeOptions::new("data") }).await?;
//! println!("{}", server.url());
//! server.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! A request becomes a query on a thread of its own (`execute`), with a connection of its own, so that settings and
//! databases do not leak; a session keeps its connection (`session`). The rows of an INSERT go to the engine as they
//! come; the result of a SELECT comes back through a pipe. Neither is ever held whole.
//!
//! From the outside in: `server`, `handler`, `request` and `auth`, `execute` with `sql` and `scope`, `engine`, `ffi`;
//! back through `respond` and `encode`. Only `ffi` knows the library, only `respond`, `request` and `handler` know HTTP.

mod auth;
mod blocks;
mod body;
mod datadir;
mod encode;
mod engine;
mod error;
mod exception;
mod execute;
mod exit;
mod ffi;
mod form;
mod handler;
mod library;
mod lz4_frames;
mod native;
mod native_types;
mod request;
mod respond;
mod running;
mod scope;
mod server;
mod session;
mod sql;

pub use error::EmbeddedError;
pub use library::{LIBRARY_VERSION, find_library};
pub use server::{ServeOptions, Server};
