//! What `UdfCatalog::open` finds and refuses.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::Path;
use std::time::Duration;

use arrow::datatypes::DataType;

use super::super::{UdfCatalog, UdfKind};
use super::built;

fn refusal(dir: &Path) -> String {
    UdfCatalog::open(dir).expect_err("the directory is at fault").to_string()
}

fn library(name: &str) -> String {
    format!("{DLL_PREFIX}{name}{DLL_SUFFIX}")
}

#[test]
fn finds_the_main_jobs_udfs() {
    let catalog = UdfCatalog::open(&built()).expect("the UDFs are built: run `make build`");
    let names: Vec<_> = catalog.iter().map(|udf| udf.spec().name.as_str()).collect();
    assert_eq!(names, ["active_influencers", "fetch_influencer"]);
    let spec = catalog.get("fetch_influencer").expect("it is listed").spec();
    assert_eq!((&spec.result, spec.nullable), (&DataType::Utf8, false));
    assert_eq!((spec.args[0].name.as_str(), &spec.args[0].data_type), ("pk", &DataType::Int64));
    let UdfKind::Async { ordered: false, timeout, .. } = spec.kind else {
        panic!("it is async and unordered, not {:?}", spec.kind);
    };
    assert!(timeout > Duration::from_secs(60), "the UDF's own budget of at most 60 s must lie within {timeout:?}");
    assert!(catalog.get("fetch").is_none());
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let message = refusal(Path::new("/no/such/directory"));
    assert!(message.contains("/no/such/directory") && message.contains("make build"), "{message}");
}

#[test]
fn a_source_without_its_library_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lonely.rs"), "#[udf] fn lonely(a: i64) -> i64 { a }").unwrap();
    fs::write(dir.path().join("notes.txt"), "not a source").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("UDF lonely") && message.contains(&library("lonely")), "{message}");
    assert!(message.contains("make build"), "{message}");
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("text.rs"), "#[udf] fn text(a: i64) -> i64 { a }").unwrap();
    fs::write(dir.path().join(library("text")), "text").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("cannot open the library of the UDF text"), "{message}");
}

#[test]
fn a_library_of_another_kind_is_refused_by_its_symbol() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(built().join("testing").join(library("test_scale")), dir.path().join(library("wait"))).unwrap();
    fs::write(dir.path().join("wait.rs"), "#[udf] async fn wait(a: i64) -> i64 { a }").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("has no symbol __start") && message.contains(&library("wait")), "{message}");
}

#[test]
fn two_sources_of_one_function_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for stem in ["a", "b"] {
        fs::copy(built().join("testing").join(library("test_scale")), dir.path().join(library(stem))).unwrap();
        fs::write(dir.path().join(format!("{stem}.rs")), "#[udf] fn twice(a: i64) -> i64 { a }").unwrap();
    }
    let message = refusal(dir.path());
    assert!(message.contains("twice is defined twice") && message.contains("a.rs"), "{message}");
}

#[test]
fn a_type_that_no_udf_takes_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("flag.rs"), "\n#[udf]\nfn flag(on: bool) -> i64 { 0 }").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("flag.rs:3:13: argument on of flag: a UDF cannot have the type bool"), "{message}");
}
