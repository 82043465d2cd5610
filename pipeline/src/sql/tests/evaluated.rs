//! What expressions compute, from the text of a query to batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::util::display::array_value_to_string;

use super::plan;
use crate::runtime::{Body, Clock, Context, Outbox, Output, Subtask, Time};

/// Runs `SELECT exprs FROM t`, with or without more behind it, over rows (n, j) that are a second apart, and gives the rows
/// as text. The query must be made of nodes that hold nothing back.
fn run(select: &str, rows: &[(Option<i64>, Option<&str>)]) -> Vec<String> {
    let text = format!("CREATE TABLE t (n BIGINT, j TEXT) WITH (connector = 'lines');\n{select}");
    let pipeline = plan("test.sql", &text).unwrap_or_else(|error| panic!("{error}"));
    let numbers: Int64Array = rows.iter().map(|(n, _)| *n).collect();
    let texts: StringArray = rows.iter().map(|(_, j)| *j).collect();
    let times: TimestampNanosecondArray = (0..rows.len() as i64).map(|i| Some(i * 1_000_000_000)).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(numbers), Arc::new(texts), Arc::new(times)];
    let (source, _) = pipeline.job.nodes().next().unwrap();
    let schema = Arc::clone(pipeline.job.output(source).unwrap().schema());
    let mut batches = vec![RecordBatch::try_new(schema, columns).unwrap()];
    for (_, node) in pipeline.job.nodes().skip(1).filter(|(id, _)| pipeline.job.output(*id).is_some()) {
        let clock = Clock::system();
        let subtask = Subtask {
            pipeline: "t".into(),
            node: node.name.clone(),
            index: 0,
            parallelism: 1,
            event_time_is_read: true,
            clock,
            run: None,
        };
        let Body::Operator(mut operator) = node.plan.build(&subtask).unwrap() else { panic!("an operator") };
        let mut outbox = Outbox::default();
        for batch in std::mem::take(&mut batches) {
            operator.process(0, batch, &mut Context::new(Time(0), &mut outbox)).unwrap();
        }
        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
        while operator.poll_work(&mut task, &mut Context::new(Time(0), &mut outbox)).is_ready() {}
        while let Some(output) = outbox.pop() {
            if let Output::Batch(batch) = output {
                batches.push(batch);
            }
        }
    }
    let row = |batch: &RecordBatch, row: usize| {
        let visible = batch.columns().split_last().map(|(_, visible)| visible.to_vec()).unwrap_or_default();
        let values = visible.iter().map(|column| match column.is_null(row) {
            true => "NULL".to_owned(),
            false => array_value_to_string(column, row).unwrap(),
        });
        values.collect::<Vec<_>>().join(" | ")
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|i| row(batch, i)).collect::<Vec<_>>()).collect()
}

#[test]
fn filters_and_arithmetic() {
    let rows = [(Some(1), None), (Some(20), None), (None, None)];
    assert_eq!(
        run("SELECT n * 2 + 1 AS m, n IS NULL AS x FROM t WHERE coalesce(n, 10) > 5", &rows),
        ["41 | false", "NULL | true"]
    );
}

#[test]
fn functions_of_the_user_are_called() {
    assert_eq!(run("SELECT twice(n) FROM t", &[(Some(21), None)]), ["42"]);
}

#[test]
fn row_time_is_the_hidden_column() {
    let rows = [(Some(1), None), (Some(2), None)];
    let query =
        "SELECT n, row_time() AS at FROM (SELECT n, j FROM t) AS s WHERE row_time() > TIMESTAMP '1970-01-01 00:00:00'";
    assert_eq!(run(query, &rows), ["2 | 1970-01-01T00:00:01"]);
}

#[test]
fn json_is_taken_apart() {
    let rows =
        [(None, Some(r#"{"ok": true, "a": {"b": [1, 2]}, "s": "x\"y", "f": 1.5}"#)), (None, Some("{")), (None, None)];
    let query = "SELECT json_get_bool(j, 'ok'), json_get_str(j, 's'), CAST(j -> 'f' AS DOUBLE), j ->> 's', j ? 'a',
        CAST(json_get(j, 'a', 'b', 1) AS BIGINT), json_get(j, 'a') FROM t";
    let expected = [
        r#"true | x"y | 1.5 | x"y | true | 2 | {"b": [1, 2]}"#,
        "NULL | NULL | NULL | NULL | false | NULL | NULL",
        "NULL | NULL | NULL | NULL | false | NULL | NULL",
    ];
    assert_eq!(run(query, &rows), expected);
}

#[test]
fn json_paths_give_text() {
    let rows = [(Some(1), Some(r#"{"a": [1, "two", {"c": 3}]}"#)), (Some(2), Some("no json")), (Some(3), Some("{}"))];
    assert_eq!(
        run("SELECT extract_json(j, '$.a[*]'), extract_json_string(j, '$.a[1]') FROM t", &rows),
        [r#"[1, "two", {"c":3}] | two"#, "NULL | NULL", "[] | NULL"]
    );
    assert_eq!(
        run("SELECT n, unnest(extract_json(j, '$.a[*]')) AS e FROM t", &rows),
        ["1 | 1", r#"1 | "two""#, r#"1 | {"c":3}"#]
    );
    assert_eq!(
        run(
            "SELECT CAST(e AS BIGINT) * 2 AS d FROM (SELECT unnest(extract_json(j, '$[*]')) AS e FROM t)",
            &[(None, Some("[1, 2]"))]
        ),
        ["2", "4"]
    );
}

#[test]
fn a_list_is_unnested_beside_itself() {
    let rows = [(Some(1), Some("[1,2]"))];
    let query = "SELECT unnest(l) AS e, l, n FROM (SELECT extract_json(j, '$[*]') AS l, n FROM t)";
    assert_eq!(run(query, &rows), ["1 | [1, 2] | 1", "2 | [1, 2] | 1"]);
}

#[test]
fn views_and_memory_tables_pass_rows_on() {
    let query = "CREATE VIEW v (a, b) AS SELECT n + 1, j FROM t;
        CREATE TABLE m (b TEXT, a INT);
        SELECT a, b FROM m WHERE a > 2;
        INSERT INTO m (a, b) SELECT a, b FROM v;";
    assert_eq!(run(query, &[(Some(1), Some("x")), (Some(2), Some("y"))]), ["3 | y"]);
}
