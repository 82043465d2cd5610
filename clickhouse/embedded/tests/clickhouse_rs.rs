//! The official Rust client, as it comes: LZ4 blocks both ways, RowBinaryWithNamesAndTypes, validation on.

mod common;

use clickhouse::{Client, Row};
use common::{Database, url};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Reading {
    pk: i64,
    name: String,
    followers: Option<u64>,
    tags: Vec<String>,
}

fn reading(pk: i64) -> Reading {
    let followers = (pk % 3 != 0).then_some(pk.unsigned_abs() * 10);
    Reading { pk, name: format!("name {pk}"), followers, tags: vec!["a".into(); (pk % 4) as usize] }
}

async fn client(name: &str) -> Client {
    Database::new(name).await;
    let client = Client::default().with_url(url()).with_database(name);
    let table = "CREATE TABLE readings (pk Int64, name String, followers Nullable(UInt64), tags Array(String)) \
                 ENGINE = MergeTree ORDER BY pk";
    client.query(table).execute().await.unwrap();
    client
}

#[tokio::test]
async fn typed_rows_go_in_and_come_out() {
    let client = client("rs_rows").await;
    let rows: Vec<Reading> = (0..100_000).map(reading).collect();
    let mut insert = client.insert::<Reading>("readings").await.unwrap();
    for row in &rows {
        insert.write(row).await.unwrap();
    }
    insert.end().await.unwrap();
    let found = client.query("SELECT ?fields FROM readings ORDER BY pk").fetch_all::<Reading>().await.unwrap();
    assert!(found == rows);
    let bound = client.query("SELECT ?fields FROM readings WHERE pk = ? AND name = ?").bind(7).bind("name 7");
    assert_eq!(bound.fetch_one::<Reading>().await.unwrap(), reading(7));
    let count = client.query("SELECT count() FROM readings WHERE pk < {limit:Int64}").param("limit", 10);
    assert_eq!(count.fetch_one::<u64>().await.unwrap(), 10);
}

#[tokio::test]
async fn the_client_s_validation_sees_the_true_types() {
    #[derive(Debug, Row, Serialize, Deserialize)]
    struct Wrong {
        pk: String,
    }
    let client = client("rs_validation").await;
    let refused = client.insert::<Wrong>("readings").await.err().unwrap();
    assert!(refused.to_string().contains("followers: Nullable(UInt64)"), "{refused}");
    let read = client.query("SELECT toInt64(1) AS pk").fetch_one::<Wrong>().await;
    assert!(read.unwrap_err().to_string().contains("pk"));
}

#[tokio::test]
async fn a_dropped_insert_inserts_nothing() {
    let client = client("rs_dropped").await;
    let mut insert = client.insert::<Reading>("readings").await.unwrap();
    for pk in 0..50_000 {
        insert.write(&reading(pk)).await.unwrap();
    }
    drop(insert);
    let running = "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO%rs_dropped%'";
    while client.query(running).fetch_one::<u64>().await.unwrap() > 0 {}
    assert_eq!(client.query("SELECT count() FROM readings").fetch_one::<u64>().await.unwrap(), 0);
}

#[tokio::test]
async fn arrow_goes_in_as_a_formatted_insert() {
    let client = client("rs_arrow").await;
    let made = "SELECT toInt64(number) AS pk, concat('name ', toString(number)) AS name, \
                toNullable(number) AS followers, ['x', 'y'] AS tags FROM numbers(200000)";
    let arrow = client.query(made).fetch_bytes("ArrowStream").unwrap().collect().await.unwrap();
    let mut insert = client
        .insert_formatted_with("INSERT INTO readings FORMAT ArrowStream")
        .with_setting("insert_deduplication_token", "one")
        .with_setting("async_insert", "0");
    for piece in arrow.chunks(100_000) {
        insert.send(piece.to_vec().into()).await.unwrap();
    }
    insert.end().await.unwrap();
    let check = "SELECT count(), sum(pk), sum(followers), uniqExact(name) FROM readings";
    let (count, pks, followers, names) = client.query(check).fetch_one::<(u64, i64, Option<u64>, u64)>().await.unwrap();
    assert_eq!((count, pks, followers, names), (200_000, 19_999_900_000, Some(19_999_900_000), 200_000));
}

#[tokio::test]
async fn errors_reach_the_caller_with_their_code() {
    let client = client("rs_errors").await;
    let missing = client.query("SELECT * FROM nope").execute().await.unwrap_err();
    assert!(missing.to_string().contains("Code: 60"), "{missing}");
    let mut insert = client.insert_formatted_with("INSERT INTO readings FORMAT TSV");
    insert.send("not a number\n".into()).await.unwrap();
    let refused = insert.end().await.unwrap_err();
    assert!(refused.to_string().contains("Code: 27") || refused.to_string().contains("Code: 72"), "{refused}");

    // In the middle of a result, after rows were given.
    let query = "SELECT throwIf(number = 3000000) AS x, repeat('x', 30) AS s FROM numbers(4000000)";
    let mut cursor = client.query(query).fetch::<(u8, String)>().unwrap();
    let mut rows = 0_u64;
    let error = loop {
        match cursor.next().await {
            Ok(Some(_)) => rows += 1,
            Ok(None) => panic!("the result ended as if it were complete, after {rows} rows"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("Code: 395") && rows > 1_000, "{error} after {rows} rows");
}

#[tokio::test]
async fn compression_may_be_off() {
    let client = client("rs_plain").await.with_compression(clickhouse::Compression::None);
    let mut insert = client.insert::<Reading>("readings").await.unwrap();
    insert.write(&reading(5)).await.unwrap();
    insert.end().await.unwrap();
    assert_eq!(client.query("SELECT ?fields FROM readings").fetch_one::<Reading>().await.unwrap(), reading(5));
}
