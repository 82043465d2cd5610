//! The main job in real minutes: every influencer read exactly once in each, on this machine alone.
//!
//! ClickHouse, the stand-in for the API and the pipeline run as processes of their own, with checkpoints and exactly-once
//! delivery. What the stand-in has counted, the timeline and the summary must agree.

mod counted;
mod growth;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use clickhouse::Client;
use serde::Serialize;
use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;
use tokio::process::Command;

pub use self::growth::growth;

use self::counted::Counted;
use super::call_times::CallTimes;
use super::checkpoints::newest_checkpoint;
use super::flame::Recording;
use super::machine::Usage;
use super::report::{Figure, Section};
use super::{Bench, Programs, machine};
use crate::cli::Failure;
use crate::cli::progress::{grouped, say};
use crate::cli::run::interval;
use crate::cli::service::{Child, RunningService, Service, tail};

/// How the main job is run.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// million: influencers, each read once a minute
    #[arg(long, default_value_t = A_MILLION, value_parser = clap::value_parser!(u64).range(1..))]
    influencers: u64,
    /// million: whole minutes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// million: subtasks per operator
    #[arg(long, default_value_t = 2)]
    parallelism: usize,
    /// million: time between checkpoints
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = interval)]
    checkpoint_interval: Duration,
    /// million: the calls of a minute are spread over so many seconds, kind to the API; as fast as allowed without
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    fetch_spread: Option<u64>,
    /// million: a flame graph of the pipeline in the last minute (needs `perf`)
    #[arg(long)]
    flame_graph: bool,
}

/// What was found; the last line of standard output of `bench million`.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    influencers: u64,
    minutes: u64,
    whole_minutes: usize,
    /// Whether nothing is wrong.
    whole: bool,
    /// What is wrong, in words.
    flaws: Vec<String>,
    /// What the run has left behind, kept only where something is wrong.
    folder: Option<PathBuf>,
    failed_fetches: u64,
    fetches_per_second: f64,
    /// The readings of a minute over the time from its end to its last reading: what it could do. The median of the minutes.
    fetches_per_second_while_reading: f64,
    served: u64,
    stored: u64,
    read_unequally_often: usize,
    summary_disagrees: u64,
    /// From the end of each minute to its last reading, in seconds.
    seconds_to_last_reading: Vec<f64>,
    /// Medians over the minutes of when half, and 99 of 100, of the readings were there.
    seconds_to_half: f64,
    seconds_to_99_percent: f64,
    /// Half, and 99 of 100, of the calls of the UDF that fetches took at most so many seconds, waits for a connection
    /// and further attempts included.
    fetch_p50_seconds: Option<f64>,
    fetch_p99_seconds: Option<f64>,
    /// From the last minute's end until all its rows could be read, in seconds; none when they never could.
    seconds_to_last_row_visible: Option<f64>,
    cpu_cores: PerProcess,
    peak_memory_mib: PerProcess,
    timeline_bytes_per_row: f64,
    timeline_uncompressed_bytes_per_row: f64,
    /// Compressed, in the last checkpoint, over all influencers; none when there is no checkpoint.
    state_bytes: Option<u64>,
    clean_stop: bool,
    #[serde(skip)]
    flame_graph: Result<bool, String>,
}

/// A figure of each of the three processes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct PerProcess {
    pipeline: f64,
    stand_in: f64,
    clickhouse: f64,
}

/// The size that the aims are for: what it leaves idle of a machine, and the memory that it and each further one may take (600 MB).
const A_MILLION: u64 = 1_000_000;
const PERCENT_IDLE: f64 = 66.7;
const MIB_PER_MILLION: f64 = 572.0;

const MIB: f64 = 1_048_576.0;

/// Where the pipeline logs, in the folder of the run.
const PIPELINE_LOG: &str = "pipeline.log";

/// Where it keeps its state there.
const STATE: &str = "state";

/// The flame graph, in the folder of the report.
const FLAME_GRAPH: &str = "million.svg";

/// From the last minute's end until the flame graph's time begins, in seconds, and that time.
const BEFORE_RECORDING: f64 = 5.0;
const RECORDED: Duration = Duration::from_secs(15);

/// The seconds of a minute in which the pipeline may be started. A minute of which it sees a whole second or more is read for all
/// influencers, since the heartbeat has a beat of each shard in every second; one of which it sees less, for some of them only. The
/// start takes seconds itself, and whoever waits for the first of these may wake a little early.
const STARTS: RangeInclusive<f64> = 2.0..=40.0;

/// How long before its last minute is over the pipeline is stopped, in seconds: it may not begin with the next one.
const BEFORE_END: f64 = 0.5;

/// The time that counts, in seconds since 1970: whole minutes. A minute's readings are made in the one after it, so that those of the
/// minutes that end from `begin` on, before `end`, are made in it.
#[derive(Debug, Clone, Copy)]
struct Span {
    begin: f64,
    end: f64,
}

impl Span {
    fn seconds(self) -> f64 {
        self.end - self.begin
    }

    /// The end of the last minute that is read.
    fn last_minute(self) -> f64 {
        self.end - 60.0
    }

    /// The ends of all minutes that are read.
    fn minutes(self) -> impl Iterator<Item = u32> {
        (self.begin as u32..self.end as u32).step_by(60)
    }
}

/// The processes of a run.
struct Scene {
    clickhouse: RunningService,
    stand_in: RunningService,
    client: Client,
    folder: PathBuf,
}

impl Scene {
    async fn start(settings: &Settings, programs: &Programs, folder: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let data = folder.join("clickhouse").display().to_string();
        let serve = ["clickhouse", "serve", "--until-stdin-closes", "--http", "127.0.0.1:0", "--path", &data];
        let clickhouse = Service::new("clickhouse", &program).args(serve).start(folder).await?;
        let known = settings.influencers.max(1_000_000).to_string();
        let stand_in = Service::new("mockstagram", &program.with_file_name("mockstagram"))
            .args(["--until-stdin-closes", "--http", "127.0.0.1:0", "--influencers", &known])
            .start(folder)
            .await?;
        let endpoint = Endpoint::parse(clickhouse.url())?;
        migrate::run(&endpoint, &migrate::Options::default()).await?;
        let scene = Self {
            client: endpoint.client().with_database("tickhouse"),
            clickhouse,
            stand_in,
            folder: folder.to_owned(),
        };
        say(format!("filling the registry with {} influencers", grouped(settings.influencers)));
        let mut bootstrap = scene.command(&programs.sql.join("bootstrap.sql"), settings, programs, "bootstrap.log")?;
        bootstrap.args(["--log", "warn"]);
        let status = bootstrap.kill_on_drop(true).status().await?;
        if !status.success() {
            return Err(format!("the registry was not filled:\n{}", tail(&folder.join("bootstrap.log"))).into());
        }
        Ok(scene)
    }

    fn command(&self, file: &Path, settings: &Settings, programs: &Programs, log: &str) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg(file).arg("--udf").arg(&programs.udf);
        command.env("CLICKHOUSE_URL", self.clickhouse.url()).env("MOCKSTAGRAM_URL", self.stand_in.url());
        command.env("INFLUENCERS", settings.influencers.to_string()).env("FETCH_WINDOW_MS", "60000");
        // Enough for an API that answers within a millisecond; four times as many cost a fifth more CPU per fetch.
        if std::env::var_os("FETCH_MAX_CONNECTIONS").is_none() {
            command.env("FETCH_MAX_CONNECTIONS", "64");
        }
        if let Some(seconds) = settings.fetch_spread {
            let per_second = settings.influencers.div_ceil(seconds);
            command.env("FETCH_MAX_RPS", per_second.to_string());
        }
        command.stderr(std::fs::File::create(self.folder.join(log))?);
        Ok(command)
    }

    fn pipeline(&self, settings: &Settings, programs: &Programs) -> Result<Child, Failure> {
        let mut command = self.command(&programs.sql.join("pipeline.sql"), settings, programs, PIPELINE_LOG)?;
        // Its log says where its status is.
        command.args(["--log", "info", "--http", "127.0.0.1:0"]);
        command.args(["--until-stdin-closes", "--parallelism", &settings.parallelism.to_string()]);
        let interval = humantime::format_duration(settings.checkpoint_interval).to_string();
        command.args(["--checkpoint-interval", &interval, "--state-dir"]).arg(self.folder.join(STATE));
        Child::spawn("the pipeline", command)
    }

    /// An error, with the end of its log, when the pipeline has ended.
    fn still_runs(&self, pipeline: &mut Child) -> Result<(), Failure> {
        if pipeline.has_ended() {
            return Err(format!("the pipeline has ended:\n{}", tail(&self.folder.join(PIPELINE_LOG))).into());
        }
        Ok(())
    }

    /// Waits for a moment, as long as the pipeline runs.
    async fn wait_until(&self, moment: f64, pipeline: &mut Child) -> Result<(), Failure> {
        while seconds_now() < moment {
            self.still_runs(pipeline)?;
            sleep_until(moment.min(seconds_now() + 1.0)).await;
        }
        Ok(())
    }

    /// CPU seconds of each process so far, and its peak of memory in MiB.
    fn usage(&self, pipeline: &mut Child) -> Result<(PerProcess, PerProcess), Failure> {
        self.still_runs(pipeline)?;
        let of = |name: &str, id: Option<u32>| -> Result<Usage, String> {
            let id = id.ok_or_else(|| format!("{name} has ended"))?;
            Usage::of(id).map_err(|error| format!("{name}: {error}"))
        };
        let p = of("the pipeline", pipeline.id())?;
        let s = of("the stand-in", self.stand_in.id())?;
        let c = of("ClickHouse", self.clickhouse.id())?;
        let mib = |usage: Usage| usage.peak as f64 / MIB;
        let cpu = PerProcess { pipeline: p.cpu, stand_in: s.cpu, clickhouse: c.cpu };
        Ok((cpu, PerProcess { pipeline: mib(p), stand_in: mib(s), clickhouse: mib(c) }))
    }

    async fn stop(self) -> crate::cli::Outcome {
        self.stand_in.stop().await?;
        self.clickhouse.stop().await
    }
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

async fn sleep_until(moment: f64) {
    tokio::time::sleep(Duration::from_secs_f64((moment - seconds_now()).max(0.0))).await;
}

/// How long to wait, in seconds, until the pipeline may be started.
fn until_start(now: f64) -> f64 {
    let second = now.rem_euclid(60.0);
    if STARTS.contains(&second) { 0.0 } else { (STARTS.start() - second).rem_euclid(60.0) }
}

/// Waits until the pipeline may be started; the end of the minute that it is then.
async fn first_minute() -> f64 {
    let now = seconds_now();
    let wait = until_start(now);
    if wait > 0.0 {
        say(format!("waiting {wait:.0} s: started so near to a minute's end, the pipeline would not see enough of it"));
        sleep_until(now + wait).await;
    }
    (seconds_now() / 60.0).ceil() * 60.0
}

/// A moment in seconds since 1970 as people read it.
fn clock(moment: f64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs_f64(moment))
}

/// Runs the job for its minutes, and draws `flame_graph` of the last one. The folder of a run in which something is wrong is kept.
async fn minutes(settings: &Settings, programs: &Programs, flame_graph: Option<&Path>) -> Result<Outcome, Failure> {
    let folder = tempfile::Builder::new().prefix("tickhouse-bench-").tempdir()?;
    let mut found = minutes_in(folder.path(), settings, programs, flame_graph).await?;
    if !found.whole {
        found.folder = Some(folder.keep());
    }
    Ok(found)
}

async fn minutes_in(
    folder: &Path,
    settings: &Settings,
    programs: &Programs,
    flame_graph: Option<&Path>,
) -> Result<Outcome, Failure> {
    let scene = Scene::start(settings, programs, folder).await?;
    let begin = first_minute().await;
    let span = Span { begin, end: begin + 60.0 * settings.minutes as f64 };
    let mut pipeline = scene.pipeline(settings, programs)?;
    say(format!("whole minutes, from {} on: {}", clock(begin), settings.minutes));
    scene.wait_until(begin, &mut pipeline).await?;
    let (before, _) = scene.usage(&mut pipeline)?;
    let log = folder.join(PIPELINE_LOG);
    let calls = CallTimes::of(&log).await?;
    let seen = watch(settings, &scene, &mut pipeline, span, flame_graph.is_some()).await?;
    let (after, peaks) = scene.usage(&mut pipeline)?;
    let calls = CallTimes::of(&log).await?.since(&calls);
    let clean_stop = pipeline.stop().await?;
    let cores = |of: fn(PerProcess) -> f64| (of(after) - of(before)) / span.seconds();
    let cpu_cores = PerProcess {
        pipeline: cores(|p| p.pipeline),
        stand_in: cores(|p| p.stand_in),
        clickhouse: cores(|p| p.clickhouse),
    };
    let counted = Counted::of(&scene, span).await?;
    scene.stop().await?;
    let mut flaws = counted.flaws(settings.influencers, span);
    if !clean_stop {
        flaws.push("the pipeline did not stop cleanly".to_owned());
    }
    Ok(Outcome {
        whole: flaws.is_empty(),
        flaws,
        clean_stop,
        cpu_cores,
        peak_memory_mib: peaks,
        seconds_to_last_row_visible: seen.last_row_visible,
        fetch_p50_seconds: calls.quantile(0.5),
        fetch_p99_seconds: calls.quantile(0.99),
        // A pipeline that did not stop cleanly may have left no checkpoint.
        state_bytes: bytes_of_state(&folder.join(STATE)).await.ok(),
        flame_graph: drawn(seen.recording, flame_graph).await.map_err(|error| error.to_string()),
        ..counted.outcome(settings, span)
    })
}

/// Bytes of all tables of state in the newest checkpoint, without what was staged for delivery.
async fn bytes_of_state(folder: &Path) -> Result<u64, Failure> {
    let (_, checkpoint) = newest_checkpoint(folder).await?;
    let subtasks = checkpoint.nodes.iter().flat_map(|node| &node.subtasks);
    Ok(subtasks.flat_map(|subtask| subtask.tables.values().flatten()).map(|file| file.bytes).sum())
}

/// Draws what was recorded; whether anything was to be.
async fn drawn(recording: Option<Result<Recording, Failure>>, file: Option<&Path>) -> Result<bool, Failure> {
    let (Some(recording), Some(file)) = (recording, file) else { return Ok(false) };
    recording?.draw(file).await?;
    Ok(true)
}

/// What can only be seen while the job runs.
#[derive(Default)]
struct Seen {
    last_row_visible: Option<f64>,
    recording: Option<Result<Recording, Failure>>,
}

/// Looks at the job once a second until it is over. A recording for a flame graph goes on beside that.
async fn watch(
    settings: &Settings,
    scene: &Scene,
    pipeline: &mut Child,
    span: Span,
    is_recorded: bool,
) -> Result<Seen, Failure> {
    let (last_minute, end) = (span.last_minute(), span.end - BEFORE_END);
    let mut seen = Seen::default();
    let mut second = 0_u64;
    while seconds_now() < end {
        scene.still_runs(pipeline)?;
        if is_recorded && seen.recording.is_none() && seconds_now() > last_minute + BEFORE_RECORDING {
            seen.recording = Some(Recording::start(pipeline.id(), RECORDED, &scene.folder));
        }
        if seen.last_row_visible.is_none() && seconds_now() > last_minute {
            let sql = "SELECT count() FROM follower_timeline WHERE minute = toDateTime(?)";
            let there: u64 = scene.client.query(sql).bind(last_minute as u32).fetch_one().await?;
            seen.last_row_visible = (there == settings.influencers).then(|| seconds_now() - last_minute);
        }
        if second.is_multiple_of(20) {
            let rows: u64 = scene.client.query("SELECT count() FROM follower_timeline").fetch_one().await?;
            say(format!("{:>4.0} s: {} readings", seconds_now() - span.begin, grouped(rows)));
        }
        second += 1;
        sleep_until(end.min(seconds_now() + 1.0)).await;
    }
    Ok(seen)
}

impl Outcome {
    fn micros_per_fetch(&self, cores: f64) -> f64 {
        cores * 1e6 / self.fetches_per_second
    }

    fn peak_bytes(&self) -> f64 {
        self.peak_memory_mib.pipeline * MIB
    }

    /// Bytes of state per influencer, compressed; no number when there is no checkpoint.
    fn state_bytes_each(&self) -> f64 {
        self.state_bytes.map_or(f64::NAN, |bytes| bytes as f64 / self.influencers as f64)
    }

    /// Tells whether everything is right, under the name `what`; where it is not, the section says what is wrong and fails.
    fn tell_flaws(&self, what: impl Into<String>, section: &mut Section) {
        section.tell(Figure::new(what, self.flaws.len() as f64, "").at_most(0.0));
        let mut failure = "not every minute was whole and accounted for:".to_owned();
        for flaw in &self.flaws {
            section.note(format!("Wrong: {flaw}."));
            failure += &format!("\n  {flaw}");
        }
        if let Some(folder) = &self.folder {
            failure += &format!("\n{PIPELINE_LOG} and all else that is left of the run are in {}", folder.display());
            section.failure = Some(failure);
        }
    }
}

/// Runs the benchmark: the figures of one size, and one line of JSON on standard output.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let settings = &bench.args.million;
    let file = bench.args.out.join(FLAME_GRAPH);
    let found = minutes(settings, &bench.args.programs, settings.flame_graph.then_some(file.as_path())).await?;
    let mut section = Section::new(format!("{} influencers a minute", grouped(found.influencers)));
    section.data = Some(serde_json::to_string(&found)?);
    section.tell(
        Figure::new("whole minutes", found.whole_minutes as f64, "")
            .against("minutes", found.minutes as f64)
            .ratio_at_least(1.0),
    );
    found.tell_flaws("checks that failed", &mut section);
    tell_times(&found, &mut section);
    tell_costs(&found, &mut section);
    match found.flame_graph {
        Ok(true) => section.chart(FLAME_GRAPH),
        Ok(false) => {}
        Err(reason) => section.note(format!("No flame graph: {reason}.")),
    }
    Ok(section)
}

/// How fast it was.
fn tell_times(found: &Outcome, section: &mut Section) {
    section.tell(Figure::new("fetches", found.fetches_per_second, "per second, sustained"));
    let needed = found.influencers as f64 / 60.0;
    let figure = Figure::new("fetches while it reads", found.fetches_per_second_while_reading, "per second");
    section.tell(figure.against("needed to end with the minute", needed));
    let worst = found.seconds_to_last_reading.iter().copied().reduce(f64::max).unwrap_or(f64::NAN);
    section.tell(Figure::new("from the minute's end to its last reading, the worst minute", worst, "s").at_most(60.0));
    section.tell(Figure::new("from the minute's end to half of the readings", found.seconds_to_half, "s"));
    section.tell(Figure::new("from the minute's end to 99% of the readings", found.seconds_to_99_percent, "s"));
    if let (Some(visible), Some(read)) = (found.seconds_to_last_row_visible, found.seconds_to_last_reading.last()) {
        let figure = Figure::new("from the last minute's end to its last row visible", visible, "s");
        section.tell(figure.against("to its last reading", *read));
    }
    for (name, seconds) in [("half", found.fetch_p50_seconds), ("99%", found.fetch_p99_seconds)] {
        if let Some(seconds) = seconds {
            let name = format!("{name} of the fetches take at most, with the wait for a connection");
            section.tell(Figure::new(name, seconds * 1e3, "ms"));
        }
    }
}

/// What it took.
fn tell_costs(found: &Outcome, section: &mut Section) {
    let PerProcess { pipeline, stand_in, clickhouse } = found.cpu_cores;
    for (name, cores) in [("the pipeline", pipeline), ("the stand-in", stand_in), ("ClickHouse", clickhouse)] {
        section.tell(Figure::new(format!("CPU of {name}"), cores, "cores"));
    }
    let each = |cores| found.micros_per_fetch(cores);
    let figure = Figure::new("CPU of the pipeline per fetch", each(pipeline), "µs");
    section.tell(figure.against("the stand-in, which answers it", each(stand_in)));
    section.tell(Figure::new("CPU of ClickHouse per fetch", each(clickhouse), "µs"));
    let idle = 100.0 - (pipeline + stand_in + clickhouse) / machine::cores() as f64 * 100.0;
    let mut left = Figure::new("CPU that all three leave idle", idle, "%");
    if found.influencers <= A_MILLION {
        left = left.at_least(PERCENT_IDLE);
    }
    section.tell(left);
    let memory = Figure::new("peak memory of the pipeline", found.peak_memory_mib.pipeline, "MiB");
    let millions = (found.influencers as f64 / A_MILLION as f64).max(1.0);
    section.tell(memory.at_most(MIB_PER_MILLION * millions));
    let memory = found.peak_bytes() / found.influencers as f64;
    let figure = Figure::new("peak memory of the pipeline per influencer", memory, "bytes");
    section.tell(figure.against("its state in a checkpoint, compressed", found.state_bytes_each()));
    section.tell(Figure::new("peak memory of ClickHouse", found.peak_memory_mib.clickhouse, "MiB"));
    let figure = Figure::new("timeline on disk", found.timeline_bytes_per_row, "bytes per row");
    section.tell(figure.against("uncompressed", found.timeline_uncompressed_bytes_per_row));
    let day = found.timeline_bytes_per_row * found.influencers as f64 * 1_440.0 / 1e9;
    section.tell(Figure::new("timeline on disk", day, "GB per day"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pipeline_is_started_in_time_for_a_whole_minute() {
        for (second, wait) in [(0.0, 2.0), (1.5, 0.5), (2.0, 0.0), (40.0, 0.0), (40.5, 21.5), (59.5, 2.5)] {
            assert_eq!(until_start(600.0 + second), wait, "{second}");
        }
    }
}
