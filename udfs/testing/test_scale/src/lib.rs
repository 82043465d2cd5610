/*
[dependencies]
*/
//! `test_scale(x BIGINT, factor BIGINT) -> BIGINT`: a scalar UDF; a factor of 0 panics.

use arroyo_udf_plugin::udf;

#[udf]
fn test_scale(x: i64, factor: i64) -> i64 {
    assert_ne!(factor, 0, "test_scale was given the factor 0");
    x.wrapping_mul(factor)
}
