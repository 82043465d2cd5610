//! `single_file`: a source that reads a file's lines to the end, and a sink that writes lines into a file.

mod source;

use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use tokio::io::AsyncSeekExt;

use super::json_lines::{JsonLines, Output};
use super::{Connector, OptionError, OptionSpec, Options, SourceTable, TableDefinition};
use crate::formats::json::{BadData, Decoder, Encoder, Shape, TimestampFormat};
use crate::plan::{FileUse, NodePlan, StreamKind, StreamSchema};
use crate::runtime::{Body, OperatorError, Stage, Subtask};
use source::FileSource;

static PATH: OptionSpec =
    OptionSpec { name: "path", value: "the path of a file", default: None, doc: "The file that is read or written." };
static FORMAT: OptionSpec = OptionSpec {
    name: "format",
    value: "'json', or for a sink 'debezium_json'",
    default: Some("'json'"),
    doc: "What a line holds: a row, or a change of a row.",
};
static BAD_DATA: OptionSpec = OptionSpec {
    name: "bad_data",
    value: "'fail' or 'drop'",
    default: Some("'fail'"),
    doc: "Source: what a line that is no row does: end the pipeline, or be left out.",
};
static TIMESTAMP_FORMAT: OptionSpec = OptionSpec {
    name: "json.timestamp_format",
    value: "'rfc3339' or 'unix_millis'",
    default: Some("'rfc3339'"),
    doc: "Source: how times are written.",
};
static OPTIONS: &[&OptionSpec] = &[&PATH, &FORMAT, &BAD_DATA, &TIMESTAMP_FORMAT];

/// The connector.
pub(super) struct SingleFile;

impl Connector for SingleFile {
    fn name(&self) -> &'static str {
        "single_file"
    }

    fn options(&self) -> &'static [&'static OptionSpec] {
        OPTIONS
    }

    fn source(&self, table: &TableDefinition, options: &mut Options) -> Result<SourceTable, OptionError> {
        let path = path(options)?;
        options.choice(FORMAT.name, &[("json", ())])?;
        let times = [("rfc3339", TimestampFormat::Rfc3339), ("unix_millis", TimestampFormat::UnixMillis)];
        let times = options.choice(TIMESTAMP_FORMAT.name, &times)?.unwrap_or_default();
        let bad_data = [("fail", BadData::Fail), ("drop", BadData::Drop)];
        let bad_data = options.choice(BAD_DATA.name, &bad_data)?.unwrap_or_default();
        if table.columns.is_empty() {
            return Err(OptionError::table(
                "a `single_file` source needs its columns: CREATE TABLE ... (name TYPE, ...)",
            ));
        }
        let refused = |error: &dyn std::fmt::Display| OptionError::table(error.to_string());
        let output = StreamSchema::new(table.columns.clone(), StreamKind::Append).map_err(|error| refused(&error))?;
        Decoder::new(table.columns.clone(), bad_data, times).map_err(|error| refused(&error))?;
        Ok(SourceTable { stage: Arc::new(FileRead { path, bad_data, times, output }) })
    }

    fn sink(
        &self,
        _: &TableDefinition,
        options: &mut Options,
        input: &StreamSchema,
    ) -> Result<Arc<dyn Stage>, OptionError> {
        let path = path(options)?;
        let shapes = [("json", Shape::Rows), ("debezium_json", Shape::Changes)];
        let shape = options.choice(FORMAT.name, &shapes)?.unwrap_or(Shape::Rows);
        let encoder =
            Encoder::new(input, shape).map_err(|error| OptionError::option(FORMAT.name, error.to_string()))?;
        Ok(Arc::new(FileWrite { path, encoder }))
    }
}

fn path(options: &mut Options) -> Result<PathBuf, OptionError> {
    Ok(options.require(PATH.name, PATH.value)?.into())
}

#[derive(Debug)]
struct FileRead {
    path: PathBuf,
    bad_data: BadData,
    times: TimestampFormat,
    output: StreamSchema,
}

impl NodePlan for FileRead {
    fn kind(&self) -> &'static str {
        "single_file_source"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![("path", self.path.display().to_string())];
        if self.bad_data == BadData::Drop {
            details.push(("bad data", "dropped".into()));
        }
        if self.times == TimestampFormat::UnixMillis {
            details.push(("times", "milliseconds since 1970".into()));
        }
        details
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    fn max_parallelism(&self) -> Option<usize> {
        Some(1)
    }

    fn file(&self) -> Option<FileUse> {
        Some(FileUse::Read(self.path.clone()))
    }
}

impl Stage for FileRead {
    fn build(&self, _: &Subtask) -> Result<Body, OperatorError> {
        let decoder = Decoder::new(self.output.visible().iter().cloned(), self.bad_data, self.times)
            .map_err(|error| OperatorError::user(error.to_string()))?;
        Ok(Body::Source(Box::new(FileSource::new(self.path.clone(), decoder, Arc::clone(self.output.schema())))))
    }
}

#[derive(Debug)]
struct FileWrite {
    path: PathBuf,
    encoder: Encoder,
}

impl NodePlan for FileWrite {
    fn kind(&self) -> &'static str {
        "single_file_sink"
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("path", self.path.display().to_string()), ("format", self.encoder.shape().to_string())]
    }

    fn output(&self) -> Option<&StreamSchema> {
        None
    }

    fn file(&self) -> Option<FileUse> {
        Some(FileUse::Write(self.path.clone()))
    }

    fn max_parallelism(&self) -> Option<usize> {
        Some(1)
    }

    fn can_be_shared(&self) -> bool {
        false
    }
}

impl Stage for FileWrite {
    fn build(&self, _: &Subtask) -> Result<Body, OperatorError> {
        let path = self.path.clone();
        let open = async move { Ok(Box::new(tokio::fs::File::create(path).await?) as Output) };
        let target = self.path.display().to_string();
        let path = self.path.clone();
        let reopen = Box::new(move |written| reopen(path, written).boxed());
        let sink = JsonLines::new(target, self.encoder.clone(), open.boxed()).resumable(reopen);
        Ok(Body::Operator(Box::new(sink)))
    }
}

/// Opens the file to be written on behind its first `written` bytes.
async fn reopen(path: PathBuf, written: u64) -> std::io::Result<Output> {
    let mut file = tokio::fs::OpenOptions::new().write(true).open(&path).await?;
    let length = file.metadata().await?.len();
    if length < written {
        let text = format!("it has {length} bytes, and {written} were written before the pipeline was stopped");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    file.set_len(written).await?;
    file.seek(std::io::SeekFrom::Start(written)).await?;
    Ok(Box::new(file))
}
