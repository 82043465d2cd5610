//! What one INSERT carries, and how it survives a crash.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Delivery;
use crate::runtime::{OperatorError, Subtask, Time};
use crate::state::Staged;

/// One INSERT.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) statement: Arc<str>,
    /// An Arrow stream.
    pub(super) body: Bytes,
    pub(super) rows: usize,
    /// Under which ClickHouse remembers it. Without one it would take two equal blocks for one, and drop rows that are alike.
    pub(super) token: String,
    /// When it was made: before the first attempt to insert it.
    pub(super) made: Time,
    /// Whether it comes from a checkpoint: it may have been inserted by an earlier run.
    pub(super) is_restored: bool,
}

/// What is saved of a chunk beside its body.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    statement: String,
    rows: usize,
    token: String,
    /// Nanoseconds since 1970.
    made: i64,
}

impl Chunk {
    /// What is saved.
    pub(super) fn stage(&self) -> (serde_json::Value, Bytes) {
        let Self { statement, rows, token, made, .. } = self;
        let about = About { statement: statement.to_string(), rows: *rows, token: token.clone(), made: made.0 };
        (json!(about), self.body.clone())
    }

    /// What was saved.
    pub(super) fn restore(staged: Staged) -> Result<Self, OperatorError> {
        let About { statement, rows, token, made } = About::deserialize(&staged.about).map_err(|error| {
            OperatorError::internal("rows to be inserted were saved in another form").because(error)
        })?;
        let (statement, made) = (statement.into(), Time(made));
        Ok(Self { statement, body: staged.bytes, rows, token, made, is_restored: true })
    }
}

/// Gives every INSERT of a subtask a token of its own.
///
/// A token is `RUN/NODE/SUBTASK/NUMBER`. A chunk that is inserted again after a crash has kept its token. One that was made and
/// never saved is made anew by the next run, whose name differs if this one has completed a checkpoint, and if it has not,
/// nothing was inserted.
#[derive(Debug)]
pub(super) struct Tokens {
    prefix: String,
    number: u64,
}

impl Tokens {
    pub(super) fn new(subtask: &Subtask, delivery: Delivery) -> Self {
        let run = match (&subtask.run, delivery) {
            (Some(run), Delivery::ExactlyOnce) => run.to_string(),
            // A token only has to outlive the repeats of its own insert.
            _ => new_token(),
        };
        Self { prefix: format!("{run}/{}/{}", subtask.node, subtask.index), number: 0 }
    }

    pub(super) fn next(&mut self) -> String {
        self.number += 1;
        format!("{}/{}", self.prefix, self.number)
    }
}

/// A token that no other insert has.
pub(super) fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;

    #[test]
    fn a_chunk_comes_back_as_it_was_saved() {
        let chunk = Chunk {
            statement: "INSERT INTO t (`a`) FORMAT ArrowStream".into(),
            body: Bytes::from_static(b"\x00\x01"),
            rows: 7,
            token: "run-1/t/0/1".into(),
            made: Time(5),
            is_restored: false,
        };
        let (about, bytes) = chunk.stage();
        let back = Chunk::restore(Staged { about, bytes }).unwrap();
        assert_eq!((back.statement, back.body, back.rows, back.token), (chunk.statement, chunk.body, 7, chunk.token));
        assert_eq!((back.made, back.is_restored), (Time(5), true));
        assert!(Chunk::restore(Staged { about: json!({}), bytes: Bytes::new() }).is_err());
    }

    #[test]
    fn tokens_differ_by_run_subtask_and_number() {
        let subtask = |run: Option<&str>, index| Subtask {
            pipeline: "p".into(),
            node: "t".into(),
            index,
            parallelism: 2,
            event_time_is_read: false,
            clock: Clock::system(),
            run: run.map(Into::into),
        };
        let mut tokens = Tokens::new(&subtask(Some("id-4"), 1), Delivery::ExactlyOnce);
        assert_eq!([tokens.next(), tokens.next()], ["id-4/t/1/1", "id-4/t/1/2"]);
        let unsaved = || Tokens::new(&subtask(None, 0), Delivery::ExactlyOnce).next();
        assert_ne!(unsaved(), unsaved());
        let repeated = || Tokens::new(&subtask(Some("id-4"), 0), Delivery::AtLeastOnce).next();
        assert_ne!(repeated(), repeated(), "a run that is repeated may write its rows again");
    }
}
