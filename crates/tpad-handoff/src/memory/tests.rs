#![expect(unsafe_code, reason = "forks, and maps what must not be mapped")]

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::{Memory, ReadOnly, Writers};
use crate::error::{Error, Kind};

fn other_end(memory: &Memory) -> OwnedFd {
    memory.descriptor().try_clone_to_owned().expect("a descriptor")
}

/// What the kernel says to a mapping of the whole with write access.
fn map_to_write(memory: &Memory) -> Option<Errno> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let (file, bytes) = (memory.descriptor(), memory.bytes());
    // SAFETY: no address is asked for; if it were mapped, nobody would use it.
    unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, file, 0) }.err()
}

#[test]
fn what_one_side_writes_the_other_reads() {
    let memory = Memory::create(Kind::Directory, 8192, Writers::Maker).expect("memory");
    let view = ReadOnly::receive(Kind::Directory, other_end(&memory)).expect("sealed");
    assert_eq!((memory.bytes(), view.bytes()), (8192, 8192));
    memory.words(1023..1024).expect("the last")[0].store(7, Ordering::Relaxed);
    assert_eq!(view.load(1023), Some(7));
    assert_eq!((view.load(1024), view.load(usize::MAX)), (None, None));
    assert!(memory.words(1023..1025).is_none() && memory.halves(0..2049).is_none());

    let memory = Memory::create(Kind::Uses, 4096, Writers::Receiver).expect("memory");
    let other = Memory::receive(Kind::Uses, other_end(&memory)).expect("sealed");
    other.halves(1023..1024).expect("the last")[0].store(9, Ordering::Relaxed);
    assert_eq!(memory.halves(1023..1024).expect("the last")[0].load(Ordering::Relaxed), 9);
}

#[test]
fn a_receiver_can_neither_resize_it_nor_write_what_only_its_maker_writes() {
    let denied = Some(Errno::PERM);
    for writers in [Writers::Maker, Writers::Receiver] {
        let memory = Memory::create(Kind::Hazards, 8192, writers).expect("memory");
        assert_eq!(ftruncate(memory.descriptor(), 4096).err(), denied);
        assert_eq!(ftruncate(memory.descriptor(), 0).err(), denied);
        assert_eq!(ftruncate(memory.descriptor(), 1 << 20).err(), denied);
        assert_eq!(fcntl_add_seals(memory.descriptor(), SealFlags::WRITE).err(), denied);
        // A hole is a write of zeros, for whoever may write.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let word = || memory.words(0..1).expect("a word")[0].load(Ordering::Relaxed);
        memory.words(0..1).expect("a word")[0].store(7, Ordering::Relaxed);
        let punched = fallocate(memory.descriptor(), hole, 0, 8192).err();
        let left = if writers == Writers::Maker { (denied, 7) } else { (None, 0) };
        assert_eq!((punched, word()), left, "{writers:?}");
        let writable = map_to_write(&memory);
        let write = rustix::io::pwrite(memory.descriptor(), b"x", 0).err();
        let expected = if writers == Writers::Maker { denied } else { None };
        assert_eq!((writable, write), (expected, expected), "{writers:?}");
    }
}

#[test]
fn what_its_sender_could_shorten_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("unsealed", flags).expect("a file");
    ftruncate(&file, 8192).expect("it is writable");
    let again = file.try_clone().expect("a descriptor");
    let refused = ReadOnly::receive(Kind::Directory, again).err();
    assert!(matches!(refused, Some(Error::NotSealed { .. })), "{refused:?}");
    let again = file.try_clone().expect("a descriptor");
    let refused = Memory::receive(Kind::Hazards, again).err();
    assert!(matches!(refused, Some(Error::NotSealed { .. })), "{refused:?}");

    // No memory at all.
    let (pipe, _) = std::io::pipe().expect("a pipe");
    let refused = ReadOnly::receive(Kind::Directory, pipe.into()).err();
    assert!(matches!(refused, Some(Error::NotSealed { .. })), "{refused:?}");

    // Sealed, but empty.
    let empty = memfd_create("empty", flags).expect("a file");
    fcntl_add_seals(&empty, SealFlags::SHRINK).expect("seals are allowed");
    let refused = ReadOnly::receive(Kind::Directory, empty).err();
    assert!(matches!(refused, Some(Error::Size { bytes: 0, .. })), "{refused:?}");
}

#[test]
fn a_child_has_nothing_of_what_its_parent_received() {
    let memory = Memory::create(Kind::Hazards, 4096, Writers::Receiver).expect("memory");
    let received = Memory::receive(Kind::Hazards, other_end(&memory)).expect("sealed");
    let view = ReadOnly::receive(Kind::Hazards, other_end(&memory)).expect("sealed");
    received.words(0..1).expect("a word")[0].store(7, Ordering::Relaxed);

    // SAFETY: the child makes system calls and looks at memory, which may be done
    // beside other threads that were not forked along, and ends there.
    let child = unsafe { libc::fork() };
    assert_ne!(child, -1, "no child");
    if child == 0 {
        let nothing = received.words(0..1).is_none()
            && received.halves(0..1).is_none()
            && view.load(0).is_none();
        drop((received, view));
        // SAFETY: ends the child without anything that belongs to its parent.
        unsafe { libc::_exit(if nothing { 42 } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: waits for the child and writes to `status`.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child died of {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 42);
    assert_eq!(view.load(0), Some(7), "the parent has it as before");
    assert!(received.descriptor().as_fd().try_clone_to_owned().is_ok());
}
