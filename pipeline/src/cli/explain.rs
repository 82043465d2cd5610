//! `tickhouse explain`.

use std::path::PathBuf;

use clap::Args;
use tickhouse::plan::{Format, explain as explain_plan};
use tickhouse::run::{PlanOptions, plan};

use super::{Outcome, output};

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse explain sql/influencers/pipeline.sql --udf target/udfs
  tickhouse explain pipeline.sql --format dot | dot -Tsvg > pipeline.svg
  tickhouse explain pipeline.sql --format json | jq '.nodes[].name'")]
pub struct ExplainArgs {
    /// The pipeline, a file of SQL
    pub file: PathBuf,
    /// text, dot (Graphviz) or json
    #[arg(long, default_value = "text")]
    pub format: Format,
    /// Folder of UDF libraries and their sources
    #[arg(long, env = "TICKHOUSE_UDF", value_name = "DIR")]
    pub udf: Option<PathBuf>,
}

/// Prints the graph on stdout.
pub fn explain(args: &ExplainArgs) -> Outcome {
    let options = PlanOptions { udf: args.udf.clone(), ..PlanOptions::default() };
    let pipeline = plan(&args.file, &options)?;
    output::put(explain_plan(&pipeline.job, args.format))
}
