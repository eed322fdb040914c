use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{DEFAULT_CELLS, Retired, Worker, Workers};
use crate::directory::{Directory, DirectoryView};
use crate::entry::{Entry, Place};
use crate::error::Error;
use crate::hazards::{Hazards, Held, span};
use crate::memory::Memory;
use crate::protocol::NotHeld;

fn place(slot: u32) -> Place {
    Place::new(1, slot).expect("24 bits")
}

fn entry(slot: u32) -> Entry {
    Entry::new(1, place(slot))
}

fn sent(descriptor: BorrowedFd<'_>) -> OwnedFd {
    descriptor.try_clone_to_owned().expect("a descriptor")
}

fn directory(blocks: u32) -> (Directory, DirectoryView) {
    let directory = Directory::create(blocks, 5).expect("memory");
    let view = DirectoryView::receive(sent(directory.descriptor())).expect("a directory");
    for ordinal in 0..blocks {
        directory.publish(ordinal, entry(ordinal)).expect("it exists");
    }
    (directory, view)
}

fn admit(workers: &Arc<Workers>, cells: u32) -> (Worker, Hazards) {
    let worker = workers.admit(cells, 5).expect("memory");
    let hazards = Hazards::receive(sent(worker.descriptor())).expect("hazards");
    (worker, hazards)
}

#[test]
fn a_slot_is_free_when_the_last_of_its_readers_is_gone() {
    let workers = Workers::new();
    let (directory, view) = directory(2);
    let (_first, hazards) = admit(&workers, DEFAULT_CELLS);
    let (_second, others) = admit(&workers, DEFAULT_CELLS);
    assert_eq!((hazards.cells(), hazards.epoch()), (4096, 5));

    let held = Hazards::hold(&hazards, &view, 0).expect("it is there");
    let again = Hazards::hold(&hazards, &view, 0).expect("it is there");
    let theirs = Hazards::hold(&others, &view, 0).expect("it is there");
    assert_eq!(held.entry(), entry(0));
    assert_eq!(workers.retire(&directory, 0, entry(0)), Retired::Held);
    assert_eq!(Hazards::hold(&hazards, &view, 0).err(), Some(NotHeld::Absent));
    for held in [held, again, theirs] {
        assert!(workers.named().contains(place(0)));
        drop(held);
    }
    assert!(!workers.named().contains(place(0)));
    assert_eq!(workers.retire(&directory, 0, entry(0)), Retired::Absent);
    assert_eq!(workers.retire(&directory, 1, entry(1)), Retired::Free);
}

#[test]
fn what_is_held_outlives_who_asked_for_it() {
    let workers = Workers::new();
    let (_directory, view) = directory(1);
    let (worker, hazards) = admit(&workers, 8);
    let hazards = Arc::new(hazards);
    let held: Held<Arc<Hazards>> = Hazards::hold(Arc::clone(&hazards), &view, 0).expect("there");
    drop((hazards, view));
    let held = std::thread::spawn(move || held).join().expect("it only passes it on");
    assert_eq!(worker.named().places(), [place(0)]);
    drop(held);
    assert_eq!(worker.named().places(), []);
}

#[test]
fn who_holds_more_than_it_has_cells_is_told_and_finds_each_that_it_frees() {
    let workers = Workers::new();
    let (_directory, view) = directory(1);
    let (_worker, hazards) = admit(&workers, 100);
    let hold = || Hazards::hold(&hazards, &view, 0);
    let mut held: Vec<_> = (0..100).map(|_| hold().expect("a cell each")).collect();
    assert_eq!(hold().err(), Some(NotHeld::Full));
    drop(held.swap_remove(31));
    held.push(hold().expect("the one that was freed"));
    assert_eq!(hold().err(), Some(NotHeld::Full));
    drop(held);
    assert_eq!(workers.named().places(), []);

    let (_worker, none) = admit(&workers, 0);
    assert_eq!(Hazards::hold(&none, &view, 0).err(), Some(NotHeld::Full));
}

#[test]
fn a_worker_that_is_gone_holds_nothing() {
    let workers = Workers::new();
    let (directory, view) = directory(1);
    let (gone, hazards) = admit(&workers, 8);
    let (_stays, others) = admit(&workers, 8);
    let held = Hazards::hold(&hazards, &view, 0).expect("it is there");
    let theirs = Hazards::hold(&others, &view, 0).expect("it is there");
    assert_eq!(workers.retire(&directory, 0, entry(0)), Retired::Held);
    drop(gone);
    assert!(workers.named().contains(place(0)), "of the other");
    drop(theirs);
    assert!(!workers.named().contains(place(0)));
    drop(held);
}

#[test]
fn hazards_that_are_none_are_refused() {
    let (directory, _) = directory(1);
    let refused = Hazards::receive(sent(directory.descriptor())).err();
    // A directory cannot even be mapped to be written.
    assert!(matches!(refused, Some(Error::System { .. })), "{refused:?}");
    let worker = Workers::new().admit(8, 0).expect("memory");
    let refused = DirectoryView::receive(sent(worker.descriptor())).err();
    assert!(matches!(refused, Some(Error::Foreign { .. })), "{refused:?}");
}

proptest! {
    /// Whatever a worker writes over everything that it can write, header included.
    #[test]
    fn any_words_of_a_worker_name_only_what_they_name(
        words in prop::collection::vec(prop_oneof![any::<u64>(), 0_u64..1 << 26, Just(u64::MAX)], 1..40),
    ) {
        let workers = Workers::new();
        let (directory, view) = directory(1);
        let (worker, hazards) = admit(&workers, 300);
        drop((Hazards::hold(&hazards, &view, 0).expect("it is there"), view));
        let memory = Memory::receive(crate::Kind::Hazards, sent(worker.descriptor())).expect("it");
        let words: Vec<u64> = words.iter().copied().cycle().take(1024).collect();
        for (word, value) in memory.words(0..1024).expect("two pages").iter().zip(&words) {
            word.store(*value, Ordering::Relaxed);
        }

        let is_place = |word: &u64| word >> 48 == 0 && word >> 24 != 0;
        let cells = words[span(300)].iter().copied();
        let places: BTreeSet<u64> = cells.filter(is_place).collect();
        let named = workers.named();
        let found: Vec<u64> = named.places().iter().map(|place| place.word()).collect();
        prop_assert_eq!(&found, &places.iter().copied().collect::<Vec<_>>());
        prop_assert!(named.places().iter().all(|place| named.contains(*place)));

        // It keeps what it names, and nobody else's loss.
        let kept = places.contains(&place(0).word());
        let expected = if kept { Retired::Held } else { Retired::Free };
        prop_assert_eq!(workers.retire(&directory, 0, entry(0)), expected);
        drop(worker);
        prop_assert!(workers.named().places().is_empty());
    }
}
