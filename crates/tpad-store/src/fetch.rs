//! What to read: a block's identity, where its bytes lie, and how urgent it is.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;
use tpad_manifest::{BlockId, BlockRecord, IMAGE_ALIGN_BYTES, SizeError};

/// Which memory a block's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// GPU memory.
    Hbm,
    /// Host memory.
    Dram,
    /// Local disk.
    Nvme,
    /// The origin.
    ObjectStore,
}

impl Medium {
    /// The name in manifests, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::ObjectStore => "object_store",
        }
    }
}

/// Which budget keeps a block in host memory: its tier's id, or `router` or
/// `dense`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheClass(Arc<str>);

impl CacheClass {
    /// The class of this name.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The class's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CacheClass {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for CacheClass {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl fmt::Debug for CacheClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A piece of an object and its place in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchPart {
    /// The object's path, relative to the origin's root.
    pub object: Arc<str>,
    /// The first byte in the object.
    pub offset: u64,
    /// How many bytes; never 0.
    pub bytes: u64,
    /// The first byte in the image.
    pub at: u64,
}

/// All that is needed to read one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockFetch {
    /// The digest that the image must have.
    pub id: BlockId,
    /// The image's size, padding included.
    pub bytes: u64,
    /// Where its bytes come from; what no part covers is zero.
    pub parts: Vec<FetchPart>,
    /// Which budget keeps it.
    pub class: CacheClass,
}

impl BlockFetch {
    /// How to read the block of `record`.
    ///
    /// # Errors
    /// When a tensor has no size, the image overflows, or a tensor's ranges do
    /// not add up to its size.
    pub fn of(record: &BlockRecord, class: CacheClass) -> Result<Self, SizeError> {
        let layout = record.layout()?;
        let mut parts = Vec::with_capacity(record.tensors.len());
        for (tensor, start) in record.tensors.iter().zip(&layout.offsets) {
            let overflow = || SizeError::Overflow(tensor.shape.clone(), tensor.dtype.clone());
            let mut at = *start;
            for range in &tensor.ranges {
                let end = at.checked_add(range.bytes).ok_or_else(overflow)?;
                if range.bytes > 0 {
                    let object = Arc::clone(&range.object);
                    parts.push(FetchPart { object, offset: range.offset, bytes: range.bytes, at });
                }
                at = end;
            }
            // The index was checked when it was loaded; here a contradiction
            // would write over the neighbour.
            if at - start != tensor.bytes()? {
                return Err(overflow());
            }
        }
        Ok(Self { id: record.id, bytes: layout.bytes, parts, class })
    }

    /// Whether every part lies in the image and in 64 bits, and no two overlap.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !self.bytes.is_multiple_of(IMAGE_ALIGN_BYTES) {
            return Err("the image's size is no multiple of its alignment");
        }
        let mut spans = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let end = part.at.checked_add(part.bytes).filter(|end| *end <= self.bytes);
            let end = end.ok_or("a part lies outside of the image")?;
            part.offset.checked_add(part.bytes).ok_or("a part ends beyond 64 bits")?;
            spans.push((part.at, end));
        }
        spans.sort_unstable();
        if spans.windows(2).any(|pair| matches!(pair, [a, b] if b.0 < a.1)) {
            return Err("two parts overlap in the image");
        }
        Ok(())
    }
}

/// Whether someone waits for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody does: the read goes after every demand read, and is given up
    /// rather than kept waiting for memory.
    Prefetch,
    /// Someone does.
    Demand,
}

/// How to read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Whether someone waits.
    pub urgency: Urgency,
}

impl ReadOptions {
    /// A demand read with this deadline.
    #[must_use]
    pub const fn demand(deadline: Instant) -> Self {
        Self { deadline, urgency: Urgency::Demand }
    }
}
