//! The engine: one per process, open on one data directory, with a connection for each query.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::datadir::DataDir;
use crate::error::EmbeddedError;
use crate::exception::Exception;
use crate::ffi::{Api, Connection};
use crate::sql::quote;

static API: OnceLock<Api> = OnceLock::new();
/// The data directory that this process has open: the engine takes one.
static OPEN_PATH: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The engine's defaults are those of `clickhouse local`; these make them a server's.
const SERVER_DEFAULTS: [&str; 3] = ["--progress=off", "--implicit_select=0", "--allow_introspection_functions=0"];

/// The open engine. Closed by [`Engine::close`], at the latest when dropped.
pub(crate) struct Engine {
    api: &'static Api,
    arguments: Vec<CString>,
    /// Open as long as the engine: with the last connection the engine itself closes. Used to cancel queries.
    root: Mutex<Option<Connection>>,
    data: Mutex<Option<DataDir>>,
    facts: Facts,
}

/// What the engine says of itself, for response headers.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) timezone: String,
    pub(crate) display_name: String,
}

impl Engine {
    /// Opens the engine on `path`, making a data directory there if there is none.
    ///
    /// # Errors
    /// Any but the network ones of [`EmbeddedError`].
    pub(crate) fn open(library: &Path, path: &Path) -> Result<Self, EmbeddedError> {
        let mut open = lock(&OPEN_PATH);
        if let Some(open) = open.as_deref()
            && path.canonicalize().ok().as_deref() != Some(open)
        {
            return Err(EmbeddedError::OnePathPerProcess { open: open.to_owned(), asked: path.to_owned() });
        }
        let data = DataDir::claim(path)?;
        let api = api(library)?;
        let refused = |reason: String| EmbeddedError::EngineRefused { path: data.path().to_owned(), reason };
        let arguments = arguments(data.path()).ok_or_else(|| refused("its name holds a NUL byte".to_owned()))?;
        let mut root = Connection::open(api, &arguments).ok_or_else(|| {
            refused("it gave no reason; is the directory damaged, or of a newer ClickHouse?".to_owned())
        })?;
        let facts = facts(&mut root).map_err(refused)?;
        *open = Some(data.path().to_owned());
        let (root, data) = (Mutex::new(Some(root)), Mutex::new(Some(data)));
        Ok(Self { api, arguments, root, data, facts })
    }

    /// What the engine says of itself.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A connection in its first state: database `default`, no settings changed.
    ///
    /// # Errors
    /// Code 236 if the engine is closed, 1001 if it refuses.
    pub(crate) fn connect(&self) -> Result<Connection, Exception> {
        if lock(&self.root).is_none() {
            return Err(Exception::aborted("the server is shutting down"));
        }
        Connection::open(self.api, &self.arguments)
            .ok_or_else(|| Exception::system("the engine refused another connection"))
    }

    /// Cancels the queries whose text holds `marker`. Returns when they are told, not when they have ended.
    pub(crate) fn cancel(&self, marker: &str) {
        self.on_root(|root| {
            let sql = format!("KILL QUERY WHERE {} ASYNC", holds(marker));
            if let Err(message) = root.query(&sql, "Null", &[]) {
                tracing::warn!(%message, "cannot cancel a query");
            }
        });
    }

    /// The engine's own id of the running query whose text holds `marker`.
    pub(crate) fn engine_id(&self, marker: &str) -> Option<String> {
        self.on_root(|root| {
            let sql = format!("SELECT query_id FROM system.processes WHERE {}", holds(marker));
            let result = root.query(&sql, "TabSeparated", &[]).ok()?;
            let id = String::from_utf8_lossy(result.bytes()).trim().to_owned();
            (!id.is_empty()).then_some(id)
        })
        .flatten()
    }

    fn on_root<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        lock(&self.root).as_mut().map(act)
    }

    /// Closes the engine and gives the data directory free. Every other connection must be closed before.
    pub(crate) fn close(&self) {
        let mut open = lock(&OPEN_PATH);
        if let Some(root) = lock(&self.root).take() {
            drop(root);
            *open = None;
        }
        lock(&self.data).take();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

/// A condition on a running query's text. The marker is written in two parts, so that it is not in the condition.
fn holds(marker: &str) -> String {
    let (first, second) = marker.split_at_checked(4).unwrap_or((marker, ""));
    format!("position(query, concat({}, {})) > 0", quote(first), quote(second))
}

fn api(library: &Path) -> Result<&'static Api, EmbeddedError> {
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let loaded =
        Api::load(library).map_err(|reason| EmbeddedError::LibraryUnusable { path: library.to_owned(), reason })?;
    Ok(API.get_or_init(|| loaded))
}

fn arguments(path: &Path) -> Option<Vec<CString>> {
    let mut directory = b"--path=".to_vec();
    directory.extend_from_slice(path.as_os_str().as_encoded_bytes());
    let mut arguments = vec![CString::new("clickhouse").ok()?, CString::new(directory).ok()?];
    for default in SERVER_DEFAULTS {
        arguments.push(CString::new(default).ok()?);
    }
    Some(arguments)
}

fn facts(root: &mut Connection) -> Result<Facts, String> {
    let result = root.query("SELECT version(), timezone(), displayName()", "TabSeparated", &[])?;
    let text = String::from_utf8_lossy(result.bytes()).trim_end().to_owned();
    let mut fields = text.split('\t').map(str::to_owned);
    let mut field = || fields.next().ok_or_else(|| format!("it described itself as {text:?}"));
    Ok(Facts { version: field()?, timezone: field()?, display_name: field()? })
}

/// Locks, whatever a thread that panicked with the lock held left behind: every value here is valid at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
