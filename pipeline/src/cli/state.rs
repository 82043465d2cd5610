//! `tickhouse state`: what a state directory holds, without changing it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tickhouse::runtime::Time;
use tickhouse::state::{
    FileRef, Manifest, NodeState, StateError, Store, decode, epochs, missed, read_file, read_manifest,
};
use tickhouse::state_dir::StateDir;

use super::progress::grouped;
use super::{Failure, Outcome, output};

/// The commands.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tickhouse state list state/influencers
  tickhouse state show state/influencers --format json
  tickhouse state verify s3://bucket/influencers

They only read, also while the pipeline runs.")]
pub enum StateCommand {
    /// The checkpoints: epoch, time, size
    #[command(after_help = "\
Examples:
  tickhouse state list state/influencers
  tickhouse state list s3://bucket/influencers --format json | jq '.[-1].bytes'")]
    List(StateArgs),
    /// One checkpoint, node by node: positions, rows, files
    #[command(after_help = "\
Examples:
  tickhouse state show state/influencers
  tickhouse state show state/influencers --epoch 42 --format json | jq '.nodes[].name'")]
    Show(ShowArgs),
    /// Read every file of every checkpoint and compare its checksum; exit code 1 when one is damaged
    #[command(after_help = "\
Examples:
  tickhouse state verify state/influencers && echo fine
  tickhouse state verify s3://bucket/influencers --format json")]
    Verify(StateArgs),
}

/// Where the state is, and how to show it.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// The folder or s3://BUCKET/PREFIX that `tickhouse run --state-dir` was given
    #[arg(value_name = "DIR")]
    location: String,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Which checkpoint [default: the newest]
    #[arg(long)]
    epoch: Option<u64>,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs a command.
pub async fn run(command: StateCommand) -> Outcome {
    match command {
        StateCommand::List(args) => list(&args).await,
        StateCommand::Show(args) => show(&args).await,
        StateCommand::Verify(args) => verify(&args).await,
    }
}

/// The epochs of a store; an error when there are none.
async fn known(store: &Store) -> Result<Vec<u64>, Failure> {
    let epochs = epochs(store).await?;
    if epochs.is_empty() {
        return Err(format!("{} holds no checkpoint yet", store.root()).into());
    }
    Ok(epochs)
}

async fn list(args: &StateArgs) -> Outcome {
    let store = StateDir::look(&args.location)?;
    let mut rows = Vec::new();
    for epoch in known(&store).await? {
        rows.push((epoch, read_manifest(&store, epoch).await));
    }
    if args.format == Format::Json {
        let row = |(epoch, manifest): &(u64, Result<Manifest, StateError>)| match manifest {
            Ok(manifest) => json!({
                "epoch": epoch, "pipeline": manifest.pipeline, "parent": manifest.parent,
                "completed_at_micros": manifest.completed_at, "rows": rows_of(manifest.files()),
                "bytes": bytes_of(manifest.files()), "files": manifest.files().count(),
            }),
            Err(error) => json!({"epoch": epoch, "error": error.to_string()}),
        };
        return output::put(format!("{}\n", Value::from(rows.iter().map(row).collect::<Vec<_>>())));
    }
    let mut out = String::new();
    let _ = writeln!(out, "{:>10}  {:<27} {:>14} {:>14} {:>7}", "epoch", "completed", "rows", "bytes", "files");
    for (epoch, manifest) in &rows {
        let _ = match manifest {
            Ok(manifest) => writeln!(
                out,
                "{epoch:>10}  {:<27} {:>14} {:>14} {:>7}",
                time(manifest.completed_at),
                grouped(rows_of(manifest.files())),
                grouped(bytes_of(manifest.files())),
                manifest.files().count()
            ),
            Err(error) => writeln!(out, "{epoch:>10}  {error}"),
        };
    }
    output::put(out)
}

async fn show(args: &ShowArgs) -> Outcome {
    let store = StateDir::look(&args.state.location)?;
    let epochs = known(&store).await?;
    let epoch = match args.epoch {
        Some(epoch) if epochs.contains(&epoch) => epoch,
        Some(epoch) => {
            let root = store.root().to_owned();
            return Err(StateError::NoSuchEpoch { epoch, root, there: epochs }.into());
        }
        None => epochs.last().copied().unwrap_or_default(),
    };
    let manifest = read_manifest(&store, epoch).await?;
    if args.state.format == Format::Json {
        return output::put(format!("{}\n", json!(manifest)));
    }
    let mut out = String::new();
    let (pipeline, completed) = (&manifest.pipeline, time(manifest.completed_at));
    let _ = writeln!(out, "checkpoint {epoch} of the pipeline `{pipeline}`, completed {completed}");
    for node in &manifest.nodes {
        show_node(node, &mut out);
    }
    output::put(out)
}

fn show_node(node: &NodeState, out: &mut String) {
    let size = match node.is_empty() {
        true => "no state".to_owned(),
        false => format!("{} rows, {} bytes", grouped(rows_of(node.files())), grouped(bytes_of(node.files()))),
    };
    let _ = writeln!(out, "\n{} ({size})  {}", node.name, node.fingerprint);
    for (index, subtask) in node.subtasks.iter().enumerate().filter(|(_, subtask)| !subtask.is_empty()) {
        let _ = writeln!(out, "  subtask {index}");
        for (name, value) in &subtask.values {
            let _ = writeln!(out, "    {name} = {value}");
        }
        for (name, files) in &subtask.tables {
            let (rows, bytes) = (grouped(rows_of(files.iter())), grouped(bytes_of(files.iter())));
            let _ = writeln!(out, "    table {name}: {rows} rows, {bytes} bytes in {} files", files.len());
        }
        if !subtask.staged.is_empty() {
            let _ = writeln!(out, "    to be delivered: {} inserts", subtask.staged.len());
        }
    }
}

async fn verify(args: &StateArgs) -> Outcome {
    let store = StateDir::look(&args.location)?;
    let epochs = known(&store).await?;
    let (mut checked, mut bytes) = (BTreeSet::new(), 0);
    let mut problems: Vec<String> =
        missed(&store, &epochs).await?.map(|(_, error)| error.to_string()).into_iter().collect();
    for epoch in epochs {
        let manifest = match read_manifest(&store, epoch).await {
            Ok(manifest) => manifest,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        let tables = manifest.nodes.iter().flat_map(|node| &node.subtasks).flat_map(|subtask| subtask.tables.values());
        let tables: BTreeSet<&str> = tables.flatten().map(|file| file.path.as_str()).collect();
        for file in manifest.files().filter(|file| checked.insert(file.path.clone())) {
            bytes += file.bytes;
            if let Err(error) = verify_file(&store, epoch, file, tables.contains(file.path.as_str())).await {
                problems.push(error.to_string());
            }
        }
    }
    if args.format == Format::Json {
        output::put(format!("{}\n", json!({"files": checked.len(), "bytes": bytes, "problems": problems})))?;
    } else {
        let mut out: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        let (files, bytes, damaged) = (checked.len(), grouped(bytes), problems.len());
        let _ = writeln!(out, "{files} files, {bytes} bytes read; {damaged} damaged");
        output::put(out)?;
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(format!("{count} files of {} are damaged", store.root()).into()),
    }
}

/// Reads a file as a restart would.
async fn verify_file(store: &Store, epoch: u64, file: &FileRef, is_table: bool) -> Result<(), StateError> {
    let bytes = read_file(store, epoch, file).await?;
    if is_table {
        decode(&bytes).map_err(|damage| StateError::Damaged { place: store.place(&file.path), epoch, damage })?;
    }
    Ok(())
}

fn rows_of<'a>(files: impl Iterator<Item = &'a FileRef>) -> u64 {
    files.map(|file| file.rows).sum()
}

fn bytes_of<'a>(files: impl Iterator<Item = &'a FileRef>) -> u64 {
    files.map(|file| file.bytes).sum()
}

fn time(micros: i64) -> String {
    Time(micros.saturating_mul(1_000)).to_string()
}
