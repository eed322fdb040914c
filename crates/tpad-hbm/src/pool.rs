//! One device's memory: slabs cut into slots of one size.
//!
//! A slab is made when a slot is needed and given back when another slot size needs its
//! room. All slabs together never exceed the capacity; they may stay far below it while
//! others have the device's memory, and grow when it comes free.

mod state;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tpad_cuda::{CudaError, CudaErrorKind, Device, DeviceUuid, Slab};
use tpad_handoff::{Place, Workers};
use tpad_store::{DEVICE_SLABS, Readers};

use self::state::{Plan, State};
use crate::DeviceId;

pub(crate) use self::state::SlabView;

/// One device's memory.
pub(crate) struct Pool {
    device: Arc<dyn Device>,
    capacity: u64,
    common: Arc<Common>,
    state: Mutex<State>,
    /// Who reads slots by directories.
    readers: Arc<Readers>,
    freed: Notify,
}

/// What the pools of a level have in common.
#[derive(Debug)]
pub(crate) struct Common {
    /// The last slab's number.
    last_slab: AtomicU64,
    /// Counts how often slabs were found to be in the way that workers have mapped.
    wanted: watch::Sender<u64>,
}

/// Device memory cut into slots of one size.
#[derive(Debug)]
pub(crate) struct PoolSlab {
    pub(crate) id: u64,
    pub(crate) slot_bytes: u64,
    pub(crate) memory: Arc<dyn Slab>,
    /// For other processes: the driver takes most of a millisecond to make one.
    pub(crate) descriptor: OwnedFd,
}

/// A slot that is in use. Its drop makes it free.
///
/// Invariant: of all live `Slot`s, no two have the same slab and index. The pool takes
/// an index from the slab's free list to make one, and only the drop puts it back.
pub(crate) struct Slot {
    // In this order: who gives the slab up when its last slot is free then has the last
    // reference.
    slab: Arc<PoolSlab>,
    taken: Taken,
    pub(crate) image_bytes: u64,
}

/// An index that was taken from a slab's free list. Its drop puts it back, or leaves that
/// to the pool if workers still read there.
struct Taken {
    pool: Arc<Pool>,
    slab: u64,
    slot_bytes: u64,
    index: u32,
    /// Whether a directory has named it: workers may read it without a word.
    published: AtomicBool,
}

/// What a pool's memory is used for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolUsage {
    pub(crate) capacity: u64,
    /// All slabs.
    pub(crate) mapped: u64,
    /// Slots in use: kept, being filled, or still held.
    pub(crate) held: u64,
}

/// What became of a wish for a slot.
#[derive(Debug)]
pub(crate) enum Grant {
    /// Here it is.
    Slot(Slot),
    /// A slab has to be made first, which blocks.
    Make(Reserved),
    /// There is neither a free slot nor room.
    Short,
}

/// Room for a slab that is not made yet. Dropped, the room is free again.
#[derive(Debug)]
pub(crate) struct Reserved {
    pool: Arc<Pool>,
    slot_bytes: u64,
    bytes: u64,
    retired: Vec<Arc<PoolSlab>>,
}

impl Common {
    pub(crate) fn new() -> Arc<Self> {
        // Numbers of host memory's are below: workers name both in the same cells.
        let last_slab = AtomicU64::new(u64::from(DEVICE_SLABS));
        Arc::new(Self { last_slab, wanted: watch::Sender::new(0) })
    }

    pub(crate) fn watch_wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }
}

impl Pool {
    /// Memory of `device` of at most `capacity` bytes, and none yet.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        capacity: u64,
        common: &Arc<Common>,
        workers: &Arc<Workers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            common: Arc::clone(common),
            state: Mutex::new(State::new(capacity, device.facts().granularity_bytes)),
            readers: Readers::new(workers),
            freed: Notify::new(),
            device,
        })
    }

    pub(crate) fn uuid(&self) -> DeviceUuid {
        self.device.facts().uuid
    }

    pub(crate) fn device_id(&self) -> DeviceId {
        DeviceId(self.device.facts().index)
    }

    /// A slot of this size, or what stands in the way.
    pub(crate) fn grant(self: &Arc<Self>, slot_bytes: u64, image_bytes: u64) -> Grant {
        let (plan, wants) = {
            let mut state = self.lock();
            let before = state.wanted().len();
            let plan = state.plan(slot_bytes, Instant::now());
            (plan, state.wanted().len() > before)
        };
        if wants {
            self.common.wanted.send_modify(|count| *count += 1);
        }
        match plan {
            Plan::Take(slab, index) => {
                let pool = Arc::clone(self);
                let (id, published) = (slab.id, AtomicBool::new(false));
                let taken = Taken { pool, slab: id, slot_bytes, index, published };
                Grant::Slot(Slot { slab, taken, image_bytes })
            }
            Plan::Make { bytes, retired } => {
                Grant::Make(Reserved { pool: Arc::clone(self), slot_bytes, bytes, retired })
            }
            Plan::Short => Grant::Short,
        }
    }

    /// Becomes ready when a slot or a slab comes free after this call, once it was
    /// enabled.
    pub(crate) fn slot_freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Who reads its slots by directories.
    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Frees slots that nobody but workers had, and none has any more; and has who waits
    /// look again, since what workers let go of can be given up.
    pub(crate) fn free_what_nobody_reads(&self) {
        for place in self.readers.freed() {
            self.lock().free(u64::from(place.slab()), place.slot());
        }
        self.nudge();
    }

    /// What a slot of its slabs takes; `None` if it has no such slot.
    pub(crate) fn slot_bytes(&self, place: Place) -> Option<u64> {
        self.lock().slot_bytes(u64::from(place.slab()), place.slot())
    }

    /// When the device is asked for memory again, after it had none.
    pub(crate) fn asks_again(&self) -> Option<Instant> {
        self.lock().asks_again()
    }

    pub(crate) fn usage(&self) -> PoolUsage {
        let state = self.lock();
        PoolUsage { capacity: self.capacity, mapped: state.mapped(), held: state.held() }
    }

    /// The slabs, for choosing which to empty.
    pub(crate) fn slabs(&self) -> Vec<SlabView> {
        self.lock().views()
    }

    pub(crate) fn wanted_since(&self, slab: u64) -> Option<Instant> {
        self.lock().wanted().get(&slab).copied()
    }

    pub(crate) fn share(&self, slab: u64) {
        self.lock().share(slab);
    }

    pub(crate) fn unshare(&self, slab: u64) {
        self.lock().unshare(slab);
        self.nudge();
    }

    /// Something may be had now that could not before.
    pub(crate) fn nudge(&self) {
        self.freed.notify_waiters();
    }

    fn free(&self, slab: u64, index: u32) {
        self.lock().free(slab, index);
        self.nudge();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole: there is nothing to repair.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    /// Gives back what was retired and makes the slab: as large as reserved if the
    /// device has so much, and smaller otherwise. Blocks.
    ///
    /// # Errors
    /// When the driver fails, or has not enough memory for one slot: then it is left
    /// alone for a while, longer each time.
    pub(crate) fn make(mut self) -> Result<(), CudaError> {
        self.give_back_retired();
        let memory = loop {
            match self.pool.device.create(self.bytes) {
                Ok(memory) => break memory,
                Err(error) if error.kind() == CudaErrorKind::OutOfMemory => {
                    let mut state = self.pool.lock();
                    match state.smaller(self.slot_bytes, self.bytes) {
                        Some(smaller) => {
                            state.abandoned(self.bytes - smaller);
                            self.bytes = smaller;
                        }
                        None => {
                            state.had_none(Instant::now());
                            return Err(error);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        };
        debug_assert_eq!(memory.bytes(), self.bytes, "it is a multiple of the granularity");
        let descriptor = memory.descriptor()?;
        let id = self.pool.common.last_slab.fetch_add(1, Ordering::Relaxed) + 1;
        let slot_bytes = self.slot_bytes;
        self.pool.lock().add(Arc::new(PoolSlab { id, slot_bytes, memory, descriptor }));
        // Nothing is reserved any more: the bytes belong to the slab.
        self.bytes = 0;
        self.pool.nudge();
        Ok(())
    }

    fn give_back_retired(&mut self) {
        for slab in self.retired.drain(..) {
            let bytes = slab.memory.bytes();
            // A retired slab has no slots in use: this is the last reference.
            drop(slab);
            self.pool.lock().retired(bytes);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back_retired();
        if self.bytes > 0 {
            self.pool.lock().abandoned(self.bytes);
            self.pool.nudge();
        }
    }
}

impl Slot {
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.taken.pool
    }

    pub(crate) fn slab(&self) -> &Arc<PoolSlab> {
        &self.slab
    }

    /// As directories name it; `None` beyond what they can.
    pub(crate) fn named_place(&self) -> Option<Place> {
        Place::new(u32::try_from(self.taken.slab).ok()?, self.taken.index)
    }

    /// A directory is about to name it.
    pub(crate) fn set_published(&self) {
        self.taken.published.store(true, Ordering::Relaxed);
    }

    /// Whether a directory has named it once.
    pub(crate) fn was_published(&self) -> bool {
        self.taken.published.load(Ordering::Relaxed)
    }

    /// Where in its slab it begins.
    pub(crate) fn offset(&self) -> u64 {
        // In the slab, so it does not overflow.
        u64::from(self.taken.index) * self.slab.slot_bytes
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let published = *self.published.get_mut();
        let slab = u32::try_from(self.slab).ok().filter(|_| published);
        // What was published has a place.
        let named = slab.and_then(|slab| Place::new(slab, self.index));
        if named.is_none_or(|place| self.pool.readers.retire(place, self.slot_bytes)) {
            self.pool.free(self.slab, self.index);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slab, index) = (self.slab.id, self.taken.index);
        f.debug_struct("Slot").field("slab", &slab).field("index", &index).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
