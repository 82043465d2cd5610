//! Disks that are full or read-only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A disk of its own, in memory; unmounted when dropped.
///
/// Permissions stop nobody who runs as root, as tests in a container do: a disk that is full or read-only stops everybody.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of `size` (`1m`) at `path`, a new folder; `None` where this machine does not let us mount, which is said
    /// on standard error.
    pub fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir(path).expect("a new folder");
        let size = format!("size={size}");
        match run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tickhouse-test"]).arg(path)) {
            Ok(()) => Some(Self { path: path.to_owned() }),
            Err(says) => {
                eprintln!(
                    "SKIPPED: a disk of its own cannot be mounted here, so a full or read-only one is not tested: {says}"
                );
                None
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes up all space that is left, with a file that [`SmallDisk::make_room`] removes.
    pub fn fill(&self) {
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.ballast()).expect("a new file");
        // In small steps: what is left at the end is less than anything that a test would write.
        let error = loop {
            if let Err(error) = io::Write::write_all(&mut ballast, &[0; 1024]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the disk was filled");
    }

    /// Makes it read-only, which needs that nobody has a file on it open for writing.
    pub fn forbid_writing(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path)).expect("a disk that was mounted");
    }

    /// Makes it writable again.
    pub fn allow_writing(&self) {
        run(Command::new("mount").args(["-o", "remount,rw"]).arg(&self.path)).expect("a disk that was mounted");
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a program that a failing test has left behind may hold it for a moment.
        if let Err(says) = run(Command::new("umount").arg("--lazy").arg(&self.path)) {
            eprintln!("{} stays mounted: {says}", self.path.display());
        }
    }
}

/// Runs a command; the error is what it says.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
