//! A file of a stand-in's memory, mapped.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::fstat;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::driver::span;
use crate::{CudaError, Memory, Slab};

/// Invariant: `start` is the start of a live shared mapping of `bytes` bytes until drop,
/// readable, and writable if there is a file.
#[derive(Debug)]
pub(super) struct SharedMemory {
    start: NonNull<u8>,
    bytes: usize,
    /// Of memory that was made here.
    file: Option<File>,
}

// SAFETY: the mapping belongs to the process, not to a thread. Nobody gets a reference
// to its bytes: they are copied from and to, as those of a device are.
unsafe impl Send for SharedMemory {}
// SAFETY: as above. As on a device, a copy that runs beside another of the same bytes
// finds some of either: whoever uses the memory has an order of its own.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    pub(super) fn made(file: File) -> Result<Self, CudaError> {
        let bytes = file.metadata().map_err(failed)?.len();
        let bytes = usize::try_from(bytes).map_err(failed)?;
        let start = map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self { start, bytes, file: Some(file) })
    }

    pub(super) fn imported(descriptor: BorrowedFd<'_>, bytes: u64) -> Result<Self, CudaError> {
        let there = fstat(descriptor).map_err(failed)?.st_size;
        let length = usize::try_from(bytes).map_err(failed)?;
        if u64::try_from(there) != Ok(bytes) || bytes == 0 {
            let of = u64::try_from(there).unwrap_or(0);
            return Err(CudaError::Span { offset: 0, bytes, of });
        }
        let start = map(descriptor, length, ProtFlags::READ)?;
        Ok(Self { start, bytes: length, file: None })
    }

    /// Copies to the memory, by who made it.
    pub(super) fn fill(&self, offset: u64, from: &[u8]) -> Result<(), CudaError> {
        span(offset, from.len(), self.bytes as u64)?;
        if self.file.is_none() {
            return Err(CudaError::ReadOnly);
        }
        let to = self.at(offset);
        // SAFETY: the span lies in the mapping, which is writable, and `from` is no part
        // of it: nobody gets a reference to it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn at(&self, offset: u64) -> *mut u8 {
        // Within the mapping, so in memory.
        let offset = usize::try_from(offset).unwrap_or(0);
        self.start.as_ptr().wrapping_add(offset)
    }
}

fn map(
    file: impl std::os::fd::AsFd,
    bytes: usize,
    prot: ProtFlags,
) -> Result<NonNull<u8>, CudaError> {
    // SAFETY: no address is asked for, so the kernel picks one where nothing is mapped.
    let start = unsafe { mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, file, 0) };
    let start = start.map_err(failed)?;
    NonNull::new(start.cast::<u8>()).ok_or_else(|| failed("a mapping at address zero"))
}

impl Memory for SharedMemory {
    fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CudaError> {
        span(offset, into.len(), self.bytes as u64)?;
        let from = self.at(offset);
        // SAFETY: the span lies in the mapping, and `into` is exclusive.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), CudaError> {
        self.fill(offset, from)
    }
}

impl Slab for SharedMemory {
    fn descriptor(&self) -> Result<OwnedFd, CudaError> {
        let file = self.file.as_ref().ok_or(CudaError::ReadOnly)?;
        // What `open` returned is shared, and with it the lock that says it is in use.
        Ok(file.try_clone().map_err(failed)?.into())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: `start` and `bytes` are what `mmap` returned and was given.
        let unmapped = unsafe { munmap(start, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping is unmapped once, whole");
    }
}

fn failed(error: impl std::fmt::Display) -> CudaError {
    CudaError::system("a stand-in's memory", error)
}
