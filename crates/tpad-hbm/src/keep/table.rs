//! The blocks that are kept or on their way, and the ledger of their bytes.

use std::collections::HashMap;
use std::time::Instant;

use tpad_handoff::Named;
use tpad_manifest::BlockId;
use tpad_store::{CacheClass, Urgency};

use super::candidate::{Candidate, Rank};
use super::ledger::{Account, Ledger, Order};
use super::wishes::{Wish, Wishes};
use super::worth::{Uses, Worth};
use crate::DeviceBlock;

/// The blocks that are kept or on their way.
#[derive(Debug, Default)]
pub(super) struct Table {
    blocks: HashMap<BlockId, Kept>,
    classes: HashMap<CacheClass, Ledger>,
    total: Account,
    /// Counts uses and insertions.
    clock: u64,
    uses: Uses,
    wishes: Wishes,
}

#[derive(Debug)]
struct Kept {
    /// `None` while it is copied.
    block: Option<DeviceBlock>,
    class: CacheClass,
    slot_bytes: u64,
    /// Tells this stay of the block from an earlier one.
    generation: u64,
    rank: Rank,
    /// Of somebody who has not come for it yet.
    wish: Option<Wish>,
}

/// A stay of a block: its id and generation.
pub(super) type Stay = (BlockId, u64);

impl Table {
    /// The block, used now, for whoever comes for it when the rest of what he wants is
    /// there.
    pub(super) fn want(&mut self, id: &BlockId) -> Option<DeviceBlock> {
        self.used(id, 1);
        let block = self.blocks.get(id)?.block.clone()?;
        let wish = self.wishes.make(self.clock, *id, Instant::now());
        self.await_by(id, Some(wish));
        Some(block)
    }

    /// The block, for whoever only looks.
    pub(super) fn peek(&self, id: &BlockId) -> Option<DeviceBlock> {
        self.blocks.get(id)?.block.clone()
    }

    /// The block, for whoever wanted it and was counted then.
    pub(super) fn claim(&mut self, id: &BlockId) -> Option<DeviceBlock> {
        let block = self.blocks.get(id)?.block.clone()?;
        self.await_by(id, None);
        Some(block)
    }

    /// The block was used, so many times, if it has arrived.
    pub(super) fn used(&mut self, id: &BlockId, times: u32) {
        let Some(kept) = self.blocks.get_mut(id).filter(|kept| kept.block.is_some()) else {
            return;
        };
        self.clock += 1;
        let worth = self.uses.count(kept.rank.worth, times, self.total.blocks);
        let rank = Rank { worth, used: self.clock };
        if let Some(ledger) = self.classes.get_mut(&kept.class) {
            let order = ledger.order_mut(kept.order());
            order.remove(&kept.rank);
            order.insert(rank, *id);
        }
        kept.rank = rank;
    }

    /// Who comes for the block from here on: whoever made this wish, or nobody.
    fn await_by(&mut self, id: &BlockId, wish: Option<Wish>) {
        let Some(kept) = self.blocks.get_mut(id) else { return };
        let before = kept.order();
        if let Some(old) = std::mem::replace(&mut kept.wish, wish) {
            self.wishes.end(old);
        }
        if kept.block.is_some()
            && let Some(ledger) = self.classes.get_mut(&kept.class)
        {
            ledger.order_mut(before).remove(&kept.rank);
            ledger.order_mut(kept.order()).insert(kept.rank, *id);
        }
    }

    /// Whoever has not come for so long does not come any more.
    fn settle(&mut self) {
        while let Some(id) = self.wishes.end_stale(self.clock, self.total.blocks) {
            self.await_by(&id, None);
        }
    }

    /// The block is likely to be used next. What is kept is counted when it is.
    pub(super) fn expect(&mut self, id: &BlockId) {
        if !self.blocks.contains_key(id) {
            self.uses.expect(*id);
        }
    }

    pub(super) fn contains(&self, id: &BlockId) -> bool {
        self.blocks.get(id).is_some_and(|kept| kept.block.is_some())
    }

    /// What a block is worth; one that is not kept, to somebody who does not wait for it.
    pub(super) fn worth_of(&self, id: &BlockId) -> Worth {
        self.blocks.get(id).map_or_else(|| self.uses.of(id), |kept| kept.rank.worth)
    }

    /// Nothing of these classes was ever used, as far as this is concerned.
    pub(super) fn forget_uses(&mut self, of: impl Fn(&CacheClass) -> bool) {
        for kept in self.blocks.values_mut().filter(|kept| of(&kept.class)) {
            kept.rank.worth = Worth::NONE;
            if let Some(wish) = kept.wish.take() {
                self.wishes.end(wish);
            }
        }
        self.uses.forget();
        for (_, ledger) in self.classes.iter_mut().filter(|(class, _)| of(class)) {
            ledger.forget_uses();
        }
    }

    /// Begins a stay, unless there is one. Returns its generation. A demand is a use, and
    /// whoever demands will come for it.
    pub(super) fn reserve(
        &mut self,
        id: BlockId,
        class: &CacheClass,
        slot_bytes: u64,
        urgency: Urgency,
    ) -> Option<u64> {
        if self.blocks.contains_key(&id) {
            return None;
        }
        self.clock += 1;
        let (generation, used) = (self.clock, self.clock);
        let account = Account { blocks: 1, bytes: slot_bytes };
        self.classes.entry(class.clone()).or_default().account.add(account);
        self.total.add(account);
        let before = self.uses.recall(&id);
        let (wish, worth) = match urgency {
            Urgency::Demand => {
                let wish = self.wishes.make(self.clock, id, Instant::now());
                (Some(wish), self.uses.count(before, 1, self.total.blocks))
            }
            Urgency::Prefetch => (None, before),
        };
        let (class, rank) = (class.clone(), Rank { worth, used });
        let kept = Kept { block: None, class, slot_bytes, generation, rank, wish };
        self.blocks.insert(id, kept);
        Some(generation)
    }

    /// The block of a stay has arrived; whether the stay goes on.
    pub(super) fn publish(&mut self, id: &BlockId, generation: u64, block: &DeviceBlock) -> bool {
        let kept = self.blocks.get_mut(id).filter(|kept| kept.generation == generation);
        let Some(kept) = kept else { return false };
        kept.block = Some(block.clone());
        if let Some(ledger) = self.classes.get_mut(&kept.class) {
            ledger.order_mut(kept.order()).insert(kept.rank, *id);
        }
        true
    }

    /// Gives the block up; with a generation, only in that stay. `None` if it was not
    /// there. What is returned is to be dropped outside of the table's lock.
    pub(super) fn remove(
        &mut self,
        id: &BlockId,
        generation: Option<u64>,
    ) -> Option<Option<DeviceBlock>> {
        let is_it = |kept: &Kept| generation.is_none_or(|generation| kept.generation == generation);
        if !self.blocks.get(id).is_some_and(is_it) {
            return None;
        }
        let kept = self.blocks.remove(id)?;
        let order = kept.order();
        let Kept { block, class, slot_bytes, rank, wish, .. } = kept;
        if let Some(wish) = wish {
            self.wishes.end(wish);
        }
        let account = Account { blocks: 1, bytes: slot_bytes };
        self.total.subtract(account);
        if let Some(ledger) = self.classes.get_mut(&class) {
            ledger.order_mut(order).remove(&rank);
            ledger.account.subtract(account);
            if ledger.account.blocks == 0 {
                self.classes.remove(&class);
            }
        }
        self.uses.remember(*id, rank.worth, self.total.blocks);
        Some(block)
    }

    pub(super) fn total(&self) -> Account {
        self.total
    }

    /// The classes of what is kept or on its way.
    pub(super) fn classes(&self) -> Vec<CacheClass> {
        self.classes.keys().cloned().collect()
    }

    pub(super) fn of(&self, class: &CacheClass) -> Account {
        self.classes.get(class).map(|ledger| ledger.account).unwrap_or_default()
    }

    /// The bytes of all classes of which this holds.
    pub(super) fn within(&self, holds: impl Fn(&CacheClass) -> bool) -> u64 {
        let classes = self.classes.iter().filter(|(class, _)| holds(class));
        classes.map(|(_, ledger)| ledger.account.bytes).sum()
    }

    /// Of the classes that are `ours`, the block that is worth least of those that
    /// `may_go`; one that somebody is about to come for only if there is no other.
    pub(super) fn least(
        &mut self,
        named: &Named,
        ours: impl Fn(&CacheClass) -> bool,
        may_go: impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        self.settle();
        let least = |order: Order| {
            let classes = self.classes.iter().filter(|(class, _)| ours(class));
            let of_each = classes.filter_map(|(_, ledger)| {
                let blocks = ledger.order(order).values();
                blocks.filter_map(|id| self.candidate(id, named)).find(&may_go)
            });
            of_each.min_by_key(|candidate| candidate.rank)
        };
        least(Order::Free).or_else(|| least(Order::Awaited))
    }

    /// The block that is worth least, held ones last: their slots would not come free.
    pub(super) fn least_of_all(
        &mut self,
        named: &Named,
        ours: impl Fn(&CacheClass) -> bool,
    ) -> Option<Stay> {
        let free = self.least(named, &ours, |block| !block.held);
        let least = free.or_else(|| self.least(named, &ours, |_| true))?;
        Some((least.id, least.generation))
    }

    /// Blocks that nobody holds or comes for, of so many bytes together, each worth less
    /// than this; `None` if there are not as many.
    pub(super) fn worth_less(
        &mut self,
        named: &Named,
        ours: impl Fn(&CacheClass) -> bool,
        than: Worth,
        bytes: u64,
    ) -> Option<Vec<Stay>> {
        self.settle();
        let classes = self.classes.iter().filter(|(class, _)| ours(class));
        let mut worse: Vec<_> = classes
            .map(|(_, ledger)| ledger.worth_less(than))
            .map(|ids| ids.filter_map(|id| self.candidate(id, named)))
            .map(|blocks| blocks.filter(|block| !block.held).peekable())
            .collect();
        let mut lacks = bytes;
        let mut chosen = Vec::new();
        while lacks > 0 {
            // The least of all classes' least.
            let ranks = worse.iter_mut().enumerate();
            let ranks = ranks.filter_map(|(at, blocks)| Some((blocks.peek()?.rank, at)));
            let (_, at) = ranks.min()?;
            let block = worse.get_mut(at)?.next()?;
            lacks = lacks.saturating_sub(block.slot_bytes);
            chosen.push((block.id, block.generation));
        }
        Some(chosen)
    }

    /// A block that has not arrived.
    pub(super) fn on_its_way(&self, ours: impl Fn(&CacheClass) -> bool) -> Option<Stay> {
        let coming = |(_, kept): &(&BlockId, &Kept)| kept.block.is_none() && ours(&kept.class);
        self.blocks.iter().find(coming).map(|(id, kept)| (*id, kept.generation))
    }

    /// All blocks that have arrived.
    pub(super) fn candidates(&mut self, named: &Named) -> Vec<Candidate> {
        self.settle();
        self.blocks.keys().filter_map(|id| self.candidate(id, named)).collect()
    }

    fn candidate(&self, id: &BlockId, named: &Named) -> Option<Candidate> {
        let kept = self.blocks.get(id)?;
        let block = kept.block.as_ref()?;
        Some(Candidate {
            id: *id,
            class: kept.class.clone(),
            generation: kept.generation,
            slab: block.place().slab,
            slot_bytes: kept.slot_bytes,
            held: block.is_held(named),
            rank: kept.rank,
            awaited: kept.order() == Order::Awaited,
        })
    }
}

impl Kept {
    /// Among which of its class it is found, once it has arrived.
    fn order(&self) -> Order {
        if self.wish.is_some() { Order::Awaited } else { Order::Free }
    }
}
