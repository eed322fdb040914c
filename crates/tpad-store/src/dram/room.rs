//! Room for a block: a slot that is free, or made free, or waited for.

use std::collections::BTreeMap;
use std::io;

use super::DramLevel;
use super::table::Candidate;
use crate::arena::Grant;
use crate::{Arena, CacheClass, SlotMut, Urgency};

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoomError {
    /// The block is larger than the arena.
    #[error("larger than the capacity")]
    TooLarge,
    /// Nothing is free, and a prefetch does not wait.
    #[error("all memory is in use")]
    InUse,
    /// The system gives no memory.
    #[error("no memory: {0}")]
    System(#[from] io::Error),
}

/// Slabs that are being emptied for another slot size. Dropped, they give slots
/// again.
struct Siege<'a> {
    arena: &'a Arena,
    slabs: Vec<u64>,
    /// Giving up one that is read frees its slot when that reader is done: once
    /// is enough, and others may come free before.
    gave_up_leased: bool,
}

/// How soon a slab can be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// At once.
    Idle,
    /// When readers of blocks that are kept are done.
    Read,
    /// When slots are that hold no kept block: being filled, or read for long.
    Foreign,
}

impl DramLevel {
    /// A slot for an image of `bytes`. Gives up kept blocks for it: of the same
    /// class first where that has used up its budget. Then waits until readers
    /// or other fills free one; a prefetch does not. Whoever came first is served
    /// first. Dropped, the future leaves nothing behind.
    pub(crate) async fn room(
        &self,
        bytes: u64,
        class: &CacheClass,
        urgency: Urgency,
    ) -> Result<SlotMut, RoomError> {
        let slot_bytes = self.arena.slot_bytes(bytes).ok_or(RoomError::TooLarge)?;
        let bytes = usize::try_from(bytes).map_err(|_| RoomError::TooLarge)?;
        if !self.turn.is_busy()
            && let Some(slot) = self.arena.take(bytes)
        {
            return Ok(slot);
        }
        let _turn = self.turn.enter(1, urgency).await;
        let mut siege = Siege::lay(&self.arena);
        loop {
            match self.arena.grant(bytes) {
                Grant::Slot(slot) => return Ok(slot),
                Grant::Map(reserved) => {
                    let mapped = tokio::task::spawn_blocking(move || reserved.map());
                    mapped.await.map_err(io::Error::other)??;
                }
                Grant::Short => {
                    if self.make_way(slot_bytes, class, &mut siege) {
                        continue;
                    }
                    if urgency == Urgency::Prefetch {
                        return Err(RoomError::InUse);
                    }
                    self.arena.slot_freed().await;
                }
            }
        }
    }

    /// Gives up blocks so that a slot of this size comes free; `false` if there
    /// is nothing to do but wait.
    fn make_way(&self, slot_bytes: u64, class: &CacheClass, siege: &mut Siege<'_>) -> bool {
        let candidates = self.shared.table().candidates();
        if !siege.slabs.is_empty() {
            if self.give_up(siege.inside(&candidates)) > 0 {
                return true;
            }
            // Others may have become idle while these did not.
            let idle = self.cheapest_slabs(slot_bytes, &candidates, Use::Idle);
            if idle.is_empty() {
                return false;
            }
            siege.turn_to(idle);
            return self.give_up(siege.inside(&candidates)) > 0;
        }
        let mut same: Vec<&Candidate> =
            candidates.iter().filter(|block| block.slot_bytes == slot_bytes).collect();
        same.sort_by_key(|block| (block.class != *class, block.leased, block.used));
        let own = same.first().filter(|block| block.class == *class);
        if let Some(own) = own
            && self.is_full(class, slot_bytes)
            && self.give_up_one(own, siege)
        {
            return true;
        }
        let slabs = self.cheapest_slabs(slot_bytes, &candidates, Use::Foreign);
        if !slabs.is_empty() {
            siege.turn_to(slabs);
            return self.give_up(siege.inside(&candidates)) > 0;
        }
        let next = same.iter().find(|block| !block.leased).or(same.first());
        next.is_some_and(|block| self.give_up_one(block, siege))
    }

    fn give_up_one(&self, block: &Candidate, siege: &mut Siege<'_>) -> bool {
        if block.leased {
            if siege.gave_up_leased {
                return false;
            }
            siege.gave_up_leased = true;
        }
        self.give_up([block]) > 0
    }

    fn give_up<'a>(&self, blocks: impl IntoIterator<Item = &'a Candidate>) -> usize {
        let mut count = 0;
        let policy = self.policy();
        for block in blocks {
            if self.shared.give_up(&block.id, None) {
                self.shared.metrics.level_evicted(crate::Medium::Dram);
                policy.forget(&block.id, &block.class);
                count += 1;
            }
        }
        count
    }

    fn is_full(&self, class: &CacheClass, more: u64) -> bool {
        self.policy().is_over(class, more, &self.shared)
    }

    /// The slabs of other slot sizes whose loss costs least and makes the room,
    /// of those that are in no further use than `limit`.
    fn cheapest_slabs(&self, slot_bytes: u64, candidates: &[Candidate], limit: Use) -> Vec<u64> {
        /// What is kept in a slab.
        #[derive(Default)]
        struct Inside {
            blocks: u32,
            bytes: u64,
            leased: bool,
            used: u64,
        }
        let mut kept: BTreeMap<u64, Inside> = BTreeMap::new();
        for block in candidates {
            let slab = kept.entry(block.slab).or_default();
            slab.blocks += 1;
            slab.bytes += block.slot_bytes;
            slab.leased |= block.leased;
            slab.used = slab.used.max(block.used);
        }
        let usage = self.arena.usage();
        let mut room = usage.capacity.saturating_sub(usage.mapped);
        let nothing = Inside::default();
        // They never come empty: whoever waited for them would wait for nothing.
        let pinned = self.shared.table().pinned_slabs();
        let mut slabs: Vec<_> = self
            .arena
            .slabs()
            .into_iter()
            .filter(|slab| slab.slot_bytes != slot_bytes && !pinned.contains(&slab.id))
            .map(|slab| {
                let kept = kept.get(&slab.id).unwrap_or(&nothing);
                let state = match (slab.slots_used > kept.blocks, kept.leased) {
                    (true, _) => Use::Foreign,
                    (false, true) => Use::Read,
                    (false, false) => Use::Idle,
                };
                (state, kept.bytes, kept.used, slab)
            })
            .filter(|(state, ..)| *state <= limit)
            .collect();
        slabs.sort_by_key(|(state, bytes, used, _)| (*state, *bytes, *used));
        let mut chosen = Vec::new();
        for (.., slab) in slabs {
            if room >= slot_bytes {
                break;
            }
            room = room.saturating_add(slab.bytes);
            chosen.push(slab.id);
        }
        if room < slot_bytes {
            return Vec::new();
        }
        chosen
    }
}

impl<'a> Siege<'a> {
    fn lay(arena: &'a Arena) -> Self {
        arena.set_awaited(true);
        Self { arena, slabs: Vec::new(), gave_up_leased: false }
    }

    fn turn_to(&mut self, slabs: Vec<u64>) {
        self.arena.condemn(&self.slabs, false);
        self.arena.condemn(&slabs, true);
        self.slabs = slabs;
    }

    fn inside<'c>(&self, candidates: &'c [Candidate]) -> impl Iterator<Item = &'c Candidate> {
        candidates.iter().filter(|block| self.slabs.contains(&block.slab))
    }
}

impl Drop for Siege<'_> {
    fn drop(&mut self) {
        self.arena.condemn(&self.slabs, false);
        self.arena.set_awaited(false);
    }
}
