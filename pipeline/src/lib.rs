//! Tickhouse: streaming SQL pipelines into ClickHouse.
//!
//! A pipeline is one file of SQL. [`sql`] turns it into a [`plan`], a graph of nodes; [`operators`] and [`connectors`] are
//! the nodes; [`formats`] turns bytes into rows and back; [`runtime`] runs it all. ARCHITECTURE.md has the map.

pub mod connectors;
pub mod formats;
pub mod migrate;
pub mod operators;
pub mod plan;
pub mod run;
pub mod runtime;
pub mod sql;
pub mod state;
pub mod state_dir;
pub mod status;
pub mod udf;
