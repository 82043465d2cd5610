//! The UDFs of a directory.

use std::collections::BTreeMap;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

use super::aggregate::PluginAggregate;
use super::library::Library;
use super::scalar::PluginScalar;
use super::signature;
use super::{AsyncUdf, UdfError, UdfKind, UdfSpec};

/// The UDFs of a directory, by name.
#[derive(Debug, Clone, Default)]
pub struct UdfCatalog {
    udfs: BTreeMap<String, Arc<Udf>>,
}

impl UdfCatalog {
    /// Opens every UDF in `dir`: each `NAME.rs` with an `#[udf]` function and the library `libNAME` (with the system's
    /// suffix) beside it. Other files are passed over; folders are not entered.
    ///
    /// This loads the libraries, and so runs their code.
    pub fn open(dir: &Path) -> Result<Self, UdfError> {
        let mut udfs: BTreeMap<String, Arc<Udf>> = BTreeMap::new();
        for path in sources(dir)? {
            let text =
                std::fs::read_to_string(&path).map_err(|source| UdfError::Unreadable { path: path.clone(), source })?;
            let Some(spec) = signature::parse(&path, &text)? else {
                continue;
            };
            if let Some(other) = udfs.get(&spec.name) {
                return Err(UdfError::Duplicate { name: spec.name, first: other.source.clone(), second: path });
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let library = Library::open(&path.with_file_name(format!("{DLL_PREFIX}{stem}{DLL_SUFFIX}")), &spec)?;
            udfs.insert(spec.name.clone(), Arc::new(Udf { spec, source: path, library }));
        }
        Ok(Self { udfs })
    }

    /// The UDF of this name, in the letters of its source.
    pub fn get(&self, name: &str) -> Option<&Arc<Udf>> {
        self.udfs.get(name)
    }

    /// All UDFs, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Udf>> {
        self.udfs.values()
    }
}

/// The Rust files in `dir`, in the order of their names.
fn sources(dir: &Path) -> Result<Vec<PathBuf>, UdfError> {
    let unreadable = |source| UdfError::Directory { path: dir.to_path_buf(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// One opened UDF.
#[derive(Debug)]
pub struct Udf {
    spec: UdfSpec,
    source: PathBuf,
    library: Library,
}

impl Udf {
    /// Name, types and kind.
    pub fn spec(&self) -> &UdfSpec {
        &self.spec
    }

    /// The source file, which can be submitted to an Arroyo cluster as it is.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The UDF as a function for DataFusion; None for an aggregate. It is volatile, as in Arroyo: never folded, merged
    /// or called for rows that a filter drops.
    ///
    /// An async UDF's function is there to plan with: calling it is an error. Whoever plans a pipeline takes it out of
    /// the projection and runs it by [`Udf::start`].
    pub fn scalar_udf(self: &Arc<Self>) -> Option<ScalarUDF> {
        match self.spec.kind {
            UdfKind::Scalar | UdfKind::Async { .. } => Some(PluginScalar::new(Arc::clone(self)).into()),
            UdfKind::Aggregate => None,
        }
    }

    /// The UDF as an aggregate for DataFusion; None if it is not one. It keeps all values of a group until the group is
    /// evaluated, and knows no retraction.
    pub fn aggregate_udf(self: &Arc<Self>) -> Option<AggregateUDF> {
        (self.spec.kind == UdfKind::Aggregate).then(|| PluginAggregate::new(Arc::clone(self)).into())
    }

    /// Starts an instance of an async UDF, with a thread of its own. Several may run at once.
    pub fn start(self: &Arc<Self>) -> Result<AsyncUdf, UdfError> {
        AsyncUdf::start(Arc::clone(self))
    }

    pub(super) fn library(&self) -> &Library {
        &self.library
    }
}

/// Two are equal that were opened from one source.
impl PartialEq for Udf {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.spec == other.spec
    }
}

impl Eq for Udf {}

impl std::hash::Hash for Udf {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}
