use std::collections::HashMap;
use std::sync::Mutex;

use tpad_handoff::{DirectoryView, Hazards, NotHeld};

use super::*;
use crate::{BlockBytes, SlotDirectory};

const SLOT: usize = 4096;

/// A worker with a directory.
struct Reader {
    hazards: Hazards,
    view: DirectoryView,
    admitted: SlotReader,
}

fn reader(arena: &Arc<Arena>, directory: &SlotDirectory) -> Reader {
    let admitted = SlotReader::admit(arena, 1).expect("memory");
    let hazards = Hazards::receive(admitted.descriptor().expect("a descriptor")).expect("cells");
    let view = DirectoryView::receive(directory.descriptor().expect("a descriptor"));
    Reader { hazards, view: view.expect("a directory"), admitted }
}

fn block(arena: &Arc<Arena>) -> Option<BlockBytes> {
    Some(arena.slot(SLOT).expect("mapped")?.freeze())
}

#[test]
fn a_slot_that_a_worker_reads_is_free_when_it_reads_no_more() {
    let arena = Arena::new(SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let worker = reader(&arena, &directory);
    let bytes = block(&arena).expect("room");
    let place = bytes.place();
    assert!(directory.publish(2, &bytes) && directory.publish(2, &bytes));
    let held = Hazards::hold(&worker.hazards, &worker.view, 2).expect("it is there");
    assert_eq!(u64::from(held.entry().place().slab()), place.slab);
    assert_eq!(worker.admitted.places(), [place]);

    // Evicted: nobody finds it any more, and its slot is not given to another.
    drop(bytes);
    assert_eq!(worker.view.get(2), None);
    arena.free_what_nobody_reads();
    assert!(block(&arena).is_none(), "the worker reads it");
    assert_eq!((arena.usage().held, arena.read_on_bytes()), (SLOT as u64, SLOT as u64));
    drop(held);
    assert!(block(&arena).is_none(), "the worker does not tell");
    arena.free_what_nobody_reads();
    assert_eq!((arena.usage().held, arena.read_on_bytes()), (0, 0));
    assert!(block(&arena).is_some());
}

#[test]
fn what_nobody_reads_is_free_at_once_and_out_of_every_directory() {
    let arena = Arena::new(SLOT as u64);
    let one = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let two = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let worker = reader(&arena, &one);
    let bytes = block(&arena).expect("room");
    assert!(one.publish(0, &bytes) && one.publish(3, &bytes) && two.publish(1, &bytes));
    drop(bytes);
    assert!(!one.has(0) && !one.has(3) && !two.has(1));
    let refused = Hazards::hold(&worker.hazards, &worker.view, 0).map(drop);
    assert_eq!(refused, Err(NotHeld::Absent));
    assert!(block(&arena).is_some());
}

#[test]
fn a_worker_that_is_gone_reads_nothing() {
    let arena = Arena::new(SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let worker = reader(&arena, &directory);
    let bytes = block(&arena).expect("room");
    assert!(directory.publish(0, &bytes));
    let held = Hazards::hold(&worker.hazards, &worker.view, 0).expect("it is there");
    drop(bytes);
    std::mem::forget(held);
    drop(worker.admitted);
    assert!(block(&arena).is_some());
}

#[test]
fn a_block_that_came_back_elsewhere_is_published_there() {
    let arena = Arena::new(2 * SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), 1, 1).expect("memory");
    let worker = reader(&arena, &directory);
    let (old, new) = (block(&arena).expect("room"), block(&arena).expect("room"));
    assert!(directory.publish(0, &old));
    let held = Hazards::hold(&worker.hazards, &worker.view, 0).expect("it is there");
    assert!(directory.publish(0, &new));
    let again = Hazards::hold(&worker.hazards, &worker.view, 0).expect("it is there");
    assert_ne!(held.entry().place(), again.entry().place());
    drop(old);
    assert!(directory.has(0), "the end of the old slot takes nothing of the new one");
    assert_eq!(arena.read_on_bytes(), SLOT as u64);
    drop((held, again, new));
    assert!(!directory.has(0));
    arena.free_what_nobody_reads();
    assert_eq!(arena.usage().held, 0);
}

#[test]
fn a_closed_directory_is_empty_for_good_and_its_blocks_stay_where_they_are_read() {
    let arena = Arena::new(SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let other = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let worker = reader(&arena, &directory);
    let bytes = block(&arena).expect("room");
    assert!(directory.publish(0, &bytes) && other.publish(0, &bytes));
    let held = Hazards::hold(&worker.hazards, &worker.view, 0).expect("it is there");
    directory.close();
    assert!(!directory.has(0) && !directory.publish(0, &bytes) && other.has(0));
    drop((bytes, directory));
    assert!(block(&arena).is_none(), "it is read");
    drop(held);
    arena.free_what_nobody_reads();
    assert!(block(&arena).is_some());
}

#[test]
fn while_directories_are_shut_nothing_is_found_in_them() {
    let arena = Arena::new(SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    let worker = reader(&arena, &directory);
    let bytes = block(&arena).expect("room");
    assert!(directory.publish(0, &bytes));
    let held = Hazards::hold(&worker.hazards, &worker.view, 0).expect("it is there");
    arena.open_directories(false);
    assert!(!directory.has(0) && !directory.publish(0, &bytes));
    drop(bytes);
    assert!(block(&arena).is_none(), "it is read, though it is in no directory");
    drop(held);
    arena.free_what_nobody_reads();
    let bytes = block(&arena).expect("it is free");
    arena.open_directories(true);
    assert!(directory.publish(0, &bytes));
}

#[test]
fn blocks_of_another_arena_are_not_published() {
    let (arena, other) = (Arena::new(SLOT as u64), Arena::new(SLOT as u64));
    let directory = SlotDirectory::create(arena.readers(), 4, 1).expect("memory");
    assert!(!directory.publish(0, &block(&other).expect("room")));
    assert!(!directory.publish(4, &block(&arena).expect("room")), "there is no ordinal 4");
}

/// Blocks come, are published, read and evicted at random, by two workers' threads
/// beside the daemon's: what is held never changes.
#[test]
fn a_held_slot_keeps_its_bytes_whatever_comes_and_goes() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const ORDINALS: u32 = 8;
    let arena = Arena::new(12 * SLOT as u64);
    let directory = SlotDirectory::create(arena.readers(), ORDINALS, 1).expect("memory");
    let (stop, held) = (AtomicBool::new(false), AtomicU64::new(0));
    /// Tells the daemon's thread of a reader's panic.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    // Only these threads have them: a slab of this arena is read through what it maps.
    let first = block(&arena).expect("room");
    let mapped = Mutex::new(HashMap::from([(first.place().slab, first.shared_slab())]));
    drop(first);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let worker = reader(&arena, &directory);
            let (stop, held, mapped) = (&stop, &held, &mapped);
            scope.spawn(move || {
                // All of it: its cells count as long as it lives.
                let (worker, _ends) = (worker, Ends(stop));
                let mut files = HashMap::new();
                let mut at = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let ordinal = (at >> 16) % ORDINALS;
                    let hold = Hazards::hold(&worker.hazards, &worker.view, ordinal);
                    let Ok(hold) = hold else { continue };
                    let place = hold.entry().place();
                    let file = files.entry(place.slab()).or_insert_with(|| {
                        let mapped = mapped.lock().expect("nobody panicked");
                        mapped[&u64::from(place.slab())].descriptor().expect("a descriptor")
                    });
                    let mut bytes = [0; SLOT];
                    let offset = u64::from(place.slot()) * SLOT as u64;
                    rustix::io::pread(&*file, &mut bytes, offset).expect("it is memory");
                    let expected = u8::try_from(ordinal).expect("small");
                    assert!(bytes.iter().all(|byte| *byte == expected), "of {ordinal}");
                    held.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut kept = std::collections::VecDeque::new();
        let mut rounds = 0_u32;
        while held.load(Ordering::Relaxed) < 20_000 && !stop.load(Ordering::Relaxed) {
            rounds += 1;
            let ordinal = rounds.wrapping_mul(2_654_435_761) >> 16 & 7;
            let slot = arena.slot(SLOT).expect("mapped");
            let Some(mut slot) = slot else {
                kept.pop_front();
                arena.free_what_nobody_reads();
                continue;
            };
            slot.fill(u8::try_from(ordinal).expect("small"));
            let bytes = slot.freeze();
            mapped
                .lock()
                .expect("nobody panicked")
                .entry(bytes.place().slab)
                .or_insert_with(|| bytes.shared_slab());
            assert!(directory.publish(ordinal, &bytes));
            kept.push_back(bytes);
            if kept.len() > 6 {
                kept.pop_front();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(held.load(Ordering::Relaxed) >= 20_000);
    arena.free_what_nobody_reads();
    assert_eq!(arena.read_on_bytes(), 0);
}
