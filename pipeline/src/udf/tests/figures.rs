//! What the boundary costs. Not tests: run them with
//! `cargo test --release -p tickhouse udf::tests::figures -- --ignored --nocapture --test-threads 1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};

use super::{call_all, int64, udf};

/// CPU time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn async_calls_that_return_at_once() {
    let rows = 500_000;
    for name in ["test_later", "test_later_ordered"] {
        let mut instance = udf(name).start().unwrap();
        let args = [int64(&(0..rows).collect::<Vec<_>>()), int64(&vec![0; rows as usize])];
        let (began, cpu_began) = (Instant::now(), cpu());
        let answers = tokio::spawn(async move { drain_all(&mut instance, &args).await }).await.unwrap();
        let (took, cpu) = (began.elapsed(), cpu() - cpu_began);
        assert_eq!(answers, rows as usize);
        let per = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
        println!("{name}: {:.0} calls/s, {:.2} µs a call, {:.2} µs CPU", 1e6 / per(took), per(took), per(cpu));
    }
}

/// As `call_all`, but only counts.
async fn drain_all(instance: &mut super::AsyncUdf, args: &[ArrayRef]) -> usize {
    let rows = args[0].len();
    let (mut sent, mut finished) = (0, 0);
    while finished < rows {
        let done = std::future::poll_fn(|cx| {
            while sent < rows {
                let std::task::Poll::Ready(ready) = instance.poll_ready(cx) else { break };
                ready.unwrap();
                instance.send(sent as u64, args, sent).unwrap();
                sent += 1;
            }
            instance.poll_drain(cx)
        });
        finished += done.await.unwrap().ids.len();
    }
    finished
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn async_calls_at_a_steady_rate() {
    let mut instance = udf("test_later").start().unwrap();
    let args = [int64(&[1]), int64(&[20])];
    let (rate, seconds) = (16_667.0, 5.0);
    let task = tokio::spawn(async move {
        let (began, cpu_began) = (Instant::now(), cpu());
        let (mut sent, mut finished) = (0_u64, 0);
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while finished < (rate * seconds) as usize {
            tokio::select! {
                done = instance.drain() => finished += done.unwrap().ids.len(),
                _ = tick.tick() => {
                    let due = (began.elapsed().as_secs_f64().min(seconds) * rate) as u64;
                    while sent < due {
                        instance.ready().await.unwrap();
                        instance.send(sent, &args, 0).unwrap();
                        sent += 1;
                    }
                }
            }
        }
        (began.elapsed(), cpu() - cpu_began)
    });
    let (took, cpu) = task.await.unwrap();
    let share = cpu.as_secs_f64() / took.as_secs_f64();
    println!("16,667 calls/s of 20 ms: {:.0}% of a core, {:.2} µs CPU a call", share * 100.0, share / rate * 1e6);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn idle_instances() {
    let mut instances: Vec<_> = (0..100).map(|_| udf("test_later").start().unwrap()).collect();
    let args = [int64(&[1]), int64(&[0])];
    for instance in &mut instances {
        call_all(instance, &args).await;
    }
    let cpu_began = cpu();
    let waits = instances.iter_mut().map(|instance| instance.drain());
    let _ = tokio::time::timeout(Duration::from_secs(5), futures::future::join_all(waits)).await;
    println!("100 idle instances: {:?} CPU in 5 s", cpu() - cpu_began);
}

#[test]
#[ignore = "a measurement"]
fn scalar_rows() {
    let udf = udf("test_scale").scalar_udf().unwrap();
    for rows in [1, 100, 8192] {
        let columns = [int64(&(0..rows).collect::<Vec<_>>()), int64(&vec![3; rows as usize])];
        let calls = 2_000_000 / rows.max(20);
        let began = Instant::now();
        for _ in 0..calls {
            let args = ScalarFunctionArgs {
                args: columns.iter().map(|column| ColumnarValue::Array(Arc::clone(column))).collect(),
                arg_fields: ["x", "factor"].map(|name| Arc::new(Field::new(name, DataType::Int64, false))).into(),
                number_rows: rows as usize,
                return_field: Arc::new(Field::new("y", DataType::Int64, false)),
                config_options: Arc::new(ConfigOptions::new()),
            };
            udf.invoke_with_args(args).unwrap();
        }
        let took = began.elapsed().as_secs_f64();
        let (per_call, per_row) = (took / calls as f64, took / (calls * rows) as f64);
        println!("scalar, {rows} rows a batch: {:.2} µs a call, {:.1} ns a row", per_call * 1e6, per_row * 1e9);
    }
}

/// An API that answers at once and always the same but for the pk, on a thread of its own.
async fn bare_api() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok(read) = stream.read(&mut buffer).await
                    && read > 0
                {
                    let line = std::str::from_utf8(&buffer[..read]).unwrap().lines().next().unwrap();
                    let pk = line.split(['/', ' ']).rfind(|part| part.parse::<u64>().is_ok()).unwrap();
                    let body =
                        format!(r#"{{"pk":{pk},"username":"influencer-{pk}","followerCount":1,"followingCount":1}}"#);
                    let response = super::server::response("200 OK", "content-type: application/json\r\n", &body);
                    stream.write_all(response.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

/// Runs `body` in a process of its own, against `bare_api`.
async fn against_bare_api(body: &'static str) {
    let url = bare_api().await;
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([body, "--exact", "--ignored", "--nocapture"]).env("MOCKSTAGRAM_URL", url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    println!("{}", text.lines().filter(|line| line.contains("fetches/s")).collect::<String>());
}

const FETCHES: i64 = 200_000;

fn report(name: &str, began: Instant, cpu_began: Duration) {
    let (took, cpu) = (began.elapsed().as_secs_f64(), (cpu() - cpu_began).as_secs_f64());
    let (rate, each) = (FETCHES as f64 / took, cpu / FETCHES as f64 * 1e6);
    println!("\n{name}: {rate:.0} fetches/s, {each:.1} µs CPU each (both threads)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn fetches_through_the_boundary() {
    against_bare_api("udf::tests::figures::body_boundary").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn fetches_of_a_bare_client() {
    against_bare_api("udf::tests::figures::body_bare").await;
}

#[tokio::test]
#[ignore = "a measurement's other process"]
async fn body_boundary() {
    if std::env::var("MOCKSTAGRAM_URL").is_err() {
        return;
    }
    let catalog = crate::udf::UdfCatalog::open(&super::built()).unwrap();
    let mut instance = catalog.get("fetch_influencer").unwrap().start().unwrap();
    let args = [int64(&(0..FETCHES).collect::<Vec<_>>())];
    let (began, cpu_began) = (Instant::now(), cpu());
    drain_all(&mut instance, &args).await;
    report("through the boundary", began, cpu_began);
}

#[tokio::test]
#[ignore = "a measurement's other process"]
async fn body_bare() {
    let Ok(url) = std::env::var("MOCKSTAGRAM_URL") else {
        return;
    };
    let client = reqwest::Client::new();
    let (began, cpu_began) = (Instant::now(), cpu());
    let loops = (0..256).map(|n| {
        let (client, url) = (client.clone(), url.clone());
        async move {
            for pk in (n..FETCHES).step_by(256) {
                let response = client.get(format!("{url}/api/v1/influencers/{pk}")).send().await.unwrap();
                assert!(!response.bytes().await.unwrap().is_empty());
            }
        }
    });
    futures::future::join_all(loops).await;
    report("bare reqwest", began, cpu_began);
}
