//! Threads that hold blocks beside a daemon that uses their slots again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use tpad_handoff::{
    Directory, DirectoryView, Entry, Hazards, Held, NotHeld, Place, Retired, Uses, UsesView,
    Workers,
};

/// More than fit into the slots, so that every one of them moves.
const BLOCKS: u32 = 12;
const SLOTS: usize = 8;
/// So many that a slot which is written under its reader is seen torn.
const WORDS: usize = 64;
const MOVES: u64 = 20_000;
const READERS: usize = 4;
const READS: u32 = 1000;

/// What slots hold. A race is a wrong word here, which the threads look for.
type Slots = Vec<Vec<AtomicU64>>;

fn content(ordinal: u32, stay: u64) -> u64 {
    u64::from(ordinal) << 32 | stay & 0xffff_ffff
}

/// Reads all of a block that is held; the one word that all of it must be.
fn read<H: std::ops::Deref<Target = Hazards>>(slots: &Slots, held: &Held<H>) -> u64 {
    let slot = &slots[held.entry().place().slot() as usize];
    let first = slot[0].load(Ordering::Relaxed);
    for word in slot {
        assert_eq!(word.load(Ordering::Relaxed), first, "written under its reader");
    }
    first
}

#[test]
fn a_held_block_stays_as_it_is_while_slots_are_used_again() {
    let slots: Slots =
        (0..SLOTS).map(|_| (0..WORDS).map(|_| AtomicU64::new(0)).collect()).collect();
    let directory = Directory::create(BLOCKS, 1).expect("memory");
    let sent = |descriptor: std::os::fd::BorrowedFd<'_>| {
        descriptor.try_clone_to_owned().expect("a descriptor")
    };
    let workers = Workers::new();
    let uses = UsesView::create(BLOCKS, 1).expect("memory");
    let (reads, done) = (AtomicU32::new(0), AtomicBool::new(false));
    // Two connections of two threads each, which count uses in one place.
    let connections: Vec<_> = (0..2).map(|_| workers.admit(64, 1).expect("memory")).collect();
    let hazards: Vec<_> = connections
        .iter()
        .map(|worker| Arc::new(Hazards::receive(sent(worker.descriptor())).expect("hazards")))
        .collect();
    let counters = Uses::receive(sent(uses.descriptor())).expect("use counters");

    let mut waited = 0_u64;
    thread::scope(|scope| {
        let (slots, reads, done, counters) = (&slots, &reads, &done, &counters);
        let mut readers = Vec::new();
        for reader in 0..READERS {
            let view = DirectoryView::receive(sent(directory.descriptor())).expect("a directory");
            let hazards = Arc::clone(&hazards[reader % 2]);
            readers.push(scope.spawn(move || {
                let mut ordinal = u32::try_from(reader).expect("few");
                while !done.load(Ordering::Relaxed) {
                    ordinal = (ordinal + 5) % BLOCKS;
                    match Hazards::hold(Arc::clone(&hazards), &view, ordinal) {
                        Ok(held) => {
                            let found = read(slots, &held);
                            assert_eq!(found >> 32, u64::from(ordinal), "another block");
                            // For as long as it is held, whoever runs meanwhile.
                            thread::yield_now();
                            assert_eq!(read(slots, &held), found);
                            drop(held);
                            reads.fetch_add(1, Ordering::Relaxed);
                            counters.count(ordinal);
                        }
                        Err(NotHeld::Absent | NotHeld::Moving) => thread::yield_now(),
                        Err(error) => unreachable!("{error}"),
                    }
                }
            }));
        }

        let mut places: Vec<Option<(u32, Entry)>> = vec![None; SLOTS];
        let mut step = 0_u64;
        // At least so often, and until all have seen what they are here for.
        while step < MOVES || waited == 0 || reads.load(Ordering::Relaxed) < READS {
            if readers.iter().any(|reader| reader.is_finished()) {
                // It has found a fault: the scope tells when all are done.
                break;
            }
            step += 1;
            let slot = usize::try_from(step).expect("few") % SLOTS;
            if let Some((ordinal, entry)) = places[slot].take() {
                match workers.retire(&directory, ordinal, entry) {
                    Retired::Free => {}
                    Retired::Held => {
                        while workers.named().contains(entry.place()) {
                            waited += 1;
                            thread::yield_now();
                        }
                    }
                    Retired::Absent => unreachable!("this thread alone takes entries out"),
                }
            }
            let ordinal = u32::try_from(step * 7 % u64::from(BLOCKS)).expect("few");
            if directory.get(ordinal).is_some() {
                continue;
            }
            for word in &slots[slot] {
                word.store(content(ordinal, step), Ordering::Relaxed);
            }
            let place = Place::new(1, u32::try_from(slot).expect("few")).expect("24 bits");
            let entry = Entry::new(u16::try_from(step & 0xffff).expect("16 bits"), place);
            assert!(directory.publish(ordinal, entry).expect("it exists").is_none());
            places[slot] = Some((ordinal, entry));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(workers.named().places().is_empty());
    let mut used = 0;
    uses.drain(|_, uses| used += uses);
    assert!(used > 0 && used <= reads.into_inner(), "{used}");
}
