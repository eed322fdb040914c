//! Pins: blocks that stay until whoever wanted them says otherwise.
//!
//! **Invariant:** slabs with pinned blocks are at most half of the capacity, so
//! that there is always room to be made for others.

use std::collections::{HashMap, HashSet};

use tpad_manifest::BlockId;

use super::DramLevel;
use super::table::{Pinned, Unpinned};
use crate::{BlockBytes, CacheClass};

impl DramLevel {
    /// Keeps a verified block until it is unpinned as often as it was pinned;
    /// also one that the budgets would not have kept. `false` when it lies
    /// elsewhere, or when slabs with pinned blocks would be more than half of the
    /// capacity: it is not pinned then.
    #[must_use]
    pub fn pin(&self, id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> bool {
        if !bytes.is_of(&self.arena) {
            return false;
        }
        let half = self.arena.usage().capacity / 2;
        let sizes: HashMap<u64, u64> =
            self.arena.slabs().into_iter().map(|slab| (slab.id, slab.bytes)).collect();
        let admits = |slab: u64, pinned: &HashMap<u64, u32>| {
            let slabs: HashSet<u64> = pinned.keys().copied().chain([slab]).collect();
            let size = |slab: &u64| sizes.get(slab).copied().unwrap_or(u64::MAX);
            slabs.iter().map(size).fold(0, u64::saturating_add) <= half
        };
        let policy = self.policy();
        // The table's lock ends with the statement.
        let pinned = self.shared.table().pin(id, class, bytes, admits);
        match pinned {
            Pinned::Refused => return false,
            Pinned::Again => {}
            Pinned::First(class) => {
                policy.forget(id, &class);
                if policy.is_over(&class, 0, &self.shared) {
                    policy.help(&class, &self.shared);
                }
            }
        }
        true
    }

    /// Takes one pin back. After the last one the block is as any other.
    pub fn unpin(&self, id: &BlockId) {
        let policy = self.policy();
        let unpinned = self.shared.table().unpin(id);
        if let Some(Unpinned { class, generation, slot_bytes }) = unpinned {
            policy.insert(id, &class, generation, slot_bytes, &self.shared);
            self.arena.nudge_if_awaited();
        }
    }

    /// Whether someone has pinned the block.
    #[must_use]
    pub fn is_pinned(&self, id: &BlockId) -> bool {
        self.shared.table().is_pinned(id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{MIB, fill, id, ledger, level};
    use super::*;
    use crate::Level as _;

    async fn pin(level: &Arc<DramLevel>, n: u64, class: &str, bytes: u64) -> bool {
        let class = CacheClass::from(class);
        let mut slot = level.room(bytes, &class, crate::Urgency::Demand).await.expect("room");
        slot.fill(u8::try_from(n % 251).expect("small"));
        level.pin(&id(n), &class, &slot.freeze())
    }

    #[tokio::test]
    async fn a_pinned_block_outlasts_any_pressure_and_goes_when_it_is_unpinned() {
        let level = level(64 * MIB, &[]);
        for n in 0..8 {
            assert!(pin(&level, n, "a", MIB).await);
        }
        for n in 100..500 {
            let _ = fill(&level, n, "a", MIB).await;
        }
        assert!((0..8).all(|n| level.contains(&id(n)) && level.is_pinned(&id(n))));
        assert!(level.usage().bytes <= level.usage().capacity, "{:?}", level.usage());
        level.set_budgets(&[("a".to_owned(), 0)].into()).expect("it fits");
        assert!((0..8).all(|n| level.contains(&id(n))) && level.usage().blocks == 8);
        level.set_budgets(&[].into()).expect("it fits");
        for n in 0..8 {
            level.unpin(&id(n));
        }
        assert!((0..8).all(|n| !level.is_pinned(&id(n))));
        // Whom the policy gives up is its own secret; without a budget, everybody.
        level.set_budgets(&[("a".to_owned(), 0)].into()).expect("it fits");
        assert!(!(0..8).any(|n| level.contains(&id(n))), "they are as any other");
    }

    #[tokio::test]
    async fn each_pin_is_taken_back_by_itself() {
        let level = level(64 * MIB, &[]);
        assert!(pin(&level, 1, "a", MIB).await);
        assert!(pin(&level, 1, "a", MIB).await);
        level.unpin(&id(1));
        assert!(level.is_pinned(&id(1)));
        level.remove(&id(1)).await.expect("it works");
        assert!(level.contains(&id(1)), "a pinned block is not removed");
        level.unpin(&id(1));
        // One too many, and one of a block that nobody knows, change nothing.
        level.unpin(&id(1));
        level.unpin(&id(2));
        assert!(level.contains(&id(1)) && !level.is_pinned(&id(1)));
        level.remove(&id(1)).await.expect("it works");
        assert_eq!(ledger(&level), (0, 0));
        assert_eq!(level.arena().usage().held, 0);
    }

    #[tokio::test]
    async fn pins_leave_half_of_the_memory_to_others_of_any_size() {
        let level = level(64 * MIB, &[]);
        let mut pinned = 0;
        while pin(&level, pinned, "a", MIB).await {
            pinned += 1;
        }
        assert!((24..=32).contains(&pinned), "{pinned}");
        // Blocks of other sizes still find room, and the pinned ones stay.
        for n in 0..200 {
            let _ = fill(&level, 1000 + n, "b", (n % 3 + 2) * MIB + 4096 * n).await;
        }
        assert!((0..pinned).all(|n| level.contains(&id(n))));
    }

    #[tokio::test]
    async fn a_block_that_its_budget_would_not_keep_is_pinned() {
        let level = level(64 * MIB, &[("small", MIB / 2)]);
        assert!(fill(&level, 1, "small", MIB).await.is_none());
        assert!(pin(&level, 1, "small", MIB).await);
        assert!(level.contains(&id(1)));
    }

    #[tokio::test]
    async fn changed_budgets_leave_pinned_blocks() {
        let level = level(64 * MIB, &[]);
        assert!(pin(&level, 1, "a", MIB).await);
        fill(&level, 2, "a", MIB).await.expect("kept");
        level.set_budgets(&[("a".to_owned(), 0)].into()).expect("they fit");
        assert!(level.contains(&id(1)) && !level.contains(&id(2)));
    }
}
