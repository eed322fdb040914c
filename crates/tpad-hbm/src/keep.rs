//! What stays on a device: one `moka` cache for each class with a budget, one for the
//! rest, and the table of what they let stay.
//!
//! The same division of labour as in host memory, and for the same reason: the caches
//! hold ids and weights only, since they forget entries late, while a slot has to be
//! free at once. What differs is when they are asked: before the copy, so that a block
//! which they would not let stay costs no turn on the bus. Pins and guesses are host
//! memory's alone.

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use moka::notification::RemovalCause;
use moka::sync::Cache;
use tpad_manifest::BlockId;
use tpad_store::{CacheClass, ClassUsage, LevelUsage, Readers, Urgency};

use self::table::Table;
use crate::budget::Budgets;
use crate::{DeviceBlock, HbmMetrics};

pub(crate) use self::table::Candidate;

/// Weights are counted in pages: the caches' weights have 32 bits.
const UNIT_BYTES: u64 = 4096;
/// A cache that did not come below its budget in so many rounds is helped.
const ROUNDS: usize = 4;

/// What stays on one device.
pub(crate) struct Keep {
    shared: Arc<Shared>,
    policy: RwLock<Policy>,
}

/// What the caches reach when they lose an entry.
struct Shared {
    table: Mutex<Table>,
    metrics: HbmMetrics,
    /// Who reads blocks by directories.
    readers: Arc<Readers>,
}

struct Policy {
    budgets: Budgets,
    classes: BTreeMap<String, Cache<BlockId, Stay>>,
    rest: Cache<BlockId, Stay>,
}

/// A stay of a block in the table.
#[derive(Clone, Copy, Debug)]
struct Stay {
    generation: u64,
    units: u32,
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
        let readers = Arc::clone(readers);
        let shared = Arc::new(Shared { table: Mutex::default(), metrics, readers });
        let policy = RwLock::new(Policy::new(budgets, &shared));
        Self { shared, policy }
    }

    /// The block, used now.
    pub(crate) fn get(&self, id: &BlockId) -> Option<DeviceBlock> {
        // The table's lock ends with the statement.
        let found = self.shared.table().get(id);
        let (block, class) = found?;
        self.policy().cache(&class).get(id);
        Some(block)
    }

    /// The block was used, so many times, if it is there.
    pub(crate) fn used(&self, id: &BlockId, times: u32) {
        let class = self.shared.table().touch(id);
        if let Some(class) = class {
            let policy = self.policy();
            let cache = policy.cache(&class);
            (0..times).for_each(|_| {
                cache.get(id);
            });
        }
    }

    pub(crate) fn contains(&self, id: &BlockId) -> bool {
        self.shared.table().contains(id)
    }

    /// Makes room within its budget for a block that is to be copied. A demand takes the
    /// place of what its budget keeps and nobody used for the longest time, a prefetch
    /// only of what is used less often.
    pub(crate) fn reserve(
        &self,
        id: &BlockId,
        class: &CacheClass,
        slot_bytes: u64,
        urgency: Urgency,
    ) -> Reservation {
        let policy = self.policy();
        if slot_bytes > policy.budgets.budget(class) {
            return Reservation::Refused;
        }
        if urgency == Urgency::Prefetch {
            let begun = policy.begin(id, class, slot_bytes, &self.shared);
            return begun.map_or(Reservation::Refused, Reservation::Stay);
        }
        // Others may take the room that was made.
        for _ in 0..ROUNDS {
            policy.make_room(class, slot_bytes, &self.shared);
            if policy.is_over(class, slot_bytes, &self.shared) {
                break;
            }
            if let Some(generation) = policy.begin(id, class, slot_bytes, &self.shared) {
                return Reservation::Stay(generation);
            }
        }
        Reservation::Full
    }

    /// The block arrived; whether its stay goes on.
    pub(crate) fn publish(&self, id: &BlockId, generation: u64, block: &DeviceBlock) -> bool {
        self.shared.table().publish(id, generation, block)
    }

    /// Ends a stay.
    pub(crate) fn end(&self, id: &BlockId, generation: u64) {
        if let Some(class) = self.shared.give_up(id, Some(generation)) {
            self.policy().cache(&class).invalidate(id);
        }
    }

    /// Gives these up for others; how many were there.
    pub(crate) fn evict<'a>(&self, blocks: impl IntoIterator<Item = &'a Candidate>) -> usize {
        let mut count = 0;
        let policy = self.policy();
        for block in blocks {
            if self.shared.give_up(&block.id, Some(block.generation)).is_some() {
                self.shared.metrics.evicted();
                policy.cache(&block.class).invalidate(&block.id);
                count += 1;
            }
        }
        count
    }

    /// Forgets the block; whether it was there.
    pub(crate) fn remove(&self, id: &BlockId) -> bool {
        let class = self.shared.give_up(id, None);
        if let Some(class) = &class {
            self.policy().cache(class).invalidate(id);
        }
        class.is_some()
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let all = self.candidates();
        for block in all {
            self.remove(&block.id);
        }
    }

    /// Changes the budgets. What is kept moves to the new caches, the most recently used
    /// last, and is given up where it no longer fits.
    pub(crate) fn set_budgets(&self, budgets: Budgets) {
        let mut current = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        let policy = Policy::new(budgets, &self.shared);
        let kept = self.candidates();
        let coming = self.shared.table().on_their_way();
        let kept =
            kept.into_iter().map(|kept| (kept.id, kept.class, kept.generation, kept.slot_bytes));
        for (id, class, generation, slot_bytes) in kept.chain(coming) {
            policy.insert(&id, &class, generation, slot_bytes, &self.shared);
        }
        *current = policy;
    }

    /// Whether blocks of a class are within a budget that is not this other one's.
    pub(crate) fn guards(&self, class: &CacheClass, from: &CacheClass) -> bool {
        class != from && self.policy().budgets.own(class).is_some()
    }

    /// The block used longest ago of those that may go: of this class if there is one,
    /// then of classes that share a budget, and then, unless they are spared, of those
    /// that have one of their own.
    pub(crate) fn next_to_go(
        &self,
        class: &CacheClass,
        spare: bool,
        may_go: impl Fn(&Candidate) -> bool,
    ) -> Option<Candidate> {
        let policy = self.policy();
        let named = self.shared.readers.named();
        let table = self.shared.table();
        let shares = |other: &CacheClass| policy.budgets.own(other).is_none();
        let oldest = table
            .oldest(&named, |other| other == class, &may_go)
            .or_else(|| table.oldest(&named, |other| other != class && shares(other), &may_go));
        if oldest.is_some() || spare {
            return oldest;
        }
        table.oldest(&named, |other| other != class && !shares(other), &may_go)
    }

    /// What may be given up, the one used longest ago first.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let named = self.shared.readers.named();
        self.shared.table().by_age(&named)
    }

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.shared.table().total().bytes
    }

    pub(crate) fn usage(&self) -> LevelUsage {
        let capacity = self.policy().budgets.kept;
        let total = self.shared.table().total();
        LevelUsage { blocks: total.blocks, bytes: total.bytes, capacity }
    }

    /// What blocks of this class take, whichever budget they count against.
    pub(crate) fn kept_of(&self, class: &CacheClass) -> LevelUsage {
        let capacity = self.policy().budgets.budget(class);
        let account = self.shared.table().of(class);
        LevelUsage { blocks: account.blocks, bytes: account.bytes, capacity }
    }

    /// What each class keeps, and then all that have no budget of their own.
    pub(crate) fn classes(&self) -> Vec<ClassUsage> {
        let policy = self.policy();
        let table = self.shared.table();
        let own = policy.budgets.classes().map(|(class, budget)| {
            let account = table.of(&CacheClass::from(class));
            let class = Some(class.to_owned());
            ClassUsage { class, budget, bytes: account.bytes, blocks: account.blocks }
        });
        let own: Vec<ClassUsage> = own.collect();
        let of_own = |of: fn(&ClassUsage) -> u64| own.iter().map(of).sum::<u64>();
        let total = table.total();
        let rest = ClassUsage {
            class: None,
            budget: policy.budgets.rest(),
            bytes: total.bytes.saturating_sub(of_own(|usage| usage.bytes)),
            blocks: total.blocks.saturating_sub(of_own(|usage| usage.blocks)),
        };
        own.into_iter().chain([rest]).collect()
    }

    fn policy(&self) -> RwLockReadGuard<'_, Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a block's stay; with a generation, only that one. Its class, if it was there.
    fn give_up(&self, id: &BlockId, generation: Option<u64>) -> Option<CacheClass> {
        // The slot is freed after the table's lock.
        let given_up = self.table().remove(id, generation);
        given_up.map(|(_, class)| class)
    }
}

impl Policy {
    fn new(budgets: Budgets, shared: &Arc<Shared>) -> Self {
        let classes =
            budgets.classes().map(|(class, budget)| (class.to_owned(), cache(budget, shared)));
        let classes = classes.collect();
        let rest = cache(budgets.rest(), shared);
        Self { budgets, classes, rest }
    }

    fn cache(&self, class: &CacheClass) -> &Cache<BlockId, Stay> {
        self.classes.get(class.as_str()).unwrap_or(&self.rest)
    }

    /// Begins a stay; its generation, unless it had to go again at once.
    fn begin(
        &self,
        id: &BlockId,
        class: &CacheClass,
        slot_bytes: u64,
        shared: &Shared,
    ) -> Option<u64> {
        let generation = shared.table().reserve(*id, class, slot_bytes)?;
        let cache = self.cache(class);
        // Counted as a wish: who is wanted often enough is let in.
        cache.get(id);
        self.insert(id, class, generation, slot_bytes, shared);
        if self.is_over(class, 0, shared) {
            // Nothing but other fills to give up.
            shared.give_up(id, Some(generation));
            cache.invalidate(id);
        }
        shared.table().is_current(id, generation).then_some(generation)
    }

    /// Takes up a stay that began in the table, and gives up others for it, or it.
    fn insert(
        &self,
        id: &BlockId,
        class: &CacheClass,
        generation: u64,
        slot_bytes: u64,
        shared: &Shared,
    ) {
        let units = u32::try_from(slot_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let cache = self.cache(class);
        cache.insert(*id, Stay { generation, units });
        if !shared.table().is_current(id, generation) {
            // Given up between the table and here.
            cache.invalidate(id);
        }
        for _ in 0..ROUNDS {
            cache.run_pending_tasks();
            if !self.is_over(class, 0, shared) {
                return;
            }
        }
        self.make_room(class, 0, shared);
    }

    /// Whether a class keeps more than it may, `more` bytes added.
    fn is_over(&self, class: &CacheClass, more: u64, shared: &Shared) -> bool {
        let kept = shared.table().within(|other| self.budgets.share(class, other));
        kept.saturating_add(more) > self.budgets.budget(class)
    }

    /// Gives up what was used longest ago until there is room for `more` bytes, or there
    /// is nothing to give up but fills in flight. What somebody holds goes last: its slot
    /// would not come free with it.
    fn make_room(&self, class: &CacheClass, more: u64, shared: &Shared) {
        let same = |other: &CacheClass| self.budgets.share(class, other);
        while self.is_over(class, more, shared) {
            let named = shared.readers.named();
            let oldest = {
                // Let go of before the block goes.
                let table = shared.table();
                let spare = table.oldest(&named, same, |block| !block.held);
                spare.or_else(|| table.oldest(&named, same, |_| true))
            };
            let Some(block) = oldest else { return };
            if shared.give_up(&block.id, Some(block.generation)).is_some() {
                shared.metrics.evicted();
                self.cache(&block.class).invalidate(&block.id);
            }
        }
    }
}

fn cache(budget: u64, shared: &Arc<Shared>) -> Cache<BlockId, Stay> {
    let shared = Arc::clone(shared);
    Cache::builder()
        .max_capacity(budget / UNIT_BYTES)
        .weigher(|_, stay: &Stay| stay.units)
        .eviction_listener(move |id: Arc<BlockId>, stay, cause| {
            // Whatever the cause, what the cache has lost may not stay: nothing would
            // ever give it up. An older stay's loss changes nothing.
            let gone = shared.give_up(&id, Some(stay.generation)).is_some();
            if gone && cause == RemovalCause::Size {
                shared.metrics.evicted();
            }
        })
        .build()
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keep").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
