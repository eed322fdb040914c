//! Slots: one writer, then any number of readers, then free again.
#![expect(unsafe_code, reason = "a slot turns its span of a mapping into slices")]

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tpad_handoff::Named;

use super::Arena;
use super::mapping::Mapping;
use super::readers::place;
use crate::{InSlot, Readers};

/// A mapping cut into slots of one size.
#[derive(Debug)]
pub(super) struct Slab {
    pub(super) id: u64,
    pub(super) slot_bytes: usize,
    pub(super) mapping: Mapping,
}

/// Where a block lies, for another process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The slab's number, which no other slab of the arena ever has.
    pub slab: u64,
    /// Where in the slab it begins.
    pub offset: u64,
    /// What its slot takes.
    pub slot_bytes: u64,
}

/// A slab that another process has mapped, or may have. Its memory does not go back
/// to the system, and is not used for slots of another size, before this is dropped:
/// unmapped here alone it would still be there.
#[derive(Debug)]
pub struct SharedSlab {
    /// `None` only while this is dropped.
    slab: Option<Arc<Slab>>,
    arena: Arc<Arena>,
}

impl SharedSlab {
    /// The slab's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.id)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.mapping.bytes() as u64)
    }

    /// The bytes of each of its slots, the first of which begins it.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slab.as_ref().map_or(0, |slab| slab.slot_bytes as u64)
    }

    /// The descriptor of its memory: sealed, so that nobody else can write to it,
    /// shrink it or punch holes into it.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let slab = self.slab.as_ref().ok_or(io::ErrorKind::NotFound)?;
        slab.mapping.file().try_clone_to_owned()
    }

    /// Since when its memory is wanted for something else, and nothing lies in it.
    #[must_use]
    pub fn wanted_since(&self) -> Option<Instant> {
        self.arena.wanted_since(self.id())
    }
}

impl Drop for SharedSlab {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            let id = slab.id;
            // Before it is told: who unmaps the slab then has the last reference.
            drop(slab);
            self.arena.unshare(id);
        }
    }
}

/// A slot that is in use. Its drop makes it free.
///
/// Invariant: of all live `Slot`s, no two have the same slab and index. The
/// arena takes an index from the slab's free list to make one, and only the drop
/// puts it back.
pub(super) struct Slot {
    arena: Arc<Arena>,
    slab: Arc<Slab>,
    index: u32,
    /// The image's size; the rest of the slot is padding.
    bytes: usize,
    /// Whether a directory has named it: workers may read it without a word.
    published: AtomicBool,
}

impl Slot {
    fn start(&self) -> usize {
        // In the mapping, so in memory: it does not overflow.
        self.index as usize * self.slab.slot_bytes
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slab.slot_bytes
    }

    pub(super) fn image_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes `at..at + bytes` of the slot, to write.
    ///
    /// # Safety
    /// The span lies in the slot, and nobody else reads or writes it as long as
    /// the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the caller holds the span exclusively")]
    pub(super) unsafe fn span_mut(&self, at: usize, bytes: usize) -> &mut [u8] {
        debug_assert!(at + bytes <= self.slab.slot_bytes);
        // SAFETY: the arena makes slots inside of the mapping only; the caller says
        // that the span lies in the slot and is theirs alone.
        unsafe { self.slab.mapping.slice_mut(self.start() + at, bytes) }
    }

    fn padded(&self) -> &[u8] {
        // SAFETY: the arena makes slots inside of the mapping only. Who has a
        // `&Slot` is its only writer (`SlotMut`, borrowed), or there is none
        // (`BlockBytes`).
        unsafe { self.slab.mapping.slice(self.start(), self.slab.slot_bytes) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (slab, index, slot_bytes) = (self.slab.id, self.index, self.slab.slot_bytes as u64);
        let published = *self.published.get_mut();
        // What was published has a place.
        let named = place(slab, index).filter(|_| published);
        if named.is_none_or(|place| self.arena.readers.retire(place, slot_bytes)) {
            self.arena.free(slab, index);
        }
    }
}

/// A slot to write a block into: exclusive.
pub struct SlotMut(Slot);

impl SlotMut {
    /// The slot `index` of `slab`, which the caller has taken off the free list.
    pub(super) fn new(arena: Arc<Arena>, slab: Arc<Slab>, index: u32, bytes: usize) -> Self {
        debug_assert!(bytes <= slab.slot_bytes);
        debug_assert!((index as usize + 1) * slab.slot_bytes <= slab.mapping.bytes());
        Self(Slot { arena, slab, index, bytes, published: AtomicBool::new(false) })
    }

    pub(super) fn into_slot(self) -> Slot {
        self.0
    }

    /// Of a slot that nobody else has any part of.
    pub(super) fn of_slot(slot: Slot) -> Self {
        Self(slot)
    }

    /// The whole slot, page-aligned padding included, for direct I/O.
    #[must_use]
    pub fn padded_mut(&mut self) -> &mut [u8] {
        // SAFETY: the arena makes slots inside of the mapping only, no other
        // `Slot` has this span, and `self` is borrowed exclusively.
        unsafe { self.0.slab.mapping.slice_mut(self.0.start(), self.0.slab.slot_bytes) }
    }

    /// Ends writing: from here on the bytes are shared and never change. What
    /// lies behind the image becomes zero.
    #[must_use]
    pub fn freeze(mut self) -> BlockBytes {
        let image = self.0.bytes;
        self.padded_mut()[image..].fill(0);
        let arena = Arc::clone(&self.0.arena);
        BlockBytes { slot: Arc::new(self.0), _nudge: NudgeOnDrop(arena) }
    }
}

impl Deref for SlotMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.padded()[..self.0.bytes]
    }
}

impl DerefMut for SlotMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let image = self.0.bytes;
        &mut self.padded_mut()[..image]
    }
}

impl fmt::Debug for SlotMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMut").field("bytes", &self.0.bytes).finish_non_exhaustive()
    }
}

/// A block's image in its slot, shared. The slot is free again when the last
/// clone, and the last [`Bytes`] made of one, is gone.
#[derive(Clone)]
pub struct BlockBytes {
    // In this order: the slot is let go of before the one who waits looks again.
    slot: Arc<Slot>,
    _nudge: NudgeOnDrop,
}

/// Has whoever waits for a slot look again: a block that is not read any more
/// can be given up.
#[derive(Clone)]
struct NudgeOnDrop(Arc<Arena>);

impl Drop for NudgeOnDrop {
    fn drop(&mut self) {
        self.0.nudge_if_awaited();
    }
}

impl BlockBytes {
    /// The image as [`Bytes`], without a copy.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// The whole slot, page-aligned zero padding included, for direct I/O.
    #[must_use]
    pub fn padded(&self) -> &[u8] {
        self.slot.padded()
    }

    /// The slab that the slot is in.
    pub(crate) fn slab(&self) -> u64 {
        self.slot.slab.id
    }

    /// Where it lies, for another process of this machine.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            slab: self.slot.slab.id,
            // Both are in memory.
            offset: self.slot.start() as u64,
            slot_bytes: self.slot.slot_bytes() as u64,
        }
    }

    /// The slab that it lies in, to be mapped by another process.
    #[must_use]
    pub fn shared_slab(&self) -> SharedSlab {
        let (slab, arena) = (Arc::clone(&self.slot.slab), Arc::clone(&self.slot.arena));
        // A slot of it is in use, so nobody gives it up before this.
        arena.share(slab.id);
        SharedSlab { slab: Some(slab), arena }
    }

    /// Whether the slot is in this arena.
    pub(crate) fn is_of(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.slot.arena, arena)
    }

    /// Whether someone else has a clone, or a worker of these reads it.
    pub(crate) fn is_shared(&self, named: &Named) -> bool {
        let published = self.slot.published.load(Ordering::Relaxed);
        let read = || self.named_place().is_some_and(|place| named.contains(place));
        Arc::strong_count(&self.slot) > 1 || published && read()
    }
}

impl InSlot for BlockBytes {
    fn readers(&self) -> &Arc<Readers> {
        &self.slot.arena.readers
    }

    fn named_place(&self) -> Option<tpad_handoff::Place> {
        place(self.slot.slab.id, self.slot.index)
    }

    fn set_published(&self) {
        self.slot.published.store(true, Ordering::Relaxed);
    }
}

impl Deref for BlockBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.slot.padded()[..self.slot.bytes]
    }
}

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BlockBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockBytes").field("bytes", &self.slot.bytes).finish_non_exhaustive()
    }
}
