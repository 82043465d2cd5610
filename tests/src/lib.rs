//! What the end-to-end and conformance tests share: a ClickHouse in this process, or the built programs, started as a user
//! starts them.
//!
//! The programs come from `make build`; a test that does not find them says so.

pub mod clickhouse;
mod disk;
mod job;
mod lines;
mod process;
pub mod proxy;
mod random;
mod s3;
mod served;
pub mod settings;
mod stack;
mod tables;

pub use disk::SmallDisk;
pub use job::InfluencerJob;
pub use process::{Output, Program, programs};
pub use random::Random;
pub use s3::S3;
pub use served::{Served, assert_books_balance};
pub use stack::{Stack, StackOptions, eventually};
pub use tables::{DeadLetter, Reading, Summary, Tables, assert_none, by_pk};

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// A file of the influencer pipeline, with its minute replaced by `window` so that a test need not wait for one.
pub fn influencers_sql(file: &str, window: &str) -> String {
    let path = root().join("sql/influencers").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.replace("interval '1 minute'", &format!("interval '{window}'"))
}
