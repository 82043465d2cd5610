//! `tickhouse bench`: what it costs, each figure beside what it is compared to in the same run.

mod batches;
mod boundary;
mod call_times;
mod chart;
mod checkpoints;
mod flame;
mod machine;
mod million;
mod report;
mod sink;
mod startup;
mod streaming;

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, ValueEnum};

use self::machine::Machine;
use self::report::{Report, Run, Section};
use super::progress::say;
use super::service::require;
use super::signals::Signals;
use super::{Failure, Outcome, output};

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse bench streaming boundary
  tickhouse bench all --short
  tickhouse bench million --influencers 100000 --minutes 2

The report is in target/bench: report.md, report.json and charts. A benchmark replaces its own section and leaves the others.
They start from the repository's folder, after `make build`.")]
pub struct BenchArgs {
    /// Which benchmarks
    #[arg(value_enum, required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Less work, for a first look: minutes in all
    #[arg(long)]
    short: bool,
    /// Of `streaming`, only the comparisons whose name has this text in it
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The folder of the report
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    million: million::Settings,
}

/// What the benchmarks run beside this program.
#[derive(Debug, Clone, Args)]
struct Programs {
    /// Folder of the UDF libraries
    #[arg(long, env = "TICKHOUSE_UDF", default_value = "target/udfs", value_name = "DIR")]
    udf: PathBuf,
    /// Folder of bootstrap.sql and pipeline.sql
    #[arg(long, default_value = "sql/influencers", value_name = "DIR")]
    sql: PathBuf,
}

/// The benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Every benchmark; in a short run all but the million
    All,
    /// The same SQL streaming and in DataFusion's batch engine
    Streaming,
    /// Rows into ClickHouse, exactly once
    Sink,
    /// Checkpoints: time and bytes by size of the state and by what has changed; a restart
    Checkpoints,
    /// Calls of a UDF that returns at once, and fetches against a bare HTTP client
    Boundary,
    /// From the start of the process to the first row
    Startup,
    /// The main job at full size, in real minutes; fails unless every minute was whole
    Million,
    /// The main job at three sizes: what an influencer costs
    Growth,
    /// The fetches of `boundary`, in a process of its own
    #[value(hide = true)]
    Fetches,
}

impl Name {
    fn text(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// With `All` taken apart, each once.
    fn expanded(names: &[Self], short: bool) -> Vec<Self> {
        let mut all = vec![Self::Startup, Self::Boundary, Self::Streaming, Self::Sink, Self::Checkpoints, Self::Growth];
        if !short {
            all.push(Self::Million);
        }
        let mut expanded = Vec::new();
        for name in names {
            let several: &[Self] = if *name == Self::All { &all } else { std::slice::from_ref(name) };
            expanded.extend(several);
        }
        let mut seen = Vec::new();
        expanded.retain(|name| {
            let is_new = !seen.contains(name);
            seen.push(*name);
            is_new
        });
        expanded
    }
}

/// Where a benchmark puts what it has found, and how much it does.
struct Bench<'a> {
    args: &'a BenchArgs,
}

impl Bench<'_> {
    /// `long`, or `short` in a short run.
    fn size(&self, long: u64, short: u64) -> u64 {
        if self.args.short { short } else { long }
    }

    /// Whether a comparison of this name is to be made.
    fn is_asked_for(&self, name: &str) -> bool {
        self.args.only.as_ref().is_none_or(|text| name.contains(text))
    }
}

/// Runs the benchmarks.
pub async fn run(args: BenchArgs) -> Outcome {
    if args.names.contains(&Name::Fetches) {
        return boundary::fetches(&args.programs.udf).await;
    }
    let Programs { udf, sql } = &args.programs;
    if args.names.iter().any(|name| !matches!(name, Name::Streaming | Name::Sink | Name::Checkpoints)) {
        require(&[udf, &sql.join("bootstrap.sql"), &sql.join("pipeline.sql")])?;
    }
    std::fs::create_dir_all(&args.out)
        .map_err(|error| format!("cannot make the folder {}: {error}", args.out.display()))?;
    let names = Name::expanded(&args.names, args.short);
    if args.only.is_some() && names != [Name::Streaming] {
        return Err("--only chooses among the comparisons of `streaming`: name that benchmark, and no other".into());
    }
    let mut signals = Signals::listen()?;
    let mut data = Vec::new();
    let outcome = measure_each(&Bench { args: &args }, names, &mut signals, &mut data).await;
    if outcome.is_ok() {
        say(format!("the report is in {}", args.out.join("report.md").display()));
    }
    // Of those that were done, though a later one may have failed.
    outcome.and(data.iter().try_for_each(|line| output::put(format!("{line}\n"))))
}

/// Runs one benchmark after the other and puts each into the report. What is for standard output goes to `data`.
async fn measure_each(bench: &Bench<'_>, names: Vec<Name>, signals: &mut Signals, data: &mut Vec<String>) -> Outcome {
    let out = &bench.args.out;
    for name in names {
        say(format!("bench {}", name.text()));
        let mut section = tokio::select! {
            section = measure(bench, name) => section?,
            // What it had started ends with it.
            () = signals.next() => return Err("stopped before it was done".into()),
        };
        data.extend(section.data.take());
        let failure = section.failure.take();
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let run = Run { date, commit: machine::commit(), short: bench.args.short, machine: Machine::here() };
        let mut report = Report::open(out)?;
        report.put(&name.text(), section, run);
        report.write(out)?;
        if let Some(failure) = failure {
            return Err(failure.into());
        }
    }
    Ok(())
}

async fn measure(bench: &Bench<'_>, name: Name) -> Result<Section, Failure> {
    match name {
        Name::Streaming => streaming::run(bench).await,
        Name::Sink => sink::run(bench).await,
        Name::Checkpoints => checkpoints::run(bench).await,
        Name::Boundary => boundary::run(bench).await,
        Name::Startup => startup::run(bench).await,
        Name::Million => million::run(bench).await,
        Name::Growth => million::growth(bench).await,
        Name::All | Name::Fetches => Err(format!("{} is no benchmark of its own", name.text()).into()),
    }
}

/// The middle one of some values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_benchmark_is_run_once_whatever_is_named() {
        let names = Name::expanded(&[Name::Sink, Name::All, Name::Million, Name::Sink], true);
        assert_eq!(names.first(), Some(&Name::Sink));
        assert_eq!(names.iter().filter(|name| **name == Name::Sink).count(), 1);
        assert!(names.contains(&Name::Million) && !names.contains(&Name::All));
        assert!(Name::expanded(&[Name::All], false).contains(&Name::Million));
        assert!(!Name::expanded(&[Name::All], true).contains(&Name::Million));
    }

    #[test]
    fn a_median_stands_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
