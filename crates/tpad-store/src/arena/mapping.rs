//! A sealed piece of anonymous shared memory: the only place of this crate
//! where memory is handled by hand.
#![expect(unsafe_code, reason = "mappings cannot be made or shared otherwise")]

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::thread;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::SlabObserver;

/// Slots start and end on a multiple of this: what direct I/O and page tables need.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Where transparent huge pages begin to pay.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What one thread populates at least; below, starting it costs more than it saves.
const POPULATE_BYTES: usize = 32 << 20;
/// More threads than this fault pages against each other's locks.
const POPULATE_THREADS: usize = 8;

/// Memory that this process may write and no other one ever can.
///
/// Invariant: `start` is the start of a live, readable and writable mapping of
/// `bytes` bytes, until drop.
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// Kept so that the memory can be handed to another process.
    file: OwnedFd,
    /// What an observer has of it.
    observed: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: the mapping belongs to the process, not to a thread; `slice` and
// `slice_mut` put the burden of exclusive access on their callers.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` alone gives no access to the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes, a positive multiple of the page size, and has the
    /// kernel provide all of them now: later there is no fault, no wait and no
    /// failure. Takes about 0.3 s for a GiB.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let file = memfd_create("tpad-slab", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, bytes as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel picks one where nothing
        // is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("a mapping at address zero"))?;
        let mapping = Self { start, bytes, file, observed: None };
        mapping.populate()?;
        // The mapping above stays writable; a new one of any process cannot be. Nor can
        // who gets the descriptor seal it further.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&mapping.file, seals)?;
        Ok(mapping)
    }

    fn populate(&self) -> io::Result<()> {
        if self.bytes >= HUGE_PAGE_BYTES {
            // A wish: hosts without huge pages for shared memory refuse it.
            let _ = self.advise(0, self.bytes, Advice::LinuxHugepage);
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (self.bytes / POPULATE_BYTES).clamp(1, cores.min(POPULATE_THREADS));
        let share = (self.bytes / threads).next_multiple_of(HUGE_PAGE_BYTES);
        let populate = &|at: usize| {
            let bytes = share.min(self.bytes - at);
            self.advise(at, bytes, Advice::LinuxPopulateWrite)
        };
        let populated: io::Result<()> = thread::scope(|scope| {
            let mut result = Ok(());
            let mut helpers = Vec::new();
            for at in (share..self.bytes).step_by(share) {
                match thread::Builder::new().spawn_scoped(scope, move || populate(at)) {
                    Ok(helper) => helpers.push(helper),
                    // No thread to be had: this one does it.
                    Err(_) => result = result.and(populate(at)),
                }
            }
            result = result.and(populate(0));
            for helper in helpers {
                let theirs = helper.join().unwrap_or_else(|_| Err(io::Error::other("panicked")));
                result = result.and(theirs);
            }
            result
        });
        match populated {
            // Kernels before 5.14 do not know the advice: let the file system
            // allocate the pages, which leaves only their mapping for later.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Ok(fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes as u64)?)
            }
            other => other,
        }
    }

    fn advise(&self, at: usize, bytes: usize, advice: Advice) -> io::Result<()> {
        debug_assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes));
        let start = self.start.as_ptr().wrapping_add(at).cast::<c_void>();
        // SAFETY: the span lies in the mapping, and neither advice that is used
        // here changes what is in it.
        unsafe { madvise(start, bytes, advice) }.map_err(io::Error::from)
    }

    /// Shows the memory to an observer, who is to let go of it before it is unmapped.
    pub(super) fn show(&mut self, observer: &dyn SlabObserver) {
        self.observed = Some(observer.mapped(self.start, self.bytes));
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory's descriptor, to hand to another process.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes `at..at + bytes`, to read.
    ///
    /// # Safety
    /// The span lies in the mapping, and nobody writes to it as long as the
    /// slice lives.
    pub(super) unsafe fn slice(&self, at: usize, bytes: usize) -> &[u8] {
        let start = self.start.as_ptr().wrapping_add(at);
        // SAFETY: the caller says that the span lies in the mapping, which lives
        // as long as `self`, and that nobody writes to it.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }

    /// Bytes `at..at + bytes`, to write.
    ///
    /// # Safety
    /// The span lies in the mapping, and nobody else reads or writes it as long
    /// as the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the caller holds the span exclusively")]
    pub(super) unsafe fn slice_mut(&self, at: usize, bytes: usize) -> &mut [u8] {
        let start = self.start.as_ptr().wrapping_add(at);
        // SAFETY: the caller says that the span lies in the mapping, which lives
        // as long as `self`, and that it is theirs alone.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.observed = None;
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: `start` and `bytes` are what `mmap` returned and was given;
        // slices borrow `self`, so none is left.
        let unmapped = unsafe { munmap(start, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping is unmapped once, whole");
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("bytes", &self.bytes)
            .field("file", &self.file.as_raw_fd())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_there_before_it_is_touched_and_sealed() {
        let bytes = 80 << 20;
        let mapping = Mapping::new(bytes).expect("mapped");
        let allocated = rustix::fs::fstat(&mapping.file).expect("stat").st_blocks * 512;
        assert_eq!(usize::try_from(allocated), Ok(bytes));
        // SAFETY: this test alone has the mapping.
        let whole = unsafe { mapping.slice_mut(0, bytes) };
        whole[bytes - 1] = 7;
        // SAFETY: `whole` is not used any more.
        assert_eq!(unsafe { mapping.slice(bytes - 1, 1) }, [7]);

        let denied = Some(rustix::io::Errno::PERM);
        assert_eq!(ftruncate(&mapping.file, 4096).err(), denied);
        assert_eq!(ftruncate(&mapping.file, 1 << 30).err(), denied);
        assert_eq!(rustix::io::pwrite(&mapping.file, b"x", 0).err(), denied);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for.
        let writable =
            unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, &mapping.file, 0) };
        assert_eq!(writable.err(), denied);
    }
}
