//! What may be given up, and in which order.

use tpad_manifest::BlockId;
use tpad_store::CacheClass;

use super::worth::Worth;

/// What a block is worth, and of those that are worth the same, when it was used last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) worth: Worth,
    pub(super) used: u64,
}

/// A kept block, for choosing which to give up.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: BlockId,
    pub(crate) class: CacheClass,
    pub(crate) generation: u64,
    pub(crate) slab: u64,
    pub(crate) slot_bytes: u64,
    /// Whether someone holds it: giving it up frees nothing yet.
    pub(crate) held: bool,
    pub(super) rank: Rank,
    /// Whether someone wanted it just now and will come for it.
    pub(super) awaited: bool,
}

impl Candidate {
    /// Whether it may go for a block of this worth that nobody waits for.
    pub(crate) fn is_worth_less(&self, than: Worth) -> bool {
        !self.held && !self.awaited && self.rank.worth < than
    }
}
