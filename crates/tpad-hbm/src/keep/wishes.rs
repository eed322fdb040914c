//! Who wanted a block and has not come for it yet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tpad_manifest::BlockId;

/// Who wanted a block and did not come for it in so many uses for each block that is
/// kept, or in so long, does not come any more.
const USES: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// A wish, by the use that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish(u64);

/// The wishes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Wishes(BTreeMap<u64, (Instant, BlockId)>);

impl Wishes {
    /// A wish for the block that is made with this use, of which there is no other.
    pub(super) fn make(&mut self, used: u64, id: BlockId, now: Instant) -> Wish {
        self.0.insert(used, (now, id));
        Wish(used)
    }

    pub(super) fn end(&mut self, wish: Wish) {
        self.0.remove(&wish.0);
    }

    /// Ends the oldest wish if whoever made it does not come any more, after so many uses,
    /// where so many blocks are kept; the block that it was for.
    pub(super) fn end_stale(&mut self, used: u64, kept: u64) -> Option<BlockId> {
        let oldest = self.0.first_entry()?;
        let comes = oldest.get().0.elapsed() < PATIENCE && used - oldest.key() < USES * kept;
        if comes { None } else { Some(oldest.remove().1) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbered as id;
    use super::*;

    #[test]
    fn the_oldest_wish_ends_first_by_uses_or_by_time() {
        let now = Instant::now();
        let mut wishes = Wishes::default();
        let first = wishes.make(1, id(1), now);
        wishes.make(2, id(2), now);
        assert_eq!(wishes.end_stale(4, 1), None);
        assert_eq!(wishes.end_stale(5, 1), Some(id(1)));
        assert_eq!(wishes.end_stale(5, 1), None, "each for itself");
        // Ended twice is ended.
        wishes.end(first);
        assert_eq!(wishes.end_stale(6, 1), Some(id(2)));
        if let Some(long_ago) = now.checked_sub(PATIENCE) {
            wishes.make(7, id(3), long_ago);
            assert_eq!(wishes.end_stale(7, 1000), Some(id(3)));
        }
        let met = wishes.make(8, id(4), now);
        wishes.end(met);
        assert_eq!(wishes.end_stale(1000, 1), None, "it was met");
    }
}
