//! Scalar and aggregate UDFs, called by DataFusion.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::{built, int64, testing, udf};
use crate::udf::UdfCatalog;

/// A session with the testing UDFs and a table `t` of the given columns, in two batches and two partitions.
fn session(columns: Vec<(&str, ArrayRef)>) -> SessionContext {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    for udf in testing().iter() {
        if let Some(scalar) = udf.scalar_udf() {
            session.register_udf(scalar);
        }
        if let Some(aggregate) = udf.aggregate_udf() {
            session.register_udaf(aggregate);
        }
    }
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let half = batch.num_rows() / 2;
    let parts = vec![vec![batch.slice(0, half)], vec![batch.slice(half, batch.num_rows() - half)]];
    let table = datafusion::datasource::MemTable::try_new(batch.schema(), parts).unwrap();
    session.register_table("t", Arc::new(table)).unwrap();
    session
}

async fn query(session: &SessionContext, sql: &str) -> Result<String, String> {
    let frame = session.sql(sql).await.map_err(|e| e.to_string())?;
    let batches = frame.collect().await.map_err(|e| e.to_string())?;
    let text = pretty_format_batches(&batches).map_err(|e| e.to_string())?.to_string();
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(1);
    Ok(rows.map(|row| row.replace([' ', '|'], "")).collect::<Vec<_>>().join(";"))
}

#[tokio::test]
async fn scalar_udfs_take_columns_constants_and_nulls() {
    let x: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4)]));
    let small: ArrayRef = Arc::new(Int32Array::from(vec![5, 6, 7, 8]));
    let session = session(vec![("x", x), ("small", small)]);
    let sql = |sql: &'static str| query(&session, sql);
    assert_eq!(sql("SELECT test_scale(x, 10) FROM t ORDER BY x NULLS LAST").await.unwrap(), "10;30;40;");
    assert_eq!(sql("SELECT test_scale(small, 2) FROM t WHERE x > 1 ORDER BY 1").await.unwrap(), "14;16");
    assert_eq!(sql("SELECT test_scale(6, 7)").await.unwrap(), "42");
    assert_eq!(sql("SELECT test_scale(x, 1) FROM t WHERE x > 99").await.unwrap(), "");
    let refused = sql("SELECT test_scale(x) FROM t").await.unwrap_err();
    assert!(refused.contains("test_scale"), "{refused}");
}

#[tokio::test]
async fn scalar_udfs_take_and_give_optional_texts_and_bytes() {
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some(""), None, Some("grüße")]));
    let number: ArrayRef = Arc::new(Int32Array::from(vec![None, Some(1), Some(2), Some(3)]));
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(b"xy".as_slice()), None, None, None]));
    let session = session(vec![("text", text), ("number", number), ("bytes", bytes)]);
    let rows = query(&session, "SELECT text, test_join_text(text, number, bytes) FROM t ORDER BY text NULLS LAST");
    assert_eq!(rows.await.unwrap(), ";aa/none/2;grüßegrüße/3/none;");
    // A result is NULL only where the source says so, or where an argument may be.
    let schema =
        session.sql("SELECT test_scale(1, 2), test_join_text('a', CAST(1 AS INT), NULL) FROM t").await.unwrap();
    let nullable: Vec<_> = schema.schema().fields().iter().map(|field| field.is_nullable()).collect();
    assert_eq!(nullable, [false, true]);
}

#[tokio::test]
async fn a_panic_in_a_scalar_udf_is_an_error_that_names_it() {
    let session = session(vec![("x", int64(&[1, 2]))]);
    for _ in 0..2 {
        let error = query(&session, "SELECT test_scale(x, 0) FROM t").await.unwrap_err();
        assert!(error.contains("the UDF test_scale panicked"), "{error}");
    }
    assert_eq!(query(&session, "SELECT test_scale(x, 1) FROM t ORDER BY x").await.unwrap(), "1;2");
}

#[tokio::test]
async fn a_library_that_is_not_of_its_source_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let library = |name| format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    std::fs::copy(built().join("testing").join(library("test_scale")), dir.path().join(library("other"))).unwrap();
    let call = async |source: &str, sql: &str| {
        std::fs::write(dir.path().join("other.rs"), source).unwrap();
        let catalog = UdfCatalog::open(dir.path()).unwrap();
        let session = SessionContext::new();
        session.register_udf(catalog.get("other").unwrap().scalar_udf().unwrap());
        query(&session, sql).await.unwrap_err()
    };
    let error = call("#[udf] fn other(a: i64, b: i64) -> String { todo!() }", "SELECT other(1, 2)").await;
    assert!(error.contains("returned 1 rows of Int64 where its source declares 1 rows of Utf8"), "{error}");
    let error = call("#[udf] fn other(a: &str, b: &str) -> i64 { todo!() }", "SELECT other('a', 'b')").await;
    assert!(error.contains("the UDF other panicked"), "{error}");
    let error = call("#[udf] fn other(a: i64) -> i64 { todo!() }", "SELECT other(1)").await;
    assert!(error.contains("the UDF other panicked"), "{error}");
}

#[tokio::test]
async fn aggregate_udfs_see_all_values_of_their_group() {
    let key = int64(&[1, 2, 1, 2, 1, 3]);
    let x: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), Some(4), Some(5), None]));
    let y: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 0.5, 1.0, 0.5, 1.0, 1.0]));
    let session = session(vec![("key", key), ("x", x), ("y", y)]);
    let sql = |sql: &'static str| query(&session, sql);
    let grouped = "SELECT key, test_sum_products(x, y) FROM t GROUP BY key ORDER BY key";
    assert_eq!(sql(grouped).await.unwrap(), "19.0;23.0;30.0");
    assert_eq!(sql("SELECT test_sum_products(x, 2) FROM t").await.unwrap(), "30.0");
    assert_eq!(sql("SELECT test_sum_products(x, y) FROM t WHERE x > 99").await.unwrap(), "0.0");
    let error = sql("SELECT test_sum_products(x, 1e308) FROM t").await.unwrap_err();
    assert!(error.contains("the UDF test_sum_products panicked"), "{error}");
}

#[tokio::test]
async fn an_async_udf_plans_but_is_not_called_by_an_expression() {
    let session = session(vec![("x", int64(&[1, 2]))]);
    let frame = session.sql("SELECT test_later(x, 0) AS y FROM t").await.expect("it plans");
    assert!(frame.logical_plan().to_string().contains("test_later"));
    let error = query(&session, "SELECT test_later(x, 0) AS y FROM t").await.unwrap_err();
    assert!(error.contains("the async UDF test_later can be called only as a column"), "{error}");
    assert!(udf("test_later").aggregate_udf().is_none() && udf("test_sum_products").scalar_udf().is_none());
    assert!(udf("test_scale").start().unwrap_err().to_string().contains("test_scale is not async"));
}
