//! Disks that are full or read-only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::settings;

/// Set to 1, it leaves out the tests that need a disk of their own, for where mounting one is not allowed.
const WITHOUT_MOUNT: &str = "TICKHOUSE_TEST_WITHOUT_MOUNT";

/// What is mounted, by name. Told again when it is changed: without it `mount` repeats the old options, among them an owner
/// that a user namespace does not know.
const SOURCE: &str = "tickhouse-test";

/// A disk of its own, in memory; unmounted when dropped.
///
/// Permissions stop nobody who runs as root, as tests in a container do: a disk that is full or read-only stops everybody.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of `size` (`1m`) at `path`, a new folder; `None` where `TICKHOUSE_TEST_WITHOUT_MOUNT=1` asks to do without.
    ///
    /// # Panics
    /// This machine does not let us mount: a test that has tested nothing must not count as passed.
    pub fn mount(path: &Path, size: &str) -> Option<Self> {
        if settings::number(WITHOUT_MOUNT).is_some_and(|number| number > 0) {
            return None;
        }
        fs::create_dir(path).expect("a new folder");
        let size = format!("size={size}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, SOURCE]).arg(path)).unwrap_or_else(|says| {
            panic!(
                "a disk of its own cannot be mounted here: {says}\n\
                 run the tests as root or under `unshare --map-root-user --mount`, \
                 or leave this one out with {WITHOUT_MOUNT}=1"
            )
        });
        Some(Self { path: path.to_owned() })
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
        self.remount("remount,ro");
    }

    /// Makes it writable again.
    pub fn allow_writing(&self) {
        self.remount("remount,rw");
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", options, SOURCE]).arg(&self.path)).expect("a disk that was mounted");
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
