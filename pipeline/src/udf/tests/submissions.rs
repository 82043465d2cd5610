//! The sources in `udfs/` stay what an Arroyo cluster takes: it has only the source, and builds the crate from it.

use std::fs;
use std::path::{Path, PathBuf};

/// The crates in `udfs/`, the testing ones included.
fn crates() -> Vec<PathBuf> {
    let udfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs");
    let folders = [udfs.clone(), udfs.join("testing")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    entries.filter(|path| path.join("Cargo.toml").is_file()).collect()
}

/// The lines of a TOML table that is followed by another table or by nothing.
fn table<'a>(toml: &'a str, name: &str) -> Vec<&'a str> {
    let lines = toml.lines().skip_while(|line| line.trim() != name).skip(1);
    lines.take_while(|line| !line.starts_with('[')).map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// The header, as Arroyo's control plane looks for it: a comment that begins with the table on its second line.
fn header(source: &str) -> Option<&str> {
    let (_, rest) = source.split_once("/*\n[dependencies]\n")?;
    let (header, after) = rest.split_once("*/")?;
    (!after.contains("/*\n[dependencies]\n")).then_some(header)
}

#[test]
fn each_header_names_what_the_crate_depends_on() {
    let crates = crates();
    assert!(crates.len() >= 2, "udfs/ holds the UDFs");
    for path in crates {
        let source = fs::read_to_string(path.join("src/lib.rs")).unwrap();
        let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        let header = header(&source).unwrap_or_else(|| panic!("{}: one comment header", path.display()));
        let named: Vec<_> = header.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        // The control plane adds the plugin itself.
        let (plugin, depended): (Vec<_>, Vec<_>) =
            table(&manifest, "[dependencies]").into_iter().partition(|line| line.starts_with("arroyo-udf-plugin "));
        assert_eq!(plugin, ["arroyo-udf-plugin = \"0.2.0\""], "{}", path.display());
        assert_eq!(named, depended, "{}: header and Cargo.toml", path.display());
    }
}

#[test]
fn each_source_stands_alone_and_is_named_after_its_function() {
    for path in crates() {
        let source = fs::read_to_string(path.join("src/lib.rs")).unwrap();
        let files = fs::read_dir(path.join("src")).unwrap().count();
        assert_eq!(files, 1, "{}: one file is submitted", path.display());
        assert!(source.contains("use arroyo_udf_plugin::udf;"), "{}", path.display());
        let spec = super::super::signature::parse(&path.join("src/lib.rs"), &source).unwrap().unwrap();
        assert_eq!(path.file_name().unwrap(), spec.name.as_str());
        let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{}\"", spec.name)), "{}", path.display());
        assert!(manifest.contains("edition = \"2021\""), "{}: the edition of the cluster's crate", path.display());
    }
}
