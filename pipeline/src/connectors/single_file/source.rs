//! The running half of the source: pieces of the file, cut behind whole lines.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::formats::json::Decoder;
use crate::runtime::{OperatorError, Source, SourceContext, SourceEvent};
use crate::state::{Restored, Snapshot};

/// How much is read at once: some thousand rows.
const PIECE: usize = 512 << 10;

/// The longest line.
const MAX_LINE: usize = 64 << 20;

/// The saved value that says how far the file was read.
const POSITION: &str = "position";

/// How far the file was read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Position {
    bytes: u64,
    lines: u64,
}

/// Reads a file of JSON lines to its end.
pub(super) struct FileSource {
    path: PathBuf,
    decoder: Decoder,
    schema: SchemaRef,
    file: Option<File>,
    /// How many bytes of the file have become rows.
    position: u64,
    /// Read and not yet decoded: at most part of a line, but for a piece that was just read.
    pending: Vec<u8>,
    ended: bool,
}

impl FileSource {
    pub(super) fn new(path: PathBuf, decoder: Decoder, schema: SchemaRef) -> Self {
        Self { path, decoder, schema, file: None, position: 0, pending: Vec::new(), ended: false }
    }

    /// Reads until there are whole lines, or the file ends. A dropped future has kept all that was read.
    async fn fill(&mut self) -> Result<(), OperatorError> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let opened = open(&self.path, self.position).await?;
                self.file.insert(opened)
            }
        };
        while !self.ended {
            let before = self.pending.len();
            self.pending.reserve(PIECE);
            let read = file.read_buf(&mut self.pending).await.map_err(|error| {
                OperatorError::external(format!("cannot read {}", self.path.display())).because(error)
            })?;
            self.ended = read == 0;
            if self.pending.get(before..).is_some_and(|new| new.contains(&b'\n')) {
                return Ok(());
            }
            if self.pending.len() > MAX_LINE {
                return Err(OperatorError::user(format!(
                    "{}: a line of more than {} MiB: is it newline-delimited JSON?",
                    self.path.display(),
                    MAX_LINE >> 20
                )));
            }
        }
        Ok(())
    }

    /// Decodes the whole lines, or, at the end of the file, all that is left.
    fn decode(&mut self, cx: &SourceContext) -> Result<RecordBatch, OperatorError> {
        let end = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            _ if self.ended => self.pending.len(),
            Some(newline) => newline + 1,
            None => 0,
        };
        let rows = self
            .decoder
            .decode(self.pending.get(..end).unwrap_or_default())
            .map_err(|error| OperatorError::user(format!("{}, {error}", self.path.display())))?;
        self.pending.drain(..end);
        self.position += end as u64;
        let times = TimestampNanosecondArray::from_value(cx.now().0, rows.num_rows());
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(times));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn report_dropped(&self) {
        if self.decoder.dropped() > 0 {
            tracing::warn!(path = %self.path.display(), lines = self.decoder.dropped(), "lines that are no rows were left out");
        }
    }
}

/// Opens a file to be read from `position` on.
async fn open(path: &Path, position: u64) -> Result<File, OperatorError> {
    let cannot = |error: std::io::Error| OperatorError::user(format!("cannot open {}", path.display())).because(error);
    let mut file = File::open(path).await.map_err(cannot)?;
    if position > 0 {
        let length = file.metadata().await.map_err(cannot)?.len();
        if length < position {
            return Err(OperatorError::user(format!(
                "{} has {length} bytes, and {position} of it were read before the pipeline was stopped: it is not the same file. \
                 Put that back, or start anew with --fresh",
                path.display()
            )));
        }
        file.seek(SeekFrom::Start(position)).await.map_err(cannot)?;
    }
    Ok(file)
}

impl Source for FileSource {
    fn restore(&mut self, state: &Restored) -> Result<(), OperatorError> {
        if let Some(Position { bytes, lines }) = state.values(POSITION)?.into_iter().next() {
            self.position = bytes;
            self.decoder.skip(lines);
        }
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot<'_>) -> Result<(), OperatorError> {
        let position = Position { bytes: self.position, lines: self.decoder.lines() };
        snapshot.value(POSITION, serde_json::json!(position));
        Ok(())
    }

    fn next<'a>(&'a mut self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceEvent, OperatorError>> {
        async move {
            loop {
                self.fill().await?;
                // Nothing is awaited from here to the return.
                let batch = self.decode(cx)?;
                if batch.num_rows() > 0 {
                    return Ok(SourceEvent::Batch(batch));
                }
                if self.ended {
                    self.report_dropped();
                    return Ok(SourceEvent::End);
                }
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {

    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, TimeUnit};

    use super::super::super::{Connector, Options, TableDefinition};
    use super::super::SingleFile;
    use super::*;
    use crate::runtime::{Body, Clock, Subtask, Time};

    const CARS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/connectors/single_file/testdata/cars.json");

    fn source(path: &Path, columns: &[(&str, DataType)]) -> Box<dyn Source> {
        let columns = columns.iter().map(|(name, of)| Arc::new(Field::new(*name, of.clone(), true))).collect();
        let table = TableDefinition { name: "cars".into(), columns, primary_key: Vec::new() };
        let mut options = Options::new([("path".to_owned(), path.display().to_string())]);
        let stage = SingleFile.source(&table, &mut options).unwrap().stage;
        let subtask = Subtask {
            pipeline: "test".into(),
            node: "cars".into(),
            index: 0,
            parallelism: 1,
            event_time_is_read: true,
            clock: Clock::simulated(Time(7)),
            run: None,
        };
        match stage.build(&subtask).unwrap() {
            Body::Source(source) => source,
            Body::Operator(_) => panic!("not a source"),
        }
    }

    async fn read(mut source: Box<dyn Source>) -> Result<Vec<RecordBatch>, OperatorError> {
        let cx = SourceContext { clock: Clock::simulated(Time(7)) };
        let mut batches = Vec::new();
        loop {
            match source.next(&cx).await? {
                SourceEvent::Batch(batch) => batches.push(batch),
                SourceEvent::Watermark(_) => {}
                SourceEvent::End => return Ok(batches),
            }
        }
    }

    #[tokio::test]
    async fn a_real_file_is_read_to_its_end() {
        let columns = [
            ("timestamp", DataType::Timestamp(TimeUnit::Nanosecond, None)),
            ("driver_id", DataType::Int64),
            ("event_type", DataType::Utf8),
        ];
        let batches = read(source(Path::new(CARS), &columns)).await.unwrap();
        let text = std::fs::read_to_string(CARS).unwrap();
        let drivers: Vec<i64> =
            batches.iter().flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec()).collect();
        let expected = text.lines().map(|line| {
            let (_, rest) = line.split_once("\"driver_id\": ").unwrap();
            rest.split(',').next().unwrap().parse::<i64>().unwrap()
        });
        assert!(drivers.into_iter().eq(expected));
        assert!(batches.iter().all(|batch| batch.column(0).null_count() == 0 && batch.num_columns() == 4));
    }

    #[tokio::test]
    async fn lines_longer_than_a_piece_and_a_last_one_without_newline_are_rows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long.json");
        let long = "x".repeat(3 * PIECE);
        std::fs::write(&path, format!("{{\"n\":1,\"s\":\"{long}\"}}\n{{\"n\":2,\"s\":\"{long}\"}}\n{{\"n\":3}}"))
            .unwrap();
        let batches = read(source(&path, &[("n", DataType::Int64), ("s", DataType::Utf8)])).await.unwrap();
        let numbers: Vec<i64> =
            batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        assert_eq!(numbers, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_bad_line_names_file_line_field_and_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bad.json");
        std::fs::write(&path, "{\"n\":1}\n{\"n\":\"two\"}\n").unwrap();
        let error = read(source(&path, &[("n", DataType::Int64)])).await.unwrap_err().to_string();
        assert!(error.contains("bad.json, line 2: field `n`") && error.contains("'two'"), "{error}");
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named() {
        let error = read(source(Path::new("/no/such.json"), &[("n", DataType::Int64)])).await.unwrap_err();
        assert!(error.to_string().contains("cannot open /no/such.json"), "{error}");
    }
}
