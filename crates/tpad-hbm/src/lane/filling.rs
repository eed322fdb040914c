//! One fill, from the wish to the block. It begins in a task, which gets it a slot, and
//! ends on the copier's thread: nobody has to wake up between the copy and those who wait.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tpad_cuda::{Copier, CudaError, HostCopy, Slab};
use tpad_manifest::BlockId;
use tpad_store::{BlockBytes, CacheClass, ReadOptions, TaskToken, Urgency, slot_bytes};

use super::Lane;
use crate::flights::Lead;
use crate::keep::Reservation;
use crate::metrics::FillOutcome;
use crate::pool::Slot;
use crate::{DeviceBlock, HbmError};

/// A fill under way. However it ends, its flight ends with it, and all who joined that are
/// told.
pub(crate) struct Filling {
    lane: Arc<Lane>,
    id: BlockId,
    began: Instant,
    /// `None` once they are told.
    lead: Option<Lead>,
    permit: Option<OwnedSemaphorePermit>,
    /// The stay that ends unless the block arrives.
    stay: Option<u64>,
    /// The level waits for this at its end.
    _token: TaskToken,
}

/// A slot to fill, or why there is none.
type Prepared = Result<Slot, FillOutcome>;

/// A block's whole slot: image and zero padding.
struct Padded(BlockBytes);

impl AsRef<[u8]> for Padded {
    fn as_ref(&self) -> &[u8] {
        self.0.padded()
    }
}

impl Filling {
    pub(crate) fn new(lane: &Arc<Lane>, id: BlockId, lead: Lead, token: TaskToken) -> Self {
        let (lane, began, lead) = (Arc::clone(lane), Instant::now(), Some(lead));
        Self { lane, id, began, lead, permit: None, stay: None, _token: token }
    }

    /// Gets the block a slot and has it copied there.
    pub(crate) async fn run(
        mut self,
        copier: &Copier,
        class: CacheClass,
        bytes: BlockBytes,
        options: ReadOptions,
    ) {
        let refused = match self.prepare(&class, &bytes, options).await {
            Ok(Ok(slot)) => return self.copy(copier, slot, bytes, options.urgency),
            Ok(Err(outcome)) => Ok((outcome, None)),
            Err(error) => Err(error),
        };
        // Who is told finds that the source is not held any more.
        drop(bytes);
        self.conclude(refused);
    }

    async fn prepare(
        &mut self,
        class: &CacheClass,
        bytes: &BlockBytes,
        options: ReadOptions,
    ) -> Result<Prepared, CudaError> {
        let (lane, Some(lead)) = (&self.lane, &self.lead) else { return Err(CudaError::Ended) };
        let Some(slot_bytes) = slot_bytes(bytes.len() as u64) else {
            return Ok(Err(FillOutcome::not_admitted));
        };
        self.permit = lane.permit(options, lead).await;
        if self.permit.is_none() {
            return Ok(Err(FillOutcome::no_room));
        }
        self.stay = match lane.reserve(&self.id, class, slot_bytes, options, lead).await {
            Reservation::Stay(generation) => Some(generation),
            Reservation::Full => return Ok(Err(FillOutcome::no_room)),
            Reservation::Refused => return Ok(Err(FillOutcome::not_admitted)),
        };
        let slot = lane.slot(&self.id, slot_bytes, bytes, class, options, lead).await?;
        Ok(slot.ok_or(FillOutcome::no_room))
    }

    /// Copies the block into the slot. The slot and the source are kept until the copy is
    /// over, whether anyone waits for it or not.
    fn copy(self, copier: &Copier, slot: Slot, bytes: BlockBytes, urgency: Urgency) {
        let (padded, of) = (bytes.padded().len() as u64, slot.slab().slot_bytes);
        debug_assert!(padded <= of, "both are sized by the image");
        if padded > of {
            // It would overwrite the next slot, which is somebody else's.
            let span = CudaError::Span { offset: slot.offset(), bytes: padded, of };
            return self.conclude(Err(span));
        }
        let copy = HostCopy {
            from: Bytes::from_owner(Padded(bytes)),
            to: Arc::clone(&slot.slab().memory) as Arc<dyn Slab>,
            offset: slot.offset(),
        };
        let aside = self.lead.as_ref().filter(|lead| {
            // Whoever hurries it from here on is heard.
            urgency == Urgency::Prefetch && !lead.errand.is_hurried()
        });
        let Some(lead) = aside else {
            return copier.copy(copy, move |result| self.arrived(slot, result));
        };
        let (errand, awaited) = (Arc::clone(&lead.errand), lead.awaited().clone());
        let wanted = move || !awaited.is_given_up();
        copier.copy_aside(copy, &errand, wanted, move |result| match result {
            Ok(true) => self.arrived(slot, Ok(())),
            Ok(false) => {
                drop(slot);
                self.conclude(Ok((FillOutcome::given_up, None)));
            }
            Err(error) => self.arrived(slot, Err(error)),
        });
    }

    /// The copy is over. On the copier's thread: nothing here waits.
    fn arrived(mut self, slot: Slot, copied: Result<(), CudaError>) {
        if let Err(error) = copied {
            return self.conclude(Err(error));
        }
        self.lane.metrics.copied(self.lane.id, slot.slab().slot_bytes, self.began.elapsed());
        let block = DeviceBlock::new(slot);
        let broken = self.lane.broken.why().is_some();
        // After another device's error nothing is published any more.
        let Some(generation) = self.stay.filter(|_| !broken) else {
            return self.conclude(Ok((FillOutcome::dropped, None)));
        };
        let kept = self.lane.keep.publish(&self.id, generation, &block);
        self.stay = None;
        let outcome = if kept { FillOutcome::kept } else { FillOutcome::dropped };
        self.conclude(Ok((outcome, Some(block))));
    }

    fn conclude(mut self, outcome: Result<(FillOutcome, Option<DeviceBlock>), CudaError>) {
        self.tell(outcome);
    }

    /// Ends the flight and tells all who joined it, once.
    fn tell(&mut self, outcome: Result<(FillOutcome, Option<DeviceBlock>), CudaError>) {
        /// However this ends.
        struct Landing<'a>(&'a Lane, &'a BlockId);
        impl Drop for Landing<'_> {
            fn drop(&mut self) {
                self.0.flights.end(self.1);
            }
        }
        let (lane, Some(lead)) = (&self.lane, self.lead.take()) else { return };
        let landing = Landing(lane, &self.id);
        if let Some(generation) = self.stay.take() {
            lane.keep.end(&self.id, generation);
        }
        let usage = lane.pool.usage();
        lane.metrics.memory(lane.id, usage.mapped, lane.keep.kept_bytes());
        let (outcome, filled) = match outcome {
            Ok((outcome, block)) => (outcome, Ok(block)),
            Err(source) => {
                lane.failed(&source);
                (FillOutcome::failed, Err(HbmError::Cuda { device: lane.id, source }))
            }
        };
        lane.metrics.filled(lane.id, outcome);
        drop(landing);
        if lane.broken.why().is_some() {
            lane.broken.empty();
        }
        self.permit = None;
        // Who waits for room may give this block up now, or has that of one which did not
        // come.
        lane.pool.nudge();
        lead.say(filled);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // Told already, unless the runtime or the copier ended first.
        self.tell(Err(CudaError::Ended));
    }
}
