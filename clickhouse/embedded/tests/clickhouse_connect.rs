//! clickhouse-connect, the Python client, from an environment that `tests/setup` makes.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::url;

#[test]
fn clickhouse_connect_works_unmodified() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests");
    let setup = std::fs::read_to_string(here.join("setup")).unwrap();
    let version = setup.lines().find_map(|line| line.strip_prefix("version=")).unwrap();
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    let environment = cache.join("tickhouse").join(format!("clickhouse-connect-{version}"));
    assert!(
        environment.join("complete").exists(),
        "{} is not there: run {} first",
        environment.display(),
        here.join("setup").display()
    );
    let python = environment.join("bin/python");
    let output = Command::new(python).arg(here.join("with_clickhouse_connect.py")).arg(url()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.ends_with("all checks passed\n"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
