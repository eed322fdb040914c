use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use proptest::prelude::*;

use super::*;

fn sent(descriptor: BorrowedFd<'_>) -> OwnedFd {
    descriptor.try_clone_to_owned().expect("a descriptor")
}

fn both(count: u32) -> (UsesView, Uses) {
    let view = UsesView::create(count, 0).expect("memory");
    let uses = Uses::receive(sent(view.descriptor())).expect("use counters");
    (view, uses)
}

fn drained(view: &UsesView) -> Vec<(u32, u32)> {
    let mut drained = Vec::new();
    view.drain(|ordinal, uses| drained.push((ordinal, uses)));
    drained
}

#[test]
fn what_a_worker_counts_is_taken_once() {
    let (view, uses) = both(100_000);
    for ordinal in [99_999, 0, 511, 512, 0] {
        uses.count(ordinal);
    }
    assert_eq!(drained(&view), [(0, 2), (511, 1), (512, 1), (99_999, 1)]);
    assert_eq!(drained(&view), []);
    uses.count(7);
    assert_eq!(drained(&view), [(7, 1)]);
}

#[test]
fn ordinals_that_do_not_exist_are_not_counted() {
    for count in [0, 1, 511, 512, 513] {
        let (view, uses) = both(count);
        uses.count(count);
        uses.count(u32::MAX);
        assert_eq!(drained(&view), []);
        let last = count.checked_sub(1);
        last.into_iter().for_each(|last| uses.count(last));
        assert_eq!(drained(&view), Vec::from_iter(last.map(|last| (last, 1))));
    }
}

#[test]
fn counting_at_once_loses_nothing() {
    let (view, uses) = both(2000);
    let mut found = BTreeMap::new();
    let mut take = || view.drain(|ordinal, uses| *found.entry(ordinal).or_insert(0) += uses);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..20_000).for_each(|n| uses.count(n % 2000))))
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            take();
        }
    });
    // What a bit that was seen too early kept back comes with the next use.
    (0..2000).for_each(|ordinal| uses.count(ordinal));
    take();
    assert!((0..2000).all(|ordinal| found.get(&ordinal) == Some(&41)), "{found:?}");
}

#[test]
fn a_drain_reads_a_bounded_part_and_goes_on_there() {
    // Room for three drains, all of it said to be used.
    let count = 3 * GROUPS_PER_DRAIN * GROUP;
    let (view, uses) = both(count);
    let last = count - 1;
    uses.count(last);
    let summary = uses.memory.words(uses.layout.summary.clone()).expect("the summary");
    let set = || summary.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    set();
    let mut rounds = 0;
    while drained(&view).is_empty() {
        // Those before are set again and again, and get no more turns for it.
        set();
        rounds += 1;
        assert!(rounds < 3, "the last group never has its turn");
    }
    assert_eq!(rounds, 2);
}

proptest! {
    /// Whatever a worker writes over everything that it can write, header included.
    #[test]
    fn any_words_of_a_worker_are_counts_of_ordinals_that_exist(
        count in 1_u32..3000,
        words in prop::collection::vec(prop_oneof![any::<u64>(), Just(u64::MAX), Just(0)], 1..40),
    ) {
        let view = UsesView::create(count, 0).expect("memory");
        let memory = Memory::receive(Kind::Uses, sent(view.descriptor())).expect("it");
        let all = memory.words(0..memory.bytes() / 8).expect("all of it");
        for (word, value) in all.iter().zip(words.iter().cycle()) {
            word.store(*value, Ordering::Relaxed);
        }
        let said = drained(&view);
        let ordinals: Vec<u32> = said.iter().map(|(ordinal, _)| *ordinal).collect();
        prop_assert!(ordinals.is_sorted_by(|before, after| before < after));
        prop_assert!(said.iter().all(|(ordinal, uses)| *ordinal < count && *uses != 0));
        prop_assert_eq!(drained(&view), []);
    }
}
