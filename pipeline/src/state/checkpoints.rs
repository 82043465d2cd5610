//! Writes checkpoints, reads back the newest, and removes what is no longer needed.
//!
//! ```text
//! checkpoints/000000000012.json      a manifest: the checkpoint is there when this is
//! checkpoints/newest                 the number of the newest, so that its manifest is missed when it is gone
//! data/000000000012-9f3a61c0-0-1-rows.log   rows that subtask 1 of node 0 wrote at epoch 12, in the run 9f3a61c0
//! ```
//!
//! Where nothing locks the store, in a bucket, a second process may come to write the same epoch. The manifest is created by
//! one of them only. That the files of the other do not take the place of its own is what the run is in their names for.
//!
//! Two checkpoints are kept: the newest and the one that it goes on from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::error::{Damage, StateError};
use super::manifest::{FORMAT, FileRef, Manifest, NodeState, StagedRef, SubtaskState};
use super::protocol::{NodeIdentity, files_to_merge, match_nodes, unneeded};
use super::restored::Share;
use super::segment::{checksum, decode, encode};
use super::snapshot::{Staged, SubtaskSnapshot, TableChange};
use super::store::Store;

const MANIFESTS: &str = "checkpoints";
const DATA: &str = "data";
const NEWEST: &str = "checkpoints/newest";

/// Files that are read or written at once.
const CONCURRENCY: usize = 4;

/// From where a pipeline starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartFrom {
    /// The newest checkpoint; without any, from the beginning.
    #[default]
    Newest,
    /// This one, whatever came after it.
    Epoch(u64),
    /// The beginning, whatever was saved.
    Nothing,
}

/// What a pipeline is carried on from.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The epoch that the checkpoint is the end of.
    pub epoch: u64,
    /// For each node, in the order given to [`Checkpoints::open`], what its subtasks had saved; none for a new node.
    pub nodes: Vec<Option<Arc<[Share]>>>,
    /// Rows of state that were read.
    pub rows: u64,
    /// Checkpoints that could not be read and were passed over, as sentences.
    pub passed_over: Vec<String>,
}

/// What a checkpoint cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Files written, the manifest included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows of state and pieces to be delivered in them.
    pub rows: u64,
}

/// The checkpoints of one pipeline that runs. There is one such value for a store at a time.
#[derive(Debug)]
pub struct Checkpoints {
    store: Store,
    pipeline: String,
    nodes: Vec<NodeIdentity>,
    /// The state of each node's subtasks as of `last`, in the layout of now.
    state: Vec<Vec<SubtaskState>>,
    last: Option<Manifest>,
    /// The checkpoint before `last`, when this run has written both.
    parent: Option<Manifest>,
    /// The highest epoch that a manifest was ever written for.
    highest: u64,
    /// Whether files may lie about that no kept checkpoint needs.
    is_untidy: bool,
    /// Tells this run's files from those of another process.
    run: String,
}

impl Checkpoints {
    /// Opens the checkpoints in `store` for a pipeline of `nodes`, in topological order, and reads the one to start from.
    ///
    /// `commits` says that the pipeline delivers rows when their checkpoint is complete, so that one that is complete may
    /// not be passed over without being asked for.
    pub async fn open(
        store: Store,
        pipeline: &str,
        nodes: Vec<NodeIdentity>,
        from: StartFrom,
        commits: bool,
    ) -> Result<(Self, Option<Resumed>), StateError> {
        let epochs = epochs(&store).await?;
        let missed = missed(&store, &epochs).await?;
        let highest = missed.as_ref().map(|(epoch, _)| *epoch).or(epochs.last().copied()).unwrap_or(0);
        let resumed = match from {
            StartFrom::Nothing => None,
            StartFrom::Newest => newest(&store, &epochs, missed, &nodes, commits).await?,
            StartFrom::Epoch(epoch) if epochs.contains(&epoch) => Some(load(&store, epoch, &nodes).await?),
            StartFrom::Epoch(epoch) => {
                return Err(StateError::NoSuchEpoch { epoch, root: store.root().to_owned(), there: epochs });
            }
        };
        let (last, resumed) = resumed.unzip();
        let checkpoints = Self {
            store,
            pipeline: pipeline.to_owned(),
            state: vec![Vec::new(); nodes.len()],
            nodes,
            last,
            parent: None,
            highest,
            is_untidy: true,
            run: format!("{:08x}", rand::random::<u32>()),
        };
        Ok((checkpoints, resumed))
    }

    /// The number of the next epoch. None is used twice for a complete checkpoint.
    pub fn next_epoch(&self) -> u64 {
        self.highest + 1
    }

    /// Lays out the nodes' subtasks of now; a node that has as many as it had goes on from their state.
    pub fn lay_out(&mut self, parallelism: &[usize]) {
        let matched = self.last.as_ref().and_then(|last| Some((last, match_nodes(last, &self.nodes).ok()?)));
        for (at, (state, count)) in self.state.iter_mut().zip(parallelism).enumerate() {
            let saved = matched.as_ref().and_then(|(last, matched)| {
                let saved = matched.get(at).copied().flatten()?;
                last.nodes.get(saved).map(|node| &node.subtasks).filter(|subtasks| subtasks.len() == *count)
            });
            *state = saved.cloned().unwrap_or_else(|| vec![SubtaskState::default(); *count]);
        }
    }

    /// Writes the checkpoint of `epoch`: `snapshots` are, by node and subtask, what has changed; a subtask without one is
    /// as it was. When this returns the checkpoint is complete.
    pub async fn write(
        &mut self,
        epoch: u64,
        completed_at: i64,
        snapshots: Vec<Vec<Option<SubtaskSnapshot>>>,
    ) -> Result<Written, StateError> {
        let mut work = Vec::new();
        for (node, snapshots) in snapshots.into_iter().enumerate() {
            for (subtask, snapshot) in snapshots.into_iter().enumerate() {
                let Some(snapshot) = snapshot else { continue };
                let before = self.state.get_mut(node).and_then(|node| node.get_mut(subtask)).map(std::mem::take);
                work.push((node, subtask, before.unwrap_or_default(), snapshot));
            }
        }
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let written = stream::iter(work).map(|(node, subtask, before, snapshot)| {
            let writer = Writer {
                store: &self.store,
                run: &self.run,
                epoch,
                node,
                subtask,
                name: names.get(node).copied().unwrap_or("?"),
            };
            async move { Ok::<_, StateError>((node, subtask, writer.write(before, snapshot).await?)) }
        });
        let written: Vec<_> = written.buffer_unordered(CONCURRENCY).try_collect().await?;
        let mut total = Written::default();
        for (node, subtask, (state, cost)) in written {
            total = Written {
                files: total.files + cost.files,
                bytes: total.bytes + cost.bytes,
                rows: total.rows + cost.rows,
            };
            if let Some(slot) = self.state.get_mut(node).and_then(|node| node.get_mut(subtask)) {
                *slot = state;
            }
        }
        let manifest = self.manifest(epoch, completed_at);
        let path = manifest_path(epoch);
        let bytes = Bytes::from(manifest.encode().map_err(|reason| content("pipeline", "the manifest", reason))?);
        total = Written { files: total.files + 1, bytes: total.bytes + bytes.len() as u64, ..total };
        // A process that had stood still may find its manifest removed, as an old one, by another that has gone on since.
        if newest_number(&self.store).await?.flatten().is_some_and(|newest| newest >= epoch) {
            return Err(StateError::Contended { place: self.store.place(NEWEST) });
        }
        self.store.create(&path, bytes).await?;
        self.store.put(NEWEST, format!("{epoch}\n").into()).await?;
        self.highest = epoch;
        if let Err(error) = self.retire(manifest).await {
            // The checkpoint is complete all the same; what could not be removed is looked for with the next.
            tracing::warn!(epoch, "files that are no longer needed cannot be removed yet: {error}");
            self.is_untidy = true;
        }
        Ok(total)
    }

    fn manifest(&self, epoch: u64, completed_at: i64) -> Manifest {
        let nodes = self.nodes.iter().zip(&self.state).map(|(node, subtasks)| NodeState {
            name: node.name.clone(),
            fingerprint: node.fingerprint.clone(),
            subtasks: subtasks.clone(),
        });
        Manifest {
            format: FORMAT,
            pipeline: self.pipeline.clone(),
            epoch,
            parent: self.last.as_ref().map(|last| last.epoch),
            completed_at,
            nodes: nodes.collect(),
        }
    }

    /// `manifest` is the newest now: keeps it and the one that it goes on from, and removes what only older ones needed.
    async fn retire(&mut self, manifest: Manifest) -> Result<(), StateError> {
        let before = self.last.replace(manifest);
        let dropped = std::mem::replace(&mut self.parent, before);
        let kept: Vec<&Manifest> = [self.last.as_ref(), self.parent.as_ref()].into_iter().flatten().collect();
        let gone = match &dropped {
            _ if self.is_untidy => self.strays(&kept).await?,
            // The manifest first: a checkpoint that has lost files may not look like a whole one.
            Some(dropped) => {
                let files = unneeded(dropped, &kept).into_iter().map(str::to_owned);
                std::iter::once(manifest_path(dropped.epoch)).chain(files).collect()
            }
            None => Vec::new(),
        };
        self.store.delete(gone).await?;
        self.is_untidy = false;
        Ok(())
    }

    /// What earlier runs, and checkpoints that were never completed, have left.
    async fn strays(&self, kept: &[&Manifest]) -> Result<Vec<String>, StateError> {
        let manifests = kept.iter().map(|manifest| manifest_path(manifest.epoch));
        let files = kept.iter().flat_map(|manifest| manifest.files()).map(|file| file.path.clone());
        let needed: BTreeSet<String> = manifests.chain(files).chain([NEWEST.to_owned()]).collect();
        let mut there = self.store.list(MANIFESTS).await?;
        there.extend(self.store.list(DATA).await?);
        there.retain(|path| !needed.contains(path));
        Ok(there)
    }
}

/// Writes the files of one subtask.
struct Writer<'a> {
    store: &'a Store,
    run: &'a str,
    epoch: u64,
    node: usize,
    subtask: usize,
    name: &'a str,
}

impl Writer<'_> {
    /// Writes what `snapshot` changes in `before`; returns what the subtask's state is then.
    async fn write(
        &self,
        before: SubtaskState,
        snapshot: SubtaskSnapshot,
    ) -> Result<(SubtaskState, Written), StateError> {
        let mut cost = Written::default();
        let mut tables = before.tables;
        for (table, change) in snapshot.tables {
            let files = tables.entry(table.clone()).or_default();
            self.write_table(&table, files, change, &mut cost).await?;
        }
        tables.retain(|_, files| !files.is_empty());
        let mut staged = Vec::with_capacity(snapshot.staged.len());
        for (number, Staged { about, bytes }) in snapshot.staged.into_iter().enumerate() {
            let sum = checksum(&bytes);
            let path = self.path(&format!("staged-{number}"));
            let file = FileRef { path, bytes: bytes.len() as u64, checksum: sum, rows: 1, level: 0 };
            self.put(&file, bytes, &mut cost).await?;
            staged.push(StagedRef { about, file });
        }
        Ok((SubtaskState { values: snapshot.values, tables, staged }, cost))
    }

    async fn write_table(
        &self,
        table: &str,
        files: &mut Vec<FileRef>,
        change: TableChange,
        cost: &mut Written,
    ) -> Result<(), StateError> {
        if change.replaces {
            files.clear();
        }
        let batches = change.batches;
        let mut rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        if rows == 0 {
            return Ok(());
        }
        let encoded = blocking(move || encode(&batches)).await;
        let encoded = encoded.map_err(|reason| content(self.name, &format!("table `{table}`"), reason))?;
        let (merged, level) = files_to_merge(files);
        let mut bytes = Vec::new();
        for old in files.split_off(files.len() - merged) {
            bytes.extend_from_slice(&read_file(self.store, self.epoch, &old).await?);
            rows += old.rows;
        }
        bytes.extend_from_slice(&encoded);
        let checksum = checksum(&bytes);
        let file = FileRef { path: self.path(table), bytes: bytes.len() as u64, checksum, rows, level };
        self.put(&file, bytes.into(), cost).await?;
        files.push(file);
        Ok(())
    }

    async fn put(&self, file: &FileRef, bytes: Bytes, cost: &mut Written) -> Result<(), StateError> {
        *cost = Written { files: cost.files + 1, bytes: cost.bytes + bytes.len() as u64, rows: cost.rows + file.rows };
        self.store.put(&file.path, bytes).await
    }

    fn path(&self, what: &str) -> String {
        format!("{DATA}/{:012}-{}-{}-{}-{what}.log", self.epoch, self.run, self.node, self.subtask)
    }
}

/// Work that computes for long, off the tasks that move rows.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn content(node: &str, what: &str, reason: String) -> StateError {
    StateError::Content { node: node.to_owned(), what: what.to_owned(), reason }
}

/// The path of the manifest of `epoch`.
pub fn manifest_path(epoch: u64) -> String {
    format!("{MANIFESTS}/{epoch:012}.json")
}

/// The number of the newest checkpoint, if there is a file for it: none in it when it holds something else.
async fn newest_number(store: &Store) -> Result<Option<Option<u64>>, StateError> {
    let text = store.read(NEWEST).await?;
    Ok(text.map(|text| std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok())))
}

/// The epochs of all manifests, ascending.
pub async fn epochs(store: &Store) -> Result<Vec<u64>, StateError> {
    let paths = store.list(MANIFESTS).await?;
    let epoch = |path: &String| path.strip_prefix(MANIFESTS)?.strip_prefix('/')?.strip_suffix(".json")?.parse().ok();
    let mut epochs: Vec<u64> = paths.iter().filter_map(epoch).collect();
    epochs.sort_unstable();
    Ok(epochs)
}

/// The newest checkpoint, when its manifest is no longer there, as a file that is missing.
pub async fn missed(store: &Store, epochs: &[u64]) -> Result<Option<(u64, StateError)>, StateError> {
    let Some(newest) = newest_number(store).await? else { return Ok(None) };
    // A manifest that was written before the number was is there, and newer.
    let last = epochs.last().copied().unwrap_or(0);
    Ok(match newest {
        Some(newest) if newest > last => {
            let place = store.place(&manifest_path(newest));
            Some((newest, StateError::Damaged { place, epoch: newest, damage: Damage::Missing }))
        }
        Some(_) => None,
        None => {
            let damage = Damage::Unreadable("it should hold the number of the newest checkpoint".to_owned());
            Some((last, StateError::Damaged { place: store.place(NEWEST), epoch: last, damage }))
        }
    })
}

/// Reads the manifest of `epoch`.
pub async fn read_manifest(store: &Store, epoch: u64) -> Result<Manifest, StateError> {
    let path = manifest_path(epoch);
    let damaged = |damage| StateError::Damaged { place: store.place(&path), epoch, damage };
    let bytes = store.read(&path).await?.ok_or_else(|| damaged(Damage::Missing))?;
    let manifest = Manifest::decode(&bytes).map_err(damaged)?;
    if manifest.format != FORMAT {
        return Err(StateError::Format { place: store.place(&path), found: manifest.format, supported: FORMAT });
    }
    Ok(manifest)
}

/// Reads a file that the checkpoint of `epoch` needs, and compares its checksum.
pub async fn read_file(store: &Store, epoch: u64, file: &FileRef) -> Result<Bytes, StateError> {
    let damaged = |damage| StateError::Damaged { place: store.place(&file.path), epoch, damage };
    let bytes = store.read(&file.path).await?.ok_or_else(|| damaged(Damage::Missing))?;
    if checksum(&bytes) != file.checksum {
        return Err(damaged(Damage::Checksum));
    }
    Ok(bytes)
}

/// The newest checkpoint that can be read.
async fn newest(
    store: &Store,
    epochs: &[u64],
    missed: Option<(u64, StateError)>,
    nodes: &[NodeIdentity],
    commits: bool,
) -> Result<Option<(Manifest, Resumed)>, StateError> {
    let mut passed_over: Vec<(u64, StateError)> = missed.into_iter().collect();
    for epoch in epochs.iter().rev() {
        match load(store, *epoch, nodes).await {
            Ok((manifest, mut resumed)) => {
                resumed.passed_over = passed_over.iter().map(|(_, error)| error.to_string()).collect();
                return match passed_over.into_iter().next() {
                    Some((damaged, cause)) if commits => {
                        Err(StateError::CannotGoBack { epoch: damaged, previous: *epoch, cause: cause.into() })
                    }
                    _ => Ok(Some((manifest, resumed))),
                };
            }
            Err(error @ StateError::Damaged { .. }) => passed_over.push((*epoch, error)),
            Err(error) => return Err(error),
        }
    }
    match passed_over.into_iter().next() {
        Some((_, cause)) => Err(StateError::NothingLeft { cause: cause.into() }),
        None => Ok(None),
    }
}

/// Reads a checkpoint and all of its files.
async fn load(store: &Store, epoch: u64, nodes: &[NodeIdentity]) -> Result<(Manifest, Resumed), StateError> {
    let manifest = read_manifest(store, epoch).await?;
    let matched = match_nodes(&manifest, nodes).map_err(|changed| StateError::Changed(changed.into()))?;
    let mut rows = 0;
    let mut loaded = Vec::with_capacity(nodes.len());
    for saved in matched {
        let Some(node) = saved.and_then(|at| manifest.nodes.get(at)) else {
            loaded.push(None);
            continue;
        };
        let shares = stream::iter(&node.subtasks).map(|subtask| load_share(store, epoch, subtask));
        let shares: Vec<Share> = shares.buffered(CONCURRENCY).try_collect().await?;
        rows +=
            shares.iter().flat_map(|share| share.tables.values().flatten()).map(|b| b.num_rows() as u64).sum::<u64>();
        loaded.push(Some(shares.into()));
    }
    let resumed = Resumed { epoch, nodes: loaded, rows, passed_over: Vec::new() };
    Ok((manifest, resumed))
}

async fn load_share(store: &Store, epoch: u64, subtask: &SubtaskState) -> Result<Share, StateError> {
    let mut tables = BTreeMap::new();
    for (table, files) in &subtask.tables {
        let mut batches = Vec::new();
        for file in files {
            let bytes = read_file(store, epoch, file).await?;
            let decoded = tokio::task::spawn_blocking(move || decode(&bytes)).await;
            let decoded = decoded.unwrap_or_else(|error| Err(Damage::Unreadable(error.to_string())));
            batches.extend(decoded.map_err(|damage| StateError::Damaged {
                place: store.place(&file.path),
                epoch,
                damage,
            })?);
        }
        tables.insert(table.clone(), batches);
    }
    let mut staged = Vec::with_capacity(subtask.staged.len());
    for StagedRef { about, file } in &subtask.staged {
        staged.push(Staged { about: about.clone(), bytes: read_file(store, epoch, file).await? });
    }
    Ok(Share { values: subtask.values.clone(), tables, staged })
}
