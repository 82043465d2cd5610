//! Crashes at any moment, restarts at any parallelism: what has been committed in the end is what DataFusion's batch engine
//! computes from the same rows. For ten queries by hand ([`fixed`]), and for pipelines composed at random ([`composed`]).

mod collect;
mod composed;
mod coverage;
mod expressions;
mod fixed;
mod later;
mod relation;
mod replay;
mod run;
mod script;
mod select;
mod steps;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Each row as text.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> =
        batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}
