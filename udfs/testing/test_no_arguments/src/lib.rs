/*
[dependencies]
*/
//! `test_no_arguments() -> BIGINT`: an async UDF without arguments; it counts its calls.

use std::sync::atomic::{AtomicI64, Ordering};

use arroyo_udf_plugin::udf;

static CALLS: AtomicI64 = AtomicI64::new(0);

#[udf]
async fn test_no_arguments() -> i64 {
    CALLS.fetch_add(1, Ordering::Relaxed) + 1
}
