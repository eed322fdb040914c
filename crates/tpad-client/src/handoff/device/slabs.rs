//! The slabs of GPU memory that the daemon has sent to this process.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use tpad_cuda::{CudaError, Device, Memory};
use tpad_proto::handoff::v1 as wire;

use crate::handoff::link::Shared;
use crate::handoff::slabs::{Gone, SLOT_UNIT};

/// Slabs of all devices, and those that the daemon asked for and something still uses.
#[derive(Debug)]
pub(in crate::handoff) struct DeviceSlabs {
    sent: RwLock<BTreeMap<u64, Arc<DeviceSlab>>>,
    leaving: Mutex<Vec<(u64, Weak<Gone>)>>,
    shared: Arc<Shared>,
}

/// A slab, which is mapped when a lease first names it.
#[derive(Debug)]
pub(in crate::handoff) struct DeviceSlab {
    device: String,
    bytes: u64,
    slot_bytes: u64,
    mapped: OnceLock<Arc<Mapped>>,
    /// What it is mapped from, until it is. Held while it is being mapped.
    file: Mutex<Option<OwnedFd>>,
    /// Ends after both: then the memory is not mapped any more.
    gone: Arc<Gone>,
}

/// The memory of a slab as this process has it mapped, for all of its blocks together: a
/// block that is held costs one count of it, which another thread gives back.
#[derive(Debug)]
pub(in crate::handoff) struct Mapped {
    memory: Arc<dyn Memory>,
    bytes: u64,
    // After the memory.
    _gone: Arc<Gone>,
}

impl DeviceSlabs {
    pub(in crate::handoff) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let (sent, leaving) = (RwLock::default(), Mutex::default());
        Arc::new(Self { sent, leaving, shared: Arc::clone(shared) })
    }

    /// Takes over a slab. It is not mapped yet: that takes a while.
    pub(in crate::handoff) fn add(&self, slab: wire::Slab, file: OwnedFd) {
        let wire::Slab { slab, bytes, slot_bytes, device } = slab;
        let (mapped, file) = (OnceLock::new(), Mutex::new(Some(file)));
        let gone = Arc::new(Gone(Arc::clone(&self.shared)));
        let made = Arc::new(DeviceSlab { device, bytes, slot_bytes, mapped, file, gone });
        let mut sent = self.sent.write().unwrap_or_else(PoisonError::into_inner);
        // One that is sent again takes the place of what its number was.
        let replaced = sent.insert(slab, made);
        drop(sent);
        drop(replaced);
    }

    pub(in crate::handoff) fn get(&self, slab: u64) -> Option<Arc<DeviceSlab>> {
        self.sent.read().unwrap_or_else(PoisonError::into_inner).get(&slab).cloned()
    }

    /// Where a slot begins and in which memory, if this process was sent its slab, has it
    /// mapped, and it is this device's.
    pub(in crate::handoff) fn slot(
        &self,
        slab: u64,
        slot: u32,
        device: &str,
    ) -> Option<(usize, Arc<Mapped>)> {
        let sent = self.sent.read().unwrap_or_else(PoisonError::into_inner);
        let slab = sent.get(&slab).filter(|slab| slab.device == device)?;
        Some((slab.slot(slot)?, Arc::clone(slab.mapped.get()?)))
    }

    /// Lets go of all of them: the connection is over. What is left of them is to be
    /// dropped where the driver may take its time.
    pub(in crate::handoff) fn clear(&self) -> Vec<Arc<DeviceSlab>> {
        let mut sent = self.sent.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *sent).into_values().collect()
    }

    /// Lets go of slabs: what is left of them is to be dropped where the driver may take
    /// its time.
    pub(in crate::handoff) fn forget(&self, slabs: &[u64]) -> Vec<Arc<DeviceSlab>> {
        let mut left = Vec::new();
        for id in slabs {
            let slab = self.sent.write().unwrap_or_else(PoisonError::into_inner).remove(id);
            let gone = slab.as_ref().map(|slab| Arc::downgrade(&slab.gone));
            self.leaving().push((*id, gone.unwrap_or_default()));
            left.extend(slab);
        }
        left
    }

    /// Those of them that are unmapped by now.
    pub(in crate::handoff) fn forgotten(&self) -> Vec<u64> {
        let gone = |(_, gone): &mut (u64, Weak<Gone>)| gone.strong_count() == 0;
        self.leaving().extract_if(.., gone).map(|(id, _)| id).collect()
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<(u64, Weak<Gone>)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceSlab {
    /// The UUID of the device whose memory it is.
    pub(in crate::handoff) fn device(&self) -> &str {
        &self.device
    }

    /// Where a slot begins; `None` if it is none of the slab's.
    fn slot(&self, slot: u32) -> Option<usize> {
        if !self.slot_bytes.is_multiple_of(SLOT_UNIT) {
            // Tensors would not begin where their readers count on.
            return None;
        }
        let start = u64::from(slot).checked_mul(self.slot_bytes)?;
        let end = start.checked_add(self.slot_bytes)?;
        usize::try_from(start).ok().filter(|_| end <= self.bytes)
    }

    pub(in crate::handoff) fn is_mapped(&self) -> bool {
        self.mapped.get().is_some()
    }

    /// Its memory, mapped into this process once. Blocks while that is done.
    ///
    /// # Errors
    /// When the driver does not do it. The descriptor is kept, since the daemon does not
    /// send it again: the next lease has it tried again.
    pub(in crate::handoff) fn map(&self, device: &dyn Device) -> Result<Arc<Mapped>, CudaError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapped) = self.mapped.get() {
            return Ok(Arc::clone(mapped));
        }
        // It is there until the memory is.
        let from = file.as_ref().ok_or(CudaError::Ended)?;
        let memory = device.import(from.as_fd(), self.bytes)?;
        *file = None;
        let (bytes, gone) = (self.bytes, Arc::clone(&self.gone));
        let mapped = self.mapped.get_or_init(|| Arc::new(Mapped { memory, bytes, _gone: gone }));
        Ok(Arc::clone(mapped))
    }
}

impl Mapped {
    pub(in crate::handoff) fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    pub(in crate::handoff) fn bytes(&self) -> u64 {
        self.bytes
    }
}
