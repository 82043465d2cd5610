//! Sessions (`session_id`): a connection kept between requests, with its settings, database and temporary tables.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::engine::lock;
use crate::exception::Exception;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a request says of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRequest {
    pub(crate) id: String,
    pub(crate) timeout: Duration,
    /// The session must be there already.
    pub(crate) check: bool,
    /// The session ends with this request.
    pub(crate) close: bool,
}

/// Reads a `session_timeout`.
///
/// # Errors
/// Code 374 if it is no number or above an hour.
pub(crate) fn timeout(text: Option<&str>) -> Result<Duration, Exception> {
    let Some(text) = text else {
        return Ok(DEFAULT_TIMEOUT);
    };
    let wrong = || Exception::invalid_session_timeout(format_args!("Invalid session timeout: '{text}'"));
    let timeout = Duration::from_secs(text.parse().map_err(|_| wrong())?);
    if timeout > LONGEST_TIMEOUT {
        return Err(Exception::invalid_session_timeout(format_args!(
            "Session timeout '{text}' is larger than max_session_timeout: {}",
            LONGEST_TIMEOUT.as_secs()
        )));
    }
    Ok(timeout)
}

enum Slot<C> {
    Busy,
    Idle { connection: C, until: Instant },
}

/// The sessions, by id; `C` is the connection that each keeps.
pub(crate) struct Sessions<C> {
    slots: Mutex<HashMap<String, Slot<C>>>,
}

impl<C> Sessions<C> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { slots: Mutex::new(HashMap::new()) })
    }

    /// Takes the session for one request, making it if it is not there.
    ///
    /// # Errors
    /// Code 373 if another request has it, 372 if it must be there and is not, or what `open` gives.
    pub(crate) fn take(
        self: &Arc<Self>,
        request: SessionRequest,
        now: Instant,
        open: impl FnOnce() -> Result<C, Exception>,
    ) -> Result<Session<C>, Exception> {
        let mut slots = lock(&self.slots);
        let connection = match slots.remove(&request.id) {
            Some(Slot::Busy) => {
                slots.insert(request.id.clone(), Slot::Busy);
                let id = &request.id;
                return Err(Exception::session_locked(format_args!("Session {id} is locked by a concurrent client")));
            }
            Some(Slot::Idle { connection, until }) if until > now => Some(connection),
            _ => None,
        };
        let connection = match connection {
            Some(connection) => connection,
            None if request.check => {
                return Err(Exception::session_not_found(format_args!("Session {} not found", request.id)));
            }
            None => open()?,
        };
        slots.insert(request.id.clone(), Slot::Busy);
        Ok(Session { sessions: Arc::clone(self), request, connection: Some(connection) })
    }

    /// Removes the sessions whose time is over, and gives their connections to be closed.
    pub(crate) fn expire(&self, now: Instant) -> Vec<C> {
        let mut slots = lock(&self.slots);
        slots
            .extract_if(|_, slot| matches!(slot, Slot::Idle { until, .. } if *until <= now))
            .filter_map(|(_, slot)| if let Slot::Idle { connection, .. } = slot { Some(connection) } else { None })
            .collect()
    }

    /// Removes all sessions that are not in use, and gives their connections to be closed.
    pub(crate) fn clear(&self) -> Vec<C> {
        self.expire(Instant::now() + 2 * LONGEST_TIMEOUT)
    }
}

/// A session in use; given back when dropped.
pub(crate) struct Session<C> {
    sessions: Arc<Sessions<C>>,
    request: SessionRequest,
    connection: Option<C>,
}

impl<C> Session<C> {
    /// The session's connection.
    pub(crate) fn connection(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }
}

impl<C> Drop for Session<C> {
    fn drop(&mut self) {
        let mut slots = lock(&self.sessions.slots);
        slots.remove(&self.request.id);
        if let Some(connection) = self.connection.take().filter(|_| !self.request.close) {
            let until = Instant::now() + self.request.timeout;
            slots.insert(self.request.id.clone(), Slot::Idle { connection, until });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(check: bool, close: bool) -> SessionRequest {
        SessionRequest { id: "s".into(), timeout: timeout(None).unwrap(), check, close }
    }

    #[test]
    fn a_session_keeps_its_connection_until_its_time_is_over() {
        let sessions = Sessions::new();
        let now = Instant::now();
        let mut first = sessions.take(request(false, false), now, || Ok(1)).unwrap();
        assert_eq!(first.connection(), Some(&mut 1));
        assert_eq!(sessions.take(request(false, false), now, || Ok(2)).err().unwrap().code(), 373);
        drop(first);
        let mut again = sessions.take(request(true, false), now, || Ok(3)).unwrap();
        assert_eq!(again.connection(), Some(&mut 1));
        drop(again);
        assert!(sessions.expire(now + Duration::from_secs(59)).is_empty());
        assert_eq!(sessions.expire(now + Duration::from_secs(61)), [1]);
        assert_eq!(sessions.take(request(true, false), now, || Ok(4)).err().unwrap().code(), 372);
    }

    #[test]
    fn a_session_can_be_closed_with_a_request() {
        let sessions = Sessions::new();
        drop(sessions.take(request(false, true), Instant::now(), || Ok(1)).unwrap());
        assert_eq!(sessions.take(request(true, false), Instant::now(), || Ok(2)).err().unwrap().code(), 372);
    }

    #[test]
    fn a_timeout_is_a_number_up_to_an_hour() {
        assert_eq!(timeout(Some("3600")).unwrap(), LONGEST_TIMEOUT);
        assert_eq!(timeout(Some("3601")).unwrap_err().code(), 374);
        assert_eq!(timeout(Some("soon")).unwrap_err().code(), 374);
    }
}
