//! Parts of a slot: several writers at once, each with a span of its own.
#![expect(unsafe_code, reason = "a part turns its span of a mapping into a slice")]

use std::fmt;
use std::sync::Arc;

use super::slot::{Slot, SlotMut};

/// A span of a slot that one writer has.
///
/// It owns the slot together with the other parts: as long as one of them lives,
/// whoever holds it and whatever became of those who wait, the slot's memory is
/// nobody else's. So whoever writes where a drop cannot stop it (a kernel, a
/// blocking thread) keeps the part until the writing has ended.
///
/// Invariant: the spans of a slot's parts do not overlap, and while there are
/// parts there is no [`SlotMut`] of the slot.
pub(crate) struct SlotPart {
    slot: Arc<Slot>,
    at: usize,
    bytes: usize,
}

impl SlotMut {
    /// Cuts the first `bytes`, padding included, into parts of `part_bytes`, the
    /// last one shorter; one empty part if there is nothing to cut.
    pub(crate) fn cut(self, bytes: usize, part_bytes: usize) -> Vec<SlotPart> {
        let slot = self.into_slot();
        let bytes = bytes.min(slot.slot_bytes());
        let slot = Arc::new(slot);
        let part =
            |at| SlotPart { slot: Arc::clone(&slot), at, bytes: part_bytes.max(1).min(bytes - at) };
        if bytes == 0 {
            vec![part(0)]
        } else {
            (0..bytes).step_by(part_bytes.max(1)).map(part).collect()
        }
    }

    /// The slot in one piece again. `None` as long as there are other parts of it
    /// than these.
    pub(crate) fn joined(mut parts: Vec<SlotPart>) -> Option<Self> {
        let last = parts.pop()?;
        drop(parts);
        Arc::into_inner(last.slot).map(Self::of_slot)
    }
}

impl SlotPart {
    /// Its bytes, to write. They start on a page's boundary where parts are whole
    /// pages.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the span lies in the slot (`cut`), the slot in its mapping. No
        // other part has any of the span and no `SlotMut` exists beside parts
        // (the type's invariant), and `self` is borrowed exclusively.
        unsafe { self.slot.span_mut(self.at, self.bytes) }
    }

    /// Cuts off the first `bytes`, at most all.
    pub(crate) fn split_to(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        let first = Self { slot: Arc::clone(&self.slot), at: self.at, bytes };
        self.at += bytes;
        self.bytes -= bytes;
        first
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What of it belongs to the image; the rest is padding.
    pub(crate) fn image_bytes(&self) -> usize {
        self.slot.image_bytes().saturating_sub(self.at).min(self.bytes)
    }

    /// Where it begins in the slot.
    pub(crate) fn at(&self) -> usize {
        self.at
    }
}

impl fmt::Debug for SlotPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, bytes, .. } = self;
        f.debug_struct("SlotPart").field("at", at).field("bytes", bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::Arena;

    use super::*;

    #[test]
    fn parts_are_written_apart_and_joined_again() {
        let arena = Arena::new(1 << 20);
        let byte = |n| u8::try_from(n + 1).expect("few parts");
        for (bytes, part_bytes, count) in
            [(0, 4096, 1), (1, 4096, 1), (8192, 4096, 2), (10_000, 4096, 3)]
        {
            let slot = arena.slot(bytes).expect("mapped").expect("room");
            let mut parts = slot.cut(bytes.next_multiple_of(4096), part_bytes);
            assert_eq!(parts.len(), count);
            let mut image = 0;
            for (n, part) in parts.iter_mut().enumerate() {
                assert_eq!(part.at(), n * part_bytes);
                image += part.image_bytes();
                part.bytes_mut().fill(byte(n));
            }
            assert_eq!(image, bytes);
            parts.reverse();
            let slot = SlotMut::joined(parts).expect("all of them");
            let expected: Vec<u8> = (0..bytes).map(|at| byte(at / part_bytes)).collect();
            assert_eq!(slot[..], expected);
        }
        assert_eq!(arena.usage().held, 0);
    }

    #[test]
    fn a_part_is_split_without_a_byte_lost() {
        let arena = Arena::new(1 << 20);
        let slot = arena.slot(10_000).expect("mapped").expect("room");
        let mut rest = slot.cut(10_000, usize::MAX).remove(0);
        let mut parts: Vec<SlotPart> = [0, 1, 4095, 7].map(|n| rest.split_to(n)).into();
        parts.push(rest.split_to(usize::MAX));
        assert!(rest.is_empty());
        assert_eq!(rest.at(), 10_000);
        let spans: Vec<_> = parts.iter().map(|part| (part.at(), part.len())).collect();
        assert_eq!(spans, [(0, 0), (0, 1), (1, 4095), (4096, 7), (4103, 5897)]);
        for (n, part) in parts.iter_mut().enumerate() {
            part.bytes_mut().fill(u8::try_from(n).expect("few parts"));
        }
        assert!(SlotMut::joined(parts).is_none(), "the empty rest is elsewhere");
        drop(rest);
        assert_eq!(arena.usage().held, 0);
    }

    #[test]
    fn a_slot_is_free_when_the_last_part_of_it_is_gone() {
        let arena = Arena::new(1 << 20);
        let slot = arena.slot(10_000).expect("mapped").expect("room");
        let held = arena.usage().held;
        let mut parts = slot.cut(12_288, 4096);
        let kept = parts.remove(1);
        assert!(SlotMut::joined(parts).is_none(), "one is elsewhere");
        assert_eq!(arena.usage().held, held);
        drop(kept);
        assert_eq!(arena.usage().held, 0);
    }
}
