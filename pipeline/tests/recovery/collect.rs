//! A sink that stages rows with the checkpoint and commits them when it is complete, as the ClickHouse sink does: a chunk that
//! is committed again under its token is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{AsArray, RecordBatch};
use bytes::Bytes;
use serde_json::json;
use tickhouse::connectors::{Connector, OptionError, Options, SourceTable, TableDefinition};
use tickhouse::plan::{EventTimeUse, NodePlan, StreamSchema};
use tickhouse::runtime::{Body, Context, Epoch, Operator, OperatorError, Stage, Subtask};
use tickhouse::state::{Restored, Snapshot, Staged};

use super::lines;

/// Chunks of changes by table and token.
type Chunks = BTreeMap<(String, String), Vec<String>>;

/// What has been committed. It outlives the pipeline.
#[derive(Debug, Clone, Default)]
pub struct Committed(Arc<Mutex<Chunks>>);

impl Committed {
    fn commit(&self, table: &str, token: &str, changes: Vec<String>) {
        let mut chunks = self.0.lock().unwrap();
        let there = chunks.entry((table.to_owned(), token.to_owned())).or_insert_with(|| changes.clone());
        assert_eq!(*there, changes, "two chunks have the token {token}");
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The rows of `table` that stand: those added and not withdrawn, sorted.
    pub fn standing(&self, table: &str) -> Result<Vec<String>, String> {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        let chunks = self.0.lock().unwrap();
        for change in chunks.iter().filter(|((of, _), _)| of == table).flat_map(|(_, changes)| changes) {
            *counts.entry(change[1..].to_owned()).or_default() += if change.starts_with('+') { 1 } else { -1 };
        }
        if let Some((row, _)) = counts.iter().find(|(_, count)| **count < 0) {
            return Err(format!("{table} had a row withdrawn that was not there: {row}"));
        }
        Ok(counts.into_iter().flat_map(|(row, count)| std::iter::repeat_n(row, count as usize)).collect())
    }
}

/// `connector = 'collect'`.
pub struct Collect {
    committed: Committed,
}

impl Collect {
    pub fn new(committed: Committed) -> Self {
        Self { committed }
    }
}

impl Connector for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }

    fn source(&self, _: &TableDefinition, _: &mut Options) -> Result<SourceTable, OptionError> {
        Err(OptionError::table("only written"))
    }

    fn sink(
        &self,
        table: &TableDefinition,
        _: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError> {
        let table = table.name.clone();
        Ok(Arc::new(CollectNode { committed: self.committed.clone(), table, input: input.clone() }))
    }
}

#[derive(Debug)]
struct CollectNode {
    committed: Committed,
    table: String,
    input: StreamSchema,
}

impl NodePlan for CollectNode {
    fn kind(&self) -> &'static str {
        "collect_sink"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("table", self.table.clone())]
    }

    fn output(&self) -> Option<&StreamSchema> {
        None
    }

    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::Ignored
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for CollectNode {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        let run = subtask.run.as_deref().expect("state is saved");
        Ok(Body::Operator(Box::new(CollectSink {
            committed: self.committed.clone(),
            table: self.table.clone(),
            input: self.input.clone(),
            prefix: format!("{run}/{}/{}", subtask.node, subtask.index),
            number: 0,
            changes: Vec::new(),
            handed: None,
        })))
    }

    fn commits(&self) -> bool {
        true
    }
}

struct CollectSink {
    committed: Committed,
    table: String,
    input: StreamSchema,
    prefix: String,
    number: u64,
    changes: Vec<String>,
    handed: Option<(String, Vec<String>)>,
}

impl CollectSink {
    fn changes(&self, batch: &RecordBatch) -> Vec<String> {
        let visible: Vec<usize> = (0..self.input.visible_len()).collect();
        let rows = lines(&batch.project(&visible).unwrap());
        let retract = self.input.retract_index().map(|index| batch.column(index).as_boolean().clone());
        let is_retracted = |row| retract.as_ref().is_some_and(|retract| retract.value(row));
        rows.iter()
            .enumerate()
            .map(|(row, line)| format!("{}{line}", if is_retracted(row) { '-' } else { '+' }))
            .collect()
    }
}

impl Operator for CollectSink {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        for Staged { about, bytes } in state.staged() {
            let text = std::str::from_utf8(&bytes).unwrap();
            self.committed.commit(&self.table, about.as_str().unwrap(), text.lines().map(str::to_owned).collect());
        }
        Ok(())
    }

    fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        self.changes.extend(self.changes(&batch));
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.handed.is_none()
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        if !self.changes.is_empty() {
            self.number += 1;
            let chunk = (format!("{}/{}", self.prefix, self.number), std::mem::take(&mut self.changes));
            snapshot.stage(json!(chunk.0), Bytes::from(chunk.1.join("\n")));
            self.handed = Some(chunk);
        }
        Ok(())
    }

    fn epoch_completed(&mut self, _: Epoch, _: &mut Context<'_>) -> Result<(), OperatorError> {
        if let Some((token, changes)) = self.handed.take() {
            self.committed.commit(&self.table, &token, changes);
        }
        Ok(())
    }

    fn awaits_completion(&self) -> bool {
        self.handed.is_some()
    }
}
