//! Hosts Arroyo UDFs: opens their libraries and calls them through Arroyo's plugin interface.
//!
//! [`UdfCatalog::open`] reads a directory as `udfs/build` lays it out: for each UDF a library and, beside it, the source
//! whose `#[udf]` function tells name, types and kind (the library exports only entry points). A [`Udf`] is then one of
//!
//! - **scalar**: [`Udf::scalar_udf`] is an ordinary DataFusion function, called with whole columns;
//! - **async**: [`Udf::scalar_udf`] is a placeholder to plan with; [`Udf::start`] starts an [`AsyncUdf`], which takes one
//!   row per call and has many calls under way;
//! - **aggregate**: [`Udf::aggregate_udf`] is a DataFusion aggregate.
//!
//! The plugin interface is `arroyo-udf-plugin` 0.2, which is on another Arrow than ours: columns cross by Arrow's C data
//! interface, which all versions share. A panic in a UDF comes back as a [`UdfError`]. This folder holds the crate's only
//! `unsafe`, in `abi`, `library`, `row` and `bell`; it knows no SQL, no operator and no pipeline.

mod abi;
mod aggregate;
mod async_udf;
mod bell;
mod calls;
mod catalog;
mod error;
mod feeder;
mod function;
mod library;
mod row;
mod scalar;
mod signature;
#[cfg(test)]
mod tests;

pub use async_udf::{AsyncUdf, Finished};
pub use catalog::{Udf, UdfCatalog};
pub use error::UdfError;
pub use function::PluginFunction;
pub use signature::{UdfArg, UdfKind, UdfSpec};
