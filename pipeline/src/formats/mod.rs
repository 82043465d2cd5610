//! Bytes to batches and back. Knows no connector: what a connector reads and writes passes through here.

pub mod json;
