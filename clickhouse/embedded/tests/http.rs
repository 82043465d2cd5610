//! ClickHouse's HTTP interface, request by request.

mod common;

use std::time::Duration;

use common::{Database, at, failure, text, url};
use futures::{StreamExt, stream};
use reqwest::{Body, Client};

#[tokio::test]
async fn health_checks_need_no_query() {
    for path in ["/ping", "/", "/replicas_status"] {
        let response = reqwest::get(format!("{}{path}", url())).await.unwrap();
        assert_eq!((response.status().as_u16(), response.text().await.unwrap()), (200, "Ok.\n".into()));
    }
    let response = reqwest::get(format!("{}/nothing/here", url())).await.unwrap();
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn a_query_may_stand_in_the_url_the_body_or_both() {
    let db = Database::new("where_the_query_is").await;
    assert_eq!(text(db.get(&[("query", "SELECT 1")]).send().await.unwrap()).await, "1\n");
    assert_eq!(db.ask("SELECT 2").await, "2\n");
    assert_eq!(text(db.send(&[("query", "SELECT 1")], "+ 2").await).await, "3\n");
    let head = db.http.head(db.address(&[("query", "SELECT 1")])).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str().unwrap()), (200, "2"));
}

#[tokio::test]
async fn a_response_says_what_clickhouse_says() {
    let db = Database::new("headers").await;
    let response = db.send(&[("query_id", "my id")], "SELECT number FROM numbers(10) FORMAT JSONEachRow").await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("X-ClickHouse-Query-Id"), "my id");
    assert_eq!(header("X-ClickHouse-Format"), "JSONEachRow");
    assert_eq!(header("Content-Type"), "application/x-ndjson; charset=UTF-8");
    assert!(!header("X-ClickHouse-Timezone").is_empty() && !header("X-ClickHouse-Server-Display-Name").is_empty());
    let summary: serde_json::Value = serde_json::from_str(&header("X-ClickHouse-Summary")).unwrap();
    assert_eq!((summary["read_rows"].as_str(), summary["result_rows"].as_str()), (Some("10"), Some("10")));

    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let response = db.send(&[("query", "INSERT INTO t FORMAT TSV")], "1\n2\n3\n").await;
    let summary = response.headers()["X-ClickHouse-Summary"].to_str().unwrap().to_owned();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((summary["written_rows"].as_str(), summary["written_bytes"].as_str()), (Some("3"), Some("24")));
}

#[tokio::test]
async fn the_format_comes_from_the_query_the_header_or_the_url() {
    let db = Database::new("formats").await;
    let query = [("query", "SELECT 'a' AS x")];
    let by_url = [query[0], ("default_format", "CSV")];
    assert_eq!(text(db.send(&by_url, "").await).await, "\"a\"\n");
    let by_header = db.post(&by_url).header("X-ClickHouse-Format", "JSONEachRow").send().await.unwrap();
    assert_eq!(text(by_header).await, "{\"x\":\"a\"}\n");
    assert_eq!(text(db.send(&by_url, "FORMAT RowBinary").await).await, "\x01a");
    let (status, code, _) = failure(db.send(&[("default_format", "Nope")], "SELECT 1").await).await;
    assert_eq!((status, code), (404, 73));
}

#[tokio::test]
async fn errors_have_clickhouse_s_code_text_and_status() {
    let db = Database::new("errors").await;
    for (query, status, code, name) in [
        ("SELECT * FROM nope", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT * FROM nope.nope", 404, 81, "UNKNOWN_DATABASE"),
        ("SELEC 1", 400, 62, "SYNTAX_ERROR"),
        ("", 400, 62, "SYNTAX_ERROR"),
        ("exit", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 400, 62, "SYNTAX_ERROR"),
        ("SELECT nope", 404, 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT nope()", 404, 46, "UNKNOWN_FUNCTION"),
        ("SELECT throwIf(1)", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("INSERT INTO nope VALUES (1)", 404, 60, "UNKNOWN_TABLE"),
        ("SYSTEM SHUTDOWN", 501, 48, "NOT_IMPLEMENTED"),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", 500, 358, "INTO_OUTFILE_NOT_ALLOWED"),
        ("INSERT INTO nope FROM INFILE '/etc/passwd' FORMAT TSV", 404, 78, "UNKNOWN_TYPE_OF_QUERY"),
        ("SELECT {x:UInt8}", 500, 456, "UNKNOWN_QUERY_PARAMETER"),
    ] {
        let (found_status, found_code, message) = failure(db.send(&[], query).await).await;
        assert_eq!((found_status, found_code), (status, code), "{query}: {message}");
        assert!(message.contains(&format!("({name}) (version ")), "{message}");
        assert!(!message.contains("tickhouse") && !message.contains("/proc"), "{message}");
    }
    assert_eq!(failure(db.send(&[("database", "nope")], "SELECT 1").await).await.1, 81);
}

#[tokio::test]
async fn a_get_cannot_change_anything() {
    let db = Database::new("readonly_get").await;
    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    for session in [None, Some("readonly_get")] {
        let statements = ["DROP TABLE t", "INSERT INTO t VALUES (1)", "INSERT INTO t SELECT 1", "CREATE DATABASE x1"];
        for statement in statements {
            let mut parameters = vec![("query", statement)];
            parameters.extend(session.map(|id| ("session_id", id)));
            let (_, code, message) = failure(db.get(&parameters).send().await.unwrap()).await;
            assert_eq!(code, 164, "{statement}: {message}");
        }
    }
    assert_eq!(db.ask("SELECT count() FROM t").await, "0\n");
    let changed = db.get(&[("query", "SELECT getSetting('max_threads')"), ("max_threads", "3")]).send().await.unwrap();
    assert_eq!(text(changed).await, "3\n");
}

#[tokio::test]
async fn settings_and_databases_are_of_one_query_only() {
    let db = Database::new("isolation").await;
    let ask = "SELECT getSetting('max_threads') = 1, getSetting('join_use_nulls'), currentDatabase()";
    let changed = [("max_threads", "1"), ("join_use_nulls", "1")];
    assert_eq!(text(db.send(&changed, ask).await).await, "1\ttrue\tisolation\n");
    assert_eq!(text(db.send(&[], "SET join_use_nulls = 1").await).await, "");
    let plain =
        text(db.http.post(url()).body("SELECT getSetting('join_use_nulls'), currentDatabase()").send().await.unwrap());
    assert_eq!(plain.await, "false\tdefault\n");
    let (status, code, message) = failure(db.send(&[("no_such_setting", "1")], "SELECT 1").await).await;
    assert_eq!((status, code), (404, 115), "{message}");
    assert_eq!(failure(db.send(&[("max_threads", "many")], "SELECT 1").await).await.0, 400);
}

#[tokio::test]
async fn a_session_keeps_what_it_set_and_nothing_else() {
    let db = Database::new("sessions").await;
    let session = ("session_id", "sessions_one");
    let ask = async |parameters: &[(&str, &str)], query: &str| {
        text(db.send(&[&[session], parameters].concat(), query.to_owned()).await).await
    };
    ask(&[], "CREATE TEMPORARY TABLE t (a UInt8)").await;
    ask(&[], "INSERT INTO t VALUES (7)").await;
    ask(&[], "SET join_use_nulls = 1, max_block_size = 1000").await;
    assert_eq!(ask(&[], "SELECT a, getSetting('join_use_nulls') FROM t").await, "7\ttrue\n");

    // A URL's settings and database last for its query, in a session too.
    let settings = "SELECT getSetting('max_block_size'), getSetting('max_result_rows'), currentDatabase()";
    let url_settings = [("max_block_size", "5"), ("max_result_rows", "9")];
    assert_eq!(ask(&url_settings, settings).await, "5\t9\tsessions\n");
    let plain = [("session_id", "sessions_one"), ("query", settings)];
    let response = db.http.post(at(url(), &plain)).send().await.unwrap();
    assert_eq!(text(response).await, "1000\t0\tdefault\n");
    let (_, code, message) = failure(db.send(&[session, ("nope", "1")], "SELECT 1").await).await;
    assert_eq!(code, 115, "{message}");

    let other = db.send(&[("session_id", "sessions_two")], "SELECT * FROM t").await;
    assert_eq!(failure(other).await.1, 60);
    assert_eq!(
        failure(db.send(&[("session_id", "sessions_three"), ("session_check", "1")], "SELECT 1").await).await.1,
        372
    );
    assert_eq!(ask(&[("close_session", "1")], "SELECT 1").await, "1\n");
    assert_eq!(failure(db.send(&[session, ("session_check", "1")], "SELECT 1").await).await.1, 372);
    assert_eq!(failure(db.send(&[session, ("session_timeout", "4000")], "SELECT 1").await).await.1, 374);
}

#[tokio::test]
async fn a_session_and_a_query_id_serve_one_query_at_a_time() {
    let db = Database::new("one_at_a_time").await;
    let parameters = [("session_id", "busy"), ("query_id", "busy")];
    let slow = db.post(&parameters).body("SELECT sleepEachRow(1) FROM numbers(30) SETTINGS max_block_size = 1").send();
    let slow = tokio::spawn(slow);
    wait_until_running(&db, "sleepEachRow(1)").await;
    assert_eq!(failure(db.send(&[("session_id", "busy")], "SELECT 1").await).await.1, 373);
    assert_eq!(failure(db.send(&[("query_id", "busy")], "SELECT 1").await).await.1, 216);

    // And it can be killed by the id that its client gave it.
    let killed = db.ask("KILL QUERY WHERE query_id = 'busy' SYNC FORMAT TSV").await;
    assert!(killed.contains("finished"), "{killed}");
    assert_eq!(failure(slow.await.unwrap().unwrap()).await.1, 394);
    assert_eq!(text(db.send(&parameters, "SELECT 1").await).await, "1\n");
}

async fn wait_until_running(db: &Database, part: &str) {
    let ask = format!(
        "SELECT count() FROM system.processes WHERE position(query, '{part}') > 0 AND query NOT LIKE '%system.processes%'"
    );
    while db.ask(&ask).await == "0\n" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_query() {
    let db = Database::new("going_away").await;
    let query = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore('going_away')";
    // One that has sent nothing yet, and one in the middle of its result.
    let silent = tokio::spawn(db.post(&[]).body(query).send());
    wait_until_running(&db, "ignore(\\'going_away\\')").await;
    silent.abort();
    let streaming = db.send(&[], "SELECT number, 'going_away_2' FROM system.numbers").await;
    wait_until_running(&db, "going_away_2").await;
    drop(streaming);
    let left =
        "SELECT count() FROM system.processes WHERE query LIKE '%going_away%' AND query NOT LIKE '%system.processes%'";
    while db.ask(left).await != "0\n" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn many_queries_run_at_once() {
    let db = Database::new("at_once").await;
    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let tasks = (0..32_u64).map(|n| {
        let db = &db;
        async move {
            let insert = db.send(&[("query", "INSERT INTO t FORMAT TSV")], format!("{n}\n")).await;
            text(insert).await;
            let param = n.to_string();
            let select = db.send(&[("param_n", &param)], "SELECT {n:UInt64} + a FROM t WHERE a = {n:UInt64}").await;
            assert_eq!(text(select).await, format!("{}\n", 2 * n));
        }
    });
    stream::iter(tasks).buffer_unordered(16).collect::<Vec<()>>().await;
    assert_eq!(db.ask("SELECT count(), sum(a) FROM t").await, "32\t496\n");
}

#[tokio::test]
async fn every_kind_of_format_comes_whole() {
    let db = Database::new("whole_formats").await;
    // More than one block of the engine, and more than is held back before streaming.
    let rows = "SELECT number, toString(number) AS s FROM numbers(200000)";
    for format in ["JSON", "RowBinaryWithNamesAndTypes", "CSVWithNames", "Parquet", "ArrowStream", "Native", "XML"] {
        let body = db.send(&[], format!("{rows} FORMAT {format}")).await.bytes().await.unwrap();
        if format == "JSON" {
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((json["rows"].as_u64(), json["data"].as_array().unwrap().len()), (Some(200_000), 200_000));
        }
        if format == "XML" {
            continue;
        }
        // What came out goes back in.
        let table = format!("CREATE TABLE t_{format} (number UInt64, s String) ENGINE = MergeTree ORDER BY number");
        db.ask(&table).await;
        let insert = format!("INSERT INTO t_{format} FORMAT {}", if format == "JSON" { "JSON" } else { format });
        text(db.send(&[("query", &insert)], body).await).await;
        let check =
            format!("SELECT count(), uniqExact(number), sum(number), countIf(s = toString(number)) FROM t_{format}");
        assert_eq!(db.ask(&check).await, "200000\t200000\t19999900000\t200000\n", "{format}");
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_result_is_not_taken_for_its_end() {
    let db = Database::new("late_error").await;
    let query = "SELECT throwIf(number = 3000000, 'too late'), repeat('x', 10) FROM numbers(4000000)";
    let response = db.send(&[], query).await;
    assert_eq!(response.status(), 200);
    let tag = response.headers()["X-ClickHouse-Exception-Tag"].to_str().unwrap().to_owned();
    let mut body = response.bytes_stream();
    let mut received = Vec::new();
    let broken = loop {
        match body.next().await {
            Some(Ok(bytes)) => received.extend_from_slice(&bytes),
            Some(Err(_)) => break true,
            None => break false,
        }
    };
    assert!(broken, "the response ended as if it were complete");
    let end = String::from_utf8_lossy(&received[received.len() - 400..]).into_owned();
    assert!(end.contains(&format!("\r\n__exception__\r\n{tag}\r\nCode: 395. DB::Exception: too late")), "{end}");
    assert!(end.ends_with(&format!("{tag}\r\n__exception__\r\n")), "{end}");

    // Held back to its end, the same query fails as a whole.
    let (status, code, _) = failure(db.send(&[("wait_end_of_query", "1")], query).await).await;
    assert_eq!((status, code), (500, 395));
    let whole = db.send(&[("wait_end_of_query", "1")], "SELECT repeat('x', 99) FROM numbers(100000)").await;
    assert!(whole.headers()["X-ClickHouse-Summary"].to_str().unwrap().contains("\"result_rows\":\"100000\""));
    assert_eq!(whole.bytes().await.unwrap().len(), 10_000_000);
}

#[tokio::test]
async fn a_body_that_breaks_off_inserts_nothing() {
    let db = Database::new("broken_body").await;
    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let insert = [("query", "INSERT INTO t FORMAT RowBinary")];
    let rows: Vec<u8> = (0..1000_u64).flat_map(u64::to_le_bytes).collect();
    // In the middle of a row.
    assert_eq!(failure(db.send(&insert, rows[..7999].to_vec()).await).await.1, 33);
    // In the middle of the request, between two rows: the client goes away.
    let pieces = stream::iter([Ok(rows.clone()), Err(std::io::Error::other("the client dies"))]);
    db.post(&insert).body(Body::wrap_stream(pieces)).send().await.unwrap_err();
    // In the middle of a compressed body.
    let packed = gzip(&rows);
    let cut = db.post(&insert).header("Content-Encoding", "gzip").body(packed[..packed.len() / 2].to_vec());
    assert!(failure(cut.send().await.unwrap()).await.0 >= 400);
    while db.ask("SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO t %'").await != "0\n" {}
    assert_eq!(db.ask("SELECT count() FROM t").await, "0\n");
    // A malformed row names its place.
    let (status, code, message) = failure(db.send(&[("query", "INSERT INTO t FORMAT TSV")], "1\nx\n").await).await;
    assert_eq!((status, code), (400, 27));
    assert!(message.contains("at row 2"), "{message}");
    assert_eq!(db.ask("SELECT count() FROM t").await, "0\n");
}

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn bodies_are_compressed_both_ways() {
    use std::io::Read;
    let db = Database::new("compressed").await;
    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let rows: Vec<u8> = (0..100_000_u64).flat_map(u64::to_le_bytes).collect();
    let insert = [("query", "INSERT INTO t FORMAT RowBinary")];
    for (encoding, packed) in [("gzip", gzip(&rows)), ("zstd", zstd::encode_all(rows.as_slice(), 1).unwrap())] {
        text(db.post(&insert).header("Content-Encoding", encoding).body(packed).send().await.unwrap()).await;
    }
    let (status, code, _) =
        failure(db.post(&insert).header("Content-Encoding", "br").body("x").send().await.unwrap()).await;
    assert_eq!((status, code), (500, 89));
    assert_eq!(db.ask("SELECT count(), sum(a) FROM t").await, "200000\t9999900000\n");

    let select = "SELECT a FROM t ORDER BY a FORMAT RowBinary";
    let ask = async |accept: &str, parameters: &[(&str, &str)]| {
        let response = db.post(parameters).header("Accept-Encoding", accept).body(select).send().await.unwrap();
        let encoding = response.headers().get("Content-Encoding").map(|value| value.to_str().unwrap().to_owned());
        (encoding, response.bytes().await.unwrap())
    };
    let (plain_encoding, plain) = ask("br", &[]).await;
    assert_eq!(plain_encoding, None);
    let (encoding, packed) = ask("gzip", &[]).await;
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.as_ref()).read_to_end(&mut unpacked).unwrap();
    assert_eq!((encoding.as_deref(), unpacked == plain, packed.len() < plain.len()), (Some("gzip"), true, true));
    let (encoding, packed) = ask("zstd, gzip", &[("enable_http_compression", "1")]).await;
    assert_eq!((encoding.as_deref(), zstd::decode_all(packed.as_ref()).unwrap() == plain), (Some("zstd"), true));
    assert_eq!(ask("gzip", &[("enable_http_compression", "0")]).await, (None, plain));
}

#[tokio::test]
async fn a_repeat_under_the_same_token_inserts_nothing() {
    let db = Database::new("deduplication").await;
    db.ask(
        "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100",
    )
    .await;
    let insert = |token: &'static str| {
        [("query", "INSERT INTO t FORMAT TSV"), ("insert_deduplication_token", token), ("async_insert", "0")]
    };
    for token in ["one", "one", "two", "one"] {
        text(db.send(&insert(token), "1\n2\n").await).await;
    }
    assert_eq!(db.ask("SELECT count() FROM t").await, "4\n");
    text(
        db.send(&[("query", "INSERT INTO t FORMAT TSV"), ("async_insert", "1"), ("wait_for_async_insert", "1")], "5\n")
            .await,
    )
    .await;
    assert_eq!(db.ask("SELECT max(a) FROM t").await, "5\n");
}

#[tokio::test]
async fn native_blocks_are_written_for_the_client_s_revision() {
    let db = Database::new("native_revision").await;
    let query = "SELECT number % 3 AS n, toLowCardinality(toString(n)) AS l, [n, n] AS a, map('k', n) AS m, \
                 tuple(n, 'x') AS t, if(n = 1, NULL, n) AS o, toDecimal64(n, 2) AS d, toDateTime64(n, 3) AS e, \
                 toLowCardinality(if(n = 1, NULL, toString(n))) AS p, [(n, [toLowCardinality('q')])] AS q \
                 FROM numbers(70000) FORMAT Native";
    let plain = db.send(&[], query).await.bytes().await.unwrap();
    let revised = db.send(&[("client_protocol_version", "54405")], query).await.bytes().await.unwrap();
    // Only the info before each block is added up to that revision: every block can be walked, and ends where it should.
    let info = b"\x01\0\x02\xff\xff\xff\xff\0";
    let blocks = (revised.len() - plain.len()) / info.len();
    assert!(blocks > 1 && revised.starts_with(info), "{blocks}");
    let restored: Vec<u8> = revised.to_vec();
    assert_eq!(restored.windows(info.len()).filter(|window| window == info).count(), blocks);
    let (_, code, message) =
        failure(db.send(&[("client_protocol_version", "54483")], "SELECT '{}'::JSON AS j FORMAT Native").await).await;
    assert_eq!(code, 48, "{message}");
}

#[tokio::test]
async fn curl_works_as_the_manual_says() {
    let db = Database::new("curl").await;
    let curl = async |arguments: &[&str]| {
        let output = tokio::process::Command::new("curl").arg("-sS").args(arguments).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let base = format!("{}/?database={}", url(), db.name);
    assert_eq!(curl(&[&base, "-d", "CREATE TABLE t (a UInt8, s String) ENGINE = MergeTree ORDER BY a"]).await, "");
    assert_eq!(
        curl(&[&format!("{base}&query=INSERT%20INTO%20t%20FORMAT%20CSV"), "--data-binary", "1,x\n2,y\n"]).await,
        ""
    );
    assert_eq!(curl(&[&base, "--data-binary", "INSERT INTO t VALUES (3, 'z')"]).await, "");
    assert_eq!(curl(&[&format!("{base}&query=SELECT%20sum(a)%20FROM%20t")]).await, "6\n");
    assert_eq!(curl(&["--compressed", &base, "-d", "SELECT s FROM t ORDER BY s FORMAT TSV"]).await, "x\ny\nz\n");
    assert_eq!(curl(&[&base, "-H", "X-ClickHouse-Format: JSONEachRow", "-d", "SELECT 1 AS x"]).await, "{\"x\":1}\n");
    assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", &base, "-d", "SELECT * FROM nope"]).await, "404");
    assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", "-X", "DELETE", &base]).await, "501");
}

#[tokio::test]
async fn every_statement_with_a_result_gives_it() {
    let db = Database::new("statements").await;
    db.ask("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    db.ask("INSERT INTO t VALUES (1)").await;
    for (statement, begin) in [
        ("SHOW TABLES", "t\n"),
        ("SHOW CREATE TABLE t FORMAT TSVRaw", "CREATE TABLE statements.t\n(\n    `a` UInt64\n)"),
        ("DESCRIBE TABLE t", "a\tUInt64\t"),
        ("EXISTS TABLE t", "1\n"),
        ("CHECK TABLE t", "all_1_1_0\t1\t"),
        ("EXPLAIN SELECT 1", "Output: 1\n"),
        ("EXPLAIN AST SELECT 1", "SelectWithUnionQuery (children 1)\n"),
        ("EXPLAIN SYNTAX SELECT 1", "SELECT 1\n"),
        ("EXPLAIN ESTIMATE SELECT * FROM t", "statements\tt\t1\t1\t1\n"),
        ("(SELECT 1) UNION ALL (SELECT 1) -- end", "1\n1\n"),
        ("FROM t SELECT a FORMAT CSV SETTINGS max_threads = 1;", "1\n"),
        ("SELECT 1 AS format, 2 AS settings", "1\t2\n"),
        ("SELECT a % 1 AS k, count() FROM t GROUP BY k WITH TOTALS", "0\t1\n\n0\t1\n"),
        ("KILL QUERY WHERE query_id = 'nobody'", ""),
        ("OPTIMIZE TABLE t FINAL", ""),
    ] {
        let result = db.ask(statement).await;
        assert!(result.starts_with(begin) && result.is_empty() == begin.is_empty(), "{statement}: {result}");
    }
}

#[tokio::test]
async fn a_query_that_is_too_long_is_refused() {
    let db = Database::new("too_long").await;
    let long = format!("SELECT '{}'", "x".repeat(300_000));
    let (status, code, message) = failure(db.send(&[], long.clone()).await).await;
    assert_eq!((status, code), (400, 62), "{message}");
    assert!(message.contains("max_query_size"), "{message}");
    let allowed = db.send(&[("max_query_size", "1000000")], long).await;
    assert_eq!(text(allowed).await.len(), 300_001);
}

#[tokio::test]
async fn a_slow_client_is_not_cut_off() {
    let db = Database::new("slow_client").await;
    let response =
        Client::new().post(db.address(&[])).body("SELECT repeat('x', 1000) FROM numbers(20000)").send().await.unwrap();
    let mut body = response.bytes_stream();
    let first = body.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut length = first;
    while let Some(bytes) = body.next().await {
        length += bytes.unwrap().len();
    }
    assert_eq!(length, 20_020_000);
}

#[tokio::test]
async fn parameters_and_external_tables_may_come_as_a_form() {
    let db = Database::new("forms").await;
    let part = |disposition: &str, content: &str| {
        format!("--xyz\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
    };
    let body = [
        part("name=\"query\"", "SELECT sum(a) + {x:UInt8}, any(b) FROM ext"),
        part("name=\"param_x\"", "5"),
        part("name=\"ext\"; filename=\"ext\"", "1,p\n2,p\n"),
        "--xyz--\r\n".to_owned(),
    ];
    let content_type = ("Content-Type", "multipart/form-data; boundary=xyz");
    for session in [&[] as &[_], &[("session_id", "forms")]] {
        let parameters = [&[("ext_structure", "a UInt8, b String"), ("ext_format", "CSV")], session].concat();
        let sent = db.post(&parameters).header(content_type.0, content_type.1).body(body.concat());
        assert_eq!(text(sent.send().await.unwrap()).await, "8\tp\n");
        assert_eq!(failure(db.send(session, "SELECT * FROM ext").await).await.1, 60);
    }
    let unnamed = db.post(&[]).header(content_type.0, content_type.1).body(body.concat()).send().await.unwrap();
    assert_eq!(failure(unnamed).await.1, 36);
    let broken = db.post(&[]).header(content_type.0, content_type.1).body("no form").send().await.unwrap();
    assert_eq!(failure(broken).await.1, 36);
}

#[tokio::test]
async fn an_insert_select_reads_the_rows_after_it_with_input() {
    let db = Database::new("input").await;
    db.ask("CREATE TABLE t (a UInt64, b Nullable(String), c Enum('x' = 1, 'y' = 2)) ENGINE = MergeTree ORDER BY a")
        .await;
    let insert = "INSERT INTO t (a, b, c) SELECT a * {times:UInt64}, b, c FROM (SELECT * FROM \
                  input('a UInt64, b Nullable(String), c Enum(\\'x\\' = 1, \\'y\\' = 2)')) WHERE a > 1 FORMAT CSV";
    for session in [&[] as &[_], &[("session_id", "input")]] {
        let parameters = [&[("query", insert), ("param_times", "10")], session].concat();
        let response = db.send(&parameters, "1,p,x\n2,\\N,y\n3,q,x\n").await;
        let summary = response.headers()["X-ClickHouse-Summary"].to_str().unwrap().to_owned();
        assert!(summary.contains("\"written_rows\":\"2\""), "{summary}");
    }
    // The statement may stand in front of the rows as well.
    text(db.send(&[("param_times", "100")], format!("{insert}\n9,z,y\n")).await).await;
    assert_eq!(db.ask("SELECT * FROM t ORDER BY a").await, "20\t\\N\ty\n20\t\\N\ty\n30\tq\tx\n30\tq\tx\n900\tz\ty\n");
    let unnamed = "INSERT INTO t SELECT * FROM input() FORMAT CSV\n1,p,x\n";
    assert_eq!(failure(db.send(&[], unnamed).await).await.1, 48);
    let broken = db.send(&[("query", insert), ("param_times", "10")], "no number,p,x\n").await;
    assert_eq!(failure(broken).await.1, 27);
}
