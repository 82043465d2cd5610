//! The decisions of the checkpoint protocol, without any I/O.

use std::collections::BTreeSet;
use std::fmt;

use super::manifest::{FileRef, Manifest};

/// How many files of one level are merged into one of the next: a log of n files has at most 7 of each level.
const FAN_OUT: usize = 8;

/// How many files at the end of a log are to be merged with the one that is added, `level` 0, and the level of the result.
///
/// Each row is merged once a level, so that the cost of many small changes stays in proportion to them (O'Neil et al., "The
/// log-structured merge-tree", 1996).
pub fn files_to_merge(files: &[FileRef]) -> (usize, u8) {
    let (mut merged, mut level) = (0, 0_u8);
    loop {
        let rest = files.get(..files.len() - merged).unwrap_or_default();
        let same = rest.iter().rev().take_while(|file| file.level == level).count();
        if same + 1 < FAN_OUT {
            return (merged, level);
        }
        merged += same;
        level = level.saturating_add(1);
    }
}

/// The files of `dropped` that none of `kept` needs.
pub fn unneeded<'a>(dropped: &'a Manifest, kept: &[&Manifest]) -> Vec<&'a str> {
    let needed: BTreeSet<&str> =
        kept.iter().flat_map(|manifest| manifest.files()).map(|file| file.path.as_str()).collect();
    dropped.files().map(|file| file.path.as_str()).filter(|path| !needed.contains(path)).collect()
}

/// What a node is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its name in this plan.
    pub name: String,
    /// What it does, and over what.
    pub fingerprint: String,
}

/// For each of `nodes`, which node of the manifest it is.
///
/// # Errors
/// A node with state that is none of `nodes`: its state would be dropped.
pub fn match_nodes(manifest: &Manifest, nodes: &[NodeIdentity]) -> Result<Vec<Option<usize>>, Changed> {
    let mut free: Vec<bool> = vec![true; manifest.nodes.len()];
    let mut find = |node: &NodeIdentity| {
        // Nodes that do the same over the same are told apart by their names.
        let fits = |saved: &usize| {
            free.get(*saved).copied().unwrap_or(false)
                && manifest.nodes.get(*saved).is_some_and(|saved| saved.fingerprint == node.fingerprint)
        };
        let candidates = || (0..manifest.nodes.len()).filter(fits);
        let named = candidates().find(|at| manifest.nodes.get(*at).is_some_and(|saved| saved.name == node.name));
        let found = named.or_else(|| candidates().next());
        if let Some(slot) = found.and_then(|at| free.get_mut(at)) {
            *slot = false;
        }
        found
    };
    let matched: Vec<_> = nodes.iter().map(&mut find).collect();
    let lost = |at: &usize| matched.iter().all(|found| *found != Some(*at));
    let lost: Vec<usize> = (0..manifest.nodes.len()).filter(lost).collect();
    let names = |keep: &dyn Fn(&usize) -> bool| -> Vec<String> {
        lost.iter().filter(|at| keep(at)).filter_map(|at| manifest.nodes.get(*at)).map(|n| n.name.clone()).collect()
    };
    let with_state = names(&|at| manifest.nodes.get(*at).is_some_and(|node| !node.is_empty()));
    if with_state.is_empty() {
        return Ok(matched);
    }
    let first = names(&|_| true).into_iter().next().unwrap_or_default();
    let is_there = nodes.iter().any(|node| node.name == first);
    Err(Changed { epoch: manifest.epoch, first, is_there, with_state })
}

/// A pipeline that is not the one whose state was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The checkpoint.
    pub epoch: u64,
    /// The first node, from the sources on, that is not as it was.
    pub first: String,
    /// Whether the pipeline has a node of that name.
    pub is_there: bool,
    /// The nodes whose state would be dropped.
    pub with_state: Vec<String>,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let became = if self.is_there { "does something else now" } else { "is no longer there" };
        let quoted: Vec<_> = self.with_state.iter().map(|name| format!("`{name}`")).collect();
        write!(
            f,
            "the pipeline is not the one that checkpoint {} was saved by: `{}` {became}, and the saved state of {} would be lost. \
             Run the pipeline as it was; or give this one another --state-dir; or drop the saved state and start anew with --fresh",
            self.epoch,
            self.first,
            quoted.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{FORMAT, NodeState, SubtaskState};
    use super::*;

    fn file(path: &str, level: u8) -> FileRef {
        FileRef { path: path.into(), bytes: 1, checksum: String::new(), rows: 1, level }
    }

    #[test]
    fn a_log_of_many_changes_has_few_files_and_each_row_is_merged_rarely() {
        let mut files: Vec<FileRef> = Vec::new();
        let mut written = 0;
        for number in 0..5_000_u64 {
            let (merged, level) = files_to_merge(&files);
            let rest = files.split_off(files.len() - merged);
            let rows = 1 + rest.iter().map(|file| file.rows).sum::<u64>();
            written += rows;
            files.push(FileRef { rows, ..file(&number.to_string(), level) });
            assert!(files.len() <= 40, "{} files", files.len());
            assert!(files.is_sorted_by(|a, b| a.level >= b.level), "older rows come first");
        }
        assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), 5_000, "no row is lost");
        assert!(written <= 5_000 * 6, "{written} rows written for 5,000");
    }

    fn manifest(nodes: &[(&str, &str, &[&str])]) -> Manifest {
        let node = |(name, fingerprint, files): &(&str, &str, &[&str])| NodeState {
            name: (*name).into(),
            fingerprint: (*fingerprint).into(),
            subtasks: vec![SubtaskState {
                tables: [("t".to_owned(), files.iter().map(|path| file(path, 0)).collect())].into(),
                ..SubtaskState::default()
            }],
        };
        let nodes = nodes.iter().map(node).collect();
        Manifest { format: FORMAT, pipeline: "p".into(), epoch: 4, parent: None, completed_at: 0, nodes }
    }

    fn identities(nodes: &[(&str, &str)]) -> Vec<NodeIdentity> {
        nodes.iter().map(|(n, f)| NodeIdentity { name: (*n).into(), fingerprint: (*f).into() }).collect()
    }

    #[test]
    fn files_that_a_kept_checkpoint_needs_stay() {
        let (old, new) = (manifest(&[("a", "1", &["x", "y"])]), manifest(&[("a", "1", &["y", "z"])]));
        assert_eq!(unneeded(&old, &[&new]), ["x"]);
    }

    #[test]
    fn nodes_are_found_by_what_they_do() {
        let saved = manifest(&[("source", "s", &[]), ("sum_1", "a", &["x"]), ("sum_2", "b", &["y"])]);
        let now = identities(&[("source", "s"), ("new", "n"), ("sum_2", "a"), ("sum_3", "b")]);
        assert_eq!(match_nodes(&saved, &now).unwrap(), [Some(0), None, Some(1), Some(2)]);
    }

    #[test]
    fn twins_are_told_apart_by_name() {
        let saved = manifest(&[("a", "f", &["x"]), ("b", "f", &["y"])]);
        assert_eq!(match_nodes(&saved, &identities(&[("b", "f"), ("a", "f")])).unwrap(), [Some(1), Some(0)]);
        assert_eq!(match_nodes(&saved, &identities(&[("c", "f"), ("d", "f")])).unwrap(), [Some(0), Some(1)]);
    }

    #[test]
    fn state_that_would_be_lost_is_named_with_the_first_change() {
        let saved = manifest(&[("source", "s", &[]), ("filter", "f", &[]), ("sum", "a", &["x"]), ("sink", "k", &[])]);
        let changed =
            match_nodes(&saved, &identities(&[("source", "s"), ("filter", "F"), ("sum", "A"), ("sink", "K")]));
        let text = changed.unwrap_err().to_string();
        assert!(text.contains("`filter` does something else now") && text.contains("state of `sum` would"), "{text}");
        assert!(text.contains("--fresh"), "{text}");
        let gone = match_nodes(&saved, &identities(&[("source", "s"), ("sink", "K")])).unwrap_err().to_string();
        assert!(gone.contains("`filter` is no longer there"), "{gone}");
    }

    #[test]
    fn a_node_without_state_may_change() {
        let saved = manifest(&[("source", "s", &["x"]), ("stdout", "o", &[])]);
        assert_eq!(match_nodes(&saved, &identities(&[("source", "s"), ("file", "p")])).unwrap(), [Some(0), None]);
    }
}
