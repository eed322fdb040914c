//! The seam between the hierarchy and what keeps blocks.

use async_trait::async_trait;
use tpad_manifest::BlockId;

use crate::{BlockBytes, CacheClass, Medium, SlotMut, Urgency};

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

    /// Reads the block into `slot`, which has the image's size: demand before
    /// prefetch. Counts as a use.
    ///
    /// When the future is dropped the slot is free as soon as nothing writes to
    /// it any more.
    ///
    /// # Errors
    /// When the level is broken. The slot is gone then.
    async fn read(
        &self,
        id: &BlockId,
        slot: SlotMut,
        urgency: Urgency,
    ) -> Result<LevelRead, LevelError>;

    /// Someone waits by now for a block that is read as a prefetch.
    fn hurry(&self, _id: &BlockId) {}

    /// A number that grows as long as reads get on: a read that takes long at a
    /// level that works waits for others.
    fn progress(&self) -> u64 {
        0
    }

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

    /// How it reads, where there are several ways.
    fn reader(&self) -> Option<LevelReader> {
        None
    }

    /// Reads nothing more, and returns when nothing of it is under way.
    async fn close(&self) {}
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
    /// Nothing: the level compared the image with a checksum that it keeps with the
    /// block's id while it read, and nobody had the slot since.
    Held,
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
            Self::Held => true,
            Self::Crc64Nvme(crc) => crc64_nvme(bytes) == crc,
        }
    }
}

/// The CRC-64/NVME of `bytes`, for [`Check::Crc64Nvme`].
#[must_use]
pub fn crc64_nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// The CRC-64/NVME of two pieces one after another, from that of each and the
/// second one's length.
///
/// A checksum is a polynomial, and to be followed by `n` bits multiplies it by x^n.
/// That takes some 2,000 steps for any length, a few microseconds; `crc_fast` squares
/// matrices for it, at the price of half a megabyte's checksum.
pub(crate) fn crc64_nvme_joined(first: u64, second: u64, second_bytes: u64) -> u64 {
    // x^8, then its powers of 2^k for each bit of the length.
    let (mut power, mut shifted, mut left) = (1 << (63 - 8), first, second_bytes);
    while left > 0 {
        if left & 1 == 1 {
            shifted = product(shifted, power);
        }
        power = product(power, power);
        left >>= 1;
    }
    shifted ^ second
}

/// The product of two polynomials modulo that of CRC-64/NVME. The highest bit is the
/// coefficient of x^0.
fn product(mut a: u64, mut b: u64) -> u64 {
    /// The polynomial without x^64, in that order of bits.
    const MODULUS: u64 = 0x9A6C_9329_AC4B_C9B5;
    let mut product = 0;
    while a != 0 {
        // Without branches: which bits are set is anyone's guess.
        product ^= b & 0u64.wrapping_sub(a >> 63);
        b = (b >> 1) ^ (MODULUS & 0u64.wrapping_sub(b & 1));
        a <<= 1;
    }
    product
}

/// A level is broken: a miss for the reader, a line in the log and the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct LevelError {
    /// What is wrong.
    pub problem: String,
}

/// How a level reads.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LevelReader {
    /// By its name in the configuration.
    pub io: &'static str,
    /// Why it is not another that would be preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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

    #[test]
    fn pieces_have_the_crc_of_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0] ^ 0x5A).collect();
        for piece in [1, 4096, 33_333, 100_000] {
            let pieces = bytes.chunks(piece);
            let joined = pieces.fold(0, |crc, piece| {
                crc64_nvme_joined(crc, crc64_nvme(piece), piece.len() as u64)
            });
            assert_eq!(joined, crc64_nvme(&bytes), "{piece}");
        }
        assert_eq!(crc64_nvme(b""), 0);
    }
}
