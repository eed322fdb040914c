#![expect(clippy::cast_possible_truncation, reason = "what tests count is small")]

use std::time::Duration;

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::Urgency;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn level(capacity: u64, budgets: &[(&str, u64)]) -> Arc<DramLevel> {
    let class_budgets = budgets.iter().map(|(class, budget)| ((*class).to_owned(), *budget));
    let config = DramConfig { capacity_bytes: capacity, class_budgets: class_budgets.collect() };
    Arc::new(DramLevel::new(&config, StoreMetrics::default()).expect("budgets fit"))
}

pub(super) fn id(n: u64) -> BlockId {
    BlockId::of(&n.to_le_bytes())
}

pub(super) async fn fill(level: &DramLevel, n: u64, class: &str, bytes: u64) -> Option<BlockBytes> {
    let mut slot = level.room(bytes, &class.into(), Urgency::Demand).await.expect("room");
    slot.fill(u8::try_from(n % 251).expect("small"));
    let block = slot.freeze();
    level.keep(&id(n), &class.into(), &block, false).then_some(block)
}

pub(super) fn ledger(level: &DramLevel) -> (u64, u64) {
    let usage = level.usage();
    (usage.blocks, usage.bytes)
}

#[tokio::test]
async fn kept_blocks_are_found_and_shared() {
    let level = level(16 * MIB, &[]);
    let block = fill(&level, 1, "a", 5000).await.expect("kept");
    let found = level.lookup(&id(1), &"a".into()).expect("there");
    assert_eq!(found.as_ptr(), block.as_ptr());
    assert_eq!(ledger(&level), (1, 8192));
    assert!(level.lookup(&id(2), &"a".into()).is_none());
    level.remove(&id(1)).await.expect("removed");
    assert_eq!(ledger(&level), (0, 0));
    assert!(!level.contains(&id(1)));
    drop((block, found));
    assert_eq!(level.arena().usage().held, 0);
}

#[tokio::test]
async fn a_cold_tier_does_not_push_out_a_hot_one() {
    let level = level(64 * MIB, &[("hot", 16 * MIB), ("cold", 16 * MIB)]);
    for n in 0..16 {
        fill(&level, n, "hot", MIB).await.expect("kept");
    }
    for n in 100..300 {
        let _ = fill(&level, n, "cold", MIB).await;
    }
    assert!((0..16).all(|n| level.contains(&id(n))));
    let classes = level.classes();
    assert!(classes.iter().all(|class| class.bytes <= class.budget), "{classes:?}");
    assert_eq!(classes.iter().map(|class| class.bytes).sum::<u64>(), level.usage().bytes);
}

#[tokio::test]
async fn classes_without_a_budget_share_the_rest() {
    let level = level(64 * MIB, &[("a", 8 * MIB)]);
    for n in 0..40 {
        let class = if n % 2 == 0 { "x" } else { "y" };
        let _ = fill(&level, n, class, MIB).await;
    }
    let rest = level.classes().pop().expect("the rest");
    assert_eq!(rest.class, None);
    assert!(rest.blocks > 30 && rest.bytes <= rest.budget, "{rest:?}");
}

#[tokio::test]
async fn changed_budgets_keep_what_fits() {
    let level = level(64 * MIB, &[("a", 24 * MIB)]);
    for n in 0..24 {
        fill(&level, n, "a", MIB).await.expect("kept");
    }
    level.set_budgets(&[("a".to_owned(), 6 * MIB)].into()).expect("fits");
    assert!(level.usage().bytes <= 6 * MIB);
    assert!(level.usage().blocks > 0);
    level.set_budgets(&[("b".to_owned(), 40 * MIB)].into()).expect("fits");
    assert!(level.usage().blocks > 0, "what was kept moves to the rest");
    for n in 100..140 {
        fill(&level, n, "b", MIB).await.expect("kept");
    }
    assert!(level.set_budgets(&[("b".to_owned(), 65 * MIB)].into()).is_err());
    assert_eq!(level.classes()[0].budget, 40 * MIB);
}

#[tokio::test]
async fn an_arena_full_of_one_size_gives_way_to_another() {
    let level = level(16 * MIB, &[]);
    for n in 0..5000 {
        let _ = fill(&level, n, "small", 4096).await;
    }
    for n in 10_000..10_020 {
        let _ = fill(&level, n, "large", 3 * MIB).await;
    }
    for n in 20_000..20_400 {
        let _ = fill(&level, n, "middle", 100_000).await;
    }
    // Larger than all that may be kept, but not than the arena.
    let huge = level.room(16 * MIB, &"huge".into(), Urgency::Demand).await.expect("room");
    assert_eq!(level.arena().usage().mapped, 16 * MIB);
    drop(huge);
    let error = level.room(16 * MIB + 1, &"huge".into(), Urgency::Demand).await.expect_err("more");
    assert!(matches!(error, RoomError::TooLarge));
}

#[tokio::test]
async fn room_that_is_read_is_waited_for_in_order() {
    let level = level(4 * MIB, &[]);
    let mut leased = Vec::new();
    while let Some(slot) = level.arena().slot(MIB as usize).expect("mapped") {
        leased.push(slot.freeze());
    }
    let class = CacheClass::from("a");
    let prefetch = level.room(MIB, &class, Urgency::Prefetch).await.expect_err("no wait");
    assert!(matches!(prefetch, RoomError::InUse));

    let mut first = Box::pin(level.room(2 * MIB, &class, Urgency::Demand));
    let mut second = Box::pin(level.room(MIB, &class, Urgency::Demand));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(leased.pop());
    assert!((&mut first).now_or_never().is_none(), "one slab is not enough");
    assert!((&mut second).now_or_never().is_none(), "the first one waits for it");
    drop(leased.pop());
    let large = tokio::time::timeout(Duration::from_secs(10), first).await.expect("in time");
    drop(large.expect("room"));
    tokio::time::timeout(Duration::from_secs(10), second).await.expect("in time").expect("room");
}

#[tokio::test]
async fn a_kept_block_that_is_read_gives_way_when_its_reader_is_done() {
    let level = level(8 * MIB, &[("a", 4 * MIB), ("b", MIB)]);
    let mut readers = Vec::new();
    for n in 0..4 {
        readers.push(fill(&level, n, "a", MIB).await.expect("kept"));
    }
    let mut held = Vec::new();
    while let Some(slot) = level.arena().slot(MIB as usize).expect("mapped") {
        held.push(slot);
    }
    let class = CacheClass::from("b");
    let mut other_size = Box::pin(level.room(500_000, &class, Urgency::Demand));
    assert!((&mut other_size).now_or_never().is_none());
    readers.clear();
    let slot = tokio::time::timeout(Duration::from_secs(10), other_size).await.expect("in time");
    drop(slot.expect("room"));
    assert!(level.usage().blocks < 4);
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_the_slabs_alone() {
    let level = level(4 * MIB, &[]);
    let mut held: Vec<_> =
        std::iter::from_fn(|| level.arena().slot(MIB as usize).expect("mapped")).collect();
    let class = CacheClass::from("a");
    let mut waiting = Box::pin(level.room(2 * MIB, &class, Urgency::Demand));
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    held.pop();
    let room = level.room(MIB, &class, Urgency::Demand).now_or_never();
    room.expect("a free slot needs no wait").expect("room");
}

#[derive(Clone, Debug)]
enum Step {
    Fill { n: u64, class: u8, bytes: u64, hold: bool },
    Lookup(u64),
    Remove(u64),
    Release,
    Budgets(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![Just(1u64), Just(4096), 1u64..300_000, Just(MIB)];
    let step = prop_oneof![
        6 => (0u64..60, 0u8..3, bytes, any::<bool>())
            .prop_map(|(n, class, bytes, hold)| Step::Fill { n, class, bytes, hold }),
        4 => (0u64..60).prop_map(Step::Lookup),
        1 => (0u64..60).prop_map(Step::Remove),
        2 => Just(Step::Release),
        1 => (0u64..4 * MIB, 0u64..4 * MIB).prop_map(|(a, b)| Step::Budgets(a, b)),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a map that forgets nothing: what is found is what was filled, the
    /// ledger adds up and stays within its budgets, nothing leaks.
    #[test]
    fn the_level_agrees_with_a_map(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let level = level(8 * MIB, &[("0", MIB), ("1", 2 * MIB)]);
            let mut model = std::collections::HashMap::new();
            let mut held = Vec::new();
            for step in steps {
                match step {
                    Step::Fill { n, class, bytes, hold } => {
                        if level.contains(&id(n)) {
                            continue;
                        }
                        // Waiting would be for ever: this test alone holds slots.
                        let class = CacheClass::from(class.to_string());
                        let room = level.room(bytes, &class, Urgency::Prefetch).await;
                        let Ok(mut slot) = room else { continue };
                        slot.fill(n as u8);
                        let block = slot.freeze();
                        let kept = level.keep(&id(n), &class, &block, false);
                        assert_eq!(kept, level.contains(&id(n)));
                        model.insert(n, (bytes, n as u8));
                        if hold {
                            held.push((n as u8, block));
                        }
                    }
                    Step::Lookup(n) => {
                        if let Some(block) = level.lookup(&id(n), &"0".into()) {
                            let (bytes, mark) = model[&n];
                            assert_eq!(block.len() as u64, bytes);
                            assert!(block.iter().all(|byte| *byte == mark));
                        }
                    }
                    Step::Remove(n) => {
                        level.remove(&id(n)).await.expect("removed");
                        assert!(!level.contains(&id(n)));
                    }
                    Step::Release => held.clear(),
                    Step::Budgets(a, b) => {
                        let budgets = [("0".to_owned(), a), ("1".to_owned(), b)].into();
                        level.set_budgets(&budgets).expect("fits");
                    }
                }
                let usage = level.usage();
                let classes = level.classes();
                assert!(classes.iter().all(|class| class.bytes <= class.budget), "{classes:?}");
                assert_eq!(classes.iter().map(|class| class.bytes).sum::<u64>(), usage.bytes);
                assert_eq!(classes.iter().map(|class| class.blocks).sum::<u64>(), usage.blocks);
                assert!(usage.bytes <= usage.capacity);
                let arena = level.arena().usage();
                assert!(arena.held <= arena.mapped && arena.mapped <= arena.capacity);
            }
            assert!(held.iter().all(|(mark, block)| block.iter().all(|byte| byte == mark)));
            held.clear();
            assert_eq!(level.arena().usage().held, level.usage().bytes, "nothing leaks");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_have_a_budget_for_goes_last_and_after_a_wait() {
    let level = level(16 * MIB, &[("warm", 8 * MIB)]);
    for n in 0..6 {
        fill(&level, n, "warm", MIB).await.expect("kept");
    }
    let warm = || (0..6).filter(|n| level.contains(&id(*n))).count();
    let cold = CacheClass::from("cold");
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(level.room(MIB, &cold, Urgency::Demand).await.expect("it is free"));
    }
    let prefetch = level.room(MIB, &cold, Urgency::Prefetch).await;
    assert!(matches!(prefetch, Err(RoomError::InUse)) && warm() == 6);

    let mut demand = Box::pin(level.room(MIB, &cold, Urgency::Demand));
    assert!((&mut demand).now_or_never().is_none(), "it waits for those in use");
    held.pop();
    held.push(demand.await.expect("one came free"));
    assert_eq!(warm(), 6);

    let before = tokio::time::Instant::now();
    held.push(level.room(MIB, &cold, Urgency::Demand).await.expect("in the end"));
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(warm(), 5);
}
