//! Workers that read an arena's slots by directories.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tpad_handoff::{DEFAULT_CELLS, Error, Named, Place, Worker, Workers};

use super::Arena;
use crate::Readers;

/// Slabs of host memory have numbers below this: those of devices are beyond, and
/// workers name both in the same cells.
pub const DEVICE_SLABS: u32 = 1 << 23;

/// The cells in which one worker names the slots that it reads. Dropped, they count no
/// more, and what they named is free: only for when the worker reads nothing any more.
#[derive(Debug)]
pub struct SlotReader {
    /// Of this arena, and then of other memory. None only while this is dropped.
    workers: Vec<Worker>,
    arena: Arc<Arena>,
    /// Whether the cells are looked at for other memory.
    elsewhere: bool,
}

impl SlotReader {
    /// Makes the cells of a worker that is to be sent directories of the arena.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor.
    pub fn admit(arena: &Arc<Arena>, epoch: u64) -> Result<Self, Error> {
        let worker = arena.readers.workers().admit(DEFAULT_CELLS, epoch)?;
        Ok(Self { workers: vec![worker], arena: Arc::clone(arena), elsewhere: false })
    }

    /// Has the cells looked at for other memory, too: before the worker is sent the first
    /// directory of that.
    pub fn read_too(&mut self, others: &Arc<Workers>) {
        if let Some(first) = self.workers.first()
            && !std::mem::replace(&mut self.elsewhere, true)
        {
            self.workers.push(others.admit_too(first));
        }
    }

    /// To be sent to the worker, before any directory.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let worker = self.workers.first().ok_or(io::ErrorKind::NotFound)?;
        worker.descriptor().try_clone_to_owned()
    }

    /// What it names now, roughly, whatever the memory.
    #[must_use]
    pub fn named(&self) -> Option<Named> {
        self.workers.first().map(Worker::named)
    }

    /// The slots of the arena that it names now, of those that exist, each once.
    #[must_use]
    pub fn places(&self) -> Vec<super::Place> {
        let named = self.named();
        let state = self.arena.lock();
        let places = named.iter().flat_map(Named::places);
        let places = places.filter(|place| place.slab() < DEVICE_SLABS);
        places.filter_map(|place| state.place(u64::from(place.slab()), place.slot())).collect()
    }
}

impl Drop for SlotReader {
    fn drop(&mut self) {
        self.workers.clear();
        self.arena.free_what_nobody_reads();
    }
}

impl Arena {
    /// Frees slots that nobody but workers had, and none has any more. To be called now
    /// and then: workers do not tell.
    pub fn free_what_nobody_reads(&self) {
        for place in self.readers.freed() {
            self.free(u64::from(place.slab()), place.slot());
        }
    }

    /// Bytes of slots that nobody has but workers that read them.
    #[must_use]
    pub fn read_on_bytes(&self) -> u64 {
        self.readers.waiting_bytes()
    }

    /// What workers read now.
    pub(crate) fn named(&self) -> Named {
        self.readers.named()
    }

    /// Who reads its slots by directories.
    #[must_use]
    pub fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Whether directories may say where blocks lie. While they may not, they are empty,
    /// and workers ask for each block.
    pub fn open_directories(&self, open: bool) {
        self.readers.set_closed(!open);
    }
}

/// A slot as directories name it; `None` beyond what they can.
pub(super) fn place(slab: u64, index: u32) -> Option<Place> {
    Place::new(u32::try_from(slab).ok().filter(|slab| *slab < DEVICE_SLABS)?, index)
}

#[cfg(test)]
mod tests;
