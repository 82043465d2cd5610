/*
[dependencies]
*/
//! `test_sum_products(xs BIGINT, ys DOUBLE) -> DOUBLE`: an aggregate UDF; a sum over infinity panics.

use arroyo_udf_plugin::udf;

#[udf]
fn test_sum_products(xs: Vec<i64>, ys: Vec<f64>) -> f64 {
    // The sum of nothing is -0.0 in Rust; adding makes it 0.0.
    let sum = 0.0 + xs.iter().zip(&ys).map(|(x, y)| *x as f64 * y).sum::<f64>();
    assert!(sum.is_finite(), "test_sum_products went over infinity");
    sum
}
