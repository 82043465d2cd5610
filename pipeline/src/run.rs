//! The one place that joins the parts: a file of SQL becomes a plan, a plan becomes a running pipeline.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::connectors;
use crate::runtime::{self, Running, SavedState};
use crate::sql::{Functions, Pipeline, Planner, SqlError};
use crate::state::{Checkpoints, StartFrom, StateError};
use crate::state_dir::{StateDir, StateDirError};
use crate::udf::{PluginFunction, UdfCatalog, UdfError};

/// What planning needs to know besides the file.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The folder of UDF libraries and their sources.
    pub udf: Option<PathBuf>,
    /// How long connectors wait at start for what they connect to.
    pub wait: Duration,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { udf: None, wait: Duration::from_secs(60) }
    }
}

/// How a pipeline is run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The pipeline's name: in metrics, logs and saved state.
    pub name: String,
    /// The folder, or `s3://` URL, that belongs to this pipeline alone; without, no state is saved.
    pub state_dir: Option<String>,
    /// From where it starts, where state is saved.
    pub from: StartFrom,
    /// Subtasks per node.
    pub parallelism: usize,
    /// Time between checkpoints.
    pub checkpoint_interval: Duration,
}

/// Why a pipeline could not be planned or started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot be read.
    #[error("cannot read the pipeline {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The UDFs cannot be used.
    #[error(transparent)]
    Udf(#[from] UdfError),
    /// The SQL is not right.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The saved state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// An operator could not be built.
    #[error(transparent)]
    Pipeline(#[from] runtime::PipelineError),
}

/// Plans the pipeline in `file`. Opens the UDF libraries; touches nothing else.
pub fn plan(file: &Path, options: &PlanOptions) -> Result<Pipeline, StartError> {
    let text = std::fs::read_to_string(file).map_err(|source| StartError::Read { path: file.to_owned(), source })?;
    // Some editors put a mark before the text, which no parser expects.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let udfs = match &options.udf {
        Some(dir) => UdfCatalog::open(dir)?,
        None => UdfCatalog::default(),
    };
    let planner = Planner::new(connectors::all(&connectors::Settings { wait: options.wait }), functions(&udfs));
    Ok(planner.plan(&file.display().to_string(), text, &|name| std::env::var(name).ok())?)
}

/// The UDFs as the planner takes them.
fn functions(udfs: &UdfCatalog) -> Functions {
    let mut functions = Functions::default();
    for udf in udfs.iter() {
        match PluginFunction::new(Arc::clone(udf)) {
            Some(function) => functions.asynchronous.push(Arc::new(function)),
            None => functions.scalar.extend(udf.scalar_udf().map(Arc::new)),
        }
        functions.aggregate.extend(udf.aggregate_udf().map(Arc::new));
    }
    functions
}

/// A pipeline that runs, and the lock on its state directory.
pub struct Started {
    /// The running pipeline.
    pub running: Running,
    /// What it goes on from, where that is a checkpoint.
    pub resumed: Option<ResumedFrom>,
    _state_dir: Option<StateDir>,
}

/// What a pipeline goes on from.
#[derive(Debug, Clone)]
pub struct ResumedFrom {
    /// The checkpoint.
    pub epoch: u64,
    /// Rows of state in it.
    pub rows: u64,
    /// Why newer ones were passed over.
    pub passed_over: Vec<String>,
}

/// Starts a planned pipeline on the current tokio runtime.
pub async fn start(pipeline: &Pipeline, options: &RunOptions) -> Result<Started, StartError> {
    let (mut state_dir, mut saved, mut resumed_from) = (None, None, None);
    if let Some(location) = &options.state_dir {
        let dir = StateDir::open(location, &options.name).await?;
        let nodes = runtime::identities(&pipeline.job);
        let commits = pipeline.job.nodes().any(|(_, node)| node.plan.commits());
        let (checkpoints, resumed) =
            Checkpoints::open(dir.store.clone(), &options.name, nodes, options.from, commits).await?;
        resumed_from = resumed.as_ref().map(|resumed| ResumedFrom {
            epoch: resumed.epoch,
            rows: resumed.rows,
            passed_over: resumed.passed_over.clone(),
        });
        saved = Some(SavedState { id: dir.id.clone(), checkpoints, resumed });
        state_dir = Some(dir);
    }
    let runtime_options = runtime::Options {
        checkpoint_interval: options.checkpoint_interval,
        ..runtime::Options::new(&options.name, options.parallelism)
    };
    let running = runtime::start_saving(&pipeline.job, runtime_options, saved)?;
    Ok(Started { running, resumed: resumed_from, _state_dir: state_dir })
}
