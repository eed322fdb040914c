//! What stays: one `moka` cache for each class with a budget, one for the rest.
//!
//! A cache of its own is what keeps a large cold tier from pushing out a hot
//! one. The caches see ids and weights; the blocks are in the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::sync::Cache;
use tpad_manifest::BlockId;

use super::Shared;
use super::budget::Budgets;
use super::table::Account;
use crate::CacheClass;

/// Weights are counted in pages: the caches' weights have 32 bits.
const UNIT_BYTES: u64 = 4096;
/// What is given up beyond need while blocks are pinned, as a part of the budget.
const SLACK_PART: u64 = 64;
/// A cache that did not come below its budget in so many rounds is helped.
const ROUNDS: usize = 4;

/// The caches and their budgets.
#[derive(Debug)]
pub(super) struct Policy {
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

impl Policy {
    pub(super) fn new(budgets: Budgets, shared: &Arc<Shared>) -> Self {
        let classes =
            budgets.classes().map(|(class, budget)| (class.to_owned(), cache(budget, shared)));
        let classes = classes.collect();
        let rest = cache(budgets.rest(), shared);
        Self { budgets, classes, rest }
    }

    pub(super) fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// What the class may keep, alone or with others.
    pub(super) fn budget(&self, class: &CacheClass) -> u64 {
        self.budgets.own(class).unwrap_or_else(|| self.budgets.rest())
    }

    /// Whether blocks of a class are within a budget that is not this other one's.
    pub(super) fn guards(&self, class: &CacheClass, from: &CacheClass) -> bool {
        class != from && self.budgets.own(class).is_some()
    }

    /// What is kept within the same budget as this class.
    pub(super) fn account(&self, class: &CacheClass, shared: &Shared) -> Account {
        let mut account = Account::default();
        let own = self.budgets.own(class).is_some();
        for (other, of_other) in shared.table().classes() {
            let same = if own { other == class } else { self.budgets.own(other).is_none() };
            if same {
                account.add(of_other);
            }
        }
        account
    }

    /// Counts a use, or a wish for a block that is not there.
    pub(super) fn touch(&self, id: &BlockId, class: &CacheClass) {
        self.cache(class).get(id);
    }

    /// Takes up a stay that began in the table, and gives up others for it, or it.
    pub(super) fn insert(
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
        self.help(class, shared);
    }

    /// Whether a class keeps more than it may, `more` bytes added. Pinned blocks
    /// count, but leave the others half of the budget.
    pub(super) fn is_over(&self, class: &CacheClass, more: u64, shared: &Shared) -> bool {
        let (budget, pinned) = (self.budget(class), self.pinned(class, shared));
        let limit = budget.max(pinned.saturating_add(budget / 2));
        self.account(class, shared).bytes.saturating_add(more) > limit
    }

    /// What is pinned within the same budget as this class.
    fn pinned(&self, class: &CacheClass, shared: &Shared) -> u64 {
        let table = shared.table();
        let own = self.budgets.own(class).is_some();
        let same = |other: &CacheClass| {
            if own { other == class } else { self.budgets.own(other).is_none() }
        };
        let classes = table.classes().filter(|(other, _)| same(other));
        classes.map(|(other, _)| table.pinned_of(other).bytes).sum()
    }

    /// Gives up what was used longest ago until the ledger says that the budget
    /// is kept, whatever the cache thinks.
    pub(super) fn help(&self, class: &CacheClass, shared: &Shared) {
        // The caches do not know of pinned blocks and leave all their room to
        // the others: a little more is given up, so as not to come back for each.
        let pinned = self.pinned(class, shared) > 0;
        let slack = if pinned { self.budget(class) / SLACK_PART } else { 0 };
        self.make_room(class, slack, shared);
    }

    /// Gives up what was used longest ago until there is room for `more` bytes.
    pub(super) fn make_room(&self, class: &CacheClass, more: u64, shared: &Shared) {
        if !self.is_over(class, more, shared) {
            return;
        }
        let own = self.budgets.own(class).is_some();
        let oldest = shared.table().by_age();
        for (id, other, generation, _) in oldest {
            if !self.is_over(class, more, shared) {
                return;
            }
            let same = if own { other == *class } else { self.budgets.own(&other).is_none() };
            if same {
                shared.give_up(&id, Some(generation));
                self.forget(&id, &other);
            }
        }
    }

    /// Forgets a block whose stay ended.
    pub(super) fn forget(&self, id: &BlockId, class: &CacheClass) {
        self.cache(class).invalidate(id);
    }

    fn cache(&self, class: &CacheClass) -> &Cache<BlockId, Stay> {
        self.classes.get(class.as_str()).unwrap_or(&self.rest)
    }
}

fn cache(budget: u64, shared: &Arc<Shared>) -> Cache<BlockId, Stay> {
    let shared = Arc::clone(shared);
    Cache::builder()
        .max_capacity(budget / UNIT_BYTES)
        .weigher(|_, stay: &Stay| stay.units)
        .eviction_listener(move |id: Arc<BlockId>, stay, cause| {
            // Whatever the cause, what the cache has lost may not stay: nothing
            // would ever give it up. An older stay's loss changes nothing.
            let gone = shared.give_up(&id, Some(stay.generation));
            if gone && cause == RemovalCause::Size {
                shared.metrics.level_evicted(crate::Medium::Dram);
            }
        })
        .build()
}
