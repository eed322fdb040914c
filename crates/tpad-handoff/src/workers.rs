//! Every worker that may read slots, as the daemon sees them.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError, RwLock};

use crate::directory::Directory;
use crate::entry::{Entry, Place};
use crate::error::{Error, Kind};
use crate::hazards::{bytes, span};
use crate::header::{HEADER_WORDS, Header};
use crate::memory::{Memory, Writers};
use crate::protocol;
use crate::sync::AtomicU64;

/// How many slots a worker can hold at once, unless more are wanted: several times
/// the experts that all layers of a large model use for one token. They take
/// 32 KiB, and a look at all of them some microseconds.
pub const DEFAULT_CELLS: u32 = 4096;

/// The hazards of all workers.
#[derive(Debug, Default)]
pub struct Workers {
    pages: RwLock<Vec<Arc<Page>>>,
}

impl Workers {
    /// Nobody.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes the hazards of a connection that is to be given descriptors. They are
    /// looked at from here on, before the worker can have them: so nothing that it
    /// holds is missed.
    pub fn admit(self: &Arc<Self>, cells: u32, epoch: u64) -> Result<Worker, Error> {
        let memory = Memory::create(Kind::Hazards, bytes(cells), Writers::Receiver)?;
        let header = memory.words(0..HEADER_WORDS).unwrap_or_default();
        Header { count: cells, epoch }.write(Kind::Hazards, header);
        let page = Arc::new(Page { memory, cells });
        self.pages.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&page));
        Ok(Worker { workers: Arc::clone(self), page })
    }

    /// Has the hazards of a connection looked at here, too: for memory of another kind, of
    /// which its worker has no directory yet.
    pub fn admit_too(self: &Arc<Self>, worker: &Worker) -> Worker {
        let page = Arc::clone(&worker.page);
        self.pages.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&page));
        Worker { workers: Arc::clone(self), page }
    }

    /// Which slots are being read, of those that every directory had unpublished
    /// when this was called; takes some microseconds for each worker. A slot that
    /// is not named, and whose entries are out of all directories, is free.
    pub fn named(&self) -> Named {
        let mut places = Vec::new();
        protocol::before_scan();
        // Whoever is not in the list now is admitted after what was unpublished,
        // and finds it gone.
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        for page in pages.iter() {
            places.extend(protocol::scan(page.cells()));
        }
        drop(pages);
        places.sort_unstable();
        places.dedup();
        Named { places }
    }

    /// Whether a worker reads there, of a place that every directory had unpublished when
    /// this was called: as [`named`](Self::named), for one.
    pub fn read(&self, place: Place) -> bool {
        protocol::before_scan();
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        pages.iter().any(|page| protocol::scan(page.cells()).any(|named| named == place))
    }

    /// Takes one entry out of a directory and says whether its slot may be used
    /// again. Many at once are better unpublished first, and compared with one
    /// look at what is [`named`](Self::named); so are slots with several entries.
    pub fn retire(&self, directory: &Directory, ordinal: u32, entry: Entry) -> Retired {
        if !directory.unpublish(ordinal, entry) {
            Retired::Absent
        } else if self.read(entry.place()) {
            Retired::Held
        } else {
            Retired::Free
        }
    }
}

/// What became of an entry that was to be retired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a slot that is held must not be used again"]
pub enum Retired {
    /// It is out of the directory, and nobody reads there.
    Free,
    /// It is out of the directory, and somebody reads there still: to be looked at
    /// again by [`Workers::named`].
    Held,
    /// It was not in the directory: whoever took it out has the slot.
    Absent,
}

/// The places that workers named, at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Named {
    /// In order, each once.
    places: Vec<Place>,
}

impl Named {
    /// Whether a worker reads there.
    pub fn contains(&self, place: Place) -> bool {
        self.places.binary_search(&place).is_ok()
    }

    /// All of them, in order, each once. Workers write them: they may be of slots
    /// and slabs that do not exist.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

/// One connection's worker. Dropped, its hazards count no more: that is for when
/// the process is gone or has said that it reads nothing, since whatever it still
/// reads may change under it.
#[derive(Debug)]
pub struct Worker {
    workers: Arc<Workers>,
    page: Arc<Page>,
}

impl Worker {
    /// To be sent to the worker, which makes [`Hazards`](crate::Hazards) of it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.page.memory.descriptor()
    }

    /// What this worker reads now, roughly: cells change as they are looked at.
    pub fn named(&self) -> Named {
        let mut places: Vec<_> = protocol::scan(self.page.cells()).collect();
        places.sort_unstable();
        places.dedup();
        Named { places }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut pages = self.workers.pages.write().unwrap_or_else(PoisonError::into_inner);
        pages.retain(|page| !Arc::ptr_eq(page, &self.page));
    }
}

/// The memory that a worker writes.
#[derive(Debug)]
struct Page {
    memory: Memory,
    /// As it was made: what the header says by now is the worker's word.
    cells: u32,
}

impl Page {
    fn cells(&self) -> &[AtomicU64] {
        self.memory.words(span(self.cells)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
