//! One device of the level: its memory, what stays there, and how blocks get there.

mod room;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tpad_cuda::{Copier, CudaError, Device, HostCopy, Slab};
use tpad_manifest::BlockId;
use tpad_store::{BlockBytes, CacheClass, ReadOptions, slot_bytes};

use crate::flights::{Boarding, Filled, Flights, Lead};
use crate::keep::{Keep, Reservation};
use crate::metrics::FillOutcome;
use crate::pool::{Pool, Slot};
use crate::{DeviceBlock, DeviceId, HbmError, HbmMetrics};

/// Fills of one device that are under way or wait for a slot: more than keep the bus
/// busy, fewer than the copier takes.
const FILLS: usize = 256;

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
    /// Nothing waits for room any more.
    closing: AtomicBool,
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
            closing: AtomicBool::new(false),
        }))
    }

    pub(crate) fn board(&self, id: &BlockId, options: ReadOptions) -> Boarding {
        self.flights.board(id, options, || self.keep.get(id))
    }

    /// Refuses fills that wait for room, from now on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.pool.nudge();
    }

    /// The level is off: nothing is kept any more, and no worker finds anything.
    pub(crate) fn end(&self) {
        self.pool.readers().set_closed(true);
        self.keep.clear();
    }

    /// Brings the block here for all who joined the flight, and ends it.
    pub(crate) async fn lead(
        &self,
        id: BlockId,
        class: CacheClass,
        bytes: BlockBytes,
        options: ReadOptions,
        lead: &Lead,
    ) -> Filled {
        /// However it ends.
        struct Landing<'a>(&'a Flights, BlockId);
        impl Drop for Landing<'_> {
            fn drop(&mut self) {
                self.0.end(&self.1);
            }
        }
        let _landing = Landing(&self.flights, id);
        let outcome = self.fill(id, &class, bytes, options, lead).await;
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
        lead: &Lead,
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
        let began = Instant::now();
        let Some(slot_bytes) = slot_bytes(bytes.len() as u64) else {
            return Ok((FillOutcome::not_admitted, None));
        };
        let Some(_permit) = self.permit(options, lead).await else {
            return Ok((FillOutcome::no_room, None));
        };
        let generation = match self.reserve(&id, class, slot_bytes, options, lead).await {
            Reservation::Stay(generation) => generation,
            Reservation::Full => return Ok((FillOutcome::no_room, None)),
            Reservation::Refused => return Ok((FillOutcome::not_admitted, None)),
        };
        let stay = Stay { lane: self, id, generation };
        let Some(slot) = self.slot(slot_bytes, &bytes, class, options, lead).await? else {
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
    ///
    /// # Errors
    /// When the driver fails, or the source is larger than the slot.
    async fn copy(&self, slot: Slot, bytes: BlockBytes) -> Result<Slot, CudaError> {
        let (padded, of) = (bytes.padded().len() as u64, slot.slab().slot_bytes);
        debug_assert!(padded <= of, "both are sized by the image");
        if padded > of {
            // It would overwrite the next slot, which is somebody else's.
            return Err(CudaError::Span { offset: slot.offset(), bytes: padded, of });
        }
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
