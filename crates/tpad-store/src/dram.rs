//! The host-memory level: blocks in the arena, kept by class within budgets.

mod budget;
mod pin;
mod policy;
mod room;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use tpad_manifest::BlockId;

pub(crate) use self::budget::kept_bytes;
pub(crate) use self::room::RoomError;

use self::budget::Budgets;
use self::policy::Policy;
use self::table::{GivenUp, Table};
use crate::gate::Gate;
use crate::level::{Check, Level, LevelError, LevelRead, LevelUsage};
use crate::{
    Arena, BlockBytes, CacheClass, DramConfig, Medium, SlotMut, StoreError, StoreMetrics, Urgency,
};

/// Host memory as a level, and the arena that all blocks pass through.
#[derive(Debug)]
pub struct DramLevel {
    arena: Arc<Arena>,
    shared: Arc<Shared>,
    policy: RwLock<Policy>,
    /// One at a time makes room, so that what it frees is its own.
    turn: Arc<Gate>,
}

/// What the policy's caches reach when they lose an entry.
#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    metrics: StoreMetrics,
}

/// What the classes keep.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ClassUsage {
    /// The class; `None` for all that have no budget of their own.
    pub class: Option<String>,
    /// What it may keep, in bytes.
    pub budget: u64,
    /// What it keeps.
    pub bytes: u64,
    /// Blocks that it keeps.
    pub blocks: u64,
}

impl DramLevel {
    /// An empty level.
    ///
    /// # Errors
    /// When the budgets exceed the capacity.
    pub fn new(config: &DramConfig, metrics: StoreMetrics) -> Result<Self, StoreError> {
        let budgets = Budgets::of(config.capacity_bytes, &config.class_budgets)?;
        let shared = Arc::new(Shared { table: Mutex::default(), metrics });
        let policy = RwLock::new(Policy::new(budgets, &shared));
        let arena = Arena::new(config.capacity_bytes);
        Ok(Self { arena, shared, policy, turn: Gate::new(1) })
    }

    /// The memory under it.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// How much memory fills in flight may take.
    pub(crate) fn headroom(&self) -> u64 {
        self.policy().budgets().headroom
    }

    /// Fills that wait for memory.
    pub(crate) fn waiting(&self) -> usize {
        self.turn.waiting()
    }

    /// The block, if it is kept. Counts a use, or a wish of this class.
    pub(crate) fn lookup(&self, id: &BlockId, class: &CacheClass) -> Option<BlockBytes> {
        // The table's lock ends with the statement.
        let found = self.shared.table().get(id);
        match found {
            Some((bytes, class)) => {
                self.policy().touch(id, &class);
                Some(bytes)
            }
            None => {
                self.policy().touch(id, class);
                None
            }
        }
    }

    /// Offers a verified block that lies in the arena; `true` if it is kept now.
    /// A `guess` that goes before anybody used it was wasted.
    pub(crate) fn keep(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
        guess: bool,
    ) -> bool {
        let policy = self.policy();
        let slot_bytes = bytes.padded().len() as u64;
        if slot_bytes > policy.budget(class) {
            return false;
        }
        let inserted = self.shared.table().insert(*id, class, bytes, guess);
        let Some(generation) = inserted else { return true };
        policy.insert(id, class, generation, slot_bytes, &self.shared);
        // Who makes room may wait for slots that were being filled: this one can
        // be given up now.
        self.arena.nudge_if_awaited();
        self.shared.table().is_current(id, generation)
    }

    /// Changes the budgets. What is kept moves to the new caches, the most
    /// recently used last, and is given up where it no longer fits.
    ///
    /// # Errors
    /// When the budgets exceed the capacity; nothing changes then.
    pub fn set_budgets(&self, classes: &BTreeMap<String, u64>) -> Result<(), StoreError> {
        let budgets = Budgets::of(self.arena.usage().capacity, classes)?;
        let mut current = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        let policy = Policy::new(budgets, &self.shared);
        let kept = self.shared.table().by_age();
        for (id, class, generation, slot_bytes) in kept {
            policy.insert(&id, &class, generation, slot_bytes, &self.shared);
        }
        *current = policy;
        Ok(())
    }

    /// What each class keeps.
    #[must_use]
    pub fn classes(&self) -> Vec<ClassUsage> {
        let policy = self.policy();
        let usage = |class: Option<&str>, budget| {
            let named = CacheClass::from(class.unwrap_or_default());
            let account = policy.account(&named, &self.shared);
            let class = class.map(str::to_owned);
            ClassUsage { class, budget, bytes: account.bytes, blocks: account.blocks }
        };
        let budgets = policy.budgets();
        let named = budgets.classes().map(|(class, budget)| usage(Some(class), budget));
        named.chain([usage(None, budgets.rest())]).collect()
    }

    /// What blocks of this class take, whichever budget they count against.
    #[must_use]
    pub fn kept_of(&self, class: &CacheClass) -> LevelUsage {
        let account = self.shared.table().of(class);
        let capacity = self.policy().budget(class);
        LevelUsage { blocks: account.blocks, bytes: account.bytes, capacity }
    }

    /// Whether the class has a budget of its own.
    #[must_use]
    pub fn has_budget(&self, class: &CacheClass) -> bool {
        self.policy().budgets().own(class).is_some()
    }

    /// Keeps a block that is at home here, in the place of what its budget keeps
    /// and nobody wanted for the longest time, though it was wanted more often.
    pub(crate) fn settle_in(&self, id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> bool {
        let slot_bytes = bytes.padded().len() as u64;
        let policy = self.policy();
        if slot_bytes <= policy.budget(class) {
            policy.make_room(class, slot_bytes, &self.shared);
        }
        drop(policy);
        self.keep(id, class, bytes, false)
    }

    fn policy(&self) -> RwLockReadGuard<'_, Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a block's stay; with a generation, only that one.
    fn give_up(&self, id: &BlockId, generation: Option<u64>) -> bool {
        // The slot is freed after the table's lock.
        let given_up = self.table().remove(id, generation);
        self.count(given_up.as_ref());
        given_up.is_some()
    }

    fn count(&self, given_up: Option<&GivenUp>) {
        let wasted = given_up.map_or(0, GivenUp::wasted_bytes);
        if wasted > 0 {
            self.metrics.prefetch_wasted(wasted);
        }
    }
}

#[async_trait]
impl Level for DramLevel {
    fn medium(&self) -> Medium {
        Medium::Dram
    }

    fn contains(&self, id: &BlockId) -> bool {
        self.shared.table().contains(id)
    }

    fn in_place(&self, id: &BlockId) -> Option<BlockBytes> {
        let found = self.shared.table().get(id);
        let (bytes, class) = found?;
        self.policy().touch(id, &class);
        Some(bytes)
    }

    fn settle(&self, id: &BlockId) -> bool {
        self.in_place(id).is_some()
    }

    async fn read(
        &self,
        id: &BlockId,
        mut slot: SlotMut,
        _urgency: Urgency,
    ) -> Result<LevelRead, LevelError> {
        match self.in_place(id) {
            Some(bytes) if bytes.len() == slot.len() => {
                slot.copy_from_slice(&bytes);
                Ok(LevelRead::Hit { slot, check: Check::Digest })
            }
            _ => Ok(LevelRead::Miss(slot)),
        }
    }

    /// Keeps the slot itself where the block lies in this level's arena, and a
    /// copy otherwise.
    async fn admit(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError> {
        if bytes.is_of(&self.arena) {
            return Ok(self.keep(id, class, bytes, false));
        }
        let room = self.room(bytes.len() as u64, class, crate::Urgency::Prefetch).await;
        let Ok(mut slot) = room else { return Ok(false) };
        slot.copy_from_slice(bytes);
        Ok(self.keep(id, class, &slot.freeze(), false))
    }

    async fn remove(&self, id: &BlockId) -> Result<(), LevelError> {
        let given_up = self.shared.table().remove(id, None);
        self.shared.count(given_up.as_ref());
        if let Some(given_up) = given_up {
            self.policy().forget(id, &given_up.class);
        }
        Ok(())
    }

    fn usage(&self) -> LevelUsage {
        let total = self.shared.table().total();
        let capacity = self.policy().budgets().kept;
        LevelUsage { blocks: total.blocks, bytes: total.bytes, capacity }
    }
}

#[cfg(test)]
mod tests;
