//! Tells a process from its children: a page that the kernel wipes in them.
#![expect(unsafe_code, reason = "no safe call makes such a page")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The least that can be mapped and wiped.
const PAGE_BYTES: usize = 4096;

/// What asking costs: one load, where `getpid` would be a system call.
///
/// Invariant: `page` is the start of a live private mapping of a page until drop,
/// in children too.
#[derive(Debug)]
pub(super) struct Mark {
    page: NonNull<AtomicU32>,
}

// SAFETY: the page belongs to the process, not to a thread; it is written before
// anyone shares it and only read, atomically, from then on.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    /// Marks this process.
    pub(super) fn new() -> Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel picks one where nothing
        // is mapped.
        let page =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, prot, MapFlags::PRIVATE) }?;
        let page = NonNull::new(page.cast::<AtomicU32>()).ok_or(Errno::NOMEM)?;
        let mark = Self { page };
        let start = page.as_ptr().cast::<c_void>();
        // SAFETY: the span is the page, and the advice changes nothing in this
        // process; in a child the page is zero, which is what it is for.
        unsafe { madvise(start, PAGE_BYTES, Advice::LinuxWipeOnFork) }?;
        mark.word().store(1, Ordering::Relaxed);
        Ok(mark)
    }

    /// Whether the process that asks made the mark; false in its children.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.word().load(Ordering::Relaxed) != 0
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped and writable until drop, in children too, and
        // its start is aligned; any bytes are a number.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let start = self.page.as_ptr().cast::<c_void>();
        // SAFETY: the page is what `mmap_anonymous` returned, whole, also in a
        // child; references to it borrow `self`, so none is left.
        let unmapped = unsafe { munmap(start, PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a page is unmapped once");
    }
}
