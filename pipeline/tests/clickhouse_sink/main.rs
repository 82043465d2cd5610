//! The ClickHouse sink against a real ClickHouse.

mod driver;
mod outage;
mod refusals;
mod rows;
mod server;
mod staged;
