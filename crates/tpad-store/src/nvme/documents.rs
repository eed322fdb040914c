//! Documents: manifests and parts of indexes, kept beside the blocks so that a
//! restart while the store is away knows what the blocks are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::disk::{self, Disk};
use super::service::is_refusal;
use super::{Inner, blocking};

/// What begins every document's file; its last byte is the layout's version.
const MAGIC: [u8; 8] = *b"TPADDOC\x01";

/// Magic, digest of what follows, and the key's length.
const HEADER: usize = 8 + 32 + 4;

/// The longest key.
const MAX_KEY: usize = 4096;

/// Documents by key, on the level's disk. Whatever fails is a document that is
/// not there: it only saves asking the store.
#[derive(Clone, Debug)]
pub struct DocumentCache {
    inner: Arc<Inner>,
}

/// What is known of the files, by when they were written.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// `None` until the directory was listed.
    files: Option<BTreeMap<(SystemTime, PathBuf), u64>>,
    bytes: u64,
}

impl DocumentCache {
    pub(super) fn of(inner: &Arc<Inner>) -> Self {
        Self { inner: Arc::clone(inner) }
    }

    /// The document that was last put under `key`, whole or not at all.
    pub async fn get(&self, key: &str) -> Option<Bytes> {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        let found = blocking(move || {
            let Ok(disk) = inner.open() else { return Ok(None) };
            let path = path(&disk, &key);
            match read(&path, &key) {
                Ok(found) => Ok(Some(found)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => {
                    tracing::warn!(level = "nvme", %key, %error, "damaged document removed");
                    // It is overwritten when the document comes again.
                    let _left = disk::remove(&path);
                    Ok(None)
                }
            }
        });
        found.await.ok().flatten()
    }

    /// Keeps a document, in the place of the one that was there. Older ones go
    /// when there is no room.
    pub async fn put(&self, key: &str, document: Bytes) {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        let put = blocking(move || {
            inner.put(&key, &document);
            Ok(())
        });
        // A task that ends early has kept nothing, as if there were no room.
        let _ended = put.await;
    }
}

impl Inner {
    fn put(self: &Arc<Self>, key: &str, document: &[u8]) {
        let bytes = (HEADER + key.len() + document.len()) as u64;
        let limit = self.config.document_bytes();
        if key.len() > MAX_KEY || bytes > limit || !self.service.may_write() {
            return;
        }
        let Ok(disk) = self.open() else { return };
        // Held over the writing: documents are small and seldom.
        let mut shelf = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let put = shelf.make_room(&disk, &path(&disk, key), bytes, limit).and_then(|()| {
            let floor = self.config.free_floor_bytes.saturating_add(bytes);
            if disk.free()? < floor {
                return Err(io::ErrorKind::StorageFull.into());
            }
            shelf.put(&disk, key, document)
        });
        match put {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => self.service.refused(error.to_string()),
            Err(error) => tracing::warn!(level = "nvme", %key, %error, "a document was not kept"),
        }
    }
}

impl Shelf {
    /// Removes the oldest documents until `needed` more bytes are within `limit`.
    /// What lies at `path` is about to be replaced: it neither counts nor goes,
    /// so that it is still there if the new version cannot be written.
    fn make_room(&mut self, disk: &Disk, path: &Path, needed: u64, limit: u64) -> io::Result<()> {
        let files = match &mut self.files {
            Some(files) => files,
            none => {
                let files = list(disk.documents())?;
                self.bytes = files.values().sum();
                none.insert(files)
            }
        };
        let known = |(_, known): &(SystemTime, PathBuf)| known == path;
        let replaced = files.iter().find_map(|(file, bytes)| known(file).then_some(*bytes));
        let needed = needed.saturating_sub(replaced.unwrap_or(0));
        while self.bytes.saturating_add(needed) > limit {
            let Some(oldest) = files.keys().find(|file| !known(file)).cloned() else { break };
            disk::remove(&oldest.1)?;
            self.bytes = self.bytes.saturating_sub(files.remove(&oldest).unwrap_or(0));
        }
        Ok(())
    }

    fn put(&mut self, disk: &Disk, key: &str, document: &[u8]) -> io::Result<()> {
        let (path, unfinished) = (path(disk, key), disk.unfinished());
        let written =
            write(&unfinished, key, document).and_then(|()| fs::rename(&unfinished, &path));
        if let Err(error) = written {
            let _left = disk::remove(&unfinished);
            return Err(error);
        }
        let Some(files) = &mut self.files else { return Ok(()) };
        let older = files.keys().find(|(_, known)| *known == path).cloned();
        if let Some(bytes) = older.and_then(|older| files.remove(&older)) {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        let bytes = (HEADER + key.len() + document.len()) as u64;
        files.insert((SystemTime::now(), path), bytes);
        self.bytes += bytes;
        Ok(())
    }
}

fn list(directory: &Path) -> io::Result<BTreeMap<(SystemTime, PathBuf), u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.insert((modified, entry.path()), metadata.len());
    }
    Ok(files)
}

fn path(disk: &Disk, key: &str) -> PathBuf {
    disk.documents().join(blake3::hash(key.as_bytes()).to_hex().as_str())
}

fn write(path: &Path, key: &str, document: &[u8]) -> io::Result<()> {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut file = fs::File::create_new(path)?;
    file.write_all(&MAGIC)?;
    file.write_all(digest(&length, key.as_bytes(), document).as_bytes())?;
    file.write_all(&length)?;
    file.write_all(key.as_bytes())?;
    file.write_all(document)
}

fn read(path: &Path, key: &str) -> io::Result<Bytes> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is not what was written");
    let mut bytes = Vec::new();
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    let bytes = Bytes::from(bytes);
    let start = HEADER + key.len();
    if bytes.len() < start || bytes[..8] != MAGIC || bytes[HEADER..start] != *key.as_bytes() {
        return Err(damaged());
    }
    let document = bytes.slice(start..);
    if digest(&bytes[40..HEADER], key.as_bytes(), &document).as_bytes()[..] != bytes[8..40] {
        return Err(damaged());
    }
    Ok(document)
}

fn digest(length: &[u8], key: &[u8], document: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(length).update(key).update(document);
    hasher.finalize()
}
