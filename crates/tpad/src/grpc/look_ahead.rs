//! How far streams read ahead of their clients.
//!
//! A block that is ready and not sent yet keeps its memory from the cache. A
//! stream may always have one; more only within its own bound and a share of
//! all streams' bound, which is taken without waiting: a stream that holds
//! blocks never waits for room, so streams cannot block each other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit that is counted: a semaphore counts to 2^29 on every platform.
const UNIT_BYTES: u64 = 4096;

/// Blocks read ahead by one stream, however small they are: reading more at a
/// time gains nothing once a disk or a connection is busy.
const BLOCKS_AHEAD: usize = 16;

/// The bounds, shared by all streams.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    stream_bytes: u64,
    all: Arc<Semaphore>,
}

/// What one stream has ahead.
#[derive(Debug)]
pub(super) struct Window {
    budget: Budget,
    blocks: usize,
    bytes: u64,
}

/// One block's place in a window; to be given back with [`Window::give_back`].
#[derive(Debug)]
pub(super) struct Ahead {
    bytes: u64,
    _share: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(stream_bytes: u64, total_bytes: u64) -> Self {
        let units = usize::try_from(total_bytes / UNIT_BYTES).unwrap_or(usize::MAX);
        let all = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { stream_bytes, all }
    }

    pub(super) fn window(&self) -> Window {
        Window { budget: self.clone(), blocks: 0, bytes: 0 }
    }

    #[cfg(test)]
    pub(super) fn free_units(&self) -> usize {
        self.all.available_permits()
    }
}

impl Window {
    /// Room for a block of `bytes`; `None` when there is none now.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Ahead> {
        let share = if self.blocks == 0 {
            None
        } else {
            let within = self.bytes.saturating_add(bytes) <= self.budget.stream_bytes;
            if self.blocks >= BLOCKS_AHEAD || !within {
                return None;
            }
            let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
            Some(Arc::clone(&self.budget.all).try_acquire_many_owned(units).ok()?)
        };
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        Some(Ahead { bytes, _share: share })
    }

    pub(super) fn give_back(&mut self, ahead: Ahead) {
        self.blocks = self.blocks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(ahead.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_is_always_ahead_and_more_only_within_the_bounds() {
        let budget = Budget::new(3 * UNIT_BYTES, 100 * UNIT_BYTES);
        let mut window = budget.window();
        let huge = window.take(1 << 40).expect("the first, whatever its size");
        assert!(window.take(1).is_none());
        window.give_back(huge);
        let held: Vec<Ahead> = (0..3).map_while(|_| window.take(UNIT_BYTES)).collect();
        assert_eq!(held.len(), 3);
        assert!(window.take(1).is_none());
    }

    #[test]
    fn a_streams_own_first_block_needs_no_share() {
        let budget = Budget::new(1 << 20, 2 * UNIT_BYTES);
        let (mut first, mut second) = (budget.window(), budget.window());
        let held: Vec<Ahead> = (0..9).map_while(|_| first.take(UNIT_BYTES)).collect();
        assert_eq!(held.len(), 3, "one of its own and the two that all share");
        let own = second.take(UNIT_BYTES).expect("one of its own");
        assert!(second.take(UNIT_BYTES).is_none());
        held.into_iter().for_each(|ahead| first.give_back(ahead));
        assert!(second.take(UNIT_BYTES).is_some());
        second.give_back(own);
    }

    #[test]
    fn small_blocks_are_bounded_in_number() {
        let mut window = Budget::new(1 << 30, 1 << 30).window();
        let held: Vec<Ahead> = (0..100).map_while(|_| window.take(1)).collect();
        assert_eq!(held.len(), BLOCKS_AHEAD);
    }
}
