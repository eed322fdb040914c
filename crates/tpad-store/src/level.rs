//! The seam between the hierarchy and what keeps blocks.

use async_trait::async_trait;
use tpad_manifest::BlockId;

use crate::{BlockBytes, CacheClass, Medium, SlotMut};

/// A cache of verified blocks, made of one medium.
///
/// A level may forget any block at any time, and may fail: the hierarchy counts
/// a failure as a miss. What it must never do is answer with other bytes than
/// were admitted under an id, except detectably, by the [`Check`] it returns.
///
/// Reads land in a slot that the hierarchy took beforehand, and own it for the
/// time of the read: work that cannot be given up (a blocking read) keeps the
/// memory it writes to, even if nobody waits any more.
#[async_trait]
pub trait Level: Send + Sync + 'static {
    /// What it is made of.
    fn medium(&self) -> Medium;

    /// Whether it holds the block. Without side effects: it neither counts as a
    /// use nor blocks.
    fn contains(&self, id: &BlockId) -> bool;

    /// Whether it holds the block, counted as a use where the level counts them.
    /// Does not block.
    fn settle(&self, id: &BlockId) -> bool {
        self.contains(id)
    }

    /// The block in the level's own memory, if that is where it is and readers
    /// may share it: no slot and no copy are needed then. Counts as a use.
    fn in_place(&self, _id: &BlockId) -> Option<BlockBytes> {
        None
    }

    /// Reads the block into `slot`, which has the image's size. Counts as a use.
    ///
    /// When the future is dropped the slot is free as soon as nothing writes to
    /// it any more.
    ///
    /// # Errors
    /// When the level is broken. The slot is gone then.
    async fn read(&self, id: &BlockId, slot: SlotMut) -> Result<LevelRead, LevelError>;

    /// Offers a verified block. `true` if the level has it now: refusing is no
    /// error.
    ///
    /// # Errors
    /// When the level is broken. It then holds the block whole or not at all.
    async fn admit(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError>;

    /// Forgets the block, if it is there. Readers that share it keep it.
    ///
    /// # Errors
    /// When the level is broken.
    async fn remove(&self, id: &BlockId) -> Result<(), LevelError>;

    /// What it holds.
    fn usage(&self) -> LevelUsage;

    /// What is wrong with it, as far as it knows itself.
    fn health(&self) -> Health {
        Health::Ok
    }

    /// Whether a block is worth reading for it: it would try to take it.
    fn takes(&self) -> bool {
        self.health() == Health::Ok
    }

    /// What else an operator may want to know of it.
    fn note(&self) -> Option<String> {
        None
    }
}

/// The outcome of a read.
#[derive(Debug)]
pub enum LevelRead {
    /// The image is in the slot, and is right if `check` holds.
    Hit {
        /// The slot that was given.
        slot: SlotMut,
        /// What its bytes have to satisfy.
        check: Check,
    },
    /// The block is not here.
    Miss(SlotMut),
}

/// How the hierarchy verifies what a level read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The level kept nothing of its own: the block's id is compared.
    Digest,
    /// The CRC-64/NVME of the image, stored with the block's id when the block
    /// was admitted. A quarter of a digest's cost.
    Crc64Nvme(u64),
}

impl Check {
    /// Whether `bytes` satisfy it for the block `id`. Computed on the calling
    /// thread.
    #[must_use]
    pub fn holds(self, id: &BlockId, bytes: &[u8]) -> bool {
        match self {
            Self::Digest => BlockId::of(bytes) == *id,
            Self::Crc64Nvme(crc) => crc64_nvme(bytes) == crc,
        }
    }
}

/// The CRC-64/NVME of `bytes`, for [`Check::Crc64Nvme`].
#[must_use]
pub fn crc64_nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// A level is broken: a miss for the reader, a line in the log and the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct LevelError {
    /// What is wrong.
    pub problem: String,
}

/// What a level holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LevelUsage {
    /// Blocks.
    pub blocks: u64,
    /// What they take, padding included.
    pub bytes: u64,
    /// What they may take.
    pub capacity: u64,
}

/// Whether a level works.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does.
    Ok,
    /// It is read; nothing is written to it for a while.
    ReadOnly(String),
    /// It failed and is left alone for a while; reads go past it.
    Broken(String),
}

impl LevelError {
    /// A level is broken in this way.
    #[must_use]
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_the_published_one() {
        assert_eq!(crc64_nvme(b"123456789"), 0xAE8B_1486_0A79_9888);
    }
}
