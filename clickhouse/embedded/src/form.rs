//! A body of `multipart/form-data`: some clients send the query and its parameters so, and external tables come so.

use std::io::Read;

use crate::body::exception_of;
use crate::exception::Exception;
use crate::ffi::Connection;
use crate::request::{QueryRequest, check_setting};
use crate::sql::quote_name;

/// The largest such body, in bytes: unlike the rows of an INSERT it is read whole.
const LARGEST: u64 = 128 << 20;
const SUFFIXES: [&str; 3] = ["_format", "_structure", "_types"];

/// The parts of a form.
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
}

/// A table that exists for one query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExternalTable {
    name: String,
    structure: String,
    format: String,
    data: Vec<u8>,
}

/// The boundary between the parts, if a `Content-Type` says that the body is a form.
///
/// # Errors
/// Code 36 for a form without a boundary.
pub(crate) fn boundary(content_type: &str) -> Result<Option<String>, Exception> {
    if !content_type.starts_with("multipart/form-data") {
        return Ok(None);
    }
    let boundary = content_type
        .split(';')
        .filter_map(|parameter| parameter.trim().strip_prefix("boundary="))
        .map(|value| value.trim_matches('"').to_owned())
        .find(|value| !value.is_empty());
    match boundary {
        Some(boundary) => Ok(Some(boundary)),
        None => Err(Exception::bad_arguments("Content-Type is multipart/form-data and names no boundary")),
    }
}

/// Whether a URL parameter describes an external table.
pub(crate) fn describes_table(name: &str) -> bool {
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

impl Form {
    /// Reads a whole body.
    ///
    /// # Errors
    /// Code 36 if it is no such form, or too large.
    pub(crate) fn read(body: &mut dyn Read, boundary: &str) -> Result<Self, Exception> {
        let mut bytes = Vec::new();
        let read = body.take(LARGEST + 1).read_to_end(&mut bytes).map_err(exception_of)?;
        if read as u64 > LARGEST {
            return Err(Exception::bad_arguments(format_args!(
                "a multipart/form-data body may have {LARGEST} bytes; put large tables into a temporary table"
            )));
        }
        Self::parse(&bytes, boundary).ok_or_else(|| {
            Exception::bad_arguments("the body is not the multipart/form-data that its Content-Type states")
        })
    }

    fn parse(bytes: &[u8], boundary: &str) -> Option<Self> {
        let between = format!("\r\n--{boundary}");
        let mut form = Self::default();
        // The first boundary has no line break before it, unless a preamble stands there.
        let first = between.get(2..)?.as_bytes();
        let mut rest = bytes.get(find(bytes, first)? + first.len()..)?;
        while !rest.starts_with(b"--") {
            rest = rest.strip_prefix(b"\r\n")?;
            let headers = find(rest, b"\r\n\r\n")?;
            let (head, content) = (rest.get(..headers)?, rest.get(headers + 4..)?);
            let length = find(content, between.as_bytes())?;
            form.add(std::str::from_utf8(head).ok()?, content.get(..length)?)?;
            rest = content.get(length + between.len()..)?;
        }
        Some(form)
    }

    fn add(&mut self, head: &str, content: &[u8]) -> Option<()> {
        let disposition = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
        let parameter = |name: &str| {
            let start = disposition.find(&format!("; {name}=\""))? + name.len() + 4;
            let value = disposition.get(start..)?;
            value.get(..value.find('"')?).map(str::to_owned)
        };
        let name = parameter("name")?;
        match parameter("filename") {
            Some(_) => self.files.push((name, content.to_vec())),
            None => self.fields.push((name, String::from_utf8(content.to_vec()).ok()?)),
        }
        Some(())
    }

    /// Puts the fields where the URL's parameters are, and gives the external tables.
    ///
    /// # Errors
    /// Code 36 for a table without a structure, 115 for a field that is no setting.
    pub(crate) fn merge_into(self, request: &mut QueryRequest) -> Result<Vec<ExternalTable>, Exception> {
        for (name, value) in self.fields {
            if name == "query" {
                request.query.push_str(&value);
            } else if let Some(param) = name.strip_prefix("param_") {
                request.params.push((param.to_owned(), value));
            } else if describes_table(&name) {
                request.tables.push((name, value));
            } else {
                check_setting(&name)?;
                request.settings.push((name, value));
            }
        }
        let described = |name: &str, suffix: &str| {
            let wanted = format!("{name}{suffix}");
            request.tables.iter().find(|(known, _)| *known == wanted).map(|(_, value)| value.clone())
        };
        self.files
            .into_iter()
            .map(|(name, data)| {
                let unnamed = || described(&name, "_types").map(|types| numbered(&types));
                let structure = described(&name, "_structure").or_else(unnamed).ok_or_else(|| {
                    Exception::bad_arguments(format_args!(
                        "External table {name} has neither a parameter {name}_structure nor {name}_types"
                    ))
                })?;
                let format = described(&name, "_format").unwrap_or_else(|| "TabSeparated".to_owned());
                Ok(ExternalTable { name, structure, format, data })
            })
            .collect()
    }
}

/// Names the columns of `UInt8, Array(String)` as ClickHouse does: `_1 UInt8, _2 Array(String)`.
fn numbered(types: &str) -> String {
    let named = crate::native_types::split_arguments(types);
    let named = named.iter().enumerate().map(|(at, name)| format!("_{} {name}", at + 1));
    named.collect::<Vec<_>>().join(", ")
}

impl ExternalTable {
    /// Makes the table on a connection.
    ///
    /// # Errors
    /// The engine's exception.
    pub(crate) fn create(&self, connection: &mut Connection) -> Result<(), Exception> {
        create_temporary(connection, &self.name, &self.structure)?;
        let from_engine = |message: String| Exception::from_engine(&message);
        let insert = format!("INSERT INTO {}", quote_name(&self.name));
        let mut rows = connection.insert(&insert, &self.format, &[]).map_err(from_engine)?;
        rows.append(&self.data);
        rows.finish().map(|_| ()).map_err(from_engine)
    }

    /// Removes the table from a connection that serves other queries.
    pub(crate) fn drop_from(&self, connection: &mut Connection) {
        drop_temporary(connection, &self.name);
    }
}

/// Makes a table that exists on one connection.
///
/// # Errors
/// The engine's exception.
pub(crate) fn create_temporary(connection: &mut Connection, name: &str, structure: &str) -> Result<(), Exception> {
    let create = format!("CREATE TEMPORARY TABLE {} ({structure})", quote_name(name));
    connection.query(&create, "Null", &[]).map(|_| ()).map_err(|message| Exception::from_engine(&message))
}

/// Removes such a table.
pub(crate) fn drop_temporary(connection: &mut Connection, name: &str) {
    let drop = format!("DROP TEMPORARY TABLE IF EXISTS {}", quote_name(name));
    if let Err(message) = connection.query(&drop, "Null", &[]) {
        tracing::warn!(%message, "cannot drop a temporary table");
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "--b\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT\r\n1\r\n--b\r\n\
                        content-disposition: form-data; name=\"param_x\"\r\nContent-Type: text/plain\r\n\r\n\r\n--b\r\n\
                        Content-Disposition: form-data; name=\"t\"; filename=\"t.tsv\"\r\n\r\n1\t2\n\r\n--b--\r\n";

    #[test]
    fn a_form_is_read_and_every_cut_is_noticed() {
        let form = Form::parse(FORM.as_bytes(), "b").unwrap();
        assert_eq!(form.fields, [("query".into(), "SELECT\r\n1".into()), ("param_x".into(), String::new())]);
        assert_eq!(form.files, [("t".into(), b"1\t2\n".to_vec())]);
        for length in 0..FORM.len() - 4 {
            assert!(Form::parse(&FORM.as_bytes()[..length], "b").is_none(), "{length}");
        }
    }

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        assert_eq!(boundary("multipart/form-data; boundary=\"a b\"").unwrap().as_deref(), Some("a b"));
        assert_eq!(boundary("text/plain").unwrap(), None);
        assert_eq!(boundary("multipart/form-data").unwrap_err().code(), 36);
    }

    #[test]
    fn columns_without_names_are_numbered() {
        assert_eq!(numbered("UInt8, Decimal(9, 2)"), "_1 UInt8, _2 Decimal(9, 2)");
    }
}
