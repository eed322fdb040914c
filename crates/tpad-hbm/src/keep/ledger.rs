//! What one class keeps: its bytes, and its blocks by what they are worth.

use std::collections::BTreeMap;

use tpad_manifest::BlockId;

use super::candidate::Rank;
use super::worth::Worth;

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// Blocks that have arrived are of two kinds, each ordered for itself: whoever looks for
/// one that may go is not to look through all that somebody is about to come for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Nobody comes for it.
    Free,
    /// Somebody wanted it and will come for it.
    Awaited,
}

/// What a class keeps.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) account: Account,
    free: BTreeMap<Rank, BlockId>,
    awaited: BTreeMap<Rank, BlockId>,
}

impl Ledger {
    pub(super) fn order(&self, order: Order) -> &BTreeMap<Rank, BlockId> {
        match order {
            Order::Free => &self.free,
            Order::Awaited => &self.awaited,
        }
    }

    pub(super) fn order_mut(&mut self, order: Order) -> &mut BTreeMap<Rank, BlockId> {
        match order {
            Order::Free => &mut self.free,
            Order::Awaited => &mut self.awaited,
        }
    }

    /// Blocks that nobody comes for and that are worth less than this, the least first.
    pub(super) fn worth_less(&self, than: Worth) -> impl Iterator<Item = &BlockId> {
        self.free.range(..Rank { worth: than, used: 0 }).map(|(_, id)| id)
    }

    /// None of its blocks was ever used, and nobody comes for one.
    pub(super) fn forget_uses(&mut self) {
        let blocks = std::mem::take(&mut self.free).into_iter();
        let blocks = blocks.chain(std::mem::take(&mut self.awaited));
        self.free = blocks.map(|(rank, id)| (Rank { worth: Worth::NONE, ..rank }, id)).collect();
    }
}

impl Account {
    pub(super) fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.bytes -= other.bytes;
    }
}
