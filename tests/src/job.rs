//! The influencer pipeline, started as a test wants it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::influencers_sql;
use crate::process::Program;
use crate::stack::Stack;

/// How the influencer pipeline is started.
#[derive(Debug, Clone)]
pub struct InfluencerJob {
    window: String,
    parallelism: usize,
    checkpoint_interval: String,
    state_dir: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

impl InfluencerJob {
    /// What the pipeline logs once it runs.
    pub const RUNS: &str = "running; ";

    /// With windows of `window`, such as `2 seconds`, in place of minutes.
    pub fn every(window: &str) -> Self {
        Self {
            window: window.to_owned(),
            parallelism: 1,
            checkpoint_interval: "1s".to_owned(),
            state_dir: None,
            environment: Vec::new(),
        }
    }

    /// Subtasks per operator; 1 unless it is set.
    pub fn parallelism(mut self, parallelism: usize) -> Self {
        self.parallelism = parallelism;
        self
    }

    /// Time between checkpoints; `1s` unless it is set.
    pub fn checkpoint_interval(mut self, interval: &str) -> Self {
        interval.clone_into(&mut self.checkpoint_interval);
        self
    }

    /// Where checkpoints are kept.
    pub fn state_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.state_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts it on `stack`.
    pub fn start(&self, stack: &Stack) -> Program {
        Program::start(self.command(stack))
    }

    fn command(&self, stack: &Stack) -> Command {
        let file = stack.write("pipeline.sql", &influencers_sql("pipeline.sql", &self.window));
        let mut command = stack.tickhouse(&["run", "--checkpoint-interval", &self.checkpoint_interval]);
        command.arg("--parallelism").arg(self.parallelism.to_string());
        if let Some(dir) = &self.state_dir {
            command.arg("--state-dir").arg(dir);
        }
        command.arg(file).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}
