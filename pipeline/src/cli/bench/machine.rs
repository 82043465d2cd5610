//! What a benchmark ran on.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::cli::Failure;

/// A machine, as its system describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
}

/// How many cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cores(),
            memory_mib: kib.unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_mib, kernel } = self;
        write!(f, "{cores} cores of {processor}, {memory_mib} MiB, Linux {kernel}.")
    }
}

/// The commit of the sources in the current folder, with `+` where they were changed; `unknown` where there are none.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    if changed { commit + "+" } else { commit }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Seconds of CPU.
    pub cpu: f64,
    /// The most that was resident so far, in bytes.
    pub peak: u64,
}

/// The ticks of a second in which the system counts CPU time; the same on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

impl Usage {
    /// Of the process with this id.
    ///
    /// # Errors
    /// The process is gone, or the system does not tell.
    pub fn of(id: u32) -> Result<Self, Failure> {
        Self::read(&Path::new("/proc").join(id.to_string()))
            .ok_or_else(|| format!("what the process {id} has used cannot be read from /proc").into())
    }

    /// Of this process; errors as for [`Usage::of`].
    pub fn own() -> Result<Self, Failure> {
        Self::of(std::process::id())
    }

    fn read(folder: &Path) -> Option<Self> {
        let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
        // Behind the name, which may have blanks: the 12th and 13th fields are user and system time.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self { cpu: (ticks(11)? + ticks(12)?) / TICKS, peak: kib("VmHWM:")? * 1024 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_this_process_are_read() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
        let usage = Usage::own().unwrap();
        assert!(usage.peak > 1 << 20, "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
