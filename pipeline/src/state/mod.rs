//! State that operators keep between batches, as typed columns.
//!
//! Knows no operator.

mod key_index;
mod keyed;

pub use key_index::KeyIndex;
pub use keyed::{KeyedTable, Stored};
