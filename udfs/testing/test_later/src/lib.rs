/*
[dependencies]
tokio = { version = "1", features = ["time"] }
*/
//! `test_later(x BIGINT, millis BIGINT) -> BIGINT`: an async UDF that answers `x` after so many milliseconds, in any
//! order. -1 milliseconds panics, -2 blocks the instance's thread for a minute.

use std::time::Duration;

use arroyo_udf_plugin::udf;

#[udf(timeout = "1s", allowed_in_flight = 4096)]
async fn test_later(x: i64, millis: i64) -> i64 {
    match millis {
        0 => {}
        -1 => panic!("test_later was told to panic"),
        -2 => std::thread::sleep(Duration::from_secs(60)),
        millis => tokio::time::sleep(Duration::from_millis(millis as u64)).await,
    }
    x
}
