//! The blocks that one pin holds.

use std::collections::HashSet;
use std::sync::Arc;

use tpad_manifest::BlockId;
use tpad_store::{BlockBytes, CacheClass};

use super::{Pins, Totals};
use crate::EngineError;

/// Slots are whole pages: what a block takes in memory.
const PAGE_BYTES: u64 = 4096;

/// Blocks counted against the pins' share, and those of them that are held so
/// far. Dropping it gives everything back, so a pin that fails half way leaves
/// nothing.
#[derive(Debug)]
pub(crate) struct Hold {
    pins: Arc<Pins>,
    /// Each once, with what it takes in memory.
    blocks: Vec<(BlockId, u64)>,
    held: Vec<BlockId>,
    totals: Totals,
}

impl Pins {
    /// Counts `blocks`, given with the sizes of their images, against the share.
    ///
    /// # Errors
    /// When they do not fit beside what is pinned already.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        blocks: impl IntoIterator<Item = (BlockId, u64)>,
    ) -> Result<Hold, EngineError> {
        let mut seen = HashSet::new();
        let mut totals = Totals::default();
        let mut distinct = Vec::new();
        for (id, bytes) in blocks {
            if seen.insert(id) {
                totals.add(bytes);
                distinct.push((id, bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(bytes)));
            }
        }
        let limit = self.share();
        let mut state = self.lock();
        let (asked, held) = (state.ledger.new_bytes(&distinct), state.ledger.totals().bytes);
        if held.saturating_add(asked) > limit {
            return Err(EngineError::PinCapacity { asked, held, limit });
        }
        state.ledger.add(&distinct);
        drop(state);
        Ok(Hold { pins: Arc::clone(self), blocks: distinct, held: Vec::new(), totals })
    }

    /// What pins may hold: half of what the level keeps, so that requests always
    /// find room.
    pub(crate) fn share(&self) -> u64 {
        use tpad_store::Level as _;
        self.hierarchy.dram().usage().capacity / 2
    }
}

impl Hold {
    /// Holds one of its blocks, if there is room among what is pinned.
    pub(crate) fn hold(&mut self, id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> bool {
        let held = self.pins.hierarchy.pin(id, class, bytes);
        if held {
            self.held.push(*id);
        }
        held
    }

    /// Its blocks, each once, by their images' sizes.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for id in &self.held {
            self.pins.hierarchy.unpin(id);
        }
        self.pins.lock().ledger.remove(&self.blocks);
    }
}
