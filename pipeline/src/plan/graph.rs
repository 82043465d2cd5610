//! Nodes and edges.

use std::collections::HashMap;
use std::sync::Arc;

use super::{EventTimeUse, Fingerprint, NodePlan, StreamSchema};

/// A node's place in [`Dataflow::nodes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// How the rows of an edge find their subtask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// Subtask i to subtask i. Where the two sides differ in parallelism, batches go round.
    Forward,
    /// By a stable hash of these columns (indexes into the sender's output), so that equal keys meet in one subtask
    /// and stay in order. No columns: everything to one subtask.
    Hash(Vec<usize>),
}

/// A stream from one node to an input of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// Which of the receiver's inputs, from 0.
    pub input: usize,
    /// How rows find their subtask.
    pub exchange: Exchange,
}

/// A node and its name.
#[derive(Debug)]
pub struct Node<P: ?Sized> {
    /// The node's name in messages, metrics and saved state: the plan's kind and a number, `unnest_2`, or the name of
    /// a table (`follower_timeline`). Unique in the graph.
    pub name: String,
    /// What the node does.
    pub plan: Arc<P>,
    /// Of the node's plan and, through its inputs, of everything above it.
    pub fingerprint: Fingerprint,
}

/// A directed acyclic graph of nodes, in topological order: inputs come before what reads them.
#[derive(Debug)]
pub struct Dataflow<P: ?Sized> {
    nodes: Vec<Node<P>>,
    edges: Vec<Edge>,
    shared: HashMap<Fingerprint, NodeId>,
}

/// A graph that cannot be: an error of the planner, not of the user.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// An input names a node that is not there yet.
    #[error("node `{node}` reads node number {input}, which does not exist")]
    UnknownInput {
        /// The reader.
        node: String,
        /// The number it names.
        input: usize,
    },
    /// A sink was given as an input.
    #[error("node `{node}` reads `{input}`, which sends nothing")]
    InputIsSink {
        /// The reader.
        node: String,
        /// The sink.
        input: String,
    },
}

impl<P: ?Sized> Default for Dataflow<P> {
    fn default() -> Self {
        Self { nodes: Vec::new(), edges: Vec::new(), shared: HashMap::new() }
    }
}

impl<P: NodePlan + ?Sized> Dataflow<P> {
    /// Adds a node that reads `inputs` in order, and returns its id.
    ///
    /// Where a node that may be shared has an equal twin over the same inputs, the twin's id is returned and nothing is
    /// added: a source read by several queries is read once.
    ///
    /// `label` names the node after what the user wrote (a table); without it the name is the plan's kind and a number.
    pub fn add(
        &mut self,
        label: Option<&str>,
        plan: Arc<P>,
        inputs: Vec<(NodeId, Exchange)>,
    ) -> Result<NodeId, GraphError> {
        let name = self.free_name(label, plan.kind());
        let mut parents = Vec::with_capacity(inputs.len());
        for (id, exchange) in &inputs {
            let input =
                self.nodes.get(id.0).ok_or_else(|| GraphError::UnknownInput { node: name.clone(), input: id.0 })?;
            if input.plan.output().is_none() {
                return Err(GraphError::InputIsSink { node: name, input: input.name.clone() });
            }
            parents.push((input.fingerprint, exchange));
        }
        let fingerprint = Fingerprint::of(label, plan.as_ref(), &parents);
        if plan.can_be_shared()
            && let Some(twin) = self.shared.get(&fingerprint)
        {
            return Ok(*twin);
        }
        let to = NodeId(self.nodes.len());
        if plan.can_be_shared() {
            self.shared.insert(fingerprint, to);
        }
        self.nodes.push(Node { name, plan, fingerprint });
        let edges = inputs.into_iter().enumerate();
        self.edges.extend(edges.map(|(input, (from, exchange))| Edge { from, to, input, exchange }));
        Ok(to)
    }

    fn free_name(&self, label: Option<&str>, kind: &str) -> String {
        let taken = |name: &str| self.nodes.iter().any(|n| n.name == name);
        let base = label.unwrap_or(kind);
        if label.is_some() && !taken(base) {
            return base.to_owned();
        }
        let mut number = 1 + self.nodes.iter().filter(|n| n.plan.kind() == kind).count();
        while taken(&format!("{base}_{number}")) {
            number += 1;
        }
        format!("{base}_{number}")
    }

    /// All nodes, inputs before their readers.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node<P>)> + DoubleEndedIterator {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i), n))
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&Node<P>> {
        self.nodes.get(id.0)
    }

    /// The columns that leave node `id`; `None` for a sink.
    pub fn output(&self, id: NodeId) -> Option<&StreamSchema> {
        self.nodes.get(id.0)?.plan.output()
    }

    /// For each node, whether anything behind it reads the event time of its rows.
    pub fn event_times_read(&self) -> Vec<bool> {
        let mut read = vec![false; self.nodes.len()];
        // Readers stand behind what they read.
        for (id, node) in self.nodes().rev() {
            let reads = match node.plan.event_time() {
                EventTimeUse::Read => true,
                EventTimeUse::PassedOn => read.get(id.0).copied().unwrap_or(true),
                EventTimeUse::Ignored => false,
            };
            for edge in self.inputs(id).filter(|_| reads) {
                if let Some(read) = read.get_mut(edge.from.0) {
                    *read = true;
                }
            }
        }
        read
    }

    /// All edges, in the order in which they were added.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// The edges into node `id`, by input.
    pub fn inputs(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |e| e.to == id)
    }

    /// The edges out of node `id`.
    pub fn outputs(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |e| e.from == id)
    }
}
