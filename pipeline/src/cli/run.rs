//! `tickhouse run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tickhouse::plan::{Format, explain};
use tickhouse::run::{PlanOptions, RunOptions, plan, start};
use tickhouse::runtime::metrics::{NodeSnapshot, Snapshot};
use tickhouse::runtime::{Finished, Metrics, Reason, Running};
use tickhouse::state::StartFrom;
use tickhouse::status::StatusListener;

use super::progress::LiveView;
use super::signals::Signals;
use super::{Failure, Outcome};

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse run pipeline.sql --udf target/udfs --state-dir state/influencers
  tickhouse run pipeline.sql --parallelism 4 --http 127.0.0.1:8080
  CLICKHOUSE_URL=http://db:8123 tickhouse run pipeline.sql --wait 5m --log-format json

A pipeline ends by itself, with exit code 0, when all its sources end.")]
pub struct RunArgs {
    /// The pipeline, a file of SQL
    pub file: PathBuf,
    /// The pipeline's name in metrics, logs and state [default: the folder and name of the file]
    #[arg(long)]
    pub name: Option<String>,
    /// Folder, or s3://BUCKET/PREFIX, for the state of this pipeline alone: a pipeline that is started again goes on from
    /// there. Made when missing; without it no state is saved
    #[arg(long, env = "TICKHOUSE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Start anew, whatever state is saved; it is removed when the first new checkpoint is complete
    #[arg(long, requires = "state_dir")]
    pub fresh: bool,
    /// Go on from this checkpoint, not from the newest: rows that came later may be written again
    #[arg(long, value_name = "EPOCH", requires = "state_dir", conflicts_with = "fresh")]
    pub resume_from: Option<u64>,
    /// Subtasks per operator [default: the number of cores]
    #[arg(long, env = "TICKHOUSE_PARALLELISM", value_name = "N", value_parser = parallelism)]
    pub parallelism: Option<usize>,
    /// Folder of UDF libraries and their sources
    #[arg(long, env = "TICKHOUSE_UDF", value_name = "DIR")]
    pub udf: Option<PathBuf>,
    /// How long to wait at start for ClickHouse and the like
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// Time between checkpoints
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = interval)]
    pub checkpoint_interval: Duration,
    /// Serve /health, /metrics (Prometheus) and /graph here; port 0 lets the system choose
    #[arg(long, env = "TICKHOUSE_HTTP", value_name = "ADDR", value_parser = address)]
    pub http: Option<String>,
    /// Stop cleanly after this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub stop_after: Option<Duration>,
    /// Stop when standard input is closed: for a parent that must not leave us behind
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

fn parallelism(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1024) => Ok(number),
        _ => Err("expected a whole number from 1 to 1024".to_owned()),
    }
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
        Some((host, Ok(_))) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("expected HOST:PORT, as in 127.0.0.1:8080".to_owned()),
    }
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("expected more than no time".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// Plans, starts, shows and ends the pipeline.
pub async fn run(args: RunArgs) -> Outcome {
    let mut signals = Signals::listen()?.and_parent(args.until_stdin_closes);
    run_until(args, &mut signals).await
}

/// Runs the pipeline until its sources end, its time is up or a signal comes, which stop it cleanly. A signal after that
/// stops it at once.
pub async fn run_until(args: RunArgs, signals: &mut Signals) -> Outcome {
    let pipeline = plan(&args.file, &PlanOptions { udf: args.udf, wait: args.wait })?;
    let options = RunOptions {
        name: args.name.unwrap_or_else(|| default_name(&args.file)),
        state_dir: args.state_dir,
        from: match args.resume_from {
            Some(epoch) => StartFrom::Epoch(epoch),
            None if args.fresh => StartFrom::Nothing,
            None => StartFrom::Newest,
        },
        parallelism: args.parallelism.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        checkpoint_interval: args.checkpoint_interval,
    };
    let listener = match &args.http {
        Some(address) => Some(StatusListener::bind(address).await?),
        None => None,
    };
    let started = start(&pipeline, &options).await?;
    match &started.resumed {
        Some(resumed) => {
            for error in &resumed.passed_over {
                tracing::warn!("going on from an older checkpoint: {error}");
            }
            tracing::info!(epoch = resumed.epoch, rows_of_state = resumed.rows, "going on from the checkpoint");
        }
        None if options.state_dir.is_none() => {
            tracing::info!("no --state-dir: no state is saved, and a pipeline that is started again begins anew");
        }
        None => {}
    }
    let metrics = started.running.metrics();
    let _status = listener.map(|listener| {
        tracing::info!("status at http://{}/health, /metrics and /graph", listener.local_addr());
        listener.serve(Arc::clone(&metrics), explain(&pipeline.job, Format::Json))
    });
    tracing::info!(pipeline = options.name, parallelism = options.parallelism, "running; Ctrl-C stops it cleanly");
    let view = LiveView::start(Arc::clone(&metrics));
    let finished = supervise(started.running, &metrics, signals, args.stop_after, options.state_dir.is_some()).await;
    view.finish().await;
    match finished?.reason {
        Reason::SourcesEnded => tracing::info!("done: every source has ended"),
        Reason::Stopped | Reason::Aborted => tracing::info!("stopped; everything read has been delivered"),
    }
    Ok(())
}

/// Between two words on what a stop waits for.
const PATIENCE: Duration = Duration::from_secs(5);

async fn supervise(
    running: Running,
    metrics: &Metrics,
    signals: &mut Signals,
    stop_after: Option<Duration>,
    is_saved: bool,
) -> Result<Finished, Failure> {
    let control = running.control();
    let ended = running.wait();
    tokio::pin!(ended);
    let time_is_up = async {
        match stop_after {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        finished = &mut ended => return Ok(finished?),
        () = signals.next() => {}
        () = time_is_up => {}
    }
    tracing::info!("stopping: finishing what is under way; Ctrl-C again stops at once");
    control.stop();
    loop {
        tokio::select! {
            finished = &mut ended => return Ok(finished?),
            () = signals.next() => break,
            () = tokio::time::sleep(PATIENCE) => {
                tracing::info!("still stopping: {}; Ctrl-C again stops at once", under_way(&metrics.snapshot()));
            }
        }
    }
    control.abort();
    // Ends with an error of being aborted, which says less than ours.
    let _ = ended.await;
    Err(match is_saved {
        true => {
            "stopped at once by a second signal: started again, the pipeline goes on from its last checkpoint".into()
        }
        false => "stopped at once by a second signal: rows under way were not delivered".into(),
    })
}

/// What has not come to its end.
fn under_way(snapshot: &Snapshot) -> String {
    let busy = |node: &NodeSnapshot| node.total(|subtask| subtask.in_flight + subtask.queued_rows) > 0;
    let busy: Vec<_> = snapshot.nodes.iter().filter(|node| busy(node)).map(|node| format!("`{}`", node.name)).collect();
    if busy.is_empty() {
        "the last checkpoint is under way".to_owned()
    } else {
        format!("waiting for {}", busy.join(", "))
    }
}

/// `sql/influencers/pipeline.sql` is called `influencers-pipeline`.
fn default_name(file: &Path) -> String {
    let full = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let folder = full.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let stem = full.file_stem().map_or_else(|| "pipeline".to_owned(), |n| n.to_string_lossy().into_owned());
    folder.map_or_else(|| stem.clone(), |folder| format!("{folder}-{stem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_named_after_its_folder_and_file() {
        assert_eq!(default_name(Path::new("/x/influencers/pipeline.sql")), "influencers-pipeline");
    }

    #[test]
    fn no_time_between_checkpoints_is_refused() {
        assert!(interval("0s").is_err());
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert!(parallelism("0").is_err());
    }
}
