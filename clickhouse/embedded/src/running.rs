//! The queries that run: each id once, so many at a time, and how to cancel them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use tokio::sync::Notify;

use crate::engine::{Engine, lock};
use crate::exception::Exception;

/// All queries that run.
pub(crate) struct Registry {
    running: Mutex<HashMap<String, Arc<Running>>>,
    limit: usize,
    changed: Notify,
}

/// A query that runs.
#[derive(Debug)]
pub(crate) struct Running {
    /// The client's id for it.
    pub(crate) query_id: String,
    /// Unlike any other; a comment with it stands in the query's text, and so the engine's list of queries shows it.
    pub(crate) marker: String,
    /// The format of its result, once known.
    pub(crate) format: OnceLock<String>,
    read_only: AtomicBool,
}

impl Running {
    /// Notes that the query changes nothing, so that it is cancelled when its client goes away.
    pub(crate) fn set_read_only(&self) {
        self.read_only.store(true, Ordering::Release);
    }
}

impl Registry {
    /// A registry that admits `limit` queries at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { running: Mutex::new(HashMap::new()), limit, changed: Notify::new() })
    }

    /// Admits a query.
    ///
    /// # Errors
    /// Code 216 if one with this id runs, 202 if too many run.
    pub(crate) fn admit(self: &Arc<Self>, query_id: String) -> Result<Admitted, Exception> {
        let mut running = lock(&self.running);
        if running.contains_key(&query_id) {
            return Err(Exception::same_query_id(format_args!("Query with id = {query_id} is already running.")));
        }
        if running.len() >= self.limit {
            return Err(Exception::too_many_queries(format_args!(
                "Too many simultaneous queries. Maximum: {}",
                self.limit
            )));
        }
        let marker = format!("tickhouse:{:032x}", rand::random::<u128>());
        let query = Arc::new(Running {
            query_id: query_id.clone(),
            marker,
            format: OnceLock::new(),
            read_only: AtomicBool::new(false),
        });
        running.insert(query_id, Arc::clone(&query));
        Ok(Admitted { registry: Arc::clone(self), query })
    }

    /// The marker of the running query with this id.
    pub(crate) fn marker(&self, query_id: &str) -> Option<String> {
        lock(&self.running).get(query_id).map(|query| query.marker.clone())
    }

    /// How many queries run.
    pub(crate) fn count(&self) -> usize {
        lock(&self.running).len()
    }

    /// Waits until no query runs.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// The right to run a query; gives its id free when dropped.
pub(crate) struct Admitted {
    registry: Arc<Registry>,
    query: Arc<Running>,
}

impl Admitted {
    pub(crate) fn query(&self) -> &Arc<Running> {
        &self.query
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.registry.running).remove(&self.query.query_id);
        self.registry.changed.notify_waiters();
    }
}

/// Cancels a query that only reads when dropped before [`CancelOnDrop::ended`]: its client has gone away.
pub(crate) struct CancelOnDrop {
    engine: Arc<Engine>,
    query: Arc<Running>,
    ended: bool,
}

impl CancelOnDrop {
    pub(crate) fn new(engine: Arc<Engine>, query: Arc<Running>) -> Self {
        Self { engine, query, ended: false }
    }

    /// The query has ended by itself.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.ended || !self.query.read_only.load(Ordering::Acquire) {
            return;
        }
        let (engine, marker) = (Arc::clone(&self.engine), self.query.marker.clone());
        // Cancelling is a query of its own, and must not block the thread that serves connections.
        let cancelling = thread::Builder::new().name("cancel".to_owned()).spawn(move || engine.cancel(&marker));
        if let Err(error) = cancelling {
            tracing::warn!(%error, "cannot start a thread to cancel a query");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_runs_once_at_a_time_and_so_many_ids_do() {
        let registry = Registry::new(2);
        let first = registry.admit("a".into()).unwrap();
        assert_eq!(registry.admit("a".into()).err().unwrap().code(), 216);
        let _second = registry.admit("b".into()).unwrap();
        assert_eq!(registry.admit("c".into()).err().unwrap().code(), 202);
        drop(first);
        registry.admit("a".into()).unwrap();
        assert_eq!(registry.count(), 1);
    }
}
