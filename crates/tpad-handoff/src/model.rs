//! The protocol in every order that threads and memory may give it.
//!
//! loom runs each scene in all interleavings, and lets each load see all that the
//! memory model allows. A slot's bytes are a cell that loom watches: an access that
//! no order keeps apart from a write is an error, as is a block that is not the one
//! asked for. `protocol.rs` is compiled as it is, on loom's atomics. Each of its
//! orders is then taken away, one at a time, and the scenes have to notice.
#![expect(unsafe_code, reason = "what threads share here is shared by hand, to be checked")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use crate::entry::{Entry, Place};
use crate::protocol::{before_scan, clear, hold, publish, scan, unpublish};
use crate::sync::{AtomicU64, Ordering, Pillar};

thread_local! {
    /// What is taken away. loom runs all threads of a scene on one of the system's.
    static WITHOUT: Cell<Option<Pillar>> = const { Cell::new(None) };
}

/// Whether this run has an order of the protocol.
pub(crate) fn stands(pillar: Pillar) -> bool {
    WITHOUT.get() != Some(pillar)
}

/// Which block's bytes a slot has.
type Block = u32;

const A: Block = 0;
const B: Block = 1;

/// One slot, a directory of two blocks that both fit into it, and a worker's cells.
struct Node {
    words: [AtomicU64; 2],
    cells: Vec<AtomicU64>,
    slot: UnsafeCell<Block>,
}

// SAFETY: the words and cells are atomics, and that accesses to the slot are kept
// apart is what loom checks.
unsafe impl Sync for Node {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Node {}

fn entry(version: u16) -> Entry {
    Entry::new(version, Place::new(1, 0).expect("24 bits"))
}

impl Node {
    /// Block A is in the slot and published.
    fn new(cells: usize) -> Arc<Self> {
        let word = |_| AtomicU64::new(0);
        let node = Self {
            words: [0, 1].map(word),
            cells: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            slot: UnsafeCell::new(A),
        };
        publish(&node.words[A as usize], entry(1));
        Arc::new(node)
    }

    /// A worker's thread: reads a block if it finds one.
    fn read(&self, block: Block, start: usize) {
        let look = || self.words[block as usize].load(Ordering::Relaxed);
        let Ok((held, cell)) = hold(look, &self.cells, start) else { return };
        assert_eq!(held.place(), entry(0).place());
        // SAFETY: loom checks that nobody writes.
        let found = self.slot.with(|slot| unsafe { *slot });
        assert_eq!(found, block, "another block");
        clear(&self.cells[cell]);
    }

    /// The daemon: uses the slot for another block, unless it is read.
    fn reuse(&self, old: (Block, Entry), new: (Block, Entry)) -> bool {
        assert!(unpublish(&self.words[old.0 as usize], old.1), "it was published");
        self.reuse_if_free(new)
    }

    fn reuse_if_free(&self, (block, entry): (Block, Entry)) -> bool {
        before_scan();
        if scan(&self.cells).any(|place| place == entry.place()) {
            return false;
        }
        // SAFETY: loom checks that nobody reads or writes.
        self.slot.with_mut(|slot| unsafe { *slot = block });
        publish(&self.words[block as usize], entry);
        true
    }
}

/// Threads of a worker that read A, beside the daemon, which puts B in its place.
fn readers(node: &Arc<Node>, count: usize) {
    let reader = |_| {
        let node = Arc::clone(node);
        thread::spawn(move || node.read(A, 0))
    };
    let readers: Vec<_> = (0..count).map(reader).collect();
    node.reuse((A, entry(1)), (B, entry(2)));
    for reader in readers {
        reader.join().expect("it does not panic");
    }
}

/// A worker reads A, then B; the daemon puts B where A was.
fn another_block_comes() {
    let node = Node::new(1);
    let worker = {
        let node = Arc::clone(&node);
        thread::spawn(move || {
            node.read(A, 0);
            node.read(B, 0);
        })
    };
    node.reuse((A, entry(1)), (B, entry(2)));
    worker.join().expect("it does not panic");
}

/// What was retired, also while it was read, comes back with the very word that it
/// had: versions come round.
fn the_same_word_comes_again() {
    let node = Node::new(1);
    let worker = {
        let node = Arc::clone(&node);
        thread::spawn(move || node.read(A, 0))
    };
    let again = (A, entry(1));
    let _ = node.reuse(again, again) || node.reuse_if_free(again);
    worker.join().expect("it does not panic");
}

/// Two threads of a worker look for cells from the same one on.
fn two_threads_find_two_cells() {
    readers(&Node::new(2), 2);
}

/// Two threads of a worker take turns with one cell: what the daemon finds there
/// after the second must speak for the first as well.
fn two_threads_take_turns() {
    readers(&Node::new(1), 2);
}

/// Runs a scene in every order, without one of the protocol's.
fn check(scene: fn(), without: Option<Pillar>) -> std::thread::Result<()> {
    WITHOUT.set(without);
    let result = catch_unwind(AssertUnwindSafe(|| Builder::new().check(scene)));
    WITHOUT.set(None);
    result
}

#[test]
fn no_slot_is_written_under_its_reader_when_another_block_comes() {
    assert!(check(another_block_comes, None).is_ok());
}

#[test]
fn no_slot_is_written_under_its_reader_when_the_same_word_comes_again() {
    assert!(check(the_same_word_comes_again, None).is_ok());
}

#[test]
fn no_slot_is_written_under_two_readers_with_two_cells() {
    assert!(check(two_threads_find_two_cells, None).is_ok());
}

#[test]
fn no_slot_is_written_under_two_readers_with_one_cell() {
    assert!(check(two_threads_take_turns, None).is_ok());
}

/// Each of them alone brings a slot to be written while it is read, which also
/// shows that these scenes would notice.
#[test]
fn every_order_of_the_protocol_is_needed() {
    let needed: [(Pillar, fn()); 6] = [
        (Pillar::WorkerFence, another_block_comes),
        (Pillar::DaemonFence, another_block_comes),
        (Pillar::Publish, another_block_comes),
        // The worker's fence does this as well, but for a word that came round.
        (Pillar::Look, the_same_word_comes_again),
        (Pillar::Clear, another_block_comes),
        (Pillar::Scan, another_block_comes),
    ];
    for (pillar, scene) in needed {
        let found = check(scene, Some(pillar)).expect_err(&format!("{pillar:?} is not needed"));
        let words = found.downcast_ref::<String>().map_or("", String::as_str);
        assert!(words.starts_with("Causality violation"), "without {pillar:?}: {words}");
    }
}
