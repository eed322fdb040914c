//! One device of the level: its memory, what stays there, and how blocks get there.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tpad_cuda::{Copier, CudaError, CudaErrorKind, Device, HostCopy, Slab};
use tpad_manifest::BlockId;
use tpad_store::{BlockBytes, CacheClass, ReadOptions, Urgency, slot_bytes};

use crate::flights::{Boarding, Filled, Flights};
use crate::keep::{Candidate, Keep, Reservation};
use crate::metrics::FillOutcome;
use crate::pool::{Grant, Pool, SlabView, Slot};
use crate::{DeviceBlock, DeviceId, HbmError, HbmMetrics};

/// Fills of one device that are under way or wait for a slot: more than keep the bus
/// busy, fewer than the copier takes.
const FILLS: usize = 256;
/// How often blocks are given up for one slot before somebody else's luck is accepted.
const ATTEMPTS: usize = 16;
/// A wait for a slot looks again after this long even if nothing was heard.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One device of the level.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: DeviceId,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) keep: Keep,
    pub(crate) broken: Arc<Broken>,
    pub(crate) metrics: HbmMetrics,
    copier: Copier,
    flights: Flights,
    fills: Semaphore,
}

/// Whether a sticky error has turned the level off, and which.
#[derive(Debug, Default)]
pub(crate) struct Broken(OnceLock<String>);

/// A block's whole slot: image and zero padding.
struct Padded(BlockBytes);

impl AsRef<[u8]> for Padded {
    fn as_ref(&self) -> &[u8] {
        self.0.padded()
    }
}

impl Broken {
    pub(crate) fn why(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

impl Lane {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        pool: Arc<Pool>,
        keep: Keep,
        streams: usize,
        broken: &Arc<Broken>,
        metrics: &HbmMetrics,
    ) -> Result<Arc<Self>, CudaError> {
        let copier = Copier::new(&device, streams)?;
        Ok(Arc::new(Self {
            id: pool.device_id(),
            device,
            pool,
            keep,
            broken: Arc::clone(broken),
            metrics: metrics.clone(),
            copier,
            flights: Flights::default(),
            fills: Semaphore::new(FILLS),
        }))
    }

    pub(crate) fn board(&self, id: &BlockId, options: ReadOptions) -> Boarding {
        self.flights.board(id, options, || self.keep.get(id))
    }

    /// Brings the block here for all who joined the flight, and ends it.
    pub(crate) async fn lead(
        &self,
        id: BlockId,
        class: CacheClass,
        bytes: BlockBytes,
        options: ReadOptions,
    ) -> Filled {
        /// However it ends.
        struct Landing<'a>(&'a Flights, BlockId);
        impl Drop for Landing<'_> {
            fn drop(&mut self) {
                self.0.end(&self.1);
            }
        }
        let _landing = Landing(&self.flights, id);
        let began = Instant::now();
        let outcome = self.fill(id, &class, bytes, options, began).await;
        let usage = self.pool.usage();
        self.metrics.memory(self.id, usage.mapped, self.keep.usage().bytes);
        let (outcome, filled) = match outcome {
            Ok((outcome, block)) => (outcome, Ok(block)),
            Err(source) => {
                self.failed(&source);
                (FillOutcome::failed, Err(HbmError::Cuda { device: self.id, source }))
            }
        };
        self.metrics.filled(self.id, outcome);
        filled
    }

    async fn fill(
        &self,
        id: BlockId,
        class: &CacheClass,
        bytes: BlockBytes,
        options: ReadOptions,
        began: Instant,
    ) -> Result<(FillOutcome, Option<DeviceBlock>), CudaError> {
        /// A stay that ends unless the block arrives.
        struct Stay<'a> {
            lane: &'a Lane,
            id: BlockId,
            generation: u64,
        }
        impl Drop for Stay<'_> {
            fn drop(&mut self) {
                self.lane.keep.end(&self.id, self.generation);
                self.lane.pool.nudge();
            }
        }
        let Some(slot_bytes) = slot_bytes(bytes.len() as u64) else {
            return Ok((FillOutcome::not_admitted, None));
        };
        let permit = match options.urgency {
            Urgency::Prefetch => self.fills.try_acquire().ok(),
            Urgency::Demand => {
                timeout_at(options.deadline, self.fills.acquire()).await.ok().and_then(Result::ok)
            }
        };
        if permit.is_none() {
            return Ok((FillOutcome::no_room, None));
        }
        let generation = loop {
            let freed = self.pool.slot_freed();
            tokio::pin!(freed);
            // What ends after this is heard.
            freed.as_mut().enable();
            match self.keep.reserve(&id, class, slot_bytes, options.urgency) {
                Reservation::Stay(generation) => break generation,
                Reservation::Full => {
                    let again = options.deadline.min(Instant::now() + LOOK_AGAIN);
                    let _freed = timeout_at(again, freed).await;
                    if Instant::now() >= options.deadline || self.broken.why().is_some() {
                        return Ok((FillOutcome::no_room, None));
                    }
                }
                Reservation::Refused => return Ok((FillOutcome::not_admitted, None)),
            }
        };
        let stay = Stay { lane: self, id, generation };
        let image_bytes = bytes.len() as u64;
        let Some(slot) = self.slot(slot_bytes, image_bytes, class, options).await? else {
            return Ok((FillOutcome::no_room, None));
        };
        let slot = self.copy(slot, bytes).await?;
        self.metrics.copied(self.id, slot_bytes, began.elapsed());
        let block = DeviceBlock::new(slot);
        if self.broken.why().is_some() {
            // Another device's error came first: nothing is published any more.
            return Ok((FillOutcome::dropped, None));
        }
        let kept = self.keep.publish(&id, generation, &block);
        std::mem::forget(stay);
        // Who waits for room may give this one up now.
        self.pool.nudge();
        let outcome = if kept { FillOutcome::kept } else { FillOutcome::dropped };
        Ok((outcome, Some(block)))
    }

    /// Copies the block into the slot. The slot and the source are kept until the copy is
    /// over, whether anyone waits for it or not.
    async fn copy(&self, slot: Slot, bytes: BlockBytes) -> Result<Slot, CudaError> {
        let copy = HostCopy {
            from: Bytes::from_owner(Padded(bytes)),
            to: Arc::clone(&slot.slab().memory) as Arc<dyn Slab>,
            offset: slot.offset(),
        };
        let (over, outcome) = oneshot::channel();
        self.copier.copy(copy, move |result| {
            // Nobody waits: the slot is free again.
            let _nobody = over.send(result.map(|()| slot));
        })?;
        // The copier finishes what it has taken before it ends.
        outcome.await.unwrap_or(Err(CudaError::Ended))
    }

    /// A slot for an image of `image_bytes`; `None` if there is none, for a demand by its
    /// deadline. Gives up blocks that nobody holds for it: of the same class first, and of
    /// classes with budgets of their own last and for a demand alone.
    async fn slot(
        &self,
        slot_bytes: u64,
        image_bytes: u64,
        class: &CacheClass,
        options: ReadOptions,
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
            match self.pool.grant(slot_bytes, image_bytes) {
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
            if attempts < ATTEMPTS && self.make_way(slot_bytes, class, options.urgency) {
                attempts += 1;
                continue;
            }
            if options.urgency == Urgency::Prefetch {
                return Ok(None);
            }
            attempts = 0;
            let now = Instant::now();
            let asked = self.pool.asks_again().filter(|again| *again > now);
            let again = asked.unwrap_or(now + LOOK_AGAIN);
            if timeout_at(options.deadline.min(again), freed).await.is_err()
                && Instant::now() >= options.deadline
            {
                return Ok(None);
            }
            // An answer that came as late as the next look: let others run.
            tokio::task::yield_now().await;
        }
    }

    /// Gives up blocks so that a slot of this size comes free; `false` if there is nothing
    /// to do but wait.
    fn make_way(&self, slot_bytes: u64, class: &CacheClass, urgency: Urgency) -> bool {
        let spare = urgency == Urgency::Prefetch;
        let same_size = |block: &Candidate| block.slot_bytes == slot_bytes && !block.held;
        if let Some(block) = self.keep.next_to_go(class, spare, same_size)
            && self.keep.evict([&block]) > 0
        {
            return true;
        }
        let stays =
            |block: &Candidate| block.held || (spare && self.keep.guards(&block.class, class));
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

    /// A sticky error turns the level off.
    fn failed(&self, error: &CudaError) {
        if !error.is_sticky() {
            tracing::warn!(device = %self.id, %error, "a block was not copied to the GPU");
            return;
        }
        if self.broken.0.set(format!("device {}: {error}", self.id)).is_ok() {
            tracing::error!(device = %self.id, %error, "GPU memory is off until restart");
            self.metrics.broke();
        }
    }
}
