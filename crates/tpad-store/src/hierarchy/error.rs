//! Why a hierarchy does not start, and why a read fails.

use std::time::Duration;

use tpad_manifest::BlockId;

use crate::{ErrorKind, OriginError};

/// Why a hierarchy does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The budgets are more than there is.
    #[error(
        "the budgets of levels.dram.tiers add up to {budgets} bytes, levels.dram.capacity is \
         {capacity}: raise the capacity or lower the budgets"
    )]
    Budgets {
        /// Their sum.
        budgets: u64,
        /// The bound.
        capacity: u64,
    },
    /// A bound is zero or otherwise makes no sense.
    #[error("{key} is {value}: {remedy}")]
    Bound {
        /// The bound.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        remedy: &'static str,
    },
}

/// Why a block could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// What to fetch contradicts itself.
    #[error("block {id}: {problem}")]
    Fetch {
        /// The block.
        id: BlockId,
        /// The contradiction.
        problem: &'static str,
    },
    /// The origin failed.
    #[error("block {id}: {source}")]
    Origin {
        /// The block.
        id: BlockId,
        /// How.
        source: OriginError,
    },
    /// The origin's bytes are not the block, and were not when read again.
    #[error(
        "block {id}: {origin} holds other bytes, with digest {found}: the checkpoint was changed or damaged"
    )]
    Digest {
        /// The block.
        id: BlockId,
        /// The root.
        origin: String,
        /// The digest of what is there.
        found: BlockId,
    },
    /// The block does not fit in host memory at all.
    #[error("block {id} has {bytes} bytes, levels.dram.capacity is {capacity}: raise it")]
    TooLarge {
        /// The block.
        id: BlockId,
        /// Its size in memory.
        bytes: u64,
        /// The bound.
        capacity: u64,
    },
    /// All memory is in use by readers, and none came free in time.
    #[error(
        "block {id}: no {bytes} bytes of levels.dram.capacity came free in time: {leased} of \
         {capacity} are held by readers and fills"
    )]
    NoRoom {
        /// The block.
        id: BlockId,
        /// Its size in memory.
        bytes: u64,
        /// What readers and other fills hold.
        leased: u64,
        /// The bound.
        capacity: u64,
    },
    /// Memory could not be had from the system.
    #[error("block {id}: the system gives no memory: {problem}")]
    Memory {
        /// The block.
        id: BlockId,
        /// The system's words.
        problem: String,
    },
    /// Too many blocks are being filled, or too many reads wait.
    #[error("{count} {what} already: try again later")]
    Busy {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
    },
    /// The caller's deadline passed.
    #[error("block {id}: the deadline passed while it was being read")]
    Deadline {
        /// The block.
        id: BlockId,
    },
    /// The fill took longer than any fill may.
    #[error("block {id}: the origin did not deliver it within {limit:?}")]
    Slow {
        /// The block.
        id: BlockId,
        /// The bound.
        limit: Duration,
    },
    /// The store is stopping.
    #[error("the store is stopping")]
    Stopping,
    /// The fill ended without a result.
    #[error("block {id}: the fill ended without a result, which is a fault of the program")]
    Lost {
        /// The block.
        id: BlockId,
    },
}

impl ReadError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fetch { .. } => ErrorKind::DataLoss,
            Self::Origin { source, .. } => source.kind(),
            Self::Digest { .. } => ErrorKind::DataLoss,
            Self::TooLarge { .. } => ErrorKind::FailedPrecondition,
            Self::NoRoom { .. } | Self::Memory { .. } | Self::Busy { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Slow { .. } | Self::Stopping => ErrorKind::Unavailable,
            Self::Lost { .. } => ErrorKind::Internal,
        }
    }
}
