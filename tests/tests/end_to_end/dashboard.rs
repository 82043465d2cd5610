//! Every panel and variable of the Grafana dashboards, against a real ClickHouse with rows in it.
//!
//! The queries are expanded as Grafana and its ClickHouse plugin do it: the dashboard's variables first, then the plugin's macros. A
//! macro that is not known here fails the test: it is not one of the plugin's, or has to be added.

use std::path::Path;

use serde_json::Value;
use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;
use tickhouse_tests::clickhouse::fresh_database;

/// The minute that the rows end at, in seconds since 1970; the dashboard looks at the hour before it and is refreshed at once.
struct Looked {
    now: u64,
    pk: &'static str,
}

/// The width of a point on the screen, which Grafana picks; the panels ask for a minute at least.
const INTERVAL_SECONDS: u64 = 60;

fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../grafana/dashboards");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.file_name().unwrap().to_string_lossy().into_owned(), serde_json::from_str(&text).unwrap())
        })
        .collect()
}

fn array<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Title, query type and SQL of everything that asks ClickHouse.
fn queries(dashboard: &Value) -> Vec<(String, &str, &str)> {
    let text = |value: &'_ Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let panels = array(dashboard, "/panels").flat_map(|panel| {
        let title = text(panel, "title");
        array(panel, "/targets").map(move |target| {
            (title.clone(), target["queryType"].as_str().unwrap(), target["rawSql"].as_str().unwrap())
        })
    });
    let variables = array(dashboard, "/templating/list")
        .map(|variable| (format!("${}", text(variable, "name")), "variable", variable["query"].as_str().unwrap()));
    panels.chain(variables).collect()
}

/// Replaces variables and macros.
fn expand(sql: &str, looked: &Looked) -> String {
    let (from, to) = (looked.now - 3600, looked.now + 5);
    let sql = sql.replace("${pk:singlequote}", &format!("'{}'", looked.pk));
    let sql = with_argument(&sql, "timeFilter", |column| {
        format!("{column} >= toDateTime({from}) AND {column} <= toDateTime({to})")
    });
    let sql = with_argument(&sql, "timeInterval", |column| {
        format!("toStartOfInterval(toDateTime({column}), INTERVAL {INTERVAL_SECONDS} second)")
    });
    let sql = sql.replace("$__interval_s", &INTERVAL_SECONDS.to_string());
    assert!(!sql.contains('$'), "a variable or macro that is not known: {sql}");
    sql
}

/// Replaces each `$__name(argument)`; the arguments here hold no parenthesis.
fn with_argument(sql: &str, name: &str, replacement: impl Fn(&str) -> String) -> String {
    let opening = format!("$__{name}(");
    let mut parts = sql.split(opening.as_str());
    let mut expanded = parts.next().unwrap().to_owned();
    for part in parts {
        let (argument, rest) = part.split_once(')').unwrap();
        expanded.push_str(&replacement(argument));
        expanded.push_str(rest);
    }
    expanded
}

/// Ten influencers over the last twenty minutes, with a failure in each.
async fn filled() -> (Endpoint, Looked) {
    let endpoint = fresh_database();
    migrate::run(&endpoint, &migrate::Options::default()).await.unwrap();
    let client = endpoint.client();
    let now: u32 = client.query_raw("SELECT toUnixTimestamp(toStartOfMinute(now()))").fetch_one().await.unwrap();
    for sql in [
        "INSERT INTO active_influencers (pk) SELECT 1000000 + number FROM numbers(10)".to_owned(),
        format!(
            "INSERT INTO follower_timeline SELECT 1000000 + number % 10, {now} - 60 * intDiv(number, 10), 100000 + number, 1000, \
             toDateTime64({now} - 60 * intDiv(number, 10), 3, 'UTC') + toIntervalMillisecond(1500) FROM numbers(200)"
        ),
        "INSERT INTO influencer_summary \
         (pk, username, follower_count, following_count, total_follower_sum, readings_count, last_updated, version) \
         SELECT pk, concat('influencer-', toString(pk)), argMax(follower_count, minute), argMax(following_count, minute), \
         sum(follower_count), count(), max(fetched_at), 1 FROM follower_timeline GROUP BY pk"
            .to_owned(),
        format!(
            "INSERT INTO fetch_dead_letters (minute, pk, reason, status, attempts, message, reply) \
             SELECT {now} - 60 * number, 1000010, if(number % 2 = 0, 'timeout', 'bad_body'), 0, 4, 'in words', '{{}}' FROM numbers(20)"
        ),
    ] {
        client.query_raw(&sql).execute().await.unwrap();
    }
    (endpoint, Looked { now: now.into(), pk: "1000003" })
}

/// ClickHouse's answer as names, types and rows.
async fn answer(endpoint: &Endpoint, sql: &str) -> Result<Value, clickhouse::error::Error> {
    let bytes = endpoint.client().query_raw(sql).fetch_bytes("JSONCompact")?.collect().await?;
    Ok(serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn every_panel_and_variable_returns_rows() {
    let (endpoint, looked) = filled().await;
    let mut asked = 0;
    for (file, dashboard) in dashboards() {
        for (title, kind, sql) in queries(&dashboard) {
            let expanded = expand(sql, &looked);
            let answer = answer(&endpoint, &expanded)
                .await
                .unwrap_or_else(|error| panic!("{file}, {title}: {error}\n{expanded}"));
            assert!(answer["rows"].as_u64() > Some(0), "{file}, {title}: no rows\n{expanded}");
            if kind == "timeseries" {
                let time = &answer["meta"][0];
                assert!(
                    time["type"].as_str().unwrap().starts_with("DateTime"),
                    "{file}, {title}: the first column is {time}"
                );
                assert!(answer["rows"].as_u64() > Some(1), "{file}, {title}: one point makes no line");
            }
            asked += 1;
        }
    }
    assert!(asked >= 12, "only {asked} queries were found");
}

#[tokio::test]
async fn what_the_panels_show_is_right() {
    let (endpoint, looked) = filled().await;
    let (_, dashboard) = dashboards().into_iter().find(|(file, _)| file == "influencers.json").unwrap();
    let shown = async |title: &str| {
        let (_, _, sql) = queries(&dashboard).into_iter().find(|(found, ..)| found == title).unwrap();
        answer(&endpoint, &expand(sql, &looked)).await.unwrap()["data"].clone()
    };
    // UInt64 and Int64 come as JSON numbers or strings, depending on a setting.
    let first = |rows: &Value, column: usize| rows[0][column].to_string().trim_matches('"').parse::<f64>().unwrap();
    assert_eq!(first(&shown("Influencers").await, 0), 10.0);
    assert_eq!(first(&shown("Readings, latest minute").await, 0), 10.0);
    assert_eq!(first(&shown("Failures, latest minute").await, 0), 1.0);
    assert_eq!(first(&shown("Average followers ever").await, 0), 100_099.5);
    assert_eq!(first(&shown("Average followers now").await, 0), 100_004.5);
    let rate = shown("Fetch rate").await;
    assert_eq!(rate.as_array().unwrap().len(), 20);
    assert!((first(&rate, 1) - 10.0 / 60.0).abs() < 1e-9 && (first(&rate, 2) - 1.0 / 60.0).abs() < 1e-9, "{rate}");
    let now = shown("Now").await;
    assert_eq!((first(&now, 0), first(&now, 4)), (100_003.0, 20.0));
}

#[tokio::test]
async fn no_influencer_chosen_yet_is_no_error() {
    let (endpoint, looked) = filled().await;
    let nobody = Looked { pk: "", ..looked };
    for (file, dashboard) in dashboards() {
        for (title, _, sql) in queries(&dashboard) {
            let result = answer(&endpoint, &expand(sql, &nobody)).await;
            assert!(result.is_ok(), "{file}, {title}: {result:?}");
        }
    }
}
