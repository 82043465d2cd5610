//! What the boundary costs, beside what `tickhouse bench boundary` measures. Not tests: run them with
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
