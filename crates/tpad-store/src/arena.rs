//! Host memory for blocks: slabs of sealed shared memory, cut into slots.
//!
//! A slab is mapped when a slot is needed and unmapped when another slot size
//! needs its room; all slabs together never exceed the capacity, and every
//! mapped byte is backed by memory, so the capacity is what the process uses.

mod mapping;
mod observer;
mod part;
mod readers;
mod slot;
mod state;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

pub use observer::SlabObserver;
pub(crate) use part::SlotPart;
pub use readers::{DEVICE_SLABS, SlotReader};
pub use slot::{BlockBytes, Place, SharedSlab, SlotMut};
pub(crate) use state::SlabView;
pub use state::slot_bytes;

use self::mapping::Mapping;
use self::slot::Slab;
use self::state::{Plan, State};
use crate::Readers;

/// Host memory for blocks.
pub struct Arena {
    capacity: u64,
    state: Mutex<State>,
    freed: Notify,
    /// Whether a task waits for a slot.
    awaited: AtomicBool,
    /// Counts how often slabs were found to be in the way that other processes have.
    wanted: watch::Sender<u64>,
    /// Who reads slots by directories.
    readers: Arc<Readers>,
    observer: OnceLock<Arc<dyn SlabObserver>>,
}

/// What an arena's memory is used for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ArenaUsage {
    /// The bound on `mapped`.
    pub capacity: u64,
    /// All slabs.
    pub mapped: u64,
    /// Slots in use: kept, being filled, or still read.
    pub held: u64,
}

/// What became of a wish for a slot.
#[derive(Debug)]
pub(crate) enum Grant {
    /// Here it is.
    Slot(SlotMut),
    /// A slab has to be mapped first, which blocks.
    Map(Reserved),
    /// There is neither a free slot nor room.
    Short,
}

/// Room for a slab that is not mapped yet. Dropped, the room is free again.
#[derive(Debug)]
pub(crate) struct Reserved {
    arena: Arc<Arena>,
    slot_bytes: u64,
    slots: u32,
    retired: Vec<Arc<Slab>>,
}

impl Arena {
    /// An arena that will use at most `capacity` bytes, and none yet.
    #[must_use]
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            state: Mutex::default(),
            freed: Notify::new(),
            awaited: AtomicBool::new(false),
            wanted: watch::Sender::new(0),
            readers: Arc::default(),
            observer: OnceLock::new(),
        })
    }

    /// Tells `observer` of every slab that is mapped from now on. There can be one;
    /// `false` if there is another. To hear of all, it is there before the first slot.
    pub fn observe(&self, observer: Arc<dyn SlabObserver>) -> bool {
        self.observer.set(observer).is_ok()
    }

    /// A slot for an image of `bytes`, if there is one or room for one. Blocks
    /// while memory is mapped.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn slot(self: &Arc<Self>, bytes: usize) -> io::Result<Option<SlotMut>> {
        loop {
            match self.grant(bytes) {
                Grant::Slot(slot) => return Ok(Some(slot)),
                Grant::Map(reserved) => reserved.map()?,
                Grant::Short => return Ok(None),
            }
        }
    }

    /// What the memory is used for.
    #[must_use]
    pub fn usage(&self) -> ArenaUsage {
        let state = self.lock();
        ArenaUsage { capacity: self.capacity, mapped: state.mapped(), held: state.held() }
    }

    /// The size of the slot for an image of `bytes`; `None` when it exceeds the
    /// capacity.
    pub(crate) fn slot_bytes(&self, bytes: u64) -> Option<u64> {
        slot_bytes(bytes).filter(|slot| *slot <= self.capacity)
    }

    /// A slot for an image of `bytes`, if one is free.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<SlotMut> {
        let slot_bytes = self.slot_bytes(bytes as u64)?;
        let (slab, index) = self.lock().take(slot_bytes)?;
        Some(SlotMut::new(Arc::clone(self), slab, index, bytes))
    }

    /// A slot for an image of `bytes`, or what stands in the way.
    pub(crate) fn grant(self: &Arc<Self>, bytes: usize) -> Grant {
        let Some(slot_bytes) = self.slot_bytes(bytes as u64) else {
            return Grant::Short;
        };
        // Bound before the match: the lock is not held while a slot is made.
        let (plan, wants) = {
            let mut state = self.lock();
            let before = state.wanted().len();
            let plan = state.plan(slot_bytes, self.capacity);
            (plan, state.wanted().len() > before)
        };
        if wants {
            self.wanted.send_modify(|count| *count += 1);
        }
        match plan {
            Plan::Take(slab, index) => {
                Grant::Slot(SlotMut::new(Arc::clone(self), slab, index, bytes))
            }
            Plan::Map { slots, retired } => {
                Grant::Map(Reserved { arena: Arc::clone(self), slot_bytes, slots, retired })
            }
            Plan::Short => Grant::Short,
        }
    }

    /// Waits for a nudge. One is stored, so what comes free between a look and the
    /// wait is not missed. One task waits at a time.
    pub(crate) async fn slot_freed(&self) {
        self.freed.notified().await;
    }

    /// Says whether a task waits, before it looks for what is free: whatever
    /// comes free after the look nudges it.
    pub(crate) fn set_awaited(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Relaxed);
        // Pairs with the fence of `nudge_if_awaited`: of a look and a drop, at
        // least one sees the other.
        fence(Ordering::SeqCst);
    }

    /// Has the task that waits for a slot look again.
    pub(crate) fn nudge_if_awaited(&self) {
        fence(Ordering::SeqCst);
        if self.awaited.load(Ordering::Relaxed) {
            self.freed.notify_one();
        }
    }

    /// Tells when a slab that another process has mapped is wanted for something else:
    /// see [`SharedSlab::wanted_since`].
    #[must_use]
    pub fn watch_wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    fn wanted_since(&self, slab: u64) -> Option<Instant> {
        self.lock().wanted().get(&slab).copied()
    }

    fn share(&self, slab: u64) {
        self.lock().share(slab);
    }

    fn unshare(&self, slab: u64) {
        self.lock().unshare(slab);
        self.nudge_if_awaited();
    }

    /// The slabs, for choosing which to empty.
    pub(crate) fn slabs(&self) -> Vec<SlabView> {
        self.lock().views()
    }

    /// Keeps slots of these slabs from being given out, or ends that.
    pub(crate) fn condemn(&self, slabs: &[u64], condemned: bool) {
        self.lock().condemn(slabs, condemned);
    }

    fn free(&self, slab: u64, index: u32) {
        self.lock().free(slab, index);
        self.nudge_if_awaited();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole: there is nothing to repair.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    /// Unmaps what was retired and maps the slab. Blocks.
    pub(crate) fn map(mut self) -> io::Result<()> {
        self.unmap_retired();
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let slot_bytes = usize::try_from(self.slot_bytes).map_err(too_large)?;
        let bytes = usize::try_from(self.bytes()).map_err(too_large)?;
        let mut mapping = Mapping::new(bytes)?;
        if let Some(observer) = self.arena.observer.get() {
            mapping.show(&**observer);
        }
        let mut state = self.arena.lock();
        let slab = Arc::new(Slab { id: state.next_id(), slot_bytes, mapping });
        state.add(slab, self.slots);
        drop(state);
        // Nothing is reserved any more: the bytes belong to the slab.
        self.slots = 0;
        self.arena.nudge_if_awaited();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        u64::from(self.slots) * self.slot_bytes
    }

    fn unmap_retired(&mut self) {
        for slab in self.retired.drain(..) {
            let bytes = slab.mapping.bytes() as u64;
            // A retired slab has no slots in use: this is the last reference.
            drop(slab);
            self.arena.lock().retired(bytes);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.unmap_retired();
        let bytes = self.bytes();
        if bytes > 0 {
            self.arena.lock().abandoned(bytes);
            self.arena.nudge_if_awaited();
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
