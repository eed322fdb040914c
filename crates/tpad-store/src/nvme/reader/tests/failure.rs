//! Rings that fail: threads read on.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

use super::*;
use crate::{Level as _, LevelReader, NvmeConfig, NvmeLevel, StoreMetrics};

/// A ring, and what comes before it is entered.
fn ring(index: usize, entering: impl FnMut() -> io::Result<()> + Send + 'static) -> Ring {
    let mut ring = Ring::new(4, index).expect("this kernel has it");
    ring.entering = Box::new(entering);
    ring
}

/// A reader of these rings, which find the jobs when they start.
fn of_rings(rings: Vec<Ring>, jobs: Vec<Job>) -> Reader {
    let queue = Queue::new(4 * rings.len(), rings.iter().map(Ring::bell).collect());
    jobs.into_iter().for_each(|job| queue.push(job, Urgency::Demand));
    let workers = rings.into_iter().map(|ring| Box::new(ring) as Box<dyn Work>);
    Reader::of(Way::IoUring, queue, workers).expect("threads")
}

fn failure() -> io::Error {
    io::Error::other("injected failure")
}

/// A read that is not begun.
fn job(scene: &Scene, id: &BlockId, path: &Path, direct: bool) -> (Job, oneshot::Receiver<Answer>) {
    let (answer, answered) = oneshot::channel();
    let job = Job { id: *id, path: path.to_owned(), direct, slot: scene.slot(5000), answer };
    (job, answered)
}

#[test]
fn when_a_ring_fails_threads_read_on_and_nothing_is_lost() {
    for rings in 1..=3 {
        let mut scene = Scene::new(Way::Threads);
        let faults: Vec<Arc<AtomicUsize>> = (0..rings).map(|_| Arc::default()).collect();
        let failing = faults.iter().enumerate().map(|(index, faults)| {
            let faults = Arc::clone(faults);
            ring(index, move || {
                let left = faults.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                left.map_or(Ok(()), |_| Err(failure()))
            })
        });
        scene.reader = of_rings(failing.collect(), Vec::new());
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

#[test]
fn what_passes_is_no_failure_of_a_ring() {
    let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
    let entered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&entered);
    // Three of four times.
    let ring = ring(0, move || match passing.get(count.fetch_add(1, SeqCst) % 4) {
        Some(errno) => Err((*errno).into()),
        None => Ok(()),
    });
    let mut scene = Scene::new(Way::Threads);
    scene.reader = of_rings(vec![ring], Vec::new());
    let bytes = 2 * PIECE_BYTES + 5000;
    let blocks: Vec<_> = (0..3).map(|n| scene.block(n, bytes)).collect();
    for _ in 0..3 {
        let reads: Vec<_> =
            blocks.iter().map(|(id, path, _)| scene.begin(id, path, bytes)).collect();
        for (read, (_, _, image)) in reads.into_iter().zip(&blocks) {
            let (_, slot) = read.blocking_recv().expect("an answer").expect("read");
            assert!(slot[..] == image[..]);
        }
    }
    assert!(entered.load(SeqCst) > 12);
    assert_eq!((scene.reader.way(), scene.reader.failed()), (Way::IoUring, None));
    settled(&scene);
}

#[test]
fn what_a_ring_never_told_the_kernel_is_read_by_threads() {
    let mut scene = Scene::new(Way::Threads);
    let (id, path, image) = scene.block(1, 5000);
    let (jobs, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| job(&scene, &id, &path, true)).unzip();
    // It takes what there is, and fails when it is to tell the kernel.
    scene.reader = of_rings(vec![ring(0, || Err(failure()))], jobs);
    for answer in answers {
        let (_, slot) = answer.blocking_recv().expect("an answer").expect("read");
        assert!(slot[..] == image[..]);
    }
    assert_eq!(scene.reader.failed().as_deref(), Some("injected failure"));
    settled(&scene);
}

#[tokio::test]
async fn what_the_kernel_may_write_to_is_told_and_its_memory_is_never_used_again() {
    let mut scene = Scene::new(Way::Threads);
    let (id, path, image) = scene.block(1, 5000);
    // Nothing ever comes through this pipe: the kernel keeps its reads.
    let pipe = scene.directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
    let _writer = fs::File::options().read(true).write(true).open(&pipe).expect("open");
    let (kept, untold) = job(&scene, &BlockId::of(b"pipe"), &pipe, false);
    let held = scene.arena.usage().held;
    let (read, answer) = job(&scene, &id, &path, true);
    // The kernel hears of the pipe before the other file is opened, and of nothing else.
    let mut heard = false;
    let ring = ring(0, move || match std::mem::replace(&mut heard, true) {
        false => Ok(()),
        true => Err(failure()),
    });
    scene.reader = of_rings(vec![ring], vec![kept, read]);
    assert!(untold.await.is_err(), "it ends without an answer");
    let (_, slot) = answer.await.expect("an answer").expect("read");
    assert!(slot[..] == image[..]);
    drop(slot);
    assert_eq!(scene.arena.usage().held, held, "the kernel may still write there");
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
