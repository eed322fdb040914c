//! Room for a fill: its turn, its place in the budget, its slot.
//!
//! A demand waits for each until its deadline, but no longer than somebody waits for the
//! block: a wait keeps the source in host memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tpad_cuda::{CudaError, CudaErrorKind};
use tpad_manifest::BlockId;
use tpad_store::{BlockBytes, CacheClass, ReadOptions, Urgency};

use super::Lane;
use crate::flights::Lead;
use crate::keep::{Candidate, Reservation};
use crate::pool::{Grant, SlabView, Slot};

/// How often blocks are given up for one slot before somebody else's luck is accepted.
const ATTEMPTS: usize = 16;
/// A wait looks again after this long even if nothing was heard: nobody is told when the
/// last one who waits for a block hangs up.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same while workers read blocks of the device without a word: nor do they tell when
/// they let go.
const LOOK_SOON: Duration = Duration::from_millis(5);

impl Lane {
    /// Whether a wait for room is over before its deadline.
    fn gives_up(&self, lead: &Lead) -> bool {
        self.closing.load(Ordering::Acquire) || self.broken.why().is_some() || lead.is_given_up()
    }

    /// How long a wait for room may go without a look.
    fn look(&self) -> Duration {
        if self.pool.readers().is_read() { LOOK_SOON } else { LOOK_AGAIN }
    }

    /// The turn of a fill; `None` if there is none, for a demand by its deadline.
    pub(super) async fn permit(
        &self,
        options: ReadOptions,
        lead: &Lead,
    ) -> Option<OwnedSemaphorePermit> {
        if options.urgency == Urgency::Prefetch {
            return Arc::clone(&self.guesses).try_acquire_owned().ok();
        }
        let fills = Arc::clone(&self.fills);
        // One for all looks: it keeps its place in the queue.
        let turn = fills.acquire_owned();
        tokio::pin!(turn);
        loop {
            let again = options.deadline.min(Instant::now() + LOOK_AGAIN);
            match timeout_at(again, turn.as_mut()).await {
                Ok(permit) => return permit.ok(),
                Err(_) if Instant::now() >= options.deadline || self.gives_up(lead) => return None,
                Err(_) => {}
            }
        }
    }

    /// A place in the budget; `Full` if there is none, for a demand by its deadline.
    pub(super) async fn reserve(
        &self,
        id: &BlockId,
        class: &CacheClass,
        slot_bytes: u64,
        options: ReadOptions,
        lead: &Lead,
    ) -> Reservation {
        loop {
            let freed = self.pool.slot_freed();
            tokio::pin!(freed);
            // What ends after this is heard.
            freed.as_mut().enable();
            let reservation = self.keep.reserve(id, class, slot_bytes, options.urgency);
            if reservation != Reservation::Full || self.gives_up(lead) {
                return reservation;
            }
            if Instant::now() >= options.deadline {
                return reservation;
            }
            let again = options.deadline.min(Instant::now() + self.look());
            let _freed = timeout_at(again, freed).await;
        }
    }

    /// A slot for the image of `bytes`; `None` if there is none, for a demand by its
    /// deadline. Gives up blocks that nobody holds for it: of the same class first, and of
    /// classes with budgets of their own last and for a demand alone.
    pub(super) async fn slot(
        &self,
        id: &BlockId,
        slot_bytes: u64,
        bytes: &BlockBytes,
        class: &CacheClass,
        options: ReadOptions,
        lead: &Lead,
    ) -> Result<Option<Slot>, CudaError> {
        let mut attempts = 0;
        loop {
            let freed = self.pool.slot_freed();
            tokio::pin!(freed);
            // What comes free after this is heard.
            freed.as_mut().enable();
            if self.broken.why().is_some() {
                return Ok(None);
            }
            let late = Instant::now() >= options.deadline;
            match self.pool.grant(slot_bytes, bytes.len() as u64) {
                Grant::Slot(slot) => return Ok(Some(slot)),
                Grant::Make(reserved) => {
                    let made = tokio::task::spawn_blocking(move || reserved.make()).await;
                    match made.unwrap_or(Err(CudaError::Ended)) {
                        Ok(()) => {}
                        Err(error) if error.kind() == CudaErrorKind::OutOfMemory => {
                            self.metrics.had_no_memory(self.id);
                        }
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                Grant::Short => {}
            }
            if attempts < ATTEMPTS && self.make_way(id, slot_bytes, class, options.urgency) {
                attempts += 1;
                continue;
            }
            if options.urgency == Urgency::Prefetch || late || self.gives_up(lead) {
                return Ok(None);
            }
            attempts = 0;
            let now = Instant::now();
            let look = now + self.look();
            let asked = self.pool.asks_again().filter(|again| *again > now);
            let again = asked.map_or(look, |asked| asked.min(look));
            // At the deadline it looks once more.
            if timeout_at(options.deadline.min(again), freed).await.is_err() {
                self.pool.free_what_nobody_reads();
            }
            // An answer that came as late as the next look: let others run.
            tokio::task::yield_now().await;
        }
    }

    /// Gives up blocks so that a slot of this size comes free; `false` if there is nothing
    /// to do but wait.
    fn make_way(
        &self,
        id: &BlockId,
        slot_bytes: u64,
        class: &CacheClass,
        urgency: Urgency,
    ) -> bool {
        let spare = urgency == Urgency::Prefetch;
        if spare && self.pool.asks_again().is_some() {
            // The device has no memory for what the budgets allow, and nothing was weighed
            // against this block: what is kept is worth more.
            return false;
        }
        let worth = self.keep.worth_of(id);
        let may_go = |block: &Candidate| match urgency {
            Urgency::Demand => !block.held,
            Urgency::Prefetch => block.is_worth_less(worth),
        };
        let same_size = |block: &Candidate| block.slot_bytes == slot_bytes && may_go(block);
        if let Some(block) = self.keep.next_to_go(class, spare, same_size)
            && self.keep.evict([&block]) > 0
        {
            return true;
        }
        let stays =
            |block: &Candidate| !may_go(block) || (spare && self.keep.guards(&block.class, class));
        let candidates = self.keep.candidates();
        let closed: HashSet<u64> =
            candidates.iter().filter(|block| stays(block)).map(|block| block.slab).collect();
        let slabs = self.cheapest_slabs(slot_bytes, &candidates, &closed, urgency);
        self.keep.evict(candidates.iter().filter(|block| slabs.contains(&block.slab))) > 0
    }

    /// The slabs of other slot sizes whose loss costs least and makes the room. Those that
    /// workers have mapped come last, for a demand alone: they go when the workers let
    /// them.
    fn cheapest_slabs(
        &self,
        slot_bytes: u64,
        candidates: &[Candidate],
        closed: &HashSet<u64>,
        urgency: Urgency,
    ) -> HashSet<u64> {
        let mut kept: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        for block in candidates {
            let (blocks, bytes) = kept.entry(block.slab).or_default();
            *blocks += 1;
            *bytes += block.slot_bytes;
        }
        let usage = self.pool.usage();
        let mut room = usage.capacity.saturating_sub(usage.mapped);
        if self.pool.asks_again().is_some() {
            room = 0;
        }
        let inside = |slab: &SlabView| kept.get(&slab.id).copied().unwrap_or_default();
        let mut slabs: Vec<SlabView> = self.pool.slabs();
        slabs.retain(|slab| {
            slab.slot_bytes != slot_bytes
                && !closed.contains(&slab.id)
                // Slots that are filled or held beyond what is kept do not come free.
                && slab.slots_used <= inside(slab).0
                && (!slab.shared || urgency == Urgency::Demand)
        });
        slabs.sort_by_key(|slab| (slab.shared, inside(slab).1));
        let mut chosen = HashSet::new();
        for slab in slabs {
            if room >= slot_bytes {
                break;
            }
            room = room.saturating_add(slab.bytes);
            chosen.insert(slab.id);
        }
        if room < slot_bytes { HashSet::new() } else { chosen }
    }
}
