/*
[dependencies]
*/
//! `test_join_text(text TEXT, number INT, bytes BYTEA) -> TEXT`: a scalar UDF of texts, bytes and optional values; an
//! empty text gives NULL.

use arroyo_udf_plugin::udf;

#[udf]
fn test_join_text(text: &str, number: Option<i32>, bytes: Option<&[u8]>) -> Option<String> {
    let number = number.map_or("none".to_owned(), |n| n.to_string());
    let bytes = bytes.map_or("none".to_owned(), |b| b.len().to_string());
    (!text.is_empty()).then(|| format!("{text}/{number}/{bytes}"))
}
