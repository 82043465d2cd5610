//! What a command has to say on standard output.

use std::io::{self, Write as _};

use super::Outcome;

/// Puts `text` on standard output. A reader that went away (`| head`) is not an error worth telling; a disk that is full is.
pub fn put(text: impl AsRef<str>) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}
