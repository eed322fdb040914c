//! A slab of the daemon's memory, mapped into this process to read.
#![expect(unsafe_code, reason = "mappings cannot be made or shared otherwise")]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A whole slab, read-only.
///
/// Invariant: in the process that made it, `start` is the start of a live mapping of
/// `bytes` bytes until drop, and the file behind it never becomes shorter.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// The process that has it mapped: its children have not.
    process: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and nothing writes
// through it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a slab of so many bytes, if it is one: sealed, so that nobody can shorten it,
    /// which would kill who reads it, and nobody but who has it mapped already can write.
    pub(super) fn new(file: BorrowedFd<'_>, bytes: u64) -> io::Result<Self> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        // What is no memfd has no seals at all.
        let seals = fcntl_get_seals(file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK)
            || !seals.intersects(SealFlags::FUTURE_WRITE | SealFlags::WRITE)
        {
            return Err(wrong(format!(
                "it is not sealed against shrinking and writing: {seals:?}"
            )));
        }
        let there = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        let length = isize::try_from(bytes).ok().and_then(|bytes| usize::try_from(bytes).ok());
        let Some(length) = length.filter(|length| *length > 0 && there == bytes) else {
            return Err(wrong(format!("it has {there} bytes, {bytes} were announced")));
        };
        let prot = ProtFlags::READ;
        // SAFETY: no address is asked for, so the kernel picks one where nothing is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| wrong("it was mapped at address zero".to_owned()))?;
        let mapping = Self { start, bytes: length, process: std::process::id() };
        // A child that inherited it would read what its parent has let go of.
        // SAFETY: the span is the mapping, and the advice changes nothing in this process.
        unsafe { madvise(start.as_ptr().cast::<c_void>(), length, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Some of its bytes. Whoever asks holds a lease on them: as long as it lives, the
    /// daemon changes none of them.
    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?}");
        let start = self.start.as_ptr().wrapping_add(range.start);
        // SAFETY: the range lies within the mapping, which is readable until drop, and the
        // reference does not outlive it. Nobody writes there as long as the lease lives:
        // that is what the daemon grants with it.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A child: by now something else of its own may lie there.
            return;
        }
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: `start` and `bytes` are what `mmap` returned and was given; slices borrow
        // `self`, so none is left.
        let unmapped = unsafe { munmap(start, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping is unmapped once, whole");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("slab", flags).expect("a memfd");
        ftruncate(&file, bytes).expect("it is writable");
        rustix::io::pwrite(&file, b"tpad", bytes - 4).expect("it is writable");
        fcntl_add_seals(&file, seals).expect("seals are allowed");
        file
    }

    #[test]
    fn a_sealed_slab_is_read_where_it_lies() {
        let file = memfd(8192, SealFlags::SHRINK | SealFlags::FUTURE_WRITE);
        let mapping = Mapping::new(file.as_fd(), 8192).expect("it is sealed");
        drop(file);
        assert_eq!((mapping.bytes(), mapping.slice(8188..8192)), (8192, &b"tpad"[..]));
        assert_eq!(mapping.slice(8192..8192), b"");
    }

    #[test]
    fn what_somebody_could_shorten_or_write_is_not_mapped() {
        let all = SealFlags::SHRINK | SealFlags::WRITE;
        for (seals, bytes) in [
            (SealFlags::empty(), 8192),
            (SealFlags::SHRINK, 8192),
            (SealFlags::WRITE, 8192),
            (all, 4096),
            (all, 12_288),
            (all, 0),
            (all, u64::MAX),
        ] {
            let file = memfd(8192, seals);
            let refused = Mapping::new(file.as_fd(), bytes).expect_err("it is no such slab");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{seals:?} {bytes}");
        }
        let (pipe, _) = std::io::pipe().expect("a pipe");
        assert!(Mapping::new(pipe.as_fd(), 8192).is_err());
    }
}
