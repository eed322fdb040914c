use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

#[test]
fn a_slot_is_free_again_when_the_last_reader_is_gone() {
    let arena = Arena::new(MIB as u64);
    let mut slot = arena.slot(MIB).expect("mapped").expect("room");
    slot.fill(7);
    assert!(arena.slot(1).expect("mapped").is_none());
    let block = slot.freeze();
    let bytes = block.to_bytes();
    let slice = bytes.slice(5..9);
    drop((block, bytes));
    assert!(arena.slot(1).expect("mapped").is_none(), "a slice holds the slot");
    assert_eq!(&slice[..], [7; 4]);
    drop(slice);
    assert_eq!(arena.usage().held, 0);
    assert!(arena.slot(MIB).expect("mapped").is_some());
}

#[test]
fn bytes_are_the_slot_and_not_a_copy() {
    let arena = Arena::new(MIB as u64);
    let block = arena.slot(10_000).expect("mapped").expect("room").freeze();
    let address = block.as_ptr();
    assert_eq!(address as usize % 4096, 0);
    assert_eq!(block.to_bytes().slice(100..).as_ptr(), address.wrapping_add(100));
    assert_eq!(block.to_bytes().len(), 10_000);
    assert_eq!(block.padded().len(), 12_288);
}

#[test]
fn what_an_earlier_block_left_behind_an_image_is_wiped() {
    let arena = Arena::new(4096);
    let mut slot = arena.slot(4096).expect("mapped").expect("room");
    slot.fill(0xEE);
    drop(slot);
    let mut slot = arena.slot(10).expect("mapped").expect("room");
    assert_eq!(slot.padded_mut()[4095], 0xEE, "the slot was used before");
    slot.fill(1);
    let block = slot.freeze();
    assert_eq!(block.padded()[10..], [0; 4086]);
}

#[test]
fn an_empty_slab_gives_way_to_another_size() {
    let arena = Arena::new(4 * MIB as u64);
    let mut slots = Vec::new();
    while let Some(slot) = arena.slot(4096).expect("mapped") {
        slots.push(slot);
    }
    assert_eq!(slots.len(), 1024);
    assert!(arena.slot(MIB).expect("mapped").is_none());
    drop(slots);
    assert!(arena.slot(4 * MIB).expect("mapped").is_some(), "all slabs are given up");
    assert!(arena.slot(4 * MIB + 1).expect("mapped").is_none(), "more than there is");
}

#[test]
fn a_condemned_slab_gives_no_slots() {
    let arena = Arena::new(2 * MIB as u64);
    let first = arena.slot(MIB).expect("mapped").expect("room");
    let second = arena.slot(MIB).expect("mapped").expect("room").freeze();
    arena.condemn(&[second.slab()], true);
    drop(second);
    let other_size = arena.slot(4096).expect("mapped").expect("the condemned slab's room");
    drop(other_size);
    drop(first);
}

#[test]
fn a_reservation_that_is_dropped_gives_its_room_back() {
    let arena = Arena::new(MIB as u64);
    let Grant::Map(reserved) = arena.grant(MIB) else { panic!("nothing is mapped") };
    assert!(matches!(arena.grant(MIB), Grant::Short));
    drop(reserved);
    assert!(matches!(arena.grant(MIB), Grant::Map(_)));
}

#[test]
fn a_block_says_where_it_lies_and_what_is_there() {
    let arena = Arena::new(MIB as u64);
    let mut slots: Vec<_> =
        (0..3u8).map(|_| arena.slot(5000).expect("mapped").expect("room")).collect();
    for (n, slot) in (1..).zip(&mut slots) {
        slot.fill(n);
    }
    let blocks: Vec<BlockBytes> = slots.into_iter().map(SlotMut::freeze).collect();
    for (n, block) in (1..).zip(&blocks) {
        let place = block.place();
        assert_eq!((place.slot_bytes, place.offset % 4096), (8192, 0));
        let slab = block.shared_slab();
        assert_eq!(slab.id(), place.slab);
        assert!(place.offset + place.slot_bytes <= slab.bytes());
        let file = std::fs::File::from(slab.descriptor().expect("a descriptor"));
        assert_eq!(file.metadata().expect("a size").len(), slab.bytes());
        let mut there = [0; 5000];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut there, place.offset).expect("read");
        assert_eq!(there, [n; 5000]);
    }
}

#[test]
fn what_another_process_has_mapped_is_wanted_and_not_given_up() {
    let arena = Arena::new(2 * MIB as u64);
    let mut wanted = arena.watch_wanted();
    let shared = {
        let block = arena.slot(MIB).expect("mapped").expect("room").freeze();
        (block.shared_slab(), block.shared_slab())
    };
    assert!(arena.slot(MIB).expect("mapped").is_some(), "slots of it are given out");
    assert!(arena.slot(MIB / 2).expect("mapped").is_some(), "there is room for a slab");
    assert_eq!(shared.0.wanted_since(), None);
    assert!(arena.slot(2 * MIB).expect("mapped").is_none());
    let since = shared.0.wanted_since().expect("it is in the way");
    assert_eq!(shared.1.wanted_since(), Some(since));
    assert!(wanted.has_changed().expect("the arena lives"));
    wanted.mark_unchanged();
    assert!(arena.slot(2 * MIB).expect("mapped").is_none());
    assert!(!wanted.has_changed().expect("the arena lives"), "it is told once");

    // In use again, it is in nobody's way.
    let block = arena.slot(MIB).expect("mapped").expect("it has a slot").freeze();
    assert_eq!(shared.0.wanted_since(), None);
    assert_eq!(block.place().slab, shared.0.id());
    drop(block);
    assert!(arena.slot(2 * MIB).expect("mapped").is_none());
    assert!(wanted.has_changed().expect("the arena lives"), "wanted anew");

    drop(shared.0);
    assert!(arena.slot(2 * MIB).expect("mapped").is_none(), "one process has it");
    drop(shared.1);
    assert!(arena.slot(2 * MIB).expect("mapped").is_some());
}

#[test]
fn an_observer_lets_go_of_a_slab_before_it_is_unmapped() {
    use std::ptr::NonNull;
    use std::sync::atomic::AtomicU64;

    /// The bytes that are observed.
    #[derive(Debug, Default)]
    struct Watched(Arc<AtomicU64>);
    struct Seen(Arc<AtomicU64>, usize, u64);
    impl SlabObserver for Watched {
        fn mapped(&self, start: NonNull<u8>, bytes: usize) -> Box<dyn std::any::Any + Send + Sync> {
            self.0.fetch_add(bytes as u64, Ordering::SeqCst);
            Box::new(Seen(Arc::clone(&self.0), start.addr().get(), bytes as u64))
        }
    }
    impl Drop for Seen {
        fn drop(&mut self) {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("a list");
            let there = maps.lines().any(|line| line.starts_with(&format!("{:x}-", self.1)));
            assert!(there, "it is still mapped");
            self.0.fetch_sub(self.2, Ordering::SeqCst);
        }
    }

    let (arena, watched) = (Arena::new(4 * MIB as u64), Watched::default());
    let bytes = Arc::clone(&watched.0);
    assert!(arena.observe(Arc::new(watched)));
    assert!(!arena.observe(Arc::new(Watched::default())), "there can be one");
    let slots: Vec<_> = (0..4).map(|_| arena.slot(MIB).expect("mapped").expect("room")).collect();
    assert_eq!(bytes.load(Ordering::SeqCst), arena.usage().mapped);
    drop(slots);
    let whole = arena.slot(4 * MIB).expect("mapped").expect("the others are given up");
    assert_eq!(bytes.load(Ordering::SeqCst), arena.usage().mapped);
    drop((whole, arena));
    assert_eq!(bytes.load(Ordering::SeqCst), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Freeze(usize),
    Drop(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is taken, frozen and dropped, in whatever order: no slot is
    /// given out twice, nothing is written over, and the capacity holds.
    #[test]
    fn no_schedule_mixes_slots(
        steps in prop::collection::vec(prop_oneof![
            4 => prop_oneof![1usize..40_000, Just(1), Just(4096), Just(300_000)].prop_map(Step::Take),
            2 => any::<usize>().prop_map(Step::Freeze),
            3 => any::<usize>().prop_map(Step::Drop),
        ], 1..200),
    ) {
        enum Held { Mine(SlotMut), Shared(BlockBytes, Bytes) }
        use bytes::Bytes;
        let arena = Arena::new(MIB as u64);
        let mut held: Vec<(u8, Held)> = Vec::new();
        let mut mark = 0u8;
        for step in steps {
            match step {
                Step::Take(bytes) => {
                    mark = mark.wrapping_add(1);
                    if let Some(mut slot) = arena.slot(bytes).expect("mapped") {
                        slot.fill(mark);
                        held.push((mark, Held::Mine(slot)));
                    }
                }
                Step::Freeze(n) if !held.is_empty() => {
                    let n = n % held.len();
                    let (mark, slot) = held.swap_remove(n);
                    let slot = match slot {
                        Held::Mine(slot) => {
                            let block = slot.freeze();
                            let bytes = block.to_bytes();
                            Held::Shared(block, bytes)
                        }
                        shared => shared,
                    };
                    held.push((mark, slot));
                }
                Step::Drop(n) if !held.is_empty() => {
                    let n = n % held.len();
                    held.swap_remove(n);
                }
                _ => {}
            }
            let usage = arena.usage();
            prop_assert!(usage.mapped <= usage.capacity && usage.held <= usage.mapped, "{usage:?}");
        }
        for (mark, slot) in &held {
            let intact = match slot {
                Held::Mine(slot) => slot.iter().all(|byte| byte == mark),
                Held::Shared(block, bytes) => block.iter().chain(bytes).all(|byte| byte == mark),
            };
            prop_assert!(intact);
        }
        held.clear();
        prop_assert_eq!(arena.usage().held, 0);
    }
}
