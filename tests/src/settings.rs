//! What the environment says of a test's run.

use std::time::UNIX_EPOCH;

/// The number in a variable; none when it is not set or empty.
///
/// # Panics
/// It is no whole number.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}

/// The seed in a variable, or one that nobody chose.
pub fn seed(name: &str) -> u64 {
    number(name).unwrap_or_else(|| UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64))
}
