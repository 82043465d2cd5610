//! Rows come out as they went in.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int32Array, Int64Array, LargeStringArray, ListArray, StringArray, StringDictionaryBuilder, StringViewArray,
    StructArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, TimeUnit};

use tickhouse::runtime::Clock;

use crate::driver::{Target, changes, column, rows};
use crate::server::Database;

fn target<'a>(database: &'a Database, primary_key: &'a [&'a str], options: &'a [(&'a str, &'a str)]) -> Target<'a> {
    let Database { name, url } = database;
    Target { url, database: name, table: "t", primary_key, options, wait: Duration::from_secs(5) }
}

fn tuples() -> StructArray {
    let fields = [
        Field::new("x", DataType::Int64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
    ];
    let columns: [ArrayRef; 2] = [
        Arc::new(Int64Array::from(vec![1, 2])),
        Arc::new(TimestampNanosecondArray::from(vec![3_000_000_000, 4_000_000_000])),
    ];
    StructArray::from(fields.map(Arc::new).into_iter().zip(columns).collect::<Vec<_>>())
}

#[tokio::test]
async fn every_type_arrives_exactly() {
    let database = Database::new().await;
    let create = "CREATE TABLE t (
        i8 Int8, i32 Int32, i64 Int64, i128 Int128, u8 UInt8, u32 UInt32, u64 UInt64, f32 Float32, f64 Float64, f64i Float64,
        flag Bool, dec Decimal(10, 2), dec_wide Decimal(50, 4), s String, lc LowCardinality(String), lcn LowCardinality(Nullable(String)),
        v String, dict LowCardinality(String), bin String, fixed FixedString(3), e Enum8('a' = 1, 'b' = 2), id UUID, ip IPv4, json JSON,
        d Date, d32 Date32, dt DateTime('UTC'), dtz DateTime('Europe/Berlin'), dt0 DateTime64(0, 'UTC'), dt3 DateTime64(3, 'UTC'),
        dt5 DateTime64(5, 'UTC'), dt9 Nullable(DateTime64(9, 'UTC')), n Nullable(Int64), l Array(Int32), ln Array(Nullable(Int64)),
        tup Tuple(x Int64, at DateTime('UTC')), filled DateTime DEFAULT toDateTime(5)
    ) ENGINE = MergeTree ORDER BY i64 SETTINGS non_replicated_deduplication_window = 100";
    database.run(create).await;

    let nanos = || TimestampNanosecondArray::from(vec![1_700_000_000_123_456_789, 0]);
    let lists = || ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), Some(2)]), Some(vec![])]);
    let nullable_lists =
        ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![None, Some(2)]), Some(vec![Some(3)])]);
    let mut dictionary = StringDictionaryBuilder::<Int32Type>::new();
    dictionary.extend([Some("p"), Some("q")]);
    let days = || Date32Array::from(vec![19_675, 0]);
    let ids = ["61f0c404-5cb3-11e7-907b-a6006ad3dba0", "00000000-0000-0000-0000-000000000001"];
    let (input, batch) = rows(vec![
        column("i8", Int64Array::from(vec![-128, 127])),
        column("i32", Int64Array::from(vec![i64::from(i32::MIN), i64::from(i32::MAX)])),
        column("i64", Int64Array::from(vec![i64::MIN, i64::MAX])),
        column("i128", UInt64Array::from(vec![u64::MAX, 0])),
        column("u8", Int32Array::from(vec![0, 255])),
        column("u32", Int64Array::from(vec![0, i64::from(u32::MAX)])),
        column("u64", UInt64Array::from(vec![0, u64::MAX])),
        column("f32", Float32Array::from(vec![1.5, -0.25])),
        column("f64", Float64Array::from(vec![0.1, f64::INFINITY])),
        column("f64i", Int8Array::from(vec![1, -1])),
        column("flag", BooleanArray::from(vec![true, false])),
        column("dec", Decimal128Array::from(vec![125, -5]).with_precision_and_scale(9, 2).unwrap()),
        column("dec_wide", Int64Array::from(vec![7, i64::MAX])),
        column("s", LargeStringArray::from(vec!["a\n'\"", ""])),
        column("lc", StringArray::from(vec!["x", "x"])),
        column("lcn", StringArray::from(vec![None, Some("y")])),
        column("v", StringViewArray::from(vec!["short", "longer than twelve bytes"])),
        column("dict", dictionary.finish()),
        column("bin", BinaryArray::from(vec![&b"\x00\x01"[..], b"z"])),
        column("fixed", StringArray::from(vec!["abc", "def"])),
        column("e", StringArray::from(vec!["b", "a"])),
        column("id", StringArray::from(ids.to_vec())),
        column("ip", StringArray::from(vec!["1.2.3.4", "0.0.0.0"])),
        column("json", StringArray::from(vec!["{\"k\": 1}", "{}"])),
        column("d", days()),
        column("d32", days()),
        column("dt", nanos()),
        column("dtz", nanos()),
        column("dt0", nanos()),
        column("dt3", nanos()),
        column("dt5", nanos()),
        column("dt9", TimestampNanosecondArray::from(vec![Some(-1), None])),
        column("n", Int64Array::from(vec![Some(1), None])),
        column("l", lists()),
        column("ln", nullable_lists),
        column("tup", tuples()),
    ]);
    // A slice: the offsets of its lists do not begin at 0.
    let second = batch.slice(1, 1);
    target(&database, &[], &[]).sink(&input).write(vec![batch.slice(0, 1), second]).await.unwrap();

    let select = "SELECT * REPLACE (hex(bin) AS bin) FROM t ORDER BY i64 FORMAT TSV";
    let first = "-128\t-2147483648\t-9223372036854775808\t18446744073709551615\t0\t0\t0\t1.5\t0.1\t1\ttrue\t1.25\t7\ta\\n\\'\"\tx\t\\N\tshort\tp\t\
        0001\tabc\tb\t61f0c404-5cb3-11e7-907b-a6006ad3dba0\t1.2.3.4\t{\"k\":1}\t2023-11-14\t2023-11-14\t2023-11-14 22:13:20\t2023-11-14 23:13:20\t\
        2023-11-14 22:13:20\t2023-11-14 22:13:20.123\t2023-11-14 22:13:20.12345\t1969-12-31 23:59:59.999999999\t1\t[1,2]\t[NULL,2]\t\
        (1,'1970-01-01 00:00:03')\t";
    let second = "127\t2147483647\t9223372036854775807\t0\t255\t4294967295\t18446744073709551615\t-0.25\tinf\t-1\tfalse\t-0.05\t\
        9223372036854775807\t\tx\ty\tlonger than twelve bytes\tq\t7A\tdef\ta\t00000000-0000-0000-0000-000000000001\t0.0.0.0\t{}\t1970-01-01\t\
        1970-01-01\t1970-01-01 00:00:00\t1970-01-01 01:00:00\t1970-01-01 00:00:00\t1970-01-01 00:00:00.000\t1970-01-01 00:00:00.00000\t\\N\t\\N\t\
        []\t[3]\t(2,'1970-01-01 00:00:04')\t";
    let stored = database.run(select).await;
    let lines: Vec<_> = stored.lines().collect();
    assert_eq!(lines.len(), 2);
    for (line, expected) in lines.iter().zip([first, second]) {
        assert!(line.starts_with(expected), "\n{line}\n{expected}");
        assert!(line.ends_with(":05"), "the column that was not given has its default: {line}");
    }
}

#[tokio::test]
async fn what_gathers_is_seen_after_the_interval_without_a_barrier() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let (input, batch) = rows(vec![column("n", Int64Array::from(vec![1, 2, 3]))]);
    let mut sink = target(&database, &[], &[("batch.interval_ms", "50")]).sink(&input);
    let before = Clock::system().now();
    sink.give(batch).await.unwrap();
    sink.until_timer().await.unwrap();
    assert_eq!(database.run("SELECT sum(n) FROM t").await, "6");
    let took = Clock::system().now().since(before);
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn a_full_batch_goes_at_once_and_the_next_one_waits_for_it() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (n Int64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100",
        )
        .await;
    let (input, batch) = rows(vec![column("n", Int64Array::from_iter_values(0..1000))]);
    let options = [("batch.rows", "1000"), ("batch.interval_ms", "3600000")];
    let mut sink = target(&database, &[], &options).sink(&input);
    sink.give(batch.clone()).await.unwrap();
    assert!(!sink.accepts(), "the table has not been looked at, and a batch is held");
    sink.give(batch.clone()).await.unwrap();
    assert!(!sink.accepts(), "one insert is under way, and a batch is held");
    sink.write(vec![batch.clone(), batch]).await.unwrap();
    assert_eq!(database.run("SELECT count(), sum(n) FROM t").await, "4000\t1998000");
    let inserts = "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = 't' AND level = 0";
    assert!(database.run(inserts).await.parse::<u32>().unwrap() <= 4);
}

#[tokio::test]
async fn the_last_row_of_each_key_stands_over_inserts_and_gone_ones_are_gone() {
    let database = Database::new().await;
    let create = "CREATE TABLE t (k String, total Int64, version UInt64, is_deleted UInt8)
        ENGINE = ReplacingMergeTree(version, is_deleted) ORDER BY k";
    database.run(create).await;
    let make = |rows: &[(&str, i64, bool)]| {
        let keys = StringArray::from_iter_values(rows.iter().map(|row| row.0));
        let totals = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
        changes(vec![column("k", keys), column("total", totals)], rows.iter().map(|row| row.2).collect())
    };
    let (input, first) = make(&[("a", 1, false), ("b", 1, false), ("c", 1, false)]);
    let (_, second) = make(&[("a", 1, true), ("a", 2, false), ("b", 1, true), ("a", 2, true), ("a", 3, false)]);
    let (_, third) = make(&[("a", 3, true), ("a", 4, false), ("d", 9, false)]);
    // Every batch is an insert of its own.
    let mut sink = target(&database, &["k"], &[("batch.rows", "1")]).sink(&input);
    sink.write(vec![first, second, third]).await.unwrap();
    assert_eq!(database.run("SELECT k, total FROM t FINAL ORDER BY k").await, "a\t4\nc\t1\nd\t9");
    // One row per key and insert: 3, 2 and 2. Versions tell the inserts apart.
    assert_eq!(database.run("SELECT count(), uniqExact(version) FROM t").await, "7\t3");
}
