//! What an influencer costs, by how many there are.

use std::path::Path;

use super::{Outcome, Settings, minutes};
use crate::cli::Failure;
use crate::cli::bench::Bench;
use crate::cli::bench::chart::{Line, draw};
use crate::cli::bench::report::{Figure, Section};
use crate::cli::progress::grouped;

/// What a further fetch may cost between the larger sizes, of what it costs between the smaller ones.
const COST_OF_MORE: f64 = 1.25;

/// The chart, in the folder of the report.
const CHART: &str = "growth.svg";

/// Runs the job at three sizes: what an influencer costs may not rise.
pub async fn growth(bench: &Bench<'_>) -> Result<Section, Failure> {
    let mut section = Section::new("Growth");
    let sizes: &[u64] = if bench.args.short { &[10_000, 100_000] } else { &[10_000, 100_000, 1_000_000] };
    let mut all: Vec<Outcome> = Vec::new();
    for influencers in sizes.iter().copied() {
        let settings =
            Settings { influencers, minutes: if bench.args.short { 1 } else { 2 }, ..bench.args.million.clone() };
        let found = minutes(&settings, &bench.args.programs, None).await?;
        tell_size(&found, all.last(), &mut section);
        if !found.whole {
            return Ok(section);
        }
        all.push(found);
    }
    tell_further(&all, &mut section);
    chart(&all, &bench.args.out)?;
    section.chart(CHART);
    section.note("Memory at the smallest size is what the process takes with nothing to do, and CPU mostly the heartbeat's. A further fetch, or influencer, is what it takes from one size to the next: what does not grow with them is in neither.");
    Ok(section)
}

/// What each costs, by how many there are.
fn chart(all: &[Outcome], out: &Path) -> crate::cli::Outcome {
    let points = |of: fn(&Outcome) -> f64| all.iter().map(|found| (found.influencers as f64, of(found))).collect();
    let lines = [
        Line {
            name: "CPU per fetch, µs".into(),
            points: points(|found| found.micros_per_fetch(found.cpu_cores.pipeline)),
        },
        Line {
            name: "peak memory per influencer, KiB".into(),
            points: points(|found| found.peak_bytes() / 1_024.0 / found.influencers as f64),
        },
    ];
    draw(out, CHART, "What an influencer costs the pipeline", ("influencers", "µs, KiB"), &lines)
}

/// What one size costs, beside the one before.
fn tell_size(found: &Outcome, before: Option<&Outcome>, section: &mut Section) {
    let name = |what: &str| format!("{} influencers: {what}", grouped(found.influencers));
    found.tell_flaws(name("checks that failed"), section);
    let cost = |of: &Outcome| of.micros_per_fetch(of.cpu_cores.pipeline);
    let mut figure = Figure::new(name("CPU of the pipeline per fetch"), cost(found), "µs");
    if let Some(before) = before {
        let fewer = format!("{} influencers", grouped(before.influencers));
        figure = figure.against(fewer, cost(before)).ratio_at_most(1.0);
    }
    section.tell(figure);
    let memory = found.peak_memory_mib.pipeline;
    section.tell(Figure::new(name("peak memory of the pipeline"), memory, "MiB"));
    section.tell(Figure::new(name("peak memory per influencer"), memory * 1_024.0 / found.influencers as f64, "KiB"));
}

/// What a further fetch and a further influencer cost, from each size to the next.
fn tell_further(all: &[Outcome], section: &mut Section) {
    let mut before: Option<(String, f64)> = None;
    for pair in all.windows(2) {
        let [fewer, more] = pair else { continue };
        let step = format!("from {} to {} influencers", grouped(fewer.influencers), grouped(more.influencers));
        let cores = more.cpu_cores.pipeline - fewer.cpu_cores.pipeline;
        let cost = cores * 1e6 / (more.fetches_per_second - fewer.fetches_per_second);
        let mut figure = Figure::new(format!("CPU of the pipeline per further fetch, {step}"), cost, "µs");
        if let Some((smaller, cost)) = before.replace((step.clone(), cost)) {
            figure = figure.against(smaller, cost).ratio_at_most(COST_OF_MORE);
        }
        section.tell(figure);
        let memory = (more.peak_bytes() - fewer.peak_bytes()) / (more.influencers - fewer.influencers) as f64;
        let figure =
            Figure::new(format!("peak memory of the pipeline per further influencer, {step}"), memory, "bytes");
        section.tell(figure.against("its state in a checkpoint, compressed", more.state_bytes_each()));
    }
}
