//! The programs as a user runs them, with all that they run with. One program for all tests: with what it is linked to, each
//! takes 600 MB of disk and half a minute of linking.

mod bad_input;
mod bench;
mod chaos;
mod clickhouse_faults;
mod dashboard;
mod disk_faults;
mod influencers;
mod memory;
mod migrate;
mod s3_state;
mod schema;
mod stack;
mod state;
mod upstream_faults;
