//! The last good documents of stores, on local disk where there is one: what a
//! restart serves while a store is away.
//!
//! What is kept is no more trusted than what a store sends: whoever reads it
//! checks it as if it had come from there, and asks the store when it does not
//! hold.

use bytes::Bytes;
use tpad_manifest::{Digest, IndexRef, SegmentEntry};
use tpad_store::{DocumentCache, ErrorKind};

/// Documents that outlive the process; none without a disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Option<DocumentCache>);

impl Kept {
    /// On the disk of these documents.
    pub(crate) const fn on(documents: Option<DocumentCache>) -> Self {
        Self(documents)
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Bytes> {
        match &self.0 {
            Some(documents) => documents.get(key).await,
            None => None,
        }
    }

    /// Keeps a document that was found right. Nobody has to wait for it.
    pub(crate) async fn put(&self, key: &str, document: Bytes) {
        if let Some(documents) = &self.0 {
            documents.put(key, document).await;
        }
    }

    /// Whether anything is kept at all.
    pub(crate) const fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

/// The manifest that a model's root had last.
pub(crate) fn manifest_key(root: &str) -> String {
    format!("manifest {root}")
}

/// The activation record that chose it; empty when there was none.
pub(crate) fn activation_key(root: &str) -> String {
    format!("activation {root}")
}

/// An index's header: named by its content, wherever it is from.
pub(crate) fn header_key(index: &IndexRef) -> String {
    format!("index {}", index.digest)
}

/// A segment of an index, likewise.
pub(crate) fn segment_key(entry: &SegmentEntry) -> String {
    format!("segment {}", entry.digest)
}

/// A small file, likewise.
pub(crate) fn file_key(digest: &Digest) -> String {
    format!("file {digest}")
}

/// Whether an error says that the store is away, rather than what it holds.
pub(crate) const fn is_away(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
}
