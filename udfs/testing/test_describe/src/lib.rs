/*
[dependencies]
*/
//! `test_describe(text TEXT, number DOUBLE, bytes BYTEA, small SMALLINT) -> TEXT`: an async UDF of texts, bytes and
//! optional values; a text of `null` gives NULL.

use arroyo_udf_plugin::udf;

#[udf]
async fn test_describe(
    text: Option<&str>,
    number: Option<f64>,
    bytes: Option<&[u8]>,
    small: Option<i16>,
) -> Option<String> {
    (text != Some("null")).then(|| format!("{text:?} {number:?} {bytes:?} {small:?}"))
}
