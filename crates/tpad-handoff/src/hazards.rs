//! What a worker reads, told to the daemon.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::directory::DirectoryView;
use crate::entry::Entry;
use crate::error::{Error, Kind};
use crate::header::{HEADER_BYTES, HEADER_WORDS, Header};
use crate::memory::Memory;
use crate::protocol::{self, NotHeld};

/// How far apart threads begin to look for free cells: eight lines of a cache, so
/// that threads that hold a few blocks each do not write each other's lines.
const CELLS_BETWEEN_THREADS: usize = 64;

/// How many threads have asked for a cell.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where this thread looks for a free cell first. It goes on behind each that
    /// it takes and back to each that it gives up, so that one look mostly finds
    /// a free cell, and one whose line is at hand.
    static NEXT: Cell<usize> = Cell::new(
        THREADS.fetch_add(1, Ordering::Relaxed).wrapping_mul(CELLS_BETWEEN_THREADS),
    );
}

/// The cells of one connection, on the worker's side: each names a slot that this
/// worker reads, or none.
#[derive(Debug)]
pub struct Hazards {
    memory: Memory,
    header: Header,
}

impl Hazards {
    /// Maps the memory that the daemon has made for this connection.
    pub fn receive(file: OwnedFd) -> Result<Self, Error> {
        let kind = Kind::Hazards;
        let memory = Memory::receive(kind, file)?;
        let header = memory.words(0..HEADER_WORDS).unwrap_or_default();
        let load = |at: usize| Some(header.get(at)?.load(Ordering::Relaxed));
        let header = Header::read(kind, load)?;
        let (least, found) = (bytes(header.count), memory.bytes() as u64);
        if found < least {
            return Err(Error::Size { kind, bytes: found, least });
        }
        Ok(Self { memory, header })
    }

    /// How many slots can be held at once.
    pub fn cells(&self) -> u32 {
        self.header.count
    }

    /// Which daemon made it: one that was started anew has another number.
    pub fn epoch(&self) -> u64 {
        self.header.epoch
    }

    /// Holds a block where it lies: as long as the result lives, and the
    /// connection that these hazards belong to, the daemon leaves its slot as it
    /// is. Any number of threads may hold at once, the same block too.
    ///
    /// `by` is a reference, or an `Arc` where what is held outlives the caller;
    /// then threads share the `Arc`'s count, which may cost as much as all else.
    ///
    /// No system call, no lock, nothing to wait for: some tens of nanoseconds
    /// while most cells are free, and microseconds when hardly any is.
    pub fn hold<H>(by: H, directory: &DirectoryView, ordinal: u32) -> Result<Held<H>, NotHeld>
    where
        H: Deref<Target = Self>,
    {
        let cells = by.memory.words(span(by.header.count)).ok_or(NotHeld::Child)?;
        let look = || directory.load(ordinal).unwrap_or(0);
        let (entry, cell) = protocol::hold(look, cells, NEXT.get())?;
        NEXT.set(cell.wrapping_add(1));
        Ok(Held { hazards: by, cell, entry })
    }
}

/// A block that is held in its slot; dropped, it is let go.
///
/// In a forked child it is nothing: the memory is not there, and to drop the copy
/// leaves the parent's as it is.
#[must_use = "what is not kept is let go at once"]
pub struct Held<H: Deref<Target = Hazards>> {
    hazards: H,
    cell: usize,
    entry: Entry,
}

impl<H: Deref<Target = Hazards>> Held<H> {
    /// Where the block lies. Equal entries of one daemon are of equal bytes only
    /// while one of them is held: versions come round.
    pub fn entry(&self) -> Entry {
        self.entry
    }
}

impl<H: Deref<Target = Hazards>> Drop for Held<H> {
    fn drop(&mut self) {
        let Some(cells) = self.hazards.memory.words(span(self.hazards.header.count)) else {
            return;
        };
        if let Some(cell) = cells.get(self.cell) {
            protocol::clear(cell);
            NEXT.set(self.cell);
        }
    }
}

impl<H: Deref<Target = Hazards>> fmt::Debug for Held<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("entry", &self.entry).field("cell", &self.cell).finish()
    }
}

/// Of the whole.
pub(crate) fn bytes(cells: u32) -> u64 {
    (HEADER_BYTES + u64::from(cells) * 8).next_multiple_of(HEADER_BYTES)
}

/// Which words of the memory are cells.
pub(crate) fn span(cells: u32) -> std::ops::Range<usize> {
    HEADER_WORDS..HEADER_WORDS + cells as usize
}
