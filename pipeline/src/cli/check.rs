//! `tickhouse check`.

use std::path::PathBuf;

use clap::Args;
use tickhouse::run::{PlanOptions, plan};

use super::{Outcome, output};

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tickhouse check sql/influencers/pipeline.sql --udf target/udfs
  CLICKHOUSE_URL=http://localhost:8123 tickhouse check pipeline.sql && echo fine")]
pub struct CheckArgs {
    /// The pipeline, a file of SQL
    pub file: PathBuf,
    /// Folder of UDF libraries and their sources
    #[arg(long, env = "TICKHOUSE_UDF", value_name = "DIR")]
    pub udf: Option<PathBuf>,
}

/// Plans the file and says so.
pub fn check(args: &CheckArgs) -> Outcome {
    let options = PlanOptions { udf: args.udf.clone(), ..PlanOptions::default() };
    let pipeline = plan(&args.file, &options)?;
    let nodes = pipeline.job.nodes();
    let count = nodes.len();
    output::put(format!("{}: fine, {count} operators\n", args.file.display()))
}
