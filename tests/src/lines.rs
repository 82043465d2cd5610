//! What a program says on standard error: line by line, with the time at which each came.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The lines of a pipe, which a thread reads as they come: a test may look while the program runs.
pub(crate) struct Lines {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    lines: Vec<(SystemTime, String)>,
    /// Nobody writes into the pipe any more.
    ended: bool,
}

impl Lines {
    /// Reads `pipe` to its end.
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // A program may write what is no UTF-8; that must not end the reading.
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                theirs.heard().lines.push((SystemTime::now(), text));
                theirs.changed.notify_all();
            }
            theirs.heard().ended = true;
            theirs.changed.notify_all();
        });
        Self { shared }
    }

    /// When the first line came that holds `text`; `None` when there is none so far.
    pub(crate) fn first(&self, text: &str) -> Option<SystemTime> {
        self.shared.heard().first(text)
    }

    /// Like [`Lines::first`], but waits for it: up to `patience`, and no longer than lines can come.
    pub(crate) fn wait_for(&self, text: &str, patience: Duration) -> Option<SystemTime> {
        self.shared.wait(patience, |heard| heard.ended || heard.first(text).is_some()).first(text)
    }

    /// All there was once the pipe has ended, or so far after `patience`.
    pub(crate) fn whole(&self, patience: Duration) -> String {
        let heard = self.shared.wait(patience, |heard| heard.ended);
        heard.lines.iter().map(|(_, line)| line.as_str()).collect()
    }
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, patience: Duration, until: impl Fn(&Heard) -> bool) -> MutexGuard<'_, Heard> {
        let waited = self.changed.wait_timeout_while(self.heard(), patience, |heard| !until(heard));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Heard {
    fn first(&self, text: &str) -> Option<SystemTime> {
        self.lines.iter().find(|(_, line)| line.contains(text)).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn lines_are_found_while_the_pipe_is_open_and_all_are_there_at_its_end() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        let lines = Lines::of(read);
        write.write_all(b"starting\nit is runn").expect("a reader");
        assert!(lines.wait_for("starting", PATIENCE).is_some());
        assert_eq!(lines.first("running"), None);
        write.write_all(b"ing\n\xff and no end").expect("a reader");
        assert!(lines.wait_for("running", PATIENCE) >= lines.first("starting"));
        drop(write);
        assert_eq!(lines.wait_for("never said", PATIENCE), None, "it waits no longer than lines can come");
        assert_eq!(lines.whole(PATIENCE), "starting\nit is running\n\u{fffd} and no end");
    }
}
