//! Where the engine's library is looked for.

use std::env;
use std::path::PathBuf;

use crate::error::EmbeddedError;

/// The version of the npm package that holds the library; `package.json` beside this crate names the same one.
pub const LIBRARY_VERSION: &str = "26.7.3-stable.1";

/// Finds the engine's library: `chosen`, else the file that the environment variable `TICKHOUSE_CHDB` names, else the
/// cache that the script `fetch` fills (`$XDG_CACHE_HOME`, or `$HOME/.cache`, then `tickhouse/chdb/<version>`).
///
/// # Errors
/// [`EmbeddedError::LibraryMissing`], with the places looked at, if there is no such file. A file chosen by option or
/// environment is not replaced by the cache when it is missing.
pub fn find_library(chosen: Option<PathBuf>) -> Result<PathBuf, EmbeddedError> {
    let named = chosen.or_else(|| env::var_os("TICKHOUSE_CHDB").filter(|v| !v.is_empty()).map(PathBuf::from));
    let looked: Vec<PathBuf> = match named {
        Some(path) => vec![path],
        None => cached_library().into_iter().collect(),
    };
    looked.iter().find(|path| path.is_file()).cloned().ok_or(EmbeddedError::LibraryMissing { looked })
}

fn cached_library() -> Option<PathBuf> {
    let not_empty = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = not_empty("XDG_CACHE_HOME").or_else(|| not_empty("HOME").map(|home| home.join(".cache")))?;
    // The package names the file libchdb.so on every platform.
    Some(cache.join("tickhouse/chdb").join(LIBRARY_VERSION).join("libchdb.so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_is_what_is_looked_for() {
        let wanted = format!("\"@chdb/lib-linux-x64-gnu\": \"{LIBRARY_VERSION}\"");
        assert!(include_str!("../package.json").contains(&wanted));
    }

    #[test]
    fn a_file_that_was_chosen_is_not_replaced_by_the_cache() {
        let error = find_library(Some("/nowhere/libchdb.so".into())).unwrap_err();
        assert!(error.to_string().contains("looked for /nowhere/libchdb.so; `make build` fetches it"), "{error}");
    }
}
