//! Blocks that workers hold by directories.

use tpad_handoff::{DirectoryView, Hazards, Held, NotHeld, Uses};

use super::*;
use crate::Memory;

/// What a worker's process has.
struct Reader {
    worker: Worker,
    hazards: Hazards,
    directory: DirectoryView,
    uses: Uses,
    ordinals: Vec<u32>,
}

impl Scene {
    /// A worker that has acquired some blocks, let go of them, and has the directory.
    async fn reader(&self, layers: std::ops::Range<u32>) -> Reader {
        let worker = self.engine.worker(WorkerName::default(), true);
        let acquired = worker.acquire(&self.generation, &keys(layers), soon()).await;
        let acquired = acquired.expect("within the bounds");
        let ordinal = |leased: &Leased| leased.ordinal.expect("the worker wants it");
        let ordinals = acquired.iter().flatten().map(ordinal).collect();
        let offer =
            worker.offer(&self.generation, Memory::Host).expect("memory").expect("it has none yet");
        assert!(worker.offer(&self.generation, Memory::Host).expect("memory").is_none(), "once");
        worker.release(&numbers(&acquired));
        Reader {
            worker,
            hazards: Hazards::receive(offer.cells.expect("its first")).expect("cells"),
            directory: DirectoryView::receive(offer.directory).expect("a directory"),
            uses: Uses::receive(offer.uses).expect("counters"),
            ordinals,
        }
    }

    /// Reads blocks as a client that asks for each.
    async fn read(&self, layers: std::ops::Range<u32>) {
        for layer in layers {
            let read = self.generation.read(key(layer), ReadOptions::demand(soon())).await;
            drop(read.expect("there is room"));
        }
    }
}

impl Reader {
    fn hold(&self, n: usize) -> Result<Held<&Hazards>, NotHeld> {
        let held = Hazards::hold(&self.hazards, &self.directory, self.ordinals[n])?;
        self.uses.count(self.ordinals[n]);
        Ok(held)
    }
}

#[tokio::test]
async fn what_is_used_often_stays_when_much_is_read_once() {
    const HOT: u32 = 4;
    let mut kept = Vec::new();
    for counted in [true, false] {
        let scene = scene(64, 16 * SLOT, None, bounds(8, 8)).await;
        let reader = scene.reader(0..HOT).await;
        for round in 0..15 {
            for n in 0..HOT as usize {
                drop(reader.hold(n));
            }
            if counted {
                scene.engine.tend_workers();
            }
            let cold = HOT + round * 4;
            scene.read(cold..cold + 4).await;
        }
        kept.push((0..HOT as usize).filter(|n| reader.hold(*n).is_ok()).count());
        scene.engine.shutdown().await;
    }
    assert_eq!(kept[0], HOT as usize, "{kept:?}");
    assert!(kept[1] < HOT as usize, "what nobody counts goes: {kept:?}");
}

#[tokio::test]
async fn what_is_held_is_counted_and_bounds_what_is_leased_besides() {
    let scene = scene(16, 64 * SLOT, None, bounds(6, 4)).await;
    let reader = scene.reader(0..3).await;
    let held: Vec<_> = (0..3).map(|n| reader.hold(n).expect("it is there")).collect();
    scene.engine.tend_workers();
    let status = scene.engine.status().leases;
    assert_eq!((status.bytes, status.direct_bytes), (0, 3 * SLOT));
    assert_eq!(status.workers[0].direct_bytes, 3 * SLOT);

    // A fourth is within its bound of four, a fifth is not; what it holds counts once.
    let four = reader.worker.acquire(&scene.generation, &keys(0..4), soon()).await;
    let four = four.expect("four");
    let five = reader.worker.acquire(&scene.generation, &keys(4..5), soon()).await;
    assert_eq!(five.expect_err("a fifth").reason(), "LEASES_FULL");
    // Another may have two more, of six.
    let other = scene.worker();
    scene.engine.tend_workers();
    let two = other.acquire(&scene.generation, &keys(5..7), soon()).await.expect("six of six");
    let more = other.acquire(&scene.generation, &keys(7..8), soon()).await;
    assert_eq!(more.expect_err("a seventh").reason(), "LEASES_FULL");
    other.release(&numbers(&two));
    reader.worker.release(&numbers(&four));
    drop(held);
    scene.engine.tend_workers();
    assert_eq!(scene.engine.status().leases.direct_bytes, 0);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn while_workers_hold_more_than_all_may_directories_are_empty() {
    let scene = scene(16, 64 * SLOT, None, bounds(4, 4)).await;
    let (one, two) = (scene.reader(0..3).await, scene.reader(3..6).await);
    let held: Vec<_> = [(&one, 0), (&one, 1), (&one, 2), (&two, 0), (&two, 1), (&two, 2)]
        .map(|(reader, n)| reader.hold(n).expect("it is there"))
        .into();
    scene.engine.tend_workers();
    assert_eq!(one.hold(0).map(drop), Err(NotHeld::Absent), "six of four are held");
    let more = one.worker.acquire(&scene.generation, &keys(6..7), soon()).await;
    assert_eq!(more.expect_err("they hold too much").reason(), "LEASES_FULL");
    drop(held);
    scene.engine.tend_workers();
    let again = one.worker.acquire(&scene.generation, &keys(0..3), soon()).await;
    drop(again.expect("there is room"));
    assert!(one.hold(0).is_ok(), "directories are open again");
    scene.engine.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_keeps_on_holding_more_than_it_may_is_told() {
    let scene = scene(16, 64 * SLOT, None, bounds(16, 2)).await;
    let reader = scene.reader(0..2).await;
    let held: Vec<_> = (0..2).map(|n| reader.hold(n).expect("it is there")).collect();
    let extra = reader.worker.acquire(&scene.generation, &keys(0..2), soon()).await;
    let extra = extra.expect("they are the same slots");
    scene.engine.tend_workers();
    let patient = Duration::from_secs(1);
    let told = tokio::time::timeout(patient, reader.worker.overdrawn()).await;
    assert!(told.is_err(), "two are its bound");
    drop(held);
    reader.worker.release(&numbers(&extra));
    // By cells alone nothing keeps it from a third.
    let third = reader.worker.acquire(&scene.generation, &keys(2..4), soon()).await;
    let third = third.expect("two");
    let ordinals: Vec<u32> = third.iter().flatten().filter_map(|it| it.ordinal).collect();
    reader.worker.release(&numbers(&third));
    let ordinals = reader.ordinals.iter().chain(&ordinals);
    let hold = |ordinal: &u32| Hazards::hold(&reader.hazards, &reader.directory, *ordinal);
    let held: Vec<_> = ordinals.map(|it| hold(it).expect("it is there")).collect();
    assert_eq!(held.len(), 4);
    for _ in 0..5 {
        scene.engine.tend_workers();
    }
    let told = tokio::time::timeout(patient, reader.worker.overdrawn()).await;
    told.expect("it holds four of two");
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_generation_that_is_not_served_any_more_has_no_directory() {
    let scene = scene(4, 64 * SLOT, None, bounds(8, 8)).await;
    let reader = scene.reader(0..2).await;
    let held = reader.hold(0).expect("it is there");
    scene.generation.retire();
    assert_eq!(reader.hold(1).map(drop), Err(NotHeld::Absent));
    let late = scene.engine.worker(WorkerName::default(), true);
    let leased = late.acquire(&scene.generation, &keys(0..1), soon()).await.expect("it may");
    assert_eq!(leased[0].as_ref().expect("it is there").ordinal, None);
    assert!(late.offer(&scene.generation, Memory::Host).expect("nothing is made").is_none());
    drop((held, leased, late));
    drop(reader);
    scene.engine.tend_workers();
    assert_eq!(scene.held(), 0);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_is_gone_holds_nothing() {
    let scene = scene(4, 16 * SLOT, None, bounds(8, 8)).await;
    let before = scene.engine.status().store.arena.held;
    let reader = scene.reader(0..3).await;
    let held: Vec<_> = (0..3).map(|n| reader.hold(n).expect("it is there")).collect();
    for key in keys(0..3) {
        let id = scene.generation.record(&key, soon()).await.expect("it exists").id;
        scene.engine.hierarchy().evict(&id, None).await;
    }
    let arena = scene.engine.hierarchy().dram().arena();
    assert_eq!(arena.read_on_bytes(), 3 * SLOT);
    // As if it was killed: its cells stay as they were.
    std::mem::forget(held);
    drop(reader.worker);
    assert_eq!((arena.read_on_bytes(), arena.usage().held), (0, before));
    scene.engine.shutdown().await;
}
