//! The boundary to UDF libraries: calls that return at once, and fetches against a bare HTTP client.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tickhouse::udf::{AsyncUdf, UdfCatalog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::machine::Usage;
use super::report::{Figure, Section};
use super::{Bench, median};
use crate::cli::service::Service;
use crate::cli::{Failure, Outcome};

/// Requests at once, as of the fetch UDF.
const AT_ONCE: u64 = 256;

const RUNS: usize = 3;

/// What a process that fetches is told, in its environment: `udf`, `client` or `socket`; and how many.
const WAY: &str = "TICKHOUSE_BENCH_WAY";
const FETCHES: &str = "TICKHOUSE_BENCH_FETCHES";
const API: &str = "MOCKSTAGRAM_URL";

/// What such a process prints.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Fetched {
    seconds: f64,
    cpu: f64,
}

/// Calls the UDF once per row, and takes all results.
async fn call_all(instance: &mut AsyncUdf, args: &[ArrayRef]) -> Result<(), Failure> {
    let rows = args.first().map_or(0, |column| column.len());
    let (mut sent, mut finished) = (0, 0);
    while finished < rows {
        let some = std::future::poll_fn(|cx| {
            while sent < rows {
                match instance.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
                if let Err(error) = instance.send(sent as u64, args, sent) {
                    return Poll::Ready(Err(error));
                }
                sent += 1;
            }
            instance.poll_drain(cx)
        });
        finished += some.await?.ids.len();
    }
    Ok(())
}

fn numbers(count: u64, of: impl Fn(u64) -> i64) -> ArrayRef {
    Arc::new((0..count).map(|n| Some(of(n))).collect::<Int64Array>())
}

/// Seconds and seconds of CPU of calls that return at once.
async fn at_once(catalog: &UdfCatalog, calls: u64) -> Result<Fetched, Failure> {
    let Some(udf) = catalog.get("test_later") else {
        return Err("the UDF test_later is not built: `make build`".into());
    };
    let mut instance = udf.start()?;
    let args = [numbers(calls, |n| n as i64), numbers(calls, |_| 0)];
    // On a task, where the runtime's threads are.
    let calls = tokio::spawn(async move {
        let (begun, before) = (Instant::now(), Usage::own()?.cpu);
        call_all(&mut instance, &args).await?;
        let cpu = Usage::own()?.cpu - before;
        Ok::<_, Failure>(Fetched { seconds: begun.elapsed().as_secs_f64(), cpu })
    });
    calls.await?
}

/// Fetches, in a process that was started for it, and prints what it took.
pub async fn fetches(udf: &Path) -> Outcome {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let (way, url, count) = (variable(WAY)?, variable(API)?, variable(FETCHES)?.parse::<u64>()?);
    let pk = |n: u64| (n % 1_000_000) as i64 + 1_000_000;
    let (begun, before) = (Instant::now(), Usage::own()?.cpu);
    if way == "udf" {
        let catalog = UdfCatalog::open(udf)?;
        let Some(udf) = catalog.get("fetch_influencer") else {
            return Err("the UDF fetch_influencer is not built".into());
        };
        let mut instance = udf.start()?;
        call_all(&mut instance, &[numbers(count, pk)]).await?;
    } else {
        // One thread, as an instance of a UDF has.
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            match way.as_str() {
                "socket" => runtime.block_on(bare_sockets(&url, count, pk)),
                _ => runtime.block_on(bare_client(&url, count, pk)),
            }
        })
        .await??;
    }
    let cpu = Usage::own()?.cpu - before;
    println!("{}", serde_json::to_string(&Fetched { seconds: begun.elapsed().as_secs_f64(), cpu })?);
    Ok(())
}

/// The fetches of a plain client, [`AT_ONCE`] at once.
async fn bare_client(url: &str, count: u64, pk: impl Fn(u64) -> i64) -> Outcome {
    let client = reqwest::Client::new();
    let tasks = (0..AT_ONCE).map(|first| {
        let (client, pk) = (&client, &pk);
        async move {
            for n in (first..count).step_by(AT_ONCE as usize) {
                let response = client.get(format!("{url}/api/v1/influencers/{}", pk(n))).send().await?;
                response.error_for_status()?.bytes().await?;
            }
            Ok::<_, reqwest::Error>(())
        }
    });
    futures::future::try_join_all(tasks).await?;
    Ok(())
}

/// The fetches without HTTP: a request is written, and whatever comes is the answer. What is left is the system's work.
async fn bare_sockets(url: &str, count: u64, pk: impl Fn(u64) -> i64) -> Outcome {
    let host = url.trim_start_matches("http://");
    let tasks = (0..AT_ONCE).map(|first| {
        let pk = &pk;
        async move {
            let mut socket = TcpStream::connect(host).await?;
            socket.set_nodelay(true)?;
            let mut answer = vec![0; 4096];
            for n in (first..count).step_by(AT_ONCE as usize) {
                let request = format!("GET /api/v1/influencers/{} HTTP/1.1\r\nhost: {host}\r\n\r\n", pk(n));
                socket.write_all(request.as_bytes()).await?;
                let length = socket.read(&mut answer).await?;
                if !answer.get(..length).is_some_and(|answer| answer.starts_with(b"HTTP/1.1 200")) {
                    return Err("the stand-in has not answered with a reading".into());
                }
            }
            Ok::<_, Failure>(())
        }
    });
    futures::future::try_join_all(tasks).await?;
    Ok(())
}

/// Seconds that so many messages to another thread and its answers take, [`AT_ONCE`] at once: the least that calls of a function
/// take which lives on a thread of its own.
async fn handed_over(calls: u64) -> Result<f64, Failure> {
    let (send, mut receive) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<u64>>(AT_ONCE as usize);
    let answering = std::thread::spawn(move || {
        while let Some(answer) = receive.blocking_recv() {
            // Nobody waits for it any more: the benchmark was stopped.
            let _ = answer.send(0);
        }
    });
    let begun = Instant::now();
    let mut waiting = futures::stream::FuturesUnordered::new();
    for _ in 0..calls {
        let (answer, answered) = tokio::sync::oneshot::channel();
        send.send(answer).await?;
        waiting.push(answered);
        if waiting.len() as u64 >= AT_ONCE {
            waiting.next().await;
        }
    }
    while waiting.next().await.is_some() {}
    let seconds = begun.elapsed().as_secs_f64();
    drop(send);
    answering.join().map_err(|_| "the answering thread has panicked")?;
    Ok(seconds)
}

/// Lets another process fetch.
async fn fetched(bench: &Bench<'_>, way: &str, url: &str, count: u64) -> Result<Fetched, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "fetches"]).env(WAY, way).env(API, url).env(FETCHES, count.to_string());
    command.env("TICKHOUSE_UDF", &bench.args.programs.udf).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(format!("the fetches failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs the benchmark.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("The boundary to UDFs");
    let calls = bench.size(2_000_000, 500_000);
    let catalog = UdfCatalog::open(&bench.args.programs.udf.join("testing"))?;
    let (mut took, mut handed) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        took.push(at_once(&catalog, calls).await?);
        handed.push(tokio::spawn(handed_over(calls)).await??);
    }
    let per_call = |of: fn(&Fetched) -> f64, count: u64, all: &[Fetched]| {
        median(all.iter().map(of).collect()) * 1e6 / count as f64
    };
    let each = per_call(|took| took.seconds, calls, &took);
    let figure = Figure::new("a call that returns at once", each, "µs").at_most(3.0);
    section.tell(figure.limit("a message to another thread and back", median(handed) * 1e6 / calls as f64));
    section.tell(Figure::new("CPU of a call that returns at once", per_call(|took| took.cpu, calls, &took), "µs"));

    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?.with_file_name("mockstagram");
    let api = Service::new("mockstagram", &program).args(["--until-stdin-closes", "--http", "127.0.0.1:0"]);
    let api = api.start(folder.path()).await?;
    let count = bench.size(400_000, 100_000);
    let (mut udf, mut client, mut socket) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        socket.push(fetched(bench, "socket", api.url(), count).await?);
        client.push(fetched(bench, "client", api.url(), count).await?);
        udf.push(fetched(bench, "udf", api.url(), count).await?);
    }
    api.stop().await?;
    let rate = |all: &[Fetched]| 1e6 / per_call(|took| took.seconds, count, all);
    let figure = Figure::new("fetches through the boundary", rate(&udf), "fetches/s");
    let figure = figure.against("a bare reqwest client", rate(&client)).ratio_at_least(0.8);
    section.tell(figure.limit("bytes through sockets", rate(&socket)));
    let cpu = |all: &[Fetched]| per_call(|took| took.cpu, count, all);
    section.tell(
        Figure::new("CPU of a fetch through the boundary", cpu(&udf), "µs")
            .against("a bare reqwest client", cpu(&client))
            .limit("bytes through sockets", cpu(&socket)),
    );
    section.note(format!("{AT_ONCE} requests at once, from one thread, to the stand-in on the same machine; the client reads the body and throws it away, the UDF parses it; through sockets a request is bytes that are written, an answer bytes that are read: the work of the system alone."));
    Ok(section)
}
