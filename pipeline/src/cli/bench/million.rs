//! The main job in real minutes: every influencer read exactly once in each, on this machine alone.
//!
//! ClickHouse, the stand-in for the API and the pipeline run as processes of their own, with checkpoints and exactly-once
//! delivery. What the stand-in has counted, the timeline and the summary must agree.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};
use tickhouse::connectors::clickhouse::Endpoint;
use tickhouse::migrate;
use tokio::process::Command;

use super::call_times::CallTimes;
use super::machine::Usage;
use super::report::{Figure, Section};
use super::{Bench, Programs, flame, machine};
use crate::cli::Failure;
use crate::cli::progress::{grouped, say};
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
    #[arg(long, default_value = "10s")]
    checkpoint_interval: String,
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
    whole: bool,
    failed_fetches: u64,
    fetches_per_second: f64,
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

/// Where the pipeline logs, in the folder of the run.
const PIPELINE_LOG: &str = "pipeline.log";

/// One minute of the timeline.
#[derive(Debug, Clone, Row, Deserialize)]
struct Minute {
    readings: u64,
    influencers: u64,
    last: f64,
    half: f64,
    most: f64,
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
        command
            .args(["--checkpoint-interval", &settings.checkpoint_interval, "--state-dir"])
            .arg(self.folder.join("state"));
        Child::spawn("the pipeline", command)
    }

    /// CPU seconds of each process so far, and its peak of memory in MiB.
    fn usage(&self, pipeline: &Child) -> Result<(PerProcess, PerProcess), Failure> {
        let of = |id: Option<u32>| id.map_or_else(|| Err("a process of the benchmark has ended".into()), Usage::of);
        let (p, s, c) = (of(pipeline.id())?, of(self.stand_in.id())?, of(self.clickhouse.id())?);
        let mib = |usage: Usage| usage.peak as f64 / f64::from(1 << 20);
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

/// How long before the first minute that counts the pipeline is started: a window needs a beat of each of the 64 shards, which
/// takes the heartbeat 6.4 seconds.
const AHEAD: f64 = 15.0;

/// Where a flame graph goes: the folder, and the file in it.
type FlameGraph<'a> = (&'a Path, &'a str);

/// Runs the job for its minutes.
async fn minutes(settings: &Settings, programs: &Programs, flame: Option<FlameGraph<'_>>) -> Result<Outcome, Failure> {
    let folder = tempfile::Builder::new().prefix("tickhouse-bench-").tempdir()?;
    let scene = Scene::start(settings, programs, folder.path()).await?;
    let mut pipeline = scene.pipeline(settings, programs)?;
    let begin = ((seconds_now() + AHEAD) / 60.0).ceil() * 60.0;
    let end = begin + 60.0 * settings.minutes as f64;
    let from = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs_f64(begin));
    say(format!("whole minutes, from {from} on: {}", settings.minutes));
    sleep_until(begin).await;
    let (before, _) = scene.usage(&pipeline)?;
    let log = folder.path().join(PIPELINE_LOG);
    let calls = CallTimes::of(&log).await?;
    let seen = watch(settings, &scene, &mut pipeline, (begin, end), flame).await?;
    let (after, peaks) = scene.usage(&pipeline)?;
    let calls = CallTimes::of(&log).await?.since(&calls);
    let clean_stop = pipeline.stop().await?;
    let cores = |of: fn(PerProcess) -> f64| (of(after) - of(before)) / (end - begin);
    let cpu_cores = PerProcess {
        pipeline: cores(|p| p.pipeline),
        stand_in: cores(|p| p.stand_in),
        clickhouse: cores(|p| p.clickhouse),
    };
    let found = look(settings, &scene, begin, end).await?;
    let whole = found.whole_minutes as u64 == settings.minutes
        && found.served == found.stored
        && found.read_unequally_often == 0
        && found.summary_disagrees == 0
        && found.failed_fetches == 0
        && clean_stop;
    scene.stop().await?;
    Ok(Outcome {
        whole,
        clean_stop,
        cpu_cores,
        peak_memory_mib: peaks,
        seconds_to_last_row_visible: seen.last_row_visible,
        fetch_p50_seconds: calls.quantile(0.5),
        fetch_p99_seconds: calls.quantile(0.99),
        flame_graph: seen.flame_graph,
        ..found
    })
}

/// What can only be seen while the job runs.
struct Seen {
    last_row_visible: Option<f64>,
    flame_graph: Result<bool, String>,
}

/// Looks at the job once a second until it is over.
async fn watch(
    settings: &Settings,
    scene: &Scene,
    pipeline: &mut Child,
    (begin, end): (f64, f64),
    flame: Option<FlameGraph<'_>>,
) -> Result<Seen, Failure> {
    let last_minute = end - 60.0;
    let mut seen = Seen { last_row_visible: None, flame_graph: Ok(false) };
    let mut second = 0_u64;
    while seconds_now() < end - 0.5 {
        if pipeline.has_ended() {
            return Err(format!("the pipeline has ended:\n{}", tail(&scene.folder.join(PIPELINE_LOG))).into());
        }
        if let (Some((folder, file)), Ok(false)) = (flame, &seen.flame_graph)
            && seconds_now() > last_minute + 5.0
        {
            let drawn = flame::draw(pipeline.id(), Duration::from_secs(15), folder, file).await;
            seen.flame_graph = drawn.map(|()| true).map_err(|error| error.to_string());
        }
        if seen.last_row_visible.is_none() && seconds_now() > last_minute {
            let sql = "SELECT count() FROM follower_timeline WHERE minute = toDateTime(?)";
            let there: u64 = scene.client.query(sql).bind(last_minute as u32).fetch_one().await?;
            seen.last_row_visible = (there == settings.influencers).then(|| seconds_now() - last_minute);
        }
        if second.is_multiple_of(20) {
            let rows: u64 = scene.client.query("SELECT count() FROM follower_timeline").fetch_one().await?;
            say(format!("{:>4.0} s: {} readings", seconds_now() - begin, grouped(rows)));
        }
        second += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(seen)
}

/// What is in ClickHouse after the minutes from `begin` to `end`, and what the stand-in has counted.
async fn look(settings: &Settings, scene: &Scene, begin: f64, end: f64) -> Result<Outcome, Failure> {
    // The minutes that began and ended while it was measured: the reading of a minute is made in the one after it.
    let sql = "SELECT count() AS readings, uniqExact(pk) AS influencers, \
               toFloat64(max(fetched_at) - minute) AS last, toFloat64(quantile(0.5)(fetched_at - minute)) AS half, \
               toFloat64(quantile(0.99)(fetched_at - minute)) AS most \
               FROM follower_timeline WHERE minute >= toDateTime(?) AND minute < toDateTime(?) GROUP BY minute ORDER BY minute";
    let minutes: Vec<Minute> = scene.client.query(sql).bind(begin as u32).bind(end as u32).fetch_all().await?;
    let whole = minutes.iter().filter(|m| m.readings == settings.influencers && m.influencers == settings.influencers);
    let failed: u64 = scene.client.query("SELECT count() FROM fetch_dead_letters").fetch_one().await?;
    let agreed = "SELECT toUInt64(sum(t.n)), countIf(t.n != s.readings_count OR t.total != s.total_follower_sum) FROM \
                  (SELECT pk, count() AS n, sum(follower_count) AS total FROM follower_timeline GROUP BY pk) AS t \
                  FULL JOIN influencers AS s ON s.pk = t.pk";
    let (stored, disagree): (u64, u64) = scene.client.query(agreed).fetch_one().await?;
    let disk = "SELECT sum(bytes_on_disk) / greatest(sum(rows), 1) FROM system.parts WHERE active AND table = 'follower_timeline'";
    let bytes_per_row: f64 = scene.client.query(disk).fetch_one().await?;

    let counted =
        reqwest::get(format!("{}/admin/requests/all", scene.stand_in.url())).await?.error_for_status()?.text().await?;
    let counts = counted.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    let (mut served, mut different) = (0, HashSet::new());
    for count in counts {
        served += count;
        different.insert(count);
    }
    let middle = |of: fn(&Minute) -> f64| super::median(minutes.iter().map(of).collect());
    let readings: u64 = minutes.iter().map(|minute| minute.readings).sum();
    Ok(Outcome {
        influencers: settings.influencers,
        minutes: settings.minutes,
        whole_minutes: whole.count(),
        whole: false,
        failed_fetches: failed,
        fetches_per_second: readings as f64 / (end - begin),
        served,
        stored,
        read_unequally_often: different.len().saturating_sub(1),
        summary_disagrees: disagree,
        seconds_to_last_reading: minutes.iter().map(|minute| minute.last).collect(),
        seconds_to_half: middle(|minute| minute.half),
        seconds_to_99_percent: middle(|minute| minute.most),
        seconds_to_last_row_visible: None,
        fetch_p50_seconds: None,
        fetch_p99_seconds: None,
        cpu_cores: PerProcess::default(),
        peak_memory_mib: PerProcess::default(),
        timeline_bytes_per_row: bytes_per_row,
        clean_stop: false,
        flame_graph: Ok(false),
    })
}

impl Outcome {
    fn micros_per_fetch(&self, cores: f64) -> f64 {
        cores * 1e6 / self.fetches_per_second
    }
}

/// Runs the benchmark: the figures of one size, and one line of JSON on standard output.
pub async fn run(bench: &Bench<'_>) -> Result<Section, Failure> {
    let settings = &bench.args.million;
    let flame = settings.flame_graph.then_some((bench.args.out.as_path(), "million.svg"));
    let found = minutes(settings, &bench.args.programs, flame).await?;
    let data = serde_json::to_string(&found)?;
    if !found.whole {
        println!("{data}");
        return Err("not every minute was whole: see the line above".into());
    }
    let mut section = section_of(&found);
    section.data = Some(data);
    match found.flame_graph {
        Ok(true) => section.chart("million.svg"),
        Ok(false) => {}
        Err(reason) => section.note(format!("No flame graph: {reason}.")),
    }
    Ok(section)
}

/// The figures of one size.
fn section_of(found: &Outcome) -> Section {
    let mut section = Section::new(format!("{} influencers a minute", grouped(found.influencers)));
    let worst = found.seconds_to_last_reading.iter().copied().fold(0.0, f64::max);
    section.tell(
        Figure::new("whole minutes", found.whole_minutes as f64, "")
            .against("minutes", found.minutes as f64)
            .ratio_at_least(1.0),
    );
    section.tell(Figure::new("fetches", found.fetches_per_second, "per second, sustained"));
    section.tell(Figure::new("from the minute's end to its last reading, the worst minute", worst, "s").at_most(60.0));
    section.tell(Figure::new("from the minute's end to half of the readings", found.seconds_to_half, "s"));
    section.tell(Figure::new("from the minute's end to 99% of the readings", found.seconds_to_99_percent, "s"));
    if let Some(seconds) = found.seconds_to_last_row_visible {
        section.tell(Figure::new("from the last minute's end to its last row visible", seconds, "s"));
    }
    for (name, seconds) in [("half", found.fetch_p50_seconds), ("99%", found.fetch_p99_seconds)] {
        if let Some(seconds) = seconds {
            let name = format!("{name} of the fetches take at most, with the wait for a connection");
            section.tell(Figure::new(name, seconds * 1e3, "ms"));
        }
    }
    for (name, cores) in [
        ("pipeline", found.cpu_cores.pipeline),
        ("stand-in", found.cpu_cores.stand_in),
        ("ClickHouse", found.cpu_cores.clickhouse),
    ] {
        section.tell(Figure::new(format!("CPU of the {name}"), cores, "cores"));
        section.tell(Figure::new(format!("CPU of the {name} per fetch"), found.micros_per_fetch(cores), "µs"));
    }
    let PerProcess { pipeline, stand_in, clickhouse } = found.cpu_cores;
    let idle = 100.0 - (pipeline + stand_in + clickhouse) / machine::cores() as f64 * 100.0;
    let mut left = Figure::new("CPU that all three leave idle", idle, "%");
    if found.influencers <= A_MILLION {
        left = left.at_least(PERCENT_IDLE);
    }
    section.tell(left);
    let memory = Figure::new("peak memory of the pipeline", found.peak_memory_mib.pipeline, "MiB");
    let millions = (found.influencers as f64 / A_MILLION as f64).max(1.0);
    section.tell(memory.at_most(MIB_PER_MILLION * millions));
    section.tell(Figure::new("peak memory of ClickHouse", found.peak_memory_mib.clickhouse, "MiB"));
    section.tell(Figure::new("timeline on disk", found.timeline_bytes_per_row, "bytes per row"));
    let day = found.timeline_bytes_per_row * found.influencers as f64 * 1_440.0 / 1e9;
    section.tell(Figure::new("timeline on disk", day, "GB per day"));
    section
}

/// Runs the job at three sizes: what an influencer costs may not rise.
pub async fn growth(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("Growth");
    let sizes: &[u64] = if bench.args.short { &[10_000, 100_000] } else { &[10_000, 100_000, 1_000_000] };
    let mut before: Option<(u64, f64)> = None;
    for influencers in sizes.iter().copied() {
        let settings =
            Settings { influencers, minutes: if bench.args.short { 1 } else { 2 }, ..bench.args.million.clone() };
        let found = minutes(&settings, &bench.args.programs, None).await?;
        if !found.whole {
            return Err(format!("not every minute was whole: {}", serde_json::to_string(&found)?).into());
        }
        let name = |what: &str| format!("{} influencers: {what}", grouped(influencers));
        let cost = found.micros_per_fetch(found.cpu_cores.pipeline);
        let mut figure = Figure::new(name("CPU of the pipeline per fetch"), cost, "µs");
        if let Some((fewer, their_cost)) = before {
            figure = figure.against(format!("{} influencers", grouped(fewer)), their_cost).ratio_at_most(1.0);
        }
        section.tell(figure);
        let memory = found.peak_memory_mib.pipeline;
        section.tell(Figure::new(name("peak memory of the pipeline"), memory, "MiB"));
        section.tell(Figure::new(name("peak memory per influencer"), memory * 1_024.0 / influencers as f64, "KiB"));
        before = Some((influencers, cost));
    }
    section.note("Memory at the smallest size is what the process takes with nothing to do.");
    Ok(section)
}
