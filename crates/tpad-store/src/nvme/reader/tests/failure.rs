//! Rings that fail: threads read on.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::{Level as _, LevelReader, NvmeConfig, NvmeLevel, StoreMetrics};

/// A reader of so many rings, with the failures that they are to have.
fn of_rings(count: usize) -> (Reader, Vec<Arc<AtomicUsize>>) {
    let rings = (0..count).map(|index| Ring::new(4, index).expect("this kernel has it"));
    let rings: Vec<Ring> = rings.collect();
    let faults = rings.iter().map(|ring| Arc::clone(&ring.faults)).collect();
    let queue = Queue::new(4 * count, rings.iter().map(Ring::bell).collect());
    let workers = rings.into_iter().map(|ring| Box::new(ring) as Box<dyn Work>);
    (Reader::of(Way::IoUring, queue, workers).expect("threads"), faults)
}

#[test]
fn when_a_ring_fails_threads_read_on_and_nothing_is_lost() {
    for rings in 1..=3 {
        let (reader, faults) = of_rings(rings);
        let scene = Scene { reader, ..Scene::new(Way::Threads) };
        let bytes = 2 * PIECE_BYTES + 5000;
        let blocks: Vec<_> = (0..6).map(|n| scene.block(n, bytes)).collect();
        assert_eq!((scene.reader.way(), scene.reader.failed()), (Way::IoUring, None));
        let begin = |n: usize| {
            let (id, path, _) = &blocks[n % 6];
            let urgency = if n.is_multiple_of(2) { Urgency::Demand } else { Urgency::Prefetch };
            scene.reader.read(id, path.clone(), true, scene.slot(bytes), urgency)
        };
        let mut reads: Vec<_> = (0..4).map(begin).collect();
        // The first or the last, while it is busy or idle.
        faults[rings / 2].store(1, SeqCst);
        reads.extend((4..10).map(begin));
        for (n, read) in reads.into_iter().enumerate() {
            let (_, slot) = read.blocking_recv().expect("an answer").expect("read");
            assert!(slot[..] == blocks[n % 6].2[..], "{rings} rings, read {n}");
        }
        // A ring that had nothing to do has not failed yet.
        let mut more = 0;
        while faults[rings / 2].load(SeqCst) > 0 {
            let reads: Vec<_> = (0..6).map(|n| begin(more + n)).collect();
            reads.into_iter().for_each(|read| drop(read.blocking_recv().expect("an answer")));
            more += 6;
        }
        settled(&scene);
        assert_eq!(scene.reader.way(), Way::Threads);
        assert_eq!(scene.reader.failed().as_deref(), Some("injected failure"));
        assert!(!scene.reader.queue.fail("another".to_owned(), 1), "it is told once");
        let (id, path, image) = &blocks[0];
        assert!(scene.read(id, path, bytes).expect("read").1[..] == image[..]);
        settled(&scene);
    }
}

#[tokio::test]
async fn what_a_broken_ring_keeps_is_told_and_its_memory_is_never_used_again() {
    let (reader, faults) = of_rings(1);
    let scene = Scene { reader, ..Scene::new(Way::Threads) };
    let (id, path, image) = scene.block(1, 5000);
    // The ring is up and asleep: one that fails on its way there leaves the read to threads.
    let (_, slot) = scene.begin(&id, &path, 5000).await.expect("an answer").expect("read");
    drop(slot);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    faults[0].store(usize::MAX, SeqCst);
    assert!(scene.begin(&id, &path, 5000).await.is_err(), "it ends without an answer");
    let held = scene.arena.usage().held;
    assert!(held > 0, "the kernel may still write there");
    for _ in 0..8 {
        let (_, slot) = scene.begin(&id, &path, 5000).await.expect("an answer").expect("read");
        assert!(slot[..] == image[..]);
    }
    scene.reader.close().await;
    assert_eq!(scene.arena.usage().held, held);
    assert_eq!(scene.reader.way(), Way::Threads);
}

#[tokio::test]
async fn the_status_of_the_level_says_what_reads_now() {
    let directory = tempfile::tempdir().expect("scratch");
    let (path, io) = (directory.path().to_owned(), NvmeIo::IoUring);
    let config = NvmeConfig { path, capacity_bytes: 1 << 30, free_floor_bytes: 0, io };
    let level = NvmeLevel::open(config, StoreMetrics::default()).expect("sound bounds");
    level.scanned().await;
    let used = |io, reason| Some(LevelReader { io, reason });
    assert_eq!(level.reader(), used("io_uring", None));
    let disk = level.inner.service.disk().expect("it is open");
    assert!(disk.reader().queue.fail("no luck".to_owned(), THREADS));
    assert_eq!(level.reader(), used("threads", Some("io_uring failed: no luck".to_owned())));
    level.close().await;
}
