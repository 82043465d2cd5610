//! What can go wrong with a UDF.

use std::path::PathBuf;

use arrow::datatypes::DataType;

/// A UDF that cannot be opened, started or called. Each message names the UDF or its file, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum UdfError {
    /// The directory of `--udf` cannot be read.
    #[error("cannot read the UDF directory {}: {source}; build the UDFs with `make build`, or name another directory with --udf", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A source file cannot be read.
    #[error("cannot read the UDF source {}: {source}", path.display())]
    Unreadable {
        /// The source file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A source is not Rust, or its UDF is not one that Arroyo would take.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Source {
        /// The source file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// What is wrong and what to write instead.
        message: String,
    },
    /// Two sources define the same function.
    #[error("the UDF {name} is defined twice: in {} and in {}; remove one", first.display(), second.display())]
    Duplicate {
        /// The function.
        name: String,
        /// A source that defines it.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// There is a source and no library beside it.
    #[error("the library of the UDF {name} is missing: {}; build it with `make build`", library.display())]
    LibraryMissing {
        /// The function.
        name: String,
        /// Where its library should be.
        library: PathBuf,
    },
    /// The system's loader refuses the library.
    #[error("cannot open the library of the UDF {name}, {}: {message}; build it again with `make build`", library.display())]
    Library {
        /// The function.
        name: String,
        /// Its library.
        library: PathBuf,
        /// What the loader said.
        message: String,
    },
    /// The library lacks an entry point that this kind of UDF has.
    #[error(
        "the library of the UDF {name}, {}, has no symbol {symbol}: it was not built from the source beside it, or not with arroyo-udf-plugin 0.2; build it again with `make build`",
        library.display()
    )]
    SymbolMissing {
        /// The function.
        name: String,
        /// Its library.
        library: PathBuf,
        /// The entry point.
        symbol: &'static str,
    },
    /// A call with other arguments than the signature has. Planning prevents it.
    #[error("the UDF {name} was called with {given}, but takes {expected}")]
    Arguments {
        /// The function.
        name: String,
        /// What it takes.
        expected: String,
        /// What it was given.
        given: String,
    },
    /// The library answered with something else than its source declares.
    #[error("the UDF {name} returned {given} where its source declares {expected}; build it again with `make build`")]
    Result {
        /// The function.
        name: String,
        /// The declared type and number of rows.
        expected: String,
        /// What came.
        given: String,
    },
    /// A scalar or aggregate UDF panicked; its own words are on standard error.
    #[error("the UDF {name} panicked; its message is on standard error")]
    Panicked {
        /// The function.
        name: String,
    },
    /// An instance of an async UDF has ended and its calls are lost.
    #[error("the UDF {name} has stopped with {lost} calls under way: {reason}")]
    Stopped {
        /// The function.
        name: String,
        /// How many calls will never be answered.
        lost: usize,
        /// Why.
        reason: String,
    },
    /// A method that does not fit the kind of UDF, or a call out of turn: a fault of the caller.
    #[error("the UDF {name} {message}")]
    Misuse {
        /// The function.
        name: String,
        /// What was wrong.
        message: &'static str,
    },
}

/// A list of types as messages show it.
pub(super) fn type_list<'a>(types: impl IntoIterator<Item = &'a DataType>) -> String {
    let types: Vec<String> = types.into_iter().map(ToString::to_string).collect();
    format!("({})", types.join(", "))
}
