//! Opens a UDF's library and calls its entry points.

use std::mem::ManuallyDrop;
use std::path::Path;

use arrow::array::{Array, ArrayRef, new_empty_array};
use libloading::Library as Dylib;

use super::abi::{AsyncEntry, FfiArrays, FfiColumn, Run, RunResult};
use super::error::type_list;
use super::{UdfError, UdfKind, UdfSpec};

/// An open library. It is never closed: threads of ended instances may still run its code.
#[derive(Debug)]
pub(super) struct Library {
    _dylib: ManuallyDrop<Dylib>,
    entry: Entry,
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    Run(Run),
    Async(AsyncEntry),
}

impl std::fmt::Debug for AsyncEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AsyncEntry")
    }
}

impl Library {
    /// Opens the library at `path`, which was built from the source of `spec`.
    pub(super) fn open(path: &Path, spec: &UdfSpec) -> Result<Self, UdfError> {
        if !path.is_file() {
            return Err(UdfError::LibraryMissing { name: spec.name.clone(), library: path.to_path_buf() });
        }
        // SAFETY: opening runs the library's initializers. Whoever names a directory of UDFs lets their code run here.
        let dylib = unsafe { Dylib::new(path) }.map_err(|error| UdfError::Library {
            name: spec.name.clone(),
            library: path.to_path_buf(),
            message: error.to_string(),
        })?;
        let missing = |symbol| UdfError::SymbolMissing { name: spec.name.clone(), library: path.to_path_buf(), symbol };
        /// Copies the function pointer of a symbol, by the plugin interface of the field's type.
        macro_rules! symbol {
            // SAFETY: the plugin's macro defines a symbol of this name with this signature and no other; the library
            // is never closed.
            ($name:literal) => {
                *unsafe { dylib.get(concat!($name, "\0").as_bytes()) }.map_err(|_| missing($name))?
            };
        }
        let entry = match spec.kind {
            UdfKind::Scalar | UdfKind::Aggregate => Entry::Run(symbol!("__run")),
            UdfKind::Async { .. } => Entry::Async(AsyncEntry {
                start: symbol!("__start"),
                send: symbol!("__send"),
                drain: symbol!("__drain_results"),
                stop: symbol!("__stop_runtime"),
            }),
        };
        Ok(Self { _dylib: ManuallyDrop::new(dylib), entry })
    }

    /// The entry points of an async UDF; None for another.
    pub(super) fn async_entry(&self) -> Option<AsyncEntry> {
        match self.entry {
            Entry::Async(entry) => Some(entry),
            Entry::Run(_) => None,
        }
    }

    /// Calls a scalar UDF with columns of equal length, or an aggregate with a group's columns. `rows` is the number of
    /// rows expected back.
    pub(super) fn run(&self, spec: &UdfSpec, columns: &[ArrayRef], rows: usize) -> Result<ArrayRef, UdfError> {
        let Entry::Run(run) = self.entry else {
            return Err(UdfError::Misuse { name: spec.name.clone(), message: "is async and cannot be run at once" });
        };
        if rows == 0 {
            return Ok(new_empty_array(&spec.result));
        }
        check_arguments(spec, columns)?;
        let exported: Result<Vec<_>, _> = columns.iter().map(|column| FfiColumn::export(&column.to_data())).collect();
        let exported = exported.map_err(|error| wrong_result(spec, rows, error))?;
        // SAFETY: the columns have the types that the library was compiled for, or it panics within; they become its
        // own. It has at least one column, as `signature` sees to.
        let result = match unsafe { run(FfiArrays::export(exported.into_iter())) } {
            // SAFETY: the column comes from the library.
            RunResult::Ok(column) => unsafe { column.import() }.map_err(|error| wrong_result(spec, rows, error))?,
            RunResult::Err => return Err(UdfError::Panicked { name: spec.name.clone() }),
        };
        if result.data_type() != &spec.result || result.len() != rows {
            let given = format!("{} rows of {}", result.len(), result.data_type());
            return Err(wrong_result(spec, rows, given));
        }
        Ok(result)
    }
}

/// Refuses columns of other types than the UDF takes.
pub(super) fn check_arguments(spec: &UdfSpec, columns: &[ArrayRef]) -> Result<(), UdfError> {
    let fits = columns.len() == spec.args.len()
        && columns.iter().zip(&spec.args).all(|(column, arg)| column.data_type() == &arg.data_type);
    if fits {
        return Ok(());
    }
    Err(UdfError::Arguments {
        name: spec.name.clone(),
        expected: type_list(spec.args.iter().map(|arg| &arg.data_type)),
        given: type_list(columns.iter().map(|column| column.data_type())),
    })
}

pub(super) fn wrong_result(spec: &UdfSpec, rows: usize, given: impl std::fmt::Display) -> UdfError {
    UdfError::Result {
        name: spec.name.clone(),
        expected: format!("{rows} rows of {}", spec.result),
        given: given.to_string(),
    }
}
