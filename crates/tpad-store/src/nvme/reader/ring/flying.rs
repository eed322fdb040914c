//! What the kernel has of ours, and what it has not heard of yet.

use std::collections::VecDeque;

use crate::nvme::reader::block::Piece;

/// The pieces of a ring whose reads were pushed.
///
/// **Invariant:** a piece is here from before its read is pushed until the completion
/// with its key was taken, or until the ring is known never to submit it, and its
/// memory does not move meanwhile.
pub(super) struct Flying {
    /// By key.
    places: Vec<Option<Piece>>,
    /// The keys of what was pushed and not submitted, in order, and the bell's.
    pushed: VecDeque<u64>,
}

impl Flying {
    pub(super) fn new(depth: usize) -> Self {
        Self { places: (0..depth).map(|_| None).collect(), pushed: VecDeque::new() }
    }

    /// How many pieces there may be.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    pub(super) fn count(&self) -> usize {
        self.pieces().count()
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.places.iter().flatten()
    }

    /// Takes a piece, and gives it a key. `None` if there is no place, which drops it.
    pub(super) fn insert(&mut self, piece: Piece) -> Option<(u64, &mut Piece)> {
        let key = self.places.iter().position(Option::is_none)?;
        Some((key as u64, self.places[key].insert(piece)))
    }

    /// Something with this key was pushed.
    pub(super) fn pushed(&mut self, key: u64) {
        self.pushed.push_back(key);
    }

    /// So many of what was pushed are left: the kernel takes the oldest first.
    pub(super) fn submitted_but(&mut self, left: usize) {
        self.pushed.drain(..self.pushed.len().saturating_sub(left));
    }

    /// The piece that the kernel is done with, or never had.
    pub(super) fn land(&mut self, key: u64) -> Option<Piece> {
        self.places.get_mut(usize::try_from(key).ok()?)?.take()
    }

    /// What was pushed and not submitted. From here on the ring may submit nothing.
    pub(super) fn retract(&mut self) -> Vec<Piece> {
        let pushed = std::mem::take(&mut self.pushed);
        pushed.into_iter().filter_map(|key| self.land(key)).collect()
    }

    /// Nobody says any more when the kernel is done with what is here: what it may write
    /// to is never given back.
    pub(super) fn leak(&mut self) {
        self.places.drain(..).flatten().for_each(std::mem::forget);
    }
}
