//! Blocks on devices, and where they lie.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use tokio::time::Instant;
use tpad_cuda::{CudaError, DeviceUuid};
use tpad_handoff::{Named, Place};
use tpad_store::{InSlot, Readers};

use crate::pool::{Pool, PoolSlab, Slot};

/// A device of the level: its index among those that the daemon sees.
///
/// A worker may see others under other indexes: between processes a device goes by its
/// [`DeviceUuid`](tpad_cuda::DeviceUuid).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct DeviceId(pub u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block's image in device memory, whole and unchanging, for as long as a clone is
/// held. The slot is used for others only afterwards; giving the block up ends nothing
/// for who holds it. After the level has broken it still says where the block was, and
/// nothing happens there any more.
#[derive(Clone)]
pub struct DeviceBlock {
    // In this order: the slot is let go of before those who wait look again.
    slot: Arc<Slot>,
    _nudge: NudgeOnDrop,
}

/// Has whoever waits for a slot look again when a block is not held any more but by who
/// keeps it: then it can be given up.
#[derive(Clone)]
struct NudgeOnDrop {
    slot: Weak<Slot>,
    pool: Arc<Pool>,
}

impl Drop for NudgeOnDrop {
    fn drop(&mut self) {
        if self.slot.strong_count() <= 1 {
            self.pool.nudge();
        }
    }
}

/// Where a block lies, for another process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePlace {
    /// Which device.
    pub device: DeviceId,
    /// The slab's number, which no other slab of the level ever has, on any device.
    /// Slabs of host memory are counted on their own.
    pub slab: u64,
    /// Where in the slab it begins.
    pub offset: u64,
    /// What its slot takes.
    pub slot_bytes: u64,
}

impl DeviceBlock {
    pub(crate) fn new(slot: Slot) -> Self {
        let (pool, slot) = (Arc::clone(slot.pool()), Arc::new(slot));
        let nudge = NudgeOnDrop { slot: Arc::downgrade(&slot), pool };
        Self { slot, _nudge: nudge }
    }

    /// The image's size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slot.image_bytes
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> DevicePlace {
        let slab = self.slot.slab();
        DevicePlace {
            device: self.slot.pool().device_id(),
            slab: slab.id,
            offset: self.slot.offset(),
            slot_bytes: slab.slot_bytes,
        }
    }

    /// The slab that it lies in, to be mapped by another process.
    #[must_use]
    pub fn shared_slab(&self) -> SharedDeviceSlab {
        let (slab, pool) = (Arc::clone(self.slot.slab()), Arc::clone(self.slot.pool()));
        // A slot of it is in use, so nobody gives it up before this.
        pool.share(slab.id);
        SharedDeviceSlab { slab: Some(slab), pool }
    }

    /// Copies bytes of the image back to the host. Blocks; slow, for checks.
    ///
    /// # Errors
    /// When they lie outside of the image, or the driver fails.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CudaError> {
        let (bytes, of) = (into.len() as u64, self.bytes());
        if offset.checked_add(bytes).is_none_or(|end| end > of) {
            return Err(CudaError::Span { offset, bytes, of });
        }
        self.slot.slab().memory.read(self.slot.offset() + offset, into)
    }

    /// Whether someone else has a clone, or a worker of these reads it.
    pub(crate) fn is_held(&self, named: &Named) -> bool {
        let read = || self.named_place().is_some_and(|place| named.contains(place));
        Arc::strong_count(&self.slot) > 1 || self.slot.was_published() && read()
    }
}

impl InSlot for DeviceBlock {
    fn readers(&self) -> &Arc<Readers> {
        self.slot.pool().readers()
    }

    fn named_place(&self) -> Option<Place> {
        self.slot.named_place()
    }

    fn set_published(&self) {
        self.slot.set_published();
    }
}

impl fmt::Debug for DeviceBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBlock").field("place", &self.place()).finish_non_exhaustive()
    }
}

/// A slab that another process has mapped, or may have. Its memory does not go back to
/// the device, and is not used for slots of another size, before this is dropped: given
/// up here alone it would still be there.
#[derive(Debug)]
pub struct SharedDeviceSlab {
    /// `None` only while this is dropped.
    slab: Option<Arc<PoolSlab>>,
    pool: Arc<Pool>,
}

impl SharedDeviceSlab {
    /// The slab's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.id)
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.pool.device_id()
    }

    /// Its bytes: what a worker passes to [`Device::import`](tpad_cuda::Device::import).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.memory.bytes())
    }

    /// The descriptor of its memory. Whoever has it can map it to be written, too: it is
    /// for workers of the level's trust domain alone.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let slab = self.slab.as_ref().ok_or(io::ErrorKind::NotFound)?;
        slab.descriptor.try_clone()
    }

    /// The bytes of each of its slots, the first of which begins it.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.slot_bytes)
    }

    /// The identity of its device, by which other processes know it.
    #[must_use]
    pub fn uuid(&self) -> DeviceUuid {
        self.pool.uuid()
    }

    /// Since when its memory is wanted for something else, and nothing lies in it.
    #[must_use]
    pub fn wanted_since(&self) -> Option<Instant> {
        self.pool.wanted_since(self.id())
    }
}

impl Drop for SharedDeviceSlab {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            let id = slab.id;
            // Before it is told: who gives the slab up then has the last reference.
            drop(slab);
            self.pool.unshare(id);
        }
    }
}
