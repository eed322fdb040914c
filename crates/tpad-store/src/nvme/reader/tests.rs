//! Both ways of reading, one suite.

mod failure;
mod order;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::super::file::{Fault, Header, PAGE, write};
use super::block::PIECE_BYTES;
use super::*;
use crate::{Arena, CacheClass};

const WAYS: [Way; 2] = [Way::IoUring, Way::Threads];

/// Blocks on disk, room to read them into, and a reader.
struct Scene {
    directory: tempfile::TempDir,
    arena: Arc<Arena>,
    reader: Reader,
}

impl Scene {
    fn new(way: Way) -> Self {
        let directory = tempfile::tempdir().expect("scratch");
        let reader = Reader::start(way).expect("this kernel has it");
        assert_eq!(reader.way(), way);
        Self { directory, arena: Arena::new(128 << 20), reader }
    }

    fn slot(&self, bytes: usize) -> SlotMut {
        self.arena.slot(bytes).expect("mapped").expect("room")
    }

    /// Writes a block of this size, and returns its id, file and image.
    fn block(&self, seed: u64, bytes: usize) -> (BlockId, PathBuf, Vec<u8>) {
        let mut slot = self.slot(bytes);
        ChaCha8Rng::seed_from_u64(seed).fill(&mut slot[..]);
        let block = slot.freeze();
        let id = BlockId::of(&block);
        let path = self.directory.path().join(id.to_string());
        let file = fs::File::create(&path).expect("created");
        write(&file, &Header::of(&id, &CacheClass::from("a"), &block), &block).expect("written");
        (id, path, block.to_vec())
    }

    fn begin(&self, id: &BlockId, path: &Path, bytes: usize) -> oneshot::Receiver<Answer> {
        self.reader.read(id, path.to_owned(), true, self.slot(bytes), Urgency::Demand)
    }

    fn read(&self, id: &BlockId, path: &Path, bytes: usize) -> Answer {
        self.begin(id, path, bytes).blocking_recv().expect("an answer")
    }

    fn fault(&self, id: &BlockId, path: &Path, bytes: usize) -> Fault {
        let Unread { fault, slot } = self.read(id, path, bytes).expect_err("no image");
        assert_eq!(slot.expect("it is given back").len(), bytes);
        fault
    }
}

/// Runs a test on both readers.
fn on_both(test: impl Fn(&Scene)) {
    for way in WAYS {
        let scene = Scene::new(way);
        test(&scene);
        assert_eq!(scene.arena.usage().held, 0, "{way:?}: every slot is free again");
    }
}

#[test]
fn images_of_every_size_are_read_whole() {
    on_both(|scene| {
        let sizes = [0, 1, PAGE - 1, PAGE, PAGE + 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1];
        for (seed, bytes) in sizes.into_iter().chain([3 * PIECE_BYTES + 12_345]).enumerate() {
            let (id, path, image) = scene.block(seed as u64, bytes);
            let (header, slot) = scene.read(&id, &path, bytes).expect("read");
            assert_eq!((header.id, header.bytes), (id, bytes as u64));
            assert!(slot[..] == image[..], "{bytes}");
        }
    });
}

#[test]
fn many_blocks_at_once_are_each_right() {
    on_both(|scene| {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let blocks: Vec<_> =
            (0..24).map(|n| scene.block(n, rng.random_range(1..3 << 20))).collect();
        let reads: Vec<_> = blocks
            .iter()
            .enumerate()
            .map(|(n, (id, path, image))| {
                let urgency = if n % 2 == 0 { Urgency::Demand } else { Urgency::Prefetch };
                scene.reader.read(id, path.clone(), true, scene.slot(image.len()), urgency)
            })
            .collect();
        for ((_, _, image), read) in blocks.iter().zip(reads) {
            let (_, slot) = read.blocking_recv().expect("an answer").expect("read");
            assert!(slot[..] == image[..]);
        }
    });
}

#[test]
fn what_is_not_what_was_written_is_damaged() {
    on_both(|scene| {
        let bytes = 2 * PIECE_BYTES + 5000;
        let (id, path, image) = scene.block(1, bytes);
        let length = fs::metadata(&path).expect("there").len();
        let whole = usize::try_from(length).expect("small");
        // In the header, in every piece, in the padding.
        let (second, last) = (PAGE + PIECE_BYTES, PAGE + bytes);
        for at in [0, 8, 48, PAGE - 1, PAGE, second, last - 1, last, whole - 1] {
            let file = fs::File::options().read(true).write(true).open(&path).expect("open");
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).expect("read");
            file.write_all_at(&[byte[0] ^ 4], at as u64).expect("flipped");
            let fault = scene.fault(&id, &path, bytes);
            assert!(matches!(fault, Fault::Damaged(_)), "byte {at}: {fault:?}");
            file.write_all_at(&byte, at as u64).expect("restored");
        }
        let (_, slot) = scene.read(&id, &path, bytes).expect("sound again");
        assert!(slot[..] == image[..]);
        drop(slot);
        // Torn: zeroes where the last piece was not written.
        let file = fs::File::options().write(true).open(&path).expect("open");
        for cut in [PAGE + 2 * PIECE_BYTES, PAGE + 100, PAGE, 100, 0] {
            file.set_len(cut as u64).expect("cut");
            let fault = scene.fault(&id, &path, bytes);
            assert!(matches!(fault, Fault::Damaged(_)), "cut to {cut}: {fault:?}");
            file.set_len(length).expect("grown");
            let fault = scene.fault(&id, &path, bytes);
            assert!(matches!(fault, Fault::Damaged(_)), "torn at {cut}: {fault:?}");
        }
    });
}

#[test]
fn another_block_or_size_is_damaged() {
    on_both(|scene| {
        let (id, path, _) = scene.block(1, 50_000);
        let (other, other_path, _) = scene.block(2, 50_000);
        assert!(matches!(scene.fault(&id, &other_path, 50_000), Fault::Damaged(_)));
        assert!(matches!(scene.fault(&other, &path, 50_000), Fault::Damaged(_)));
        assert!(matches!(scene.fault(&id, &path, 49_999), Fault::Damaged(_)));
        assert!(matches!(scene.fault(&id, &path, 500_000), Fault::Damaged(_)));
    });
}

#[test]
fn a_file_that_is_gone_is_missing_and_a_failing_disk_is_told() {
    on_both(|scene| {
        let (id, path, _) = scene.block(1, 50_000);
        fs::remove_file(&path).expect("removed");
        assert!(matches!(scene.fault(&id, &path, 50_000), Fault::Missing));
        // A file whose reads fail with EIO: memory that is not mapped.
        let memory = Path::new("/proc/self/mem").to_owned();
        let slot = scene.slot(50_000);
        let read = scene.reader.read(&id, memory, false, slot, Urgency::Demand);
        let unread = read.blocking_recv().expect("an answer").expect_err("it fails");
        let Fault::Disk(error) = unread.fault else { panic!("{:?}", unread.fault) };
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    });
}

#[test]
fn whoever_hangs_up_takes_no_slot_along_and_disturbs_nobody() {
    on_both(|scene| {
        let bytes = 2 * PIECE_BYTES + 1;
        let blocks: Vec<_> = (0..4).map(|n| scene.block(n, bytes)).collect();
        let (sender, left) = mpsc::sync_channel(64);
        // Hang up before the queue is looked at, at once, and at some time later.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for read in left {
                    drop::<oneshot::Receiver<Answer>>(read);
                }
            });
            for round in 0..60 {
                let (id, path, image) = &blocks[round % 4];
                let read = scene.begin(id, path, bytes);
                if round % 3 == 0 {
                    drop(read);
                } else if round % 3 == 1 {
                    sender.send(read).expect("it listens");
                } else {
                    let (_, slot) = read.blocking_recv().expect("an answer").expect("read");
                    assert!(slot[..] == image[..], "round {round}");
                }
            }
            drop(sender);
        });
        settled(scene);
    });
}

/// Waits until nothing is in flight: slots come free with the last write into them.
fn settled(scene: &Scene) {
    let started = std::time::Instant::now();
    while scene.arena.usage().held > 0 {
        assert!(started.elapsed() < Duration::from_secs(30), "slots are never freed");
        std::thread::yield_now();
    }
}

#[test]
fn a_reader_that_is_dropped_answers_nobody_and_frees_every_slot() {
    for way in WAYS {
        let scene = Scene::new(way);
        let bytes = 4 * PIECE_BYTES;
        let (id, path, _) = scene.block(1, bytes);
        let reads: Vec<_> = (0..8).map(|_| scene.begin(&id, &path, bytes)).collect();
        let Scene { arena, reader, directory } = scene;
        drop(reader);
        // What was begun may still be answered; nothing hangs.
        for read in reads {
            drop(read.blocking_recv());
        }
        let started = std::time::Instant::now();
        while arena.usage().held > 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "{way:?}: slots are never freed");
            std::thread::yield_now();
        }
        drop(directory);
    }
}

#[tokio::test]
async fn closing_waits_for_the_threads_and_may_be_repeated() {
    for way in WAYS {
        let scene = Scene::new(way);
        let bytes = 4 * PIECE_BYTES;
        let (id, path, _) = scene.block(1, bytes);
        let reads: Vec<_> = (0..8).map(|_| scene.begin(&id, &path, bytes)).collect();
        drop(reads);
        scene.reader.close().await;
        assert_eq!(scene.arena.usage().held, 0, "{way:?}: nothing is in flight any more");
        scene.reader.close().await;
        let read = scene.begin(&id, &path, bytes);
        assert!(read.await.is_err(), "{way:?}: nothing is read any more");
    }
}
