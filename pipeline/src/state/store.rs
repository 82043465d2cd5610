//! Where checkpoints lie: a folder, or a bucket.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::error::{Place, StateError};

/// A place for files, each written in one step: a reader sees a whole file or none.
#[derive(Debug, Clone)]
pub struct Store {
    /// As the user gave it, for messages.
    root: String,
    inner: Arc<dyn ObjectStore>,
}

impl Store {
    /// The folder `path`, which must be there. A file that was written is on the disk, not only on its way.
    pub fn folder(path: &Path) -> Result<Self, StateError> {
        let root = path.display().to_string();
        let inner = LocalFileSystem::new_with_prefix(path)
            .map_err(|error| StateError::Url { url: root.clone(), source: error.into() })?
            .with_fsync(true);
        Ok(Self { root, inner: Arc::new(inner) })
    }

    /// The bucket and prefix of an `s3://` URL. Region, endpoint and credentials come from the environment, under the names
    /// that AWS's own tools use (`AWS_REGION`, `AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`, ..., `AWS_ALLOW_HTTP`).
    pub fn bucket(url: &str) -> Result<Self, StateError> {
        let refused = |error: Error| StateError::Url { url: url.to_owned(), source: error.into() };
        let store = AmazonS3Builder::from_env().with_url(url).build().map_err(refused)?;
        let prefix = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, prefix)| prefix);
        let inner = PrefixStore::new(store, ObjectPath::from(prefix));
        Ok(Self { root: url.to_owned(), inner: Arc::new(inner) })
    }

    /// Any store, shown as `root`.
    pub fn new(root: impl Into<String>, inner: Arc<dyn ObjectStore>) -> Self {
        Self { root: root.into(), inner }
    }

    /// The store as the user named it.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// `path` in this store, for messages.
    pub fn place(&self, path: &str) -> Place {
        Place { root: self.root.clone(), path: path.to_owned() }
    }

    fn failed(&self, action: &'static str, path: &str) -> impl FnOnce(Error) -> StateError {
        let place = self.place(path);
        move |error| StateError::Store { action, place, source: error.into() }
    }

    /// Writes a file, in place of one that may be there.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StateError> {
        self.inner.put(&path.into(), bytes.into()).await.map(drop).map_err(self.failed("write", path))
    }

    /// Writes a file that is not there yet.
    ///
    /// # Errors
    /// [`StateError::Contended`] when one is, with other bytes.
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<(), StateError> {
        let options = PutOptions::from(PutMode::Create);
        match self.inner.put_opts(&path.into(), bytes.clone().into(), options).await {
            Ok(_) => Ok(()),
            // A first try may have succeeded though its answer was lost: then the file is ours.
            Err(Error::AlreadyExists { .. }) => match self.read(path).await? {
                Some(there) if there == bytes => Ok(()),
                _ => Err(StateError::Contended { place: self.place(path) }),
            },
            Err(error) => Err(self.failed("write", path)(error)),
        }
    }

    /// Reads a file; `None` when it is not there.
    pub async fn read(&self, path: &str) -> Result<Option<Bytes>, StateError> {
        let read = async { self.inner.get(&path.into()).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", path)(error)),
        }
    }

    /// The files below `folder`, in order.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let found = self.inner.list(Some(&folder.into())).map_ok(|meta| meta.location.to_string());
        let mut paths: Vec<String> = found.try_collect().await.map_err(self.failed("list", folder))?;
        paths.sort_unstable();
        Ok(paths)
    }

    /// Removes files. One that is not there is no error.
    pub async fn delete(&self, paths: Vec<String>) -> Result<(), StateError> {
        let locations = stream::iter(paths.iter().map(|path| Ok(ObjectPath::from(path.as_str()))).collect::<Vec<_>>());
        let mut deleted = self.inner.delete_stream(locations.boxed());
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("remove files of", "data")(error)),
            }
        }
        Ok(())
    }
}
