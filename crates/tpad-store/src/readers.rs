//! Who reads slots without asking: workers of this machine, by directories.
//!
//! A slot that a directory has named may be read by a worker of which this process
//! hears nothing. When its last owner here is gone, its entries are taken out, and it
//! is free once no worker names it in its cells any more (`docs/handoff.md`).

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use tpad_handoff::{Directory, Entry, Error, Named, Place, Workers};

/// What directories say of one memory's slots, and slots that wait for workers.
#[derive(Debug, Default)]
pub struct Readers {
    workers: Arc<Workers>,
    state: Mutex<State>,
    /// Whether anything was published yet: before, nobody reads.
    used: AtomicBool,
}

/// A block in a slot that workers may read by directories.
pub trait InSlot {
    /// Who decides when its slot is free.
    fn readers(&self) -> &Arc<Readers>;

    /// Its slot as directories name it; `None` beyond what they can.
    fn named_place(&self) -> Option<Place>;

    /// A directory is about to name its slot: from here on whoever frees it has to ask
    /// [`Readers::retire`] first.
    fn set_published(&self);
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

/// A directory over the slots of one memory: workers that have it read its blocks
/// without a message. Dropped, it is empty.
pub struct SlotDirectory {
    directory: Arc<Directory>,
    readers: Arc<Readers>,
    /// Nothing is published in it any more.
    closed: Mutex<bool>,
}

impl Readers {
    /// Of slots that these workers may read, and other memory's, too: a worker names all
    /// that it reads in the same cells. So no two memories have slabs of one number.
    #[must_use]
    pub fn new(workers: &Arc<Workers>) -> Arc<Self> {
        Arc::new(Self { workers: Arc::clone(workers), ..Self::default() })
    }

    /// Who may read.
    #[must_use]
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic may leave undone keeps slots from use and frees none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot that belongs to nobody here out of all directories; whether it is
    /// free. If not, [`Readers::freed`] tells when it is.
    pub fn retire(&self, place: Place, slot_bytes: u64) -> bool {
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
    pub fn freed(&self) -> Vec<Place> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return Vec::new();
        }
        let named = self.workers.named();
        let freed = state.waiting.extract_if(.., |place, _| !named.contains(*place));
        freed.map(|(place, _)| place).collect()
    }

    /// Bytes of slots that only workers still read.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.lock().waiting.values().sum()
    }

    /// What workers read now.
    #[must_use]
    pub fn named(&self) -> Named {
        if self.used.load(Ordering::Acquire) { self.workers.named() } else { Named::default() }
    }

    /// Whether workers read anything now.
    #[must_use]
    pub fn is_read(&self) -> bool {
        !self.named().places().is_empty()
    }

    /// Ends or begins publishing. What is published ends with it.
    pub fn set_closed(&self, closed: bool) {
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
    pub fn create(readers: &Arc<Readers>, count: u32, epoch: u64) -> Result<Self, Error> {
        let directory = Arc::new(Directory::create(count, epoch)?);
        Ok(Self { directory, readers: Arc::clone(readers), closed: Mutex::new(false) })
    }

    /// To be sent to workers.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.directory.descriptor().as_fd().try_clone_to_owned()
    }

    /// Lets workers read a block where it lies, until its slot is needed; whether they
    /// can. It is of the directory's memory.
    pub fn publish(&self, ordinal: u32, block: &impl InSlot) -> bool {
        let same = Arc::ptr_eq(block.readers(), &self.readers);
        let Some(place) = block.named_place().filter(|_| same) else { return false };
        let closed = self.closed();
        let mut state = self.readers.lock();
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
        self.readers.used.store(true, Ordering::Release);
        // Before a worker can see it: whoever frees the slot asks then.
        block.set_published();
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
        let mut state = self.readers.lock();
        state.published.retain(|_, published| {
            published.retain(|it| {
                let ours = Arc::ptr_eq(&it.directory, &self.directory);
                if ours {
                    self.directory.unpublish(it.ordinal, it.entry);
                }
                !ours
            });
            !published.is_empty()
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
