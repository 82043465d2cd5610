//! Ends with exit code 7 while its server runs and its engine is at work: `leave DIR`.

use std::process::ExitCode;

use tickhouse_embedded::{ServeOptions, Server};

#[tokio::main]
async fn main() -> ExitCode {
    match work(std::env::args().nth(1).unwrap_or_default()).await {
        Ok(()) => ExitCode::from(7),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(path: String) -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::start(ServeOptions { http: "127.0.0.1:0".into(), ..ServeOptions::new(path) }).await?;
    let url = server.url();
    std::mem::forget(server);
    ask(&url, "CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a".into()).await?;
    for first in 0..4 {
        let url = url.clone();
        tokio::spawn(async move {
            for round in 0.. {
                let insert =
                    format!("INSERT INTO t SELECT number + {first} * {round}, toString(number) FROM numbers(1000)");
                let select = "SELECT s, quantile(a) FROM t GROUP BY s ORDER BY s FORMAT JSON".into();
                if ask(&url, insert).await.is_err() || ask(&url, select).await.is_err() {
                    return;
                }
            }
        });
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    Ok(())
}

async fn ask(url: &str, query: String) -> Result<(), reqwest::Error> {
    reqwest::Client::new().post(url).body(query).send().await?.error_for_status()?.text().await?;
    Ok(())
}
