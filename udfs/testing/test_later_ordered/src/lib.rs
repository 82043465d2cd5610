/*
[dependencies]
tokio = { version = "1", features = ["time"] }
*/
//! `test_later_ordered(x BIGINT, millis BIGINT) -> BIGINT`: as `test_later`, but in the order of its calls.

use std::time::Duration;

use arroyo_udf_plugin::udf;

#[udf(ordered, timeout = "1s", allowed_in_flight = 64)]
async fn test_later_ordered(x: i64, millis: i64) -> i64 {
    match millis {
        0 => {}
        -1 => panic!("test_later_ordered was told to panic"),
        millis => tokio::time::sleep(Duration::from_millis(millis as u64)).await,
    }
    x
}
