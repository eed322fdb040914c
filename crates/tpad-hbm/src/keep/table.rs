//! The blocks that are kept or on their way, and the ledger of their bytes.

use std::collections::{BTreeMap, HashMap};

use tpad_handoff::Named;
use tpad_manifest::BlockId;
use tpad_store::CacheClass;

use crate::DeviceBlock;

/// The blocks that are kept or on their way.
#[derive(Debug, Default)]
pub(super) struct Table {
    blocks: HashMap<BlockId, Kept>,
    classes: HashMap<CacheClass, ClassLedger>,
    total: Account,
    /// Counts uses and insertions.
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    /// `None` while it is copied.
    block: Option<DeviceBlock>,
    class: CacheClass,
    slot_bytes: u64,
    /// Tells this stay of the block from an earlier one.
    generation: u64,
    used: u64,
}

#[derive(Debug, Default)]
struct ClassLedger {
    account: Account,
    /// Blocks that have arrived, by when they were used last.
    order: BTreeMap<u64, BlockId>,
}

/// What a class keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// A kept block, for choosing which to give up.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: BlockId,
    pub(crate) class: CacheClass,
    pub(crate) generation: u64,
    pub(crate) slab: u64,
    pub(crate) slot_bytes: u64,
    /// The clock when it was used last.
    pub(crate) used: u64,
    /// Whether someone holds it: giving it up frees nothing yet.
    pub(crate) held: bool,
}

impl Table {
    /// The block, used now.
    pub(super) fn get(&mut self, id: &BlockId) -> Option<(DeviceBlock, CacheClass)> {
        let class = self.touch(id)?;
        let block = self.blocks.get(id)?.block.clone()?;
        Some((block, class))
    }

    /// The block is used now, if it has arrived; its class.
    pub(super) fn touch(&mut self, id: &BlockId) -> Option<CacheClass> {
        self.clock += 1;
        let kept = self.blocks.get_mut(id).filter(|kept| kept.block.is_some())?;
        if let Some(ledger) = self.classes.get_mut(&kept.class) {
            ledger.order.remove(&kept.used);
            ledger.order.insert(self.clock, *id);
        }
        kept.used = self.clock;
        Some(kept.class.clone())
    }

    pub(super) fn contains(&self, id: &BlockId) -> bool {
        self.blocks.get(id).is_some_and(|kept| kept.block.is_some())
    }

    /// Whether this stay of the block goes on.
    pub(super) fn is_current(&self, id: &BlockId, generation: u64) -> bool {
        self.blocks.get(id).is_some_and(|kept| kept.generation == generation)
    }

    /// Begins a stay, unless there is one. Returns its generation.
    pub(super) fn reserve(
        &mut self,
        id: BlockId,
        class: &CacheClass,
        slot_bytes: u64,
    ) -> Option<u64> {
        if self.blocks.contains_key(&id) {
            return None;
        }
        self.clock += 1;
        let (generation, used) = (self.clock, self.clock);
        let account = Account { blocks: 1, bytes: slot_bytes };
        self.classes.entry(class.clone()).or_default().account.add(account);
        self.total.add(account);
        let class = class.clone();
        self.blocks.insert(id, Kept { block: None, class, slot_bytes, generation, used });
        Some(generation)
    }

    /// The block of a stay has arrived; whether the stay goes on.
    pub(super) fn publish(&mut self, id: &BlockId, generation: u64, block: &DeviceBlock) -> bool {
        let kept = self.blocks.get_mut(id).filter(|kept| kept.generation == generation);
        let Some(kept) = kept else { return false };
        kept.block = Some(block.clone());
        if let Some(ledger) = self.classes.get_mut(&kept.class) {
            ledger.order.insert(kept.used, *id);
        }
        true
    }

    /// Gives the block up; with a generation, only in that stay. Dropped outside of the
    /// table's lock.
    pub(super) fn remove(
        &mut self,
        id: &BlockId,
        generation: Option<u64>,
    ) -> Option<(Option<DeviceBlock>, CacheClass)> {
        if generation.is_some_and(|generation| !self.is_current(id, generation)) {
            return None;
        }
        let Kept { block, class, slot_bytes, used, .. } = self.blocks.remove(id)?;
        let account = Account { blocks: 1, bytes: slot_bytes };
        self.total.subtract(account);
        if let Some(ledger) = self.classes.get_mut(&class) {
            ledger.order.remove(&used);
            ledger.account.subtract(account);
            if ledger.account.blocks == 0 {
                self.classes.remove(&class);
            }
        }
        Some((block, class))
    }

    pub(super) fn total(&self) -> Account {
        self.total
    }

    pub(super) fn of(&self, class: &CacheClass) -> Account {
        self.classes.get(class).map(|ledger| ledger.account).unwrap_or_default()
    }

    /// The bytes of all classes of which this holds.
    pub(super) fn within(&self, holds: impl Fn(&CacheClass) -> bool) -> u64 {
        let classes = self.classes.iter().filter(|(class, _)| holds(class));
        classes.map(|(_, ledger)| ledger.account.bytes).sum()
    }

    /// Of the classes that are `ours`, the block used longest ago that `may_go`.
    pub(super) fn oldest(
        &self,
        named: &Named,
        ours: impl Fn(&CacheClass) -> bool,
        may_go: impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        let classes = self.classes.iter().filter(|(class, _)| ours(class));
        let of_each = classes.filter_map(|(_, ledger)| {
            ledger.order.values().filter_map(|id| self.candidate(id, named)).find(&may_go)
        });
        of_each.min_by_key(|candidate| candidate.used)
    }

    /// All blocks that have arrived, the one used longest ago first.
    pub(super) fn by_age(&self, named: &Named) -> Vec<Candidate> {
        let mut blocks: Vec<Candidate> =
            self.blocks.keys().filter_map(|id| self.candidate(id, named)).collect();
        blocks.sort_unstable_by_key(|block| block.used);
        blocks
    }

    /// Blocks that have not arrived: ids, classes, generations, slots' bytes.
    pub(super) fn on_their_way(&self) -> Vec<(BlockId, CacheClass, u64, u64)> {
        let coming = self.blocks.iter().filter(|(_, kept)| kept.block.is_none());
        coming.map(|(id, k)| (*id, k.class.clone(), k.generation, k.slot_bytes)).collect()
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
            used: kept.used,
            held: block.is_held(named),
        })
    }
}

impl Account {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.bytes -= other.bytes;
    }
}
