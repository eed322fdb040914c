//! One directory at a time.
//!
//! A recursive walk of a checkpoint's root reads what others keep below it, and
//! fails on what it may not read there: a volume's `lost+found`, a link to its
//! own directory, a name that is no text.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use object_store::ObjectStore as _;
use tpad_manifest::check_object_path;

use super::retry::Attempts;
use super::{ObjectEntry, ObjectOrigin, relative};
use crate::OriginError;

/// Files that are looked at at once.
const LOOKS: usize = 16;

/// What lies directly in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects, sorted by path.
    pub objects: Vec<ObjectEntry>,
    /// The directories' paths, sorted.
    pub directories: Vec<String>,
}

impl ObjectOrigin {
    /// What lies directly in a directory (`""` for the root itself). One that
    /// does not exist is empty. Names that no object path can have, and links
    /// that lead nowhere, are left out.
    ///
    /// # Errors
    /// [`OriginError::Unsupported`] over HTTP, or as the store fails.
    pub async fn list_directory(&self, directory: &str) -> Result<Listing, OriginError> {
        if self.is_local() {
            return self.list_files(directory).await;
        }
        let location = self.listed(directory)?;
        let object = self.named(directory);
        let mut attempts = Attempts::at(self, &object, None);
        let found = loop {
            let listing = self.store.list_with_delimiter(Some(&location));
            let attempt = listing.map_err(|error| OriginError::of(&object, error));
            if let Some(end) = attempts.make(attempt).await {
                break end?;
            }
        };
        let objects = found.objects.into_iter().filter_map(|meta| {
            let path = relative(&self.prefix, &meta.location)?;
            Some(ObjectEntry::of(path, meta))
        });
        let directories = found.common_prefixes.iter();
        let directories = directories.filter_map(|path| relative(&self.prefix, path));
        Ok(sorted(objects.collect(), directories.collect()))
    }

    async fn list_files(&self, directory: &str) -> Result<Listing, OriginError> {
        let mut path = PathBuf::from(&*self.url);
        if !directory.is_empty() {
            self.location(directory)?;
            path.push(directory);
        }
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotADirectory => OriginError::NotFound { object: self.named(directory) },
            _ => OriginError::Io { object: self.named(directory), source: Arc::new(error) },
        };
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let names = tokio::task::spawn_blocking(move || names(&path, &prefix)).await;
        let names = names.map_err(std::io::Error::other).and_then(|names| names);
        let Names { files, directories } = names.map_err(failed)?;
        let looks = files.into_iter().map(async |path| match self.entry(&path).await {
            // It was there a moment ago.
            Err(OriginError::NotFound { .. }) => Ok(None),
            entry => entry.map(Some),
        });
        let objects: Vec<Option<ObjectEntry>> =
            futures::stream::iter(looks).buffered(LOOKS).try_collect().await?;
        Ok(sorted(objects.into_iter().flatten().collect(), directories))
    }
}

fn sorted(mut objects: Vec<ObjectEntry>, mut directories: Vec<String>) -> Listing {
    objects.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    directories.sort_unstable();
    Listing { objects, directories }
}

#[derive(Default)]
struct Names {
    files: Vec<String>,
    directories: Vec<String>,
}

fn names(directory: &std::path::Path, prefix: &str) -> std::io::Result<Names> {
    let mut names = Names::default();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(names),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        if check_object_path(&path).is_err() {
            continue;
        }
        // Of what a link leads to; none when it leads nowhere.
        match std::fs::metadata(entry.path()) {
            Ok(there) if there.is_dir() => names.directories.push(path),
            Ok(there) if there.is_file() => names.files.push(path),
            _ => {}
        }
    }
    Ok(names)
}
