//! A dataflow as text, Graphviz dot or JSON.

use std::fmt::Write as _;
use std::str::FromStr;

use serde_json::json;

use super::{Dataflow, Edge, Exchange, NodeId, NodePlan, StreamSchema};

/// How [`explain`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For reading: a paragraph per node, in the order in which rows pass.
    #[default]
    Text,
    /// A Graphviz digraph.
    Dot,
    /// One JSON object: `nodes` and `edges`.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "dot" => Ok(Self::Dot),
            "json" => Ok(Self::Json),
            other => Err(format!("unknown format `{other}`: use text, dot or json")),
        }
    }
}

/// Prints `dataflow`; the text ends in a newline.
pub fn explain<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>, format: Format) -> String {
    match format {
        Format::Text => text(dataflow),
        Format::Dot => dot(dataflow),
        Format::Json => json(dataflow),
    }
}

fn text<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>) -> String {
    let mut out = String::new();
    for (id, node) in dataflow.nodes() {
        if id.0 > 0 {
            out.push('\n');
        }
        let name = &node.name;
        let _ = match node.plan.kind() {
            kind if name.starts_with(kind) => writeln!(out, "{name}"),
            kind => writeln!(out, "{name} ({kind})"),
        };
        for edge in dataflow.inputs(id) {
            let _ = writeln!(out, "  from: {}{}", sender(dataflow, edge), route(dataflow, edge));
        }
        for (label, value) in node.plan.details() {
            let _ = writeln!(out, "  {label}: {value}");
        }
        if let Some(output) = node.plan.output() {
            let _ = writeln!(out, "  rows: {}", columns(output));
        }
    }
    out
}

fn dot<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>) -> String {
    let mut out = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box, fontname=monospace];\n");
    for (id, node) in dataflow.nodes() {
        let mut label = node.name.clone();
        for (name, value) in node.plan.details() {
            let _ = write!(label, "\n{name}: {value}");
        }
        let _ = writeln!(out, "  n{} [label=\"{}\"];", id.0, escape_dot(&label));
    }
    for edge in dataflow.edges() {
        let route = route(dataflow, edge);
        let _ = writeln!(
            out,
            "  n{} -> n{} [label=\"{}\"];",
            edge.from.0,
            edge.to.0,
            escape_dot(route.trim_start_matches(", "))
        );
    }
    out.push_str("}\n");
    out
}

fn escape_dot(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\l")
}

fn json<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>) -> String {
    let nodes: Vec<_> = dataflow.nodes().map(|(id, node)| {
        let details: Vec<_> = node.plan.details().into_iter().map(|(label, value)| json!({"label": label, "value": value})).collect();
        let columns = |schema: &StreamSchema| {
            let column = |f: &arrow::datatypes::FieldRef| json!({"name": f.name(), "type": f.data_type().to_string(), "nullable": f.is_nullable()});
            schema.visible().iter().map(column).collect::<Vec<_>>()
        };
        json!({
            "id": id.0,
            "name": node.name,
            "kind": node.plan.kind(),
            "fingerprint": node.fingerprint.to_string(),
            "max_parallelism": node.plan.max_parallelism(),
            "details": details,
            "updating": node.plan.output().map(StreamSchema::is_updating),
            "columns": node.plan.output().map(columns),
        })
    }).collect();
    let edges: Vec<_> = dataflow
        .edges()
        .iter()
        .map(|edge| {
            let (exchange, keys) = match &edge.exchange {
                Exchange::Forward => ("forward", Vec::new()),
                Exchange::Hash(keys) => ("hash", key_names(dataflow, edge.from, keys)),
            };
            json!({"from": edge.from.0, "to": edge.to.0, "input": edge.input, "exchange": exchange, "keys": keys})
        })
        .collect();
    let mut text = format!("{:#}", json!({"nodes": nodes, "edges": edges}));
    text.push('\n');
    text
}

fn sender<'a, P: NodePlan + ?Sized>(dataflow: &'a Dataflow<P>, edge: &Edge) -> &'a str {
    dataflow.node(edge.from).map_or("?", |node| node.name.as_str())
}

/// How an edge routes its rows, as a suffix: empty for a forward edge.
fn route<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>, edge: &Edge) -> String {
    match &edge.exchange {
        Exchange::Forward => String::new(),
        Exchange::Hash(keys) if keys.is_empty() => ", to one subtask".to_owned(),
        Exchange::Hash(keys) => format!(", by hash of {}", key_names(dataflow, edge.from, keys).join(", ")),
    }
}

fn key_names<P: NodePlan + ?Sized>(dataflow: &Dataflow<P>, from: NodeId, keys: &[usize]) -> Vec<String> {
    let fields = dataflow.output(from).map(|s| s.schema().fields());
    let name = |key: &usize| fields.and_then(|f| f.get(*key)).map_or_else(|| format!("#{key}"), |f| f.name().clone());
    keys.iter().map(name).collect()
}

fn columns(schema: &StreamSchema) -> String {
    let column = |f: &arrow::datatypes::FieldRef| {
        format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" })
    };
    let columns: Vec<_> = schema.visible().iter().map(column).collect();
    let kind = if schema.is_updating() { " (updating)" } else { "" };
    format!("{}{kind}", columns.join(", "))
}
