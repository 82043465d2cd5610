//! Tests with the real libraries, as `udfs/build` lays them out.

mod async_calls;
mod boundary;
mod child;
mod fetch;
mod figures;
mod opening;
mod registry;
mod server;
mod submissions;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;

use super::{AsyncUdf, Udf, UdfCatalog};

/// `udfs` in the target directory that this test was built into.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let built = test.ancestors().nth(3).expect("the test lies in target/PROFILE/deps").join("udfs");
    assert!(built.is_dir(), "{} is missing: run `make build`, which builds the UDFs", built.display());
    built
}

/// The UDFs that only tests use.
fn testing() -> UdfCatalog {
    UdfCatalog::open(&built().join("testing")).expect("the UDFs are built: run `make build`")
}

fn udf(name: &str) -> Arc<Udf> {
    Arc::clone(testing().get(name).expect("the UDF is built: run `make build`"))
}

fn int64(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

/// Calls the UDF with every row of `args`, the row's number as id, and gives the results in the order they came.
async fn call_all(instance: &mut AsyncUdf, args: &[ArrayRef]) -> Vec<(u64, ArrayRef)> {
    let rows = args.first().map_or(0, |column| column.len());
    let (mut sent, mut finished) = (0, Vec::new());
    while finished.len() < rows {
        let in_turn = std::future::poll_fn(|cx| {
            while sent < rows {
                let std::task::Poll::Ready(ready) = instance.poll_ready(cx) else { break };
                ready.expect("the instance is ready");
                instance.send(sent as u64, args, sent).expect("the row is taken");
                sent += 1;
            }
            instance.poll_drain(cx)
        });
        let done = in_turn.await.expect("the calls succeed");
        finished.extend(done.ids.iter().enumerate().map(|(row, id)| (*id, done.results.slice(row, 1))));
    }
    finished
}

/// As [`call_all`], for results of BIGINT.
async fn call_all_int64(instance: &mut AsyncUdf, args: &[ArrayRef]) -> Vec<(u64, Option<i64>)> {
    let value = |array: ArrayRef| array.is_valid(0).then(|| array.as_primitive::<Int64Type>().value(0));
    call_all(instance, args).await.into_iter().map(|(id, result)| (id, value(result))).collect()
}
