//! Published revisions: which there are, what one says, and the indexes that
//! it names.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tpad_index::{IndexError, MAX_HEADER_BYTES, MAX_SEGMENT_BYTES, decode_header, decode_segment};
use tpad_manifest::{
    Digest, IndexHeader, IndexRef, Loaded, MAX_DOCUMENT_BYTES, Manifest, REVISIONS, Rejected,
    Segment, SegmentEntry, index_path, revision_of, revision_path,
};
use tpad_store::{ErrorKind, ObjectOrigin, Origin as _, OriginError, OriginOptions};

use crate::blocking::blocking;

/// How long reading a part of an index may take.
const INDEX_DEADLINE: Duration = Duration::from_secs(300);

/// A revision as it was read.
#[derive(Clone)]
pub struct Revision {
    root: ObjectOrigin,
    number: u64,
    document: Bytes,
    manifest: Result<Loaded, Rejected>,
}

/// A revision or its index cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    /// As the store fails.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// There is no revision.
    #[error("{root} has no revision: publish one with `tpactl import`")]
    None {
        /// The root.
        root: String,
    },
    /// Its document is refused.
    #[error("{url} is refused: {problems}")]
    Rejected {
        /// The document.
        url: String,
        /// What is wrong with it.
        problems: Rejected,
    },
    /// An index object is not what the manifest names.
    #[error("index {digest}: {source}")]
    Index {
        /// The index's name.
        digest: Digest,
        /// What is wrong with it.
        source: IndexError,
    },
}

impl RevisionError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Origin(error) => error.kind(),
            Self::None { .. } => ErrorKind::NotFound,
            Self::Index { source, .. } if source.is_newer() => ErrorKind::FailedPrecondition,
            Self::Rejected { .. } => ErrorKind::FailedPrecondition,
            Self::Index { .. } => ErrorKind::DataLoss,
        }
    }

    /// Whether the index is of a newer version: its tier is then skipped, as one
    /// that requires what this version does not know.
    #[must_use]
    pub const fn is_newer(&self) -> bool {
        matches!(self, Self::Index { source, .. } if source.is_newer())
    }
}

impl Revision {
    /// Reads the revision at `url`: a revision's document, or a root, whose
    /// highest revision is meant.
    ///
    /// # Errors
    /// When there is none or it cannot be read. One that is read and refused is
    /// no error here: see [`Self::manifest`].
    pub async fn open(url: &str, options: &OriginOptions) -> Result<Self, RevisionError> {
        let (root, number) = locate(url);
        let root = ObjectOrigin::open(root, options)?;
        match number {
            Some(number) => Ok(Self::read(&root, number).await?),
            None => match Self::newest(&root).await? {
                Some(revision) => Ok(revision),
                None => Err(RevisionError::None { root: root.url().to_owned() }),
            },
        }
    }

    /// The highest revision at `root`; `None` when there is none.
    pub(crate) async fn newest(root: &ObjectOrigin) -> Result<Option<Self>, OriginError> {
        match newest_number(root).await? {
            Some(number) => Self::read(root, number).await.map(Some),
            None => Ok(None),
        }
    }

    /// The revision of this number.
    pub(crate) async fn read(root: &ObjectOrigin, number: u64) -> Result<Self, OriginError> {
        let limit = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
        let document = root.get(&revision_path(number), limit).await?;
        let manifest = Manifest::parse(&document);
        Ok(Self { root: root.clone(), number, document, manifest })
    }

    /// The document's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.root.url(), revision_path(self.number))
    }

    /// The number in the document's name.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The document as it is stored.
    #[must_use]
    pub const fn document(&self) -> &Bytes {
        &self.document
    }

    /// What the document says, or why it is refused.
    pub const fn manifest(&self) -> &Result<Loaded, Rejected> {
        &self.manifest
    }

    /// What the document says.
    ///
    /// # Errors
    /// When it is refused.
    pub fn accepted(&self) -> Result<&Manifest, RevisionError> {
        match &self.manifest {
            Ok(loaded) => Ok(&loaded.manifest),
            Err(problems) => {
                Err(RevisionError::Rejected { url: self.url(), problems: problems.clone() })
            }
        }
    }

    /// Where the shards are: the root, or the base that the manifest names.
    ///
    /// # Errors
    /// When the base cannot be opened.
    pub fn objects(&self) -> Result<ObjectOrigin, OriginError> {
        let loaded = self.manifest.as_ref().ok();
        match loaded.and_then(|loaded| loaded.manifest.objects_base.as_deref()) {
            Some(base) => self.root.at(base),
            None => Ok(self.root.clone()),
        }
    }

    /// The size of an index object.
    pub(crate) async fn index_bytes(&self, index: &IndexRef) -> Result<u64, OriginError> {
        self.root.size(&index_path(&index.digest)).await
    }

    /// An index's header.
    ///
    /// # Errors
    /// When it cannot be read or is not what the manifest names.
    pub async fn header(&self, index: &IndexRef) -> Result<IndexHeader, RevisionError> {
        let what = Part { index, what: "header", limit: MAX_HEADER_BYTES };
        let bytes = self.part(what, 0, index.header_bytes).await?;
        decode_header(&bytes, index)
            .map_err(|source| RevisionError::Index { digest: index.digest, source })
    }

    /// One of an index's segments.
    ///
    /// # Errors
    /// When it cannot be read or is not what the header names.
    pub async fn segment(
        &self,
        index: &IndexRef,
        header: &Arc<IndexHeader>,
        entry: &SegmentEntry,
    ) -> Result<Segment, RevisionError> {
        let what = Part { index, what: "segment", limit: MAX_SEGMENT_BYTES };
        let bytes = self.part(what, entry.offset, entry.bytes).await?;
        let (header, entry, digest) = (header.clone(), *entry, index.digest);
        let decoded = blocking(move || decode_segment(bytes, &entry, &header)).await;
        decoded.map_err(|source| RevisionError::Index { digest, source })
    }

    async fn part(&self, part: Part<'_>, offset: u64, bytes: u64) -> Result<Bytes, RevisionError> {
        let Part { index, what, limit } = part;
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= limit);
        let length = length.ok_or_else(|| RevisionError::Index {
            digest: index.digest,
            source: IndexError::TooLarge { what: what.to_owned(), bytes, most: limit },
        })?;
        let mut buffer = BytesMut::zeroed(length);
        let deadline = Instant::now() + INDEX_DEADLINE;
        self.root.read_range(&index_path(&index.digest), offset, &mut buffer, deadline).await?;
        Ok(buffer.freeze())
    }

    /// The document's digest, by which a successor names its parent.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.document)
    }
}

/// A part of an index object, for bounds and messages.
struct Part<'a> {
    index: &'a IndexRef,
    what: &'static str,
    limit: u64,
}

/// The highest revision's number; `None` when there is none.
pub(crate) async fn newest_number(root: &ObjectOrigin) -> Result<Option<u64>, OriginError> {
    Ok(numbers(root, REVISIONS, revision_path).await?.last().copied())
}

/// The numbers of the documents in a directory of numbered ones, ascending.
pub(crate) async fn numbers(
    root: &ObjectOrigin,
    directory: &str,
    path: fn(u64) -> String,
) -> Result<Vec<u64>, OriginError> {
    let entries = root.list(directory).await?;
    let numbers = entries
        .iter()
        .filter_map(|entry| revision_of(&entry.path).filter(|number| path(*number) == entry.path));
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The root in `url`, and the revision if it names one.
fn locate(url: &str) -> (&str, Option<u64>) {
    let found = revision_of(url)
        .and_then(|number| Some((url.strip_suffix(&*revision_path(number))?, Some(number))));
    match found {
        Some(("", number)) => (".", number),
        // The root of the file system keeps its slash.
        Some(("/", number)) => ("/", number),
        Some((root, number)) if root.ends_with('/') => (&root[..root.len() - 1], number),
        _ => (url, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_roots_or_revisions() {
        let table = [
            ("s3://b/m", ("s3://b/m", None)),
            ("s3://b/m/tpad/revisions/12.json", ("s3://b/m", Some(12))),
            ("/d/tpad/revisions/1.json", ("/d", Some(1))),
            ("tpad/revisions/1.json", (".", Some(1))),
            ("/tpad/revisions/1.json", ("/", Some(1))),
            ("/d/tpad/revisions/01.json", ("/d/tpad/revisions/01.json", None)),
            ("/d/xtpad/revisions/1.json", ("/d/xtpad/revisions/1.json", None)),
        ];
        for (url, expected) in table {
            assert_eq!(locate(url), expected, "{url}");
        }
    }
}
