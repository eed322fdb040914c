//! Who may touch a slot, as steps on words of shared memory.
//!
//! | a worker holds a block                | the daemon retires one           |
//! |---------------------------------------|----------------------------------|
//! | look at the block's word: its place   | take the entry out of the word   |
//! | name the place in a free cell         | full fence                       |
//! | full fence                            | look at every cell               |
//! | look again: the same word? it is held | none names the place? it is free |
//!
//! Of the two fences one is first. If it is the worker's, the daemon sees the
//! cell; if it is the daemon's, the worker sees that the entry is gone.
//! `docs/handoff.md` has the whole argument, `model.rs` checks it.

use thiserror::Error;

use crate::entry::{Entry, Place};
use crate::sync::{AtomicU64, Ordering, Pillar, acquire_fence, full_fence, order};

/// How often a block may move between the two looks before [`hold`] gives up. It
/// moves once in a fill's time, thousands of times as long as an attempt takes.
const ATTEMPTS: usize = 8;

/// Why a block is not held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotHeld {
    /// The directory has no place for it: the daemon is to be asked for it.
    #[error("the block has no place in shared memory")]
    Absent,
    /// It moved at every attempt: as if it were absent.
    #[error("the block does not stay in one place")]
    Moving,
    /// Every cell is in use: the daemon may be asked for a copy, and this worker
    /// holds more at once than it was given cells for.
    #[error("every hazard cell is in use")]
    Full,
    /// This process is a child of the one that mapped the memory, and has none
    /// of it: it needs a connection of its own.
    #[error("the memory is that of the parent process")]
    Child,
}

/// Makes sure that the slot that `look` names stays as it is until its cell is
/// cleared; the entry and the cell's index. `look` is a relaxed load of the
/// block's word, which may lie in memory that cannot be written: all that it may
/// be there is a relaxed load. Cells are tried from `start` on.
pub(crate) fn hold(
    look: impl Fn() -> u64,
    cells: &[AtomicU64],
    start: usize,
) -> Result<(Entry, usize), NotHeld> {
    let mut word = look();
    for _ in 0..ATTEMPTS {
        let entry = Entry::from_word(word).ok_or(NotHeld::Absent)?;
        let (index, cell) = claim(cells, start, entry.place()).ok_or(NotHeld::Full)?;
        full_fence(Pillar::WorkerFence);
        let again = look();
        if again == word {
            // The load is the one that found the entry: what was written before
            // that was published is seen from here on.
            acquire_fence(Pillar::Look);
            return Ok((entry, index));
        }
        clear(cell);
        word = again;
    }
    Err(NotHeld::Moving)
}

/// Names a place in the first free cell, from `start` on and around.
fn claim(cells: &[AtomicU64], start: usize, place: Place) -> Option<(usize, &AtomicU64)> {
    let start = if start < cells.len() { start } else { start.checked_rem(cells.len())? };
    let (before, after) = cells.split_at(start);
    let after = after.iter().enumerate().map(|(n, cell)| (start + n, cell));
    after.chain(before.iter().enumerate()).find(|(_, cell)| {
        // A look first: a failed exchange would take the line from its owner.
        let free = cell.load(Ordering::Relaxed) == 0;
        let claimed =
            || cell.compare_exchange(0, place.word(), Ordering::Relaxed, Ordering::Relaxed);
        free && claimed().is_ok()
    })
}

/// Gives up what the cell names, and the cell.
pub(crate) fn clear(cell: &AtomicU64) {
    cell.store(0, order(Pillar::Clear, Ordering::Release));
}

/// Says where a block lies, whose bytes are all written; the entry that was there.
pub(crate) fn publish(word: &AtomicU64, entry: Entry) -> Option<Entry> {
    Entry::from_word(word.swap(entry.word(), order(Pillar::Publish, Ordering::Release)))
}

/// Takes an entry out of its word; whether it was there.
pub(crate) fn unpublish(word: &AtomicU64, entry: Entry) -> bool {
    // The fence in `named` orders it.
    word.compare_exchange(entry.word(), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Before the daemon looks at hazards for what it has unpublished.
pub(crate) fn before_scan() {
    full_fence(Pillar::DaemonFence);
}

/// Every place that one worker's cells name, after [`before_scan`]. What a cell
/// holds besides places is passed over.
pub(crate) fn scan(cells: &[AtomicU64]) -> impl Iterator<Item = Place> {
    let look = |cell: &AtomicU64| cell.load(order(Pillar::Scan, Ordering::Acquire));
    cells.iter().filter_map(move |cell| Place::from_word(look(cell)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cells(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    fn entry(version: u16) -> Entry {
        Entry::new(version, Place::new(1, u32::from(version)).expect("small"))
    }

    #[test]
    fn a_held_block_is_named_until_its_cell_is_cleared() {
        let (word, cells) = (AtomicU64::new(0), cells(4));
        let look = || word.load(Ordering::Relaxed);
        assert_eq!(hold(look, &cells, 0), Err(NotHeld::Absent));
        assert_eq!(publish(&word, entry(1)), None);
        assert_eq!(hold(look, &cells, 2), Ok((entry(1), 2)));
        assert_eq!(scan(&cells).collect::<Vec<_>>(), [entry(1).place()]);
        clear(&cells[2]);
        assert_eq!(scan(&cells).count(), 0);
    }

    #[test]
    fn cells_are_tried_around_and_a_full_table_says_so() {
        let (word, cells) = (AtomicU64::new(entry(1).word()), cells(3));
        let look = || word.load(Ordering::Relaxed);
        let held: Vec<_> = (0..3).map(|_| hold(look, &cells, 7).map(|(_, index)| index)).collect();
        assert_eq!(held, [Ok(1), Ok(2), Ok(0)]);
        assert_eq!(hold(look, &cells, usize::MAX), Err(NotHeld::Full));
        assert_eq!(hold(look, &[], 0), Err(NotHeld::Full));
        clear(&cells[2]);
        assert_eq!(hold(look, &cells, 1), Ok((entry(1), 2)));
    }

    #[test]
    fn a_block_that_moves_between_the_looks_is_held_where_it_went() {
        let cells = cells(4);
        let looks = std::cell::Cell::new(0_u16);
        let look = || {
            looks.set(looks.get() + 1);
            entry(looks.get().min(3)).word()
        };
        assert_eq!(hold(look, &cells, 0), Ok((entry(3), 0)));
        assert_eq!(scan(&cells).collect::<Vec<_>>(), [entry(3).place()]);
        clear(&cells[0]);

        // It moves for ever, or goes.
        let look = || {
            looks.set(looks.get() + 1);
            entry(looks.get()).word()
        };
        assert_eq!(hold(look, &cells, 0), Err(NotHeld::Moving));
        let look = || {
            looks.set(looks.get() + 1);
            if looks.get().is_multiple_of(2) { entry(1).word() } else { 0 }
        };
        looks.set(1);
        assert_eq!(hold(look, &cells, 0), Err(NotHeld::Absent));
        assert_eq!(scan(&cells).count(), 0, "no cell is left behind");
    }

    #[test]
    fn only_the_entry_that_is_there_is_unpublished() {
        let word = AtomicU64::new(0);
        assert!(!unpublish(&word, entry(1)));
        publish(&word, entry(1));
        assert_eq!(publish(&word, entry(2)), Some(entry(1)));
        assert!(!unpublish(&word, entry(1)));
        assert!(unpublish(&word, entry(2)));
        assert!(!unpublish(&word, entry(2)));
    }
}
