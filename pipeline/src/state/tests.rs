//! Checkpoints in a store in memory: what is written, found again, passed over and removed.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use object_store::memory::InMemory;
use serde_json::{Value, json};

use super::*;

fn memory() -> Store {
    Store::new("memory", Arc::new(InMemory::new()))
}

fn identity(name: &str) -> NodeIdentity {
    NodeIdentity { name: name.to_owned(), fingerprint: format!("does {name}") }
}

fn nodes() -> Vec<NodeIdentity> {
    vec![identity("source"), identity("sum")]
}

async fn open(store: &Store, from: StartFrom, commits: bool) -> Result<(Checkpoints, Option<Resumed>), StateError> {
    let (mut checkpoints, resumed) = Checkpoints::open(store.clone(), "job", nodes(), from, commits).await?;
    checkpoints.lay_out(&[1, 1]);
    Ok((checkpoints, resumed))
}

fn rows(keys: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
    RecordBatch::try_from_iter([("k", column)]).unwrap()
}

fn change(replaces: bool, keys: impl IntoIterator<Item = i64>) -> TableChange {
    TableChange { replaces, batches: vec![rows(keys)] }
}

fn snapshot(position: i64, change: TableChange) -> Vec<Vec<Option<SubtaskSnapshot>>> {
    let source = SubtaskSnapshot { values: [("at".to_owned(), json!(position))].into(), ..SubtaskSnapshot::default() };
    let sum = SubtaskSnapshot { tables: [("t".to_owned(), change)].into(), ..SubtaskSnapshot::default() };
    vec![vec![Some(source)], vec![Some(sum)]]
}

/// The position and the rows that a pipeline goes on from.
fn seen(resumed: &Resumed) -> (Value, Vec<i64>) {
    let source = resumed.nodes[0].as_ref().unwrap()[0].values["at"].clone();
    let tables = &resumed.nodes[1].as_ref().unwrap()[0].tables;
    let keys = tables["t"].iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    (source, keys.collect())
}

/// A store with checkpoints 1 to 3, whose table has grown by a row each.
async fn three() -> Store {
    let store = memory();
    let (mut checkpoints, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert!(resumed.is_none());
    for epoch in 1..=3 {
        let snapshot = snapshot(epoch as i64, change(epoch == 1, [epoch as i64]));
        checkpoints.write(epoch, 0, snapshot).await.unwrap();
    }
    store
}

/// Flips a bit in the middle of a file.
async fn damage(store: &Store, path: &str) {
    let mut bytes = store.read(path).await.unwrap().unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(path, bytes.into()).await.unwrap();
}

async fn newest_data(store: &Store) -> String {
    store.list("data").await.unwrap().pop().unwrap()
}

#[tokio::test]
async fn a_pipeline_goes_on_from_the_newest_checkpoint() {
    let store = three().await;
    let (checkpoints, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    let resumed = resumed.unwrap();
    assert_eq!((resumed.epoch, resumed.rows), (3, 3));
    assert_eq!(seen(&resumed), (json!(3), vec![1, 2, 3]));
    assert_eq!(checkpoints.next_epoch(), 4);
}

#[tokio::test]
async fn a_checkpoint_writes_what_has_changed_and_what_is_not_needed_is_removed() {
    let store = three().await;
    let (mut checkpoints, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    for epoch in 4..200_u64 {
        let written = checkpoints.write(epoch, 0, snapshot(1, change(false, [epoch as i64]))).await.unwrap();
        assert_eq!(written.files, 2, "the rows and the manifest");
        let (manifests, files) = (store.list("checkpoints").await.unwrap(), store.list("data").await.unwrap());
        assert_eq!(manifests.len(), 3, "two checkpoints, and the number of the newer");
        assert!(files.len() <= 40, "{} files at epoch {epoch}", files.len());
    }
    checkpoints.write(200, 0, snapshot(1, change(true, [7]))).await.unwrap();
    checkpoints.write(201, 0, snapshot(1, change(false, [8]))).await.unwrap();
    assert_eq!(store.list("data").await.unwrap().len(), 2, "what was replaced is gone");
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(seen(&resumed.unwrap()).1, [7, 8]);
}

#[tokio::test]
async fn what_an_unfinished_checkpoint_has_left_is_removed() {
    let store = three().await;
    store.put("data/000000000004-1-0-t.log", Bytes::from_static(b"half")).await.unwrap();
    let (mut checkpoints, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(resumed.unwrap().epoch, 3);
    checkpoints.write(4, 0, snapshot(4, change(false, [4]))).await.unwrap();
    checkpoints.write(5, 0, snapshot(5, change(false, [5]))).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(seen(&resumed.unwrap()).1, [1, 2, 3, 4, 5]);
    assert_eq!(store.list("data").await.unwrap().len(), 5);
}

#[tokio::test]
async fn an_altered_file_is_passed_over_with_its_name_where_nothing_was_committed() {
    for is_data in [false, true] {
        let store = three().await;
        let file = if is_data { newest_data(&store).await } else { "checkpoints/000000000003.json".to_owned() };
        damage(&store, &file).await;
        let (mut checkpoints, resumed) = open(&store, StartFrom::Newest, false).await.unwrap();
        let resumed = resumed.unwrap();
        assert_eq!(seen(&resumed), (json!(2), vec![1, 2]));
        assert!(resumed.passed_over[0].contains(&file), "{:?}", resumed.passed_over);
        assert_eq!(checkpoints.next_epoch(), 4, "the number of a complete checkpoint is not given again");
        checkpoints.write(4, 0, snapshot(4, change(false, [4]))).await.unwrap();
        let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
        assert_eq!(seen(&resumed.unwrap()).1, [1, 2, 4]);
    }
}

#[tokio::test]
async fn a_complete_checkpoint_with_commits_is_passed_over_only_on_request() {
    let store = three().await;
    let file = newest_data(&store).await;
    damage(&store, &file).await;
    let error = open(&store, StartFrom::Newest, true).await.unwrap_err().to_string();
    assert!(error.contains(&file) && error.contains("--resume-from 2") && error.contains("--fresh"), "{error}");
    let (_, resumed) = open(&store, StartFrom::Epoch(2), true).await.unwrap();
    assert_eq!(seen(&resumed.unwrap()).1, [1, 2]);
    let error = open(&store, StartFrom::Epoch(9), true).await.unwrap_err().to_string();
    assert!(error.contains("no checkpoint 9") && error.contains("2, 3"), "{error}");
}

#[tokio::test]
async fn a_missing_file_is_damage_too_and_when_nothing_is_left_it_is_said() {
    let store = three().await;
    store.delete(vec![newest_data(&store).await]).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, false).await.unwrap();
    assert!(resumed.unwrap().passed_over[0].contains("is missing"));
    store.delete(store.list("data").await.unwrap()).await.unwrap();
    let error = open(&store, StartFrom::Newest, false).await.unwrap_err();
    assert!(matches!(error, StateError::NothingLeft { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_that_is_gone_is_missed() {
    let gone = "checkpoints/000000000003.json";
    let store = three().await;
    store.delete(vec![gone.to_owned()]).await.unwrap();
    let error = open(&store, StartFrom::Newest, true).await.unwrap_err().to_string();
    assert!(error.contains(gone) && error.contains("is missing"), "{error}");
    let (mut checkpoints, resumed) = open(&store, StartFrom::Newest, false).await.unwrap();
    assert_eq!((resumed.unwrap().epoch, checkpoints.next_epoch()), (2, 4));
    checkpoints.write(4, 0, snapshot(4, change(false, [4]))).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(seen(&resumed.unwrap()).1, [1, 2, 4]);
}

#[tokio::test]
async fn a_number_of_the_newest_that_lags_behind_or_is_not_there_does_no_harm() {
    let store = three().await;
    store.put("checkpoints/newest", Bytes::from_static(b"2\n")).await.unwrap();
    assert_eq!(open(&store, StartFrom::Newest, true).await.unwrap().1.unwrap().epoch, 3);
    store.delete(vec!["checkpoints/newest".to_owned()]).await.unwrap();
    assert_eq!(open(&store, StartFrom::Newest, true).await.unwrap().1.unwrap().epoch, 3);
    store.put("checkpoints/newest", Bytes::from_static(b"3x")).await.unwrap();
    let error = open(&store, StartFrom::Newest, true).await.unwrap_err().to_string();
    assert!(error.contains("checkpoints/newest"), "{error}");
}

#[tokio::test]
async fn starting_anew_leaves_the_old_state_until_there_is_new() {
    let store = three().await;
    let (mut checkpoints, resumed) = open(&store, StartFrom::Nothing, true).await.unwrap();
    assert!(resumed.is_none());
    let (_, still_there) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(still_there.unwrap().epoch, 3);
    checkpoints.write(checkpoints.next_epoch(), 0, snapshot(0, change(true, [9]))).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    let resumed = resumed.unwrap();
    assert_eq!((resumed.epoch, seen(&resumed).1), (4, vec![9]));
    assert_eq!(epochs(&store).await.unwrap(), [4], "there is no way back to what was given up");
}

#[tokio::test]
async fn a_second_writer_is_noticed() {
    let store = three().await;
    let (mut one, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    let (mut other, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    one.write(4, 1, snapshot(4, change(false, [4]))).await.unwrap();
    let error = other.write(4, 2, snapshot(4, change(false, [5]))).await.unwrap_err();
    assert!(matches!(error, StateError::Contended { .. }), "{error}");
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert_eq!(seen(&resumed.unwrap()).1, [1, 2, 3, 4], "what the first has written is whole");
}

#[tokio::test]
async fn a_writer_that_stood_still_does_not_put_the_clock_back() {
    let store = three().await;
    let (mut slow, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    let (mut other, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    for epoch in 4..8 {
        other.write(epoch, 0, snapshot(epoch as i64, change(false, [epoch as i64]))).await.unwrap();
    }
    assert!(!epochs(&store).await.unwrap().contains(&4), "its manifest has been removed");
    let error = slow.write(4, 0, snapshot(4, change(false, [9]))).await.unwrap_err();
    assert!(matches!(error, StateError::Contended { .. }), "{error}");
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    let resumed = resumed.unwrap();
    assert_eq!((resumed.epoch, seen(&resumed).1), (7, vec![1, 2, 3, 4, 5, 6, 7]));
}

#[tokio::test]
async fn a_changed_pipeline_is_refused() {
    let store = three().await;
    let other = vec![identity("source"), identity("average")];
    let refused = Checkpoints::open(store, "job", other, StartFrom::Newest, true).await;
    assert!(matches!(refused, Err(StateError::Changed(_))));
}

#[tokio::test]
async fn another_format_is_refused_by_number() {
    let store = three().await;
    let manifest = Manifest { format: 99, ..read_manifest(&store, 3).await.unwrap() };
    store.put("checkpoints/000000000003.json", manifest.encode().unwrap().into()).await.unwrap();
    let error = open(&store, StartFrom::Newest, false).await.unwrap_err().to_string();
    assert!(error.contains("format 99"), "{error}");
}

#[tokio::test]
async fn what_is_staged_comes_back_until_a_checkpoint_has_it_no_more() {
    let store = memory();
    let (mut checkpoints, _) = open(&store, StartFrom::Newest, true).await.unwrap();
    let staged = Staged { about: json!({"token": "x"}), bytes: Bytes::from_static(b"body") };
    let with = |staged| vec![vec![], vec![Some(SubtaskSnapshot { staged, ..SubtaskSnapshot::default() })]];
    checkpoints.write(1, 0, with(vec![staged])).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    let shares = resumed.unwrap().nodes[1].clone().unwrap();
    assert_eq!((&shares[0].staged[0].about, &shares[0].staged[0].bytes[..]), (&json!({"token": "x"}), &b"body"[..]));
    checkpoints.write(2, 0, with(Vec::new())).await.unwrap();
    let (_, resumed) = open(&store, StartFrom::Newest, true).await.unwrap();
    assert!(resumed.unwrap().nodes[1].as_ref().unwrap()[0].staged.is_empty());
}
