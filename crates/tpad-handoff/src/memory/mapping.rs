//! A mapping of a sealed descriptor: one of the two places of this crate where
//! memory is handled by hand.
#![expect(unsafe_code, reason = "mappings cannot be made or shared otherwise")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::mark::Mark;
use crate::error::{Error, Kind};

/// What a slice may span.
const MOST_BYTES: usize = isize::MAX as usize;

/// What this process may do with the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
}

/// The whole of a piece of memory that other processes may have mapped as well,
/// and write: it is only ever looked at through atomics.
///
/// Invariant: unless this is a child's copy of a mapping with a mark, `start` is
/// the start of a live mapping of `bytes` bytes, on a page boundary, readable, with
/// `access` [`Access::Write`] also writable, until drop. The file behind it has at
/// least as many bytes for ever.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    access: Access,
    /// Tells a child's copy, in which nothing is mapped at `start`.
    mark: Option<Mark>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and it is shared
// as atomics alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all of a file that is sealed against shrinking.
    pub(super) fn new(kind: Kind, file: BorrowedFd<'_>, access: Access) -> Result<Self, Error> {
        let system = |errno: Errno| Error::System { kind, source: errno.into() };
        // Beyond the end of its file a mapping kills who touches it. That the
        // file stays as long as it is found here is what the seal promises.
        if !fcntl_get_seals(file).map_err(system)?.contains(SealFlags::SHRINK) {
            return Err(Error::NotSealed { kind });
        }
        let size = fstat(file).map_err(system)?.st_size;
        let wrong = Error::Size { kind, bytes: u64::try_from(size).unwrap_or(0), least: 1 };
        let Ok(bytes @ 1..=MOST_BYTES) = usize::try_from(size) else { return Err(wrong) };
        let prot = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: no address is asked for, so the kernel picks one where nothing
        // is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, file, 0) };
        let start = NonNull::new(start.map_err(system)?.cast::<u8>()).ok_or(wrong)?;
        Ok(Self { start, bytes, access, mark: None })
    }

    /// Leaves the mapping out of children that are forked from now on: one that
    /// drops what it inherited must not let go of what its parent holds.
    pub(super) fn kept_from_children(mut self, kind: Kind) -> Result<Self, Error> {
        let system = |errno: Errno| Error::System { kind, source: errno.into() };
        // First the mark: without the mapping there has to be one.
        self.mark = Some(Mark::new().map_err(system)?);
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: the span is the mapping, and the advice changes nothing in this
        // process; a child finds by its mark that nothing is there.
        unsafe { madvise(start, self.bytes, Advice::LinuxDontFork) }.map_err(system)?;
        Ok(self)
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the memory is there: not in a child.
    fn is_here(&self) -> bool {
        self.mark.as_ref().is_none_or(Mark::is_of_this_process)
    }

    /// All whole words, to read and write; `None` where that is not possible.
    pub(super) fn words(&self) -> Option<&[AtomicU64]> {
        let start = self.start.cast::<AtomicU64>().as_ptr();
        // SAFETY: in a process where it may be written the memory is mapped until
        // drop, and a page boundary is one for words. Any bytes are a word, and
        // whoever else writes them, in whatever process, cannot make one that this
        // process loads be anything but a number.
        self.is_writable().then(|| unsafe { std::slice::from_raw_parts(start, self.bytes / 8) })
    }

    /// All whole words of four bytes, to read and write; `None` as for [`words`](Self::words).
    pub(super) fn halves(&self) -> Option<&[AtomicU32]> {
        let start = self.start.cast::<AtomicU32>().as_ptr();
        // SAFETY: as in `words`; which spans are used as which is settled by `Memory`.
        self.is_writable().then(|| unsafe { std::slice::from_raw_parts(start, self.bytes / 4) })
    }

    fn is_writable(&self) -> bool {
        self.access == Access::Write && self.is_here()
    }

    /// One word, relaxed; `None` where there is none.
    pub(super) fn load(&self, index: usize) -> Option<u64> {
        if index >= self.bytes / 8 || !self.is_here() {
            return None;
        }
        let word = self.start.cast::<AtomicU64>().as_ptr().wrapping_add(index);
        // SAFETY: the word lies within the mapping, which is readable until drop,
        // and is aligned as the mapping is. A relaxed load of a word writes
        // nothing on the machines that this is for, so it need not be writable.
        let word = unsafe { &*word };
        Some(word.load(Ordering::Relaxed))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.is_here() {
            // By now something else of the child may lie there.
            return;
        }
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: `start` and `bytes` are what `mmap` returned and was given;
        // slices borrow `self`, so none is left.
        let unmapped = unsafe { munmap(start, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping is unmapped once, whole");
    }
}
