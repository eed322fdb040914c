//! The origin over an object store.

mod listing;
mod pulse;
mod read;
mod retry;
mod version;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::{TryFutureExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tpad_manifest::check_object_path;

pub use self::listing::Listing;
use self::pulse::Pulse;
use self::retry::Attempts;
use super::store::{self, Opened};
use super::{OriginError, OriginOptions};
use crate::StoreMetrics;

/// A checkpoint's root in an object store or a directory.
///
/// In a directory, links are followed wherever they lead: a Hugging Face
/// snapshot consists of links that its owner made. Paths themselves never
/// contain `..`. HTTP servers can be read, but neither listed nor written.
#[derive(Clone)]
pub struct ObjectOrigin {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: Arc<str>,
    local: bool,
    options: Arc<OriginOptions>,
    metrics: Option<StoreMetrics>,
    pulse: Arc<Pulse>,
    setbacks: Arc<AtomicU64>,
}

/// What became of a create-only write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is there now.
    New,
    /// There was one already; it was left alone.
    Exists,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its path, relative to the root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The store's tag or version of its content, where there is one.
    pub etag: Option<String>,
    /// When it was last written, in milliseconds since 1970.
    pub modified_ms: i64,
}

impl ObjectOrigin {
    /// Opens a root: `s3://bucket/prefix`, `gs://`, `az://container/prefix`,
    /// `http://`, `https://`, `file:///directory` or a plain path. Nothing is
    /// contacted yet, and the directory need not exist.
    ///
    /// # Errors
    /// [`OriginError::Root`] when the root names nothing that can be opened.
    pub fn open(root: &str, options: &OriginOptions) -> Result<Self, OriginError> {
        let Opened { store, prefix, url, local } = store::open(root, options)?;
        let options = Arc::new(options.clone());
        let (pulse, setbacks) = (Arc::default(), Arc::default());
        let url = url.into();
        Ok(Self { store, prefix, url, local, options, metrics: None, pulse, setbacks })
    }

    /// Counts retries in `metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: StoreMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Another root, reached the same way.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn at(&self, root: &str) -> Result<Self, OriginError> {
        let origin = Self::open(root, &self.options)?;
        Ok(Self { metrics: self.metrics.clone(), ..origin })
    }

    /// The root, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the root is a directory of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// A whole object of at most `max_bytes`. Every attempt is bounded by the
    /// timeouts of the options, not by a deadline.
    ///
    /// # Errors
    /// [`OriginError::TooLarge`] before anything large is read, or as the store fails.
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Bytes, OriginError> {
        let location = self.location(path)?;
        let object = self.named(path);
        let mut attempts = Attempts::at(self, &object, None);
        loop {
            let attempt = read::whole(&*self.store, &location, &object, max_bytes);
            if let Some(end) = attempts.make(attempt).await {
                return end;
            }
        }
    }

    /// An object's size.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] or as the store fails.
    pub async fn size(&self, path: &str) -> Result<u64, OriginError> {
        self.entry(path).await.map(|entry| entry.bytes)
    }

    /// What a listing would say of one object.
    ///
    /// # Errors
    /// As [`Self::size`].
    pub async fn entry(&self, path: &str) -> Result<ObjectEntry, OriginError> {
        let location = self.location(path)?;
        let object = self.named(path);
        let mut attempts = Attempts::at(self, &object, None);
        loop {
            let head = self.store.head(&location);
            let attempt = head.map_err(|error| OriginError::of(&object, error));
            if let Some(end) = attempts.make(attempt).await {
                return end.map(|meta| ObjectEntry::of(path.to_owned(), meta));
            }
        }
    }

    /// The objects below a directory (`""` for the root itself), sorted by path.
    /// A directory that does not exist is empty.
    ///
    /// # Errors
    /// [`OriginError::Unsupported`] over HTTP, or as the store fails.
    pub async fn list(&self, directory: &str) -> Result<Vec<ObjectEntry>, OriginError> {
        let location = self.listed(directory)?;
        let object = self.named(directory);
        let mut attempts = Attempts::at(self, &object, None);
        let metas = loop {
            let listing = self.store.list(Some(&location)).try_collect::<Vec<_>>();
            let attempt = listing.map_err(|error| OriginError::of(&object, error));
            if let Some(end) = attempts.make(attempt).await {
                break end?;
            }
        };
        let mut entries: Vec<ObjectEntry> = metas
            .into_iter()
            .filter_map(|meta| {
                let path = relative(&self.prefix, &meta.location)?;
                Some(ObjectEntry::of(path, meta))
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Writes an object unless there is one: of several writers one succeeds.
    ///
    /// It is not tried again: a failure leaves open whether the object was
    /// written, and a second attempt would find the first one's.
    ///
    /// # Errors
    /// [`OriginError::Unsupported`] over HTTP, or as the store fails.
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<Created, OriginError> {
        if self.is_http() {
            let operation = "creating an object";
            return Err(OriginError::Unsupported { url: self.url.to_string(), operation });
        }
        let location = self.location(path)?;
        match self.write(&location, bytes, PutMode::Create).await {
            Ok(()) => Ok(Created::New),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(Created::Exists),
            Err(error) => Err(OriginError::of(&self.named(path), error)),
        }
    }

    /// Writes an object, over one that may be there. For objects that are named
    /// by their content, so that writing twice changes nothing.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), OriginError> {
        let location = self.location(path)?;
        let object = self.named(path);
        let mut attempts = Attempts::at(self, &object, None);
        loop {
            let write = self.write(&location, bytes.clone(), PutMode::Overwrite);
            let attempt = write.map_err(|error| OriginError::of(&object, error));
            if let Some(end) = attempts.make(attempt).await {
                return end;
            }
        }
    }
}

impl ObjectOrigin {
    async fn write(
        &self,
        location: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> object_store::Result<()> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store.put_opts(location, bytes.into(), options).await?;
        Ok(())
    }

    fn is_http(&self) -> bool {
        self.url.starts_with("http://") || self.url.starts_with("https://")
    }

    /// The place of a directory that is to be listed.
    fn listed(&self, directory: &str) -> Result<Path, OriginError> {
        if self.is_http() {
            let operation = "listing objects";
            return Err(OriginError::Unsupported { url: self.url.to_string(), operation });
        }
        match directory {
            "" => Ok(self.prefix.clone()),
            directory => self.location(directory),
        }
    }

    /// The object's place in the store.
    fn location(&self, path: &str) -> Result<Path, OriginError> {
        let refused = |source| OriginError::Path { path: path.to_owned(), source };
        check_object_path(path).map_err(refused)?;
        // The rules of the store's own paths are a subset of those just checked.
        let character = |_| refused(tpad_manifest::PathError::Character);
        let path = Path::parse(path).map_err(character)?;
        Ok(self.prefix.parts().chain(path.parts()).collect())
    }

    /// The object's name for people.
    fn named(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }
}

impl ObjectEntry {
    fn of(path: String, meta: object_store::ObjectMeta) -> Self {
        let object_store::ObjectMeta { last_modified, size, e_tag, version, location: _ } = meta;
        let modified_ms = last_modified.timestamp_millis();
        Self { path, bytes: size, etag: e_tag.or(version), modified_ms }
    }
}

impl fmt::Debug for ObjectOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectOrigin").field(&self.url).finish()
    }
}

/// A listed location as a path below the root.
fn relative(prefix: &Path, location: &Path) -> Option<String> {
    let parts: Vec<_> = location.prefix_match(prefix)?.collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    Some(parts.join("/")).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests;
