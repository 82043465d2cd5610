//! The binary, run as a process of its own and asked over real HTTP.

mod admin;
mod cli;
mod contract;
mod faults;
mod reproducible;
mod server;
