//! Who reads slots without asking: workers of this machine, by directories.
//!
//! A slot that a directory has named may be read by a worker of which this process
//! hears nothing. When its last owner here is gone, its entries are taken out, and it
//! is free once no worker names it in its cells any more (`docs/handoff.md`).

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use tpad_handoff::{DEFAULT_CELLS, Directory, Entry, Error, Named, Place, Worker, Workers};

use super::{Arena, BlockBytes};

/// Workers, what directories say of slots, and slots that wait for workers.
#[derive(Debug, Default)]
pub(super) struct Readers {
    workers: Arc<Workers>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What directories say of each slot.
    published: HashMap<Place, Vec<Published>>,
    /// Slots that are in no directory, and belong to nobody but the worker that still
    /// names them, with their bytes.
    waiting: BTreeMap<Place, u64>,
    /// Of the entry that was made last.
    version: u16,
    /// Workers hold more than they may: nothing is published.
    closed: bool,
}

#[derive(Debug)]
struct Published {
    directory: Arc<Directory>,
    ordinal: u32,
    entry: Entry,
}

/// A directory over an arena's slots: workers that have it read its blocks without a
/// message. Dropped, it is empty.
pub struct SlotDirectory {
    directory: Arc<Directory>,
    arena: Arc<Arena>,
    /// Nothing is published in it any more.
    closed: Mutex<bool>,
}

/// The cells in which one worker names the slots that it reads. Dropped, they count no
/// more, and what they named is free: only for when the worker reads nothing any more.
#[derive(Debug)]
pub struct SlotReader {
    /// `None` only while this is dropped.
    worker: Option<Worker>,
    arena: Arc<Arena>,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic may leave undone keeps slots from use and frees none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot that belongs to nobody here out of all directories; whether it is
    /// free. If not, [`Readers::freed`] tells when it is.
    pub(super) fn retire(&self, slab: u64, index: u32, slot_bytes: u64) -> bool {
        // It was published, so it has a place.
        let Some(place) = place(slab, index) else { return true };
        let mut state = self.lock();
        for Published { directory, ordinal, entry } in
            state.published.remove(&place).unwrap_or_default()
        {
            directory.unpublish(ordinal, entry);
        }
        let read = self.workers.read(place);
        if read {
            state.waiting.insert(place, slot_bytes);
        }
        !read
    }

    /// Slots that waited for workers and wait no more.
    pub(super) fn freed(&self) -> Vec<(u64, u32)> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return Vec::new();
        }
        let named = self.workers.named();
        let freed = state.waiting.extract_if(.., |place, _| !named.contains(*place));
        freed.map(|(place, _)| (u64::from(place.slab()), place.slot())).collect()
    }

    /// Bytes of slots that only workers still read.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.lock().waiting.values().sum()
    }

    /// What workers read now.
    pub(super) fn named(&self) -> Named {
        self.workers.named()
    }

    /// Ends or begins publishing. What is published ends with it.
    fn set_closed(&self, closed: bool) {
        let mut state = self.lock();
        state.closed = closed;
        if closed {
            // Their slots have owners here; each is looked at when the last is gone.
            for Published { directory, ordinal, entry } in
                state.published.drain().flat_map(|(_, published)| published)
            {
                directory.unpublish(ordinal, entry);
            }
        }
    }
}

impl State {
    fn take_out(&mut self, directory: &Arc<Directory>, place: Place, ordinal: u32) {
        if let Some(published) = self.published.get_mut(&place) {
            published
                .retain(|it| !(it.ordinal == ordinal && Arc::ptr_eq(&it.directory, directory)));
            if published.is_empty() {
                self.published.remove(&place);
            }
        }
    }
}

impl SlotDirectory {
    /// An empty directory for `count` blocks. `epoch` is told to workers.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor.
    pub fn create(arena: &Arc<Arena>, count: u32, epoch: u64) -> Result<Self, Error> {
        let directory = Arc::new(Directory::create(count, epoch)?);
        Ok(Self { directory, arena: Arc::clone(arena), closed: Mutex::new(false) })
    }

    /// To be sent to workers.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.directory.descriptor().as_fd().try_clone_to_owned()
    }

    /// Lets workers read a block where it lies, until its slot is needed; whether they
    /// can. `bytes` are of the directory's arena.
    pub fn publish(&self, ordinal: u32, bytes: &BlockBytes) -> bool {
        let Some(place) = bytes.slot_place().filter(|_| bytes.is_of(&self.arena)) else {
            return false;
        };
        let closed = self.closed();
        let mut state = self.arena.readers.lock();
        if *closed || state.closed {
            return false;
        }
        if let Some(published) = state.published.get(&place)
            && published.iter().any(|it| it.is(&self.directory, ordinal))
        {
            return true;
        }
        state.version = state.version.wrapping_add(1);
        let entry = Entry::new(state.version, place);
        // Before a worker can see it: whoever frees the slot asks then.
        bytes.set_published();
        let Ok(replaced) = self.directory.publish(ordinal, entry) else { return false };
        if let Some(replaced) = replaced {
            state.take_out(&self.directory, replaced.place(), ordinal);
        }
        let directory = Arc::clone(&self.directory);
        state.published.entry(place).or_default().push(Published { directory, ordinal, entry });
        true
    }

    /// Whether workers find a block now.
    #[must_use]
    pub fn has(&self, ordinal: u32) -> bool {
        self.directory.get(ordinal).is_some()
    }

    /// Whether everything was taken out for good.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.closed()
    }

    /// Takes everything out, for good. What workers read already stays as it is as long
    /// as they do.
    pub fn close(&self) {
        let mut closed = self.closed();
        if std::mem::replace(&mut *closed, true) {
            return;
        }
        let mut state = self.arena.readers.lock();
        self.directory.clear(|ordinal, entry| {
            state.take_out(&self.directory, entry.place(), ordinal);
        });
    }

    fn closed(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Published {
    fn is(&self, directory: &Arc<Directory>, ordinal: u32) -> bool {
        self.ordinal == ordinal && Arc::ptr_eq(&self.directory, directory)
    }
}

impl Drop for SlotDirectory {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for SlotDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotDirectory")
            .field("blocks", &self.directory.count())
            .finish_non_exhaustive()
    }
}

impl SlotReader {
    /// Makes the cells of a worker that is to be sent directories.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor.
    pub fn admit(arena: &Arc<Arena>, epoch: u64) -> Result<Self, Error> {
        let worker = arena.readers.workers.admit(DEFAULT_CELLS, epoch)?;
        Ok(Self { worker: Some(worker), arena: Arc::clone(arena) })
    }

    /// To be sent to the worker, before any directory.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let worker = self.worker.as_ref().ok_or(io::ErrorKind::NotFound)?;
        worker.descriptor().try_clone_to_owned()
    }

    /// The slots that it names now, of those that exist, each once.
    #[must_use]
    pub fn places(&self) -> Vec<super::Place> {
        let named = self.worker.as_ref().map(Worker::named);
        let state = self.arena.lock();
        let places = named.iter().flat_map(Named::places);
        places.filter_map(|place| state.place(u64::from(place.slab()), place.slot())).collect()
    }
}

impl Drop for SlotReader {
    fn drop(&mut self) {
        self.worker = None;
        self.arena.free_what_nobody_reads();
    }
}

impl Arena {
    /// Frees slots that nobody but workers had, and none has any more. To be called now
    /// and then: workers do not tell.
    pub fn free_what_nobody_reads(&self) {
        for (slab, index) in self.readers.freed() {
            self.free(slab, index);
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

    /// Whether directories may say where blocks lie. While they may not, they are empty,
    /// and workers ask for each block.
    pub fn open_directories(&self, open: bool) {
        self.readers.set_closed(!open);
    }
}

/// A slot as directories name it; `None` beyond what they can.
pub(super) fn place(slab: u64, index: u32) -> Option<Place> {
    Place::new(u32::try_from(slab).ok()?, index)
}

#[cfg(test)]
mod tests;
