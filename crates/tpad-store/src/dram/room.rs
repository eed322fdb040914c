//! Room for a block: a slot that is free, or made free, or waited for.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::DramLevel;
use super::table::Candidate;
use crate::arena::Grant;
use crate::{Arena, CacheClass, SlotMut, Urgency};

/// How long a demand waits for slots that are in use before it takes those of
/// blocks which are within a budget of their own: fills and honest readers are
/// done by then.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// When readers of blocks that are kept are done, or other processes have
    /// unmapped it.
    Read,
    /// When slots are that hold no kept block: being filled, or read for long.
    Foreign,
}

impl DramLevel {
    /// A slot for an image of `bytes`. Gives up kept blocks for it: of the same
    /// class first where that has used up its budget, and of classes with budgets
    /// of their own last. Then waits until readers or other fills free one; a
    /// prefetch does not. Whoever came first is served first. Dropped, the future
    /// leaves nothing behind.
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
        let patience = Instant::now() + PATIENCE;
        loop {
            match self.arena.grant(bytes) {
                Grant::Slot(slot) => return Ok(slot),
                Grant::Map(reserved) => {
                    let mapped = tokio::task::spawn_blocking(move || reserved.map());
                    mapped.await.map_err(io::Error::other)??;
                }
                Grant::Short => {
                    let spare = urgency == Urgency::Prefetch || Instant::now() < patience;
                    if self.make_way(slot_bytes, class, spare, &mut siege) {
                        continue;
                    }
                    if urgency == Urgency::Prefetch {
                        return Err(RoomError::InUse);
                    }
                    let freed = self.arena.slot_freed();
                    if spare {
                        // Over the time, more may be given up.
                        let _late = timeout_at(patience, freed).await;
                    } else {
                        freed.await;
                    }
                }
            }
        }
    }

    /// Gives up blocks so that a slot of this size comes free; `false` if there
    /// is nothing to do but wait. May be told to spare what others have budgets for.
    fn make_way(
        &self,
        slot_bytes: u64,
        class: &CacheClass,
        spare: bool,
        siege: &mut Siege<'_>,
    ) -> bool {
        let named = self.arena.named();
        let mut candidates = self.shared.table().candidates(&named);
        // They never come empty: whoever waited for them would wait for nothing.
        let mut closed: HashSet<u64> = self.shared.table().pinned_slabs().into_iter().collect();
        if spare {
            let policy = self.policy();
            let guarded = |block: &Candidate| policy.guards(&block.class, class);
            closed.extend(candidates.iter().filter(|c| guarded(c)).map(|block| block.slab));
            candidates.retain(|block| !guarded(block));
        }
        if !siege.slabs.is_empty() {
            if self.give_up(siege.inside(&candidates)) > 0 {
                return true;
            }
            // Others may have become idle while these did not.
            let idle = self.cheapest_slabs(slot_bytes, &candidates, &closed, Use::Idle);
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
        let slabs = self.cheapest_slabs(slot_bytes, &candidates, &closed, Use::Foreign);
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
    /// of those that are not `closed` and in no further use than `limit`.
    fn cheapest_slabs(
        &self,
        slot_bytes: u64,
        candidates: &[Candidate],
        closed: &HashSet<u64>,
        limit: Use,
    ) -> Vec<u64> {
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
        let mut slabs: Vec<_> = self
            .arena
            .slabs()
            .into_iter()
            .filter(|slab| slab.slot_bytes != slot_bytes && !closed.contains(&slab.id))
            .map(|slab| {
                let kept = kept.get(&slab.id).unwrap_or(&nothing);
                let state = match (slab.slots_used > kept.blocks, kept.leased || slab.shared) {
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
