//! What stays on a device: a budget for each class that has one, one for the rest, and the
//! table of what is kept within them.
//!
//! The same division as in host memory, by a policy of its own: a slot has to be free at
//! once, what somebody holds is to go last, and who wants a block on a device cannot be
//! told to do without it. The policy is asked before the copy, so that a block which it
//! would not let stay costs no turn on the bus. Pins and guesses are host memory's alone.

mod candidate;
mod ledger;
mod table;
mod wishes;
mod worth;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use tpad_manifest::BlockId;
use tpad_store::{CacheClass, ClassUsage, LevelUsage, Readers, Urgency};

use self::table::Table;
use crate::budget::Budgets;
use crate::{DeviceBlock, HbmMetrics};

pub(crate) use self::candidate::Candidate;
pub(crate) use self::worth::Worth;

/// What stays on one device.
pub(crate) struct Keep {
    table: Mutex<Table>,
    budgets: RwLock<Budgets>,
    metrics: HbmMetrics,
    /// Who reads blocks by directories.
    readers: Arc<Readers>,
}

/// What became of a wish to keep a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reservation {
    /// Its stay, by its generation, has begun: it is to be published or ended.
    Stay(u64),
    /// Its budget is taken up by other fills, and is not when they are over.
    Full,
    /// The policy would not let it stay.
    Refused,
}

impl Keep {
    pub(crate) fn new(budgets: Budgets, metrics: HbmMetrics, readers: &Arc<Readers>) -> Self {
        let (table, budgets) = (Mutex::default(), RwLock::new(budgets));
        Self { table, budgets, metrics, readers: Arc::clone(readers) }
    }

    /// The block, used now, for whoever comes for it when the rest of what he wants is there.
    pub(crate) fn want(&self, id: &BlockId) -> Option<DeviceBlock> {
        self.table().want(id)
    }

    /// The block, for whoever only looks.
    pub(crate) fn peek(&self, id: &BlockId) -> Option<DeviceBlock> {
        self.table().peek(id)
    }

    /// The block, for whoever wanted it and was counted then.
    pub(crate) fn claim(&self, id: &BlockId) -> Option<DeviceBlock> {
        self.table().claim(id)
    }

    /// The block was used, so many times, if it is there.
    pub(crate) fn used(&self, id: &BlockId, times: u32) {
        self.table().used(id, times);
    }

    /// The block is likely to be used next.
    pub(crate) fn expect(&self, id: &BlockId) {
        self.table().expect(id);
    }

    pub(crate) fn contains(&self, id: &BlockId) -> bool {
        self.table().contains(id)
    }

    /// Makes room within its budget for a block that is to be copied. A demand is a use of
    /// it, and takes the place of what its budget keeps and is worth least; a prefetch
    /// takes only the place of what is worth less than its block.
    pub(crate) fn reserve(
        &self,
        id: &BlockId,
        class: &CacheClass,
        slot_bytes: u64,
        urgency: Urgency,
    ) -> Reservation {
        let budgets = self.budgets();
        let budget = budgets.budget_in_slots(class, slot_bytes);
        if slot_bytes > budget {
            return Reservation::Refused;
        }
        let named = self.readers.named();
        let ours = |other: &CacheClass| budgets.share(class, other);
        let mut table = self.table();
        let lacks = |table: &Table| {
            let wanted = table.within(ours).saturating_add(slot_bytes);
            wanted.saturating_sub(budget)
        };
        // Freed when nothing is locked any more.
        let mut gone = Vec::new();
        if urgency == Urgency::Prefetch {
            let worth = table.worth_of(id);
            let bytes = lacks(&table);
            let victims = table.worth_less(&named, ours, worth, bytes);
            let Some(victims) = victims else { return Reservation::Refused };
            gone.extend(victims.iter().map(|(id, stay)| table.remove(id, Some(*stay))));
        } else {
            while lacks(&table) > 0
                && let Some((id, stay)) = table.least_of_all(&named, ours)
            {
                gone.push(table.remove(&id, Some(stay)));
            }
        }
        let fits = lacks(&table) == 0;
        let begun = if fits { table.reserve(*id, class, slot_bytes, urgency) } else { None };
        drop((table, budgets));
        gone.iter().for_each(|_| self.metrics.evicted());
        match (begun, urgency) {
            (Some(generation), _) => Reservation::Stay(generation),
            (None, Urgency::Demand) => Reservation::Full,
            // It never waits.
            (None, Urgency::Prefetch) => Reservation::Refused,
        }
    }

    /// The block arrived; whether its stay goes on.
    pub(crate) fn publish(&self, id: &BlockId, generation: u64, block: &DeviceBlock) -> bool {
        self.table().publish(id, generation, block)
    }

    /// Ends a stay.
    pub(crate) fn end(&self, id: &BlockId, generation: u64) {
        self.give_up(id, Some(generation));
    }

    /// Gives these up for others; how many were there.
    pub(crate) fn evict<'a>(&self, blocks: impl IntoIterator<Item = &'a Candidate>) -> usize {
        let there = |block: &&Candidate| self.give_up(&block.id, Some(block.generation));
        let count = blocks.into_iter().filter(there).count();
        (0..count).for_each(|_| self.metrics.evicted());
        count
    }

    /// Forgets the block; whether it was there.
    pub(crate) fn remove(&self, id: &BlockId) -> bool {
        self.give_up(id, None)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        for block in self.candidates() {
            self.remove(&block.id);
        }
    }

    /// Changes the budgets. What no longer fits is given up, and what is on its way there
    /// is not kept.
    pub(crate) fn set_budgets(&self, budgets: Budgets) {
        let named = self.readers.named();
        let mut current = self.budgets.write().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.table();
        // Freed when nothing is locked any more.
        let mut gone = Vec::new();
        for class in table.classes() {
            let ours = |other: &CacheClass| budgets.share(&class, other);
            while table.within(ours) > budgets.budget(&class)
                && let Some((id, stay)) =
                    table.least_of_all(&named, ours).or_else(|| table.on_its_way(ours))
            {
                gone.push(table.remove(&id, Some(stay)));
            }
        }
        *current = budgets;
        drop((table, current));
        gone.iter().for_each(|_| self.metrics.evicted());
    }

    /// What blocks of these classes were used until now does not count any more.
    pub(crate) fn forget_uses(&self, of: impl Fn(&CacheClass) -> bool) {
        self.table().forget_uses(of);
    }

    /// What a block is worth; one that is not kept, to somebody who does not wait for it.
    pub(crate) fn worth_of(&self, id: &BlockId) -> Worth {
        self.table().worth_of(id)
    }

    /// Whether blocks of a class are within a budget that is not this other one's.
    pub(crate) fn guards(&self, class: &CacheClass, from: &CacheClass) -> bool {
        class != from && self.budgets().own(class).is_some()
    }

    /// The block that is worth least of those that may go: of this class if there is one,
    /// then of classes that share a budget, and then, unless they are spared, of those
    /// that have one of their own.
    pub(crate) fn next_to_go(
        &self,
        class: &CacheClass,
        spare: bool,
        may_go: impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        let budgets = self.budgets();
        let named = self.readers.named();
        let mut table = self.table();
        let shares = |other: &CacheClass| budgets.own(other).is_none();
        let least = table
            .least(&named, |other| other == class, &may_go)
            .or_else(|| table.least(&named, |other| other != class && shares(other), &may_go));
        if least.is_some() || spare {
            return least;
        }
        table.least(&named, |other| other != class && !shares(other), &may_go)
    }

    /// What may be given up.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let named = self.readers.named();
        self.table().candidates(&named)
    }

    /// What may be kept where slots are of this size.
    pub(crate) fn capacity_in_slots(&self, slot_bytes: u64) -> u64 {
        self.budgets().kept_in_slots(slot_bytes)
    }

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.table().total().bytes
    }

    pub(crate) fn usage(&self) -> LevelUsage {
        let capacity = self.budgets().kept;
        let total = self.table().total();
        LevelUsage { blocks: total.blocks, bytes: total.bytes, capacity }
    }

    /// What blocks of this class take, whichever budget they count against.
    pub(crate) fn kept_of(&self, class: &CacheClass) -> LevelUsage {
        let capacity = self.budgets().budget(class);
        let account = self.table().of(class);
        LevelUsage { blocks: account.blocks, bytes: account.bytes, capacity }
    }

    /// What each class keeps, and then all that have no budget of their own.
    pub(crate) fn classes(&self) -> Vec<ClassUsage> {
        let budgets = self.budgets();
        let table = self.table();
        let own = budgets.classes().map(|(class, budget)| {
            let account = table.of(&CacheClass::from(class));
            let class = Some(class.to_owned());
            ClassUsage { class, budget, bytes: account.bytes, blocks: account.blocks }
        });
        let own: Vec<ClassUsage> = own.collect();
        let of_own = |of: fn(&ClassUsage) -> u64| own.iter().map(of).sum::<u64>();
        let total = table.total();
        let rest = ClassUsage {
            class: None,
            budget: budgets.rest(),
            bytes: total.bytes.saturating_sub(of_own(|usage| usage.bytes)),
            blocks: total.blocks.saturating_sub(of_own(|usage| usage.blocks)),
        };
        own.into_iter().chain([rest]).collect()
    }

    fn budgets(&self) -> RwLockReadGuard<'_, Budgets> {
        self.budgets.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a block's stay; with a generation, only that one. Whether it was there.
    fn give_up(&self, id: &BlockId, generation: Option<u64>) -> bool {
        // The slot is freed after the table's lock.
        let given_up = self.table().remove(id, generation);
        given_up.is_some()
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keep").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// A block's id, for tests.
#[cfg(test)]
fn numbered(n: u64) -> BlockId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    BlockId::from_bytes(bytes)
}
