//! Pieces of memory that two processes share, as words that both may change at
//! any time.

mod mapping;
mod mark;

use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};

use crate::error::{Error, Kind};
use mapping::{Access, Mapping};

/// Who may write a piece of memory besides the process that makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writers {
    /// Nobody: the kernel refuses every other process.
    Maker,
    /// Whoever gets the descriptor.
    Receiver,
}

/// Memory that this process may write, made by it or received.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    file: OwnedFd,
}

impl Memory {
    /// Makes `bytes` bytes of zeros, a positive multiple of the page size. Nobody
    /// can make them more or less; pages come when they are first touched.
    pub(crate) fn create(kind: Kind, bytes: u64, writers: Writers) -> Result<Self, Error> {
        let system = |errno: rustix::io::Errno| Error::System { kind, source: errno.into() };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("tpad-handoff", flags).map_err(system)?;
        ftruncate(&file, bytes).map_err(system)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).map_err(system)?;
        let mapping = Mapping::new(kind, file.as_fd(), Access::Write)?;
        // The mapping above stays writable; with this seal no later one can be.
        let last = match writers {
            Writers::Maker => SealFlags::FUTURE_WRITE | SealFlags::SEAL,
            Writers::Receiver => SealFlags::SEAL,
        };
        fcntl_add_seals(&file, last).map_err(system)?;
        Ok(Self { mapping, file })
    }

    /// Maps memory that another process made for this one to write.
    pub(crate) fn receive(kind: Kind, file: OwnedFd) -> Result<Self, Error> {
        let mapping = received(kind, file.as_fd(), Access::Write)?;
        Ok(Self { mapping, file })
    }

    /// To be sent to another process.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.mapping.bytes()
    }

    /// Some of the memory as words of eight bytes, numbered from its start.
    /// `None` beyond its end, and in a child of the process that received it.
    pub(crate) fn words(&self, span: Range<usize>) -> Option<&[AtomicU64]> {
        self.mapping.words()?.get(span)
    }

    /// As [`words`](Self::words), of four bytes. No span of one may overlap with a
    /// span of the other: atomics of two sizes do not order each other.
    pub(crate) fn halves(&self, span: Range<usize>) -> Option<&[AtomicU32]> {
        self.mapping.halves()?.get(span)
    }
}

/// Memory that another process writes and this one reads.
#[derive(Debug)]
pub(crate) struct ReadOnly(Mapping);

impl ReadOnly {
    /// Maps memory of another process.
    pub(crate) fn receive(kind: Kind, file: OwnedFd) -> Result<Self, Error> {
        received(kind, file.as_fd(), Access::Read).map(Self)
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// A word as it is now, relaxed. Of atomic accesses that is the only one that
    /// memory without write access is sure to allow, so no reference is given out.
    /// `None` beyond the end, and in a child of the process that received it.
    pub(crate) fn load(&self, index: usize) -> Option<u64> {
        self.0.load(index)
    }
}

/// Memory of another process, kept from this one's children.
fn received(kind: Kind, file: BorrowedFd<'_>, access: Access) -> Result<Mapping, Error> {
    // A descriptor of a pipe or of a file on disk has no seals at all.
    let seals = fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    if !seals.contains(SealFlags::SHRINK) {
        return Err(Error::NotSealed { kind });
    }
    Mapping::new(kind, file, access)?.kept_from_children(kind)
}

#[cfg(test)]
mod tests;
