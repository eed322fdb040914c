//! The level on disk: the suite, restarts, damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tpad_store::conformance::{level_conforms, level_is_safe};
use tpad_store::fault::{Fault, Faults, FaultyLevel};
use tpad_store::{
    Arena, Health, Hierarchy, Level, LevelRead, Medium, NvmeConfig, NvmeIo, NvmeLevel, Origin,
    StoreMetrics, Urgency,
};

use crate::model::{Block, MIB, Model, check, config, metric};

const VERIFY_FAILURES: &str = "tpad_verify_failures_total{level=\"nvme\"}";
const MISSES: &str = "tpad_level_reads_total{level=\"nvme\",outcome=\"miss\"}";

/// Both ways to read; neither is taken for the other.
const WAYS: [NvmeIo; 2] = [NvmeIo::IoUring, NvmeIo::Threads];

fn open(path: &Path, capacity_bytes: u64, metrics: &StoreMetrics) -> Arc<NvmeLevel> {
    open_to_read(path, capacity_bytes, metrics, NvmeIo::Auto)
}

fn open_to_read(
    path: &Path,
    capacity_bytes: u64,
    metrics: &StoreMetrics,
    io: NvmeIo,
) -> Arc<NvmeLevel> {
    let path = path.to_owned();
    let config = NvmeConfig { path, capacity_bytes, free_floor_bytes: 0, io };
    NvmeLevel::open(config, metrics.clone()).expect("sound bounds")
}

fn reads_by(level: &NvmeLevel, io: NvmeIo) {
    let expected = if io == NvmeIo::Threads { "threads" } else { "io_uring" };
    assert_eq!(level.reader().map(|reader| reader.io), Some(expected));
}

/// Polls, since disk work is done on other threads.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let done = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), done).await;
    assert!(done.is_ok(), "never: {what}");
}

async fn scanned(level: &NvmeLevel) {
    until("the scan ends", || !level.is_scanning()).await;
}

/// A hierarchy with little host memory over the directory, and what it counts.
struct Disk {
    level: Arc<NvmeLevel>,
    hierarchy: Arc<Hierarchy>,
    metrics: StoreMetrics,
    origin: Arc<dyn Origin>,
}

impl Disk {
    async fn open(path: &Path, model: &Model) -> Self {
        Self::open_to_read(path, model, NvmeIo::Auto).await
    }

    async fn open_to_read(path: &Path, model: &Model, io: NvmeIo) -> Self {
        let metrics = StoreMetrics::default();
        let level = open_to_read(path, 64 * MIB, &metrics, io);
        scanned(&level).await;
        let lower: Vec<Arc<dyn Level>> = vec![Arc::clone(&level) as Arc<dyn Level>];
        let hierarchy = Hierarchy::new(config(16 * MIB), lower, metrics.clone()).expect("sound");
        Self { level, hierarchy, metrics, origin: model.origin() }
    }

    /// Reads a block past host memory.
    async fn cold(&self, block: &Block) -> Medium {
        self.hierarchy.dram().remove(&block.fetch.id).await.expect("removed");
        check(&self.hierarchy, &self.origin, block).await
    }

    async fn kept(&self, blocks: u64) {
        until("every block is written", || self.level.usage().blocks == blocks).await;
    }

    async fn close(self) {
        self.hierarchy.shutdown().await;
    }

    fn count(&self, name: &str) -> u64 {
        metric(&self.metrics, name)
    }
}

/// The files of blocks below a cache directory.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for directory in fs::read_dir(path.join("tpad-cache-v1/blocks")).expect("it is there") {
        let directory = directory.expect("read").path();
        files
            .extend(fs::read_dir(directory).expect("it is there").map(|f| f.expect("read").path()));
    }
    files.sort();
    files
}

async fn fill(disk: &Disk, model: &Model) {
    for block in &model.blocks {
        check(&disk.hierarchy, &disk.origin, block).await;
        until("the block is written", || disk.level.contains(&block.fetch.id)).await;
    }
}

#[tokio::test]
async fn the_level_on_disk_conforms() {
    for io in WAYS {
        let scratch = tempfile::tempdir().expect("scratch");
        let level = open_to_read(scratch.path(), 12 * MIB, &StoreMetrics::default(), io);
        scanned(&level).await;
        reads_by(&level, io);
        let level: Arc<dyn Level> = level;
        let arena = Arena::new(16 * MIB);
        level_conforms(&level, &arena).await;
        level.close().await;
        assert_eq!(arena.usage().held, 0, "nothing leaks");
    }
}

#[tokio::test]
async fn the_level_on_disk_is_safe_under_faults() {
    for io in WAYS {
        let scratch = tempfile::tempdir().expect("scratch");
        let level = open_to_read(scratch.path(), 12 * MIB, &StoreMetrics::default(), io);
        scanned(&level).await;
        reads_by(&level, io);
        let three = [Fault::Flipped, Fault::Failing, Fault::Missing];
        let faults = Faults::new(7, three.map(|fault| (fault, 0.1)));
        let level: Arc<dyn Level> = Arc::new(FaultyLevel::new(level, Arc::clone(&faults)));
        level_is_safe(&level, &Arena::new(16 * MIB), 200).await;
        assert!(three.iter().all(|fault| faults.fired(*fault) > 0));
    }
}

#[tokio::test]
async fn readers_that_hang_up_cost_neither_slots_nor_blocks() {
    for io in WAYS {
        let scratch = tempfile::tempdir().expect("scratch");
        let model = Model::new(17, "a", vec![9 * MIB; 3]);
        let disk = Disk::open_to_read(scratch.path(), &model, io).await;
        reads_by(&disk.level, io);
        let arena = Arena::new(128 * MIB);
        let origin = model.origin();
        let filler: Vec<Arc<dyn Level>> = vec![Arc::clone(&disk.level) as Arc<dyn Level>];
        let filler = Hierarchy::new(config(128 * MIB), filler, StoreMetrics::default());
        let filler = filler.expect("sound");
        for block in &model.blocks {
            check(&filler, &origin, block).await;
            until("the block is written", || disk.level.contains(&block.fetch.id)).await;
        }
        for round in 0..30 {
            let block = &model.blocks[round % 3];
            let slot = arena.slot(block.image.len()).expect("mapped").expect("room");
            let read = disk.level.read(&block.fetch.id, slot, Urgency::Demand);
            // Polled as often as the round says: not at all, in the queue, under way.
            let mut read = Box::pin(read);
            for _ in 0..round {
                tokio::select! {
                    biased;
                    _ = &mut read => break,
                    () = tokio::task::yield_now() => {}
                }
            }
            drop(read);
        }
        until("every slot is free again", || arena.usage().held == 0).await;
        for block in &model.blocks {
            let slot = arena.slot(block.image.len()).expect("mapped").expect("room");
            let read = disk.level.read(&block.fetch.id, slot, Urgency::Demand).await;
            let Ok(LevelRead::Hit { slot, .. }) = read else { panic!("{io:?}: {read:?}") };
            assert!(slot[..] == block.image[..], "{io:?}");
        }
        disk.close().await;
    }
}

#[tokio::test]
async fn what_was_kept_is_there_after_a_restart() {
    let scratch = tempfile::tempdir().expect("scratch");
    let model = Model::new(1, "a", [1, 255, 4096, 100_000, 1 << 20]);
    let disk = Disk::open(scratch.path(), &model).await;
    fill(&disk, &model).await;
    let usage = disk.level.usage();
    disk.close().await;

    // What is no block's file is removed; what is no file of ours at all, too.
    let blocks = scratch.path().join("tpad-cache-v1/blocks");
    fs::write(blocks.join("00"), b"a file where a directory is expected").expect("written");
    fs::create_dir_all(blocks.join("aa/directory")).expect("made");
    fs::write(blocks.join("aa/short"), b"x").expect("written");
    fs::write(scratch.path().join("tpad-cache-v1/unfinished/0"), b"torn").expect("written");

    let disk = Disk::open(scratch.path(), &model).await;
    assert_eq!(disk.level.usage(), usage);
    for block in &model.blocks {
        assert_eq!(disk.hierarchy.resident(&block.fetch.id), Some(Medium::Nvme));
        assert_eq!(disk.cold(block).await, Medium::Nvme);
    }
    assert_eq!(files(scratch.path()).len(), 5, "leftovers are removed");
    let unfinished = scratch.path().join("tpad-cache-v1/unfinished");
    assert_eq!(fs::read_dir(unfinished).expect("there").count(), 0);
    assert_eq!(disk.count(MISSES), 0);
    disk.close().await;
}

#[tokio::test]
async fn a_smaller_capacity_holds_from_the_start() {
    let scratch = tempfile::tempdir().expect("scratch");
    let model = Model::new(2, "a", vec![100_000; 20]);
    let disk = Disk::open(scratch.path(), &model).await;
    fill(&disk, &model).await;
    disk.close().await;
    let level = open(scratch.path(), MIB, &StoreMetrics::default());
    scanned(&level).await;
    let usage = level.usage();
    assert!(usage.blocks > 0 && usage.bytes <= MIB, "{usage:?}");
    assert_eq!(files(scratch.path()).len() as u64, usage.blocks);
}

#[tokio::test]
async fn every_flipped_byte_of_a_file_is_a_counted_miss() {
    for io in WAYS {
        every_flipped_byte_of_a_file_is_a_counted_miss_by(io).await;
    }
}

async fn every_flipped_byte_of_a_file_is_a_counted_miss_by(io: NvmeIo) {
    let scratch = tempfile::tempdir().expect("scratch");
    let model = Model::new(3, "a", [3000]);
    let block = &model.blocks[0];
    let disk = Disk::open_to_read(scratch.path(), &model, io).await;
    reads_by(&disk.level, io);
    fill(&disk, &model).await;
    let path = files(scratch.path()).remove(0);
    let sound = fs::read(&path).expect("read");
    let (arena, class) = (Arena::new(16 * MIB), "a".into());
    let slot = || arena.slot(block.image.len()).expect("mapped").expect("room");
    let mut whole = slot();
    whole.copy_from_slice(&block.image);
    let whole = whole.freeze();
    let mut misses = disk.count(MISSES);
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << ((at / 64 + at) % 8);
        fs::write(&path, damaged).expect("written");
        let before = disk.count(VERIFY_FAILURES);
        if at % 64 == 0 {
            // As a reader meets it.
            assert_eq!(disk.cold(block).await, Medium::ObjectStore, "byte {at}");
            misses += 1;
            assert_eq!(disk.count(VERIFY_FAILURES), before + 1, "byte {at}");
            assert_eq!(disk.count(MISSES), misses, "byte {at}");
            // It is written again, with the origin's bytes.
            disk.kept(1).await;
            assert_eq!(disk.cold(block).await, Medium::Nvme, "byte {at}");
        } else {
            let id = &block.fetch.id;
            let read = disk.level.read(id, slot(), Urgency::Demand).await.expect("the disk works");
            match read {
                // The reader checks it, and counts as above.
                LevelRead::Hit { slot, check } => assert!(!check.holds(id, &slot), "byte {at}"),
                LevelRead::Miss(_) => assert_eq!(disk.count(VERIFY_FAILURES), before + 1),
            }
            disk.level.remove(id).await.expect("removed");
            assert!(disk.level.admit(id, &class, &whole).await.expect("written"), "byte {at}");
        }
    }
    assert_eq!(disk.hierarchy.status().levels[1].health, Health::Ok);
    disk.close().await;
}

#[tokio::test]
async fn files_cut_short_or_swapped_or_gone_are_misses() {
    for io in WAYS {
        files_cut_short_or_swapped_or_gone_are_misses_by(io).await;
    }
}

async fn files_cut_short_or_swapped_or_gone_are_misses_by(io: NvmeIo) {
    let scratch = tempfile::tempdir().expect("scratch");
    let model = Model::new(4, "a", [3000, 3000, 3000, 3000]);
    let disk = Disk::open_to_read(scratch.path(), &model, io).await;
    reads_by(&disk.level, io);
    fill(&disk, &model).await;
    let paths = files(scratch.path());
    let other = scratch.path().join("other");
    fs::rename(&paths[0], &other).expect("renamed");
    fs::rename(&paths[1], &paths[0]).expect("renamed");
    fs::rename(&other, &paths[1]).expect("renamed");
    fs::File::options().write(true).open(&paths[2]).expect("open").set_len(5000).expect("cut");
    fs::remove_file(&paths[3]).expect("removed");
    for block in &model.blocks {
        assert_eq!(disk.cold(block).await, Medium::ObjectStore);
    }
    assert_eq!(disk.count(VERIFY_FAILURES), 3, "two swapped, one short; one was gone");
    disk.kept(4).await;
    for block in &model.blocks {
        assert_eq!(disk.cold(block).await, Medium::Nvme);
    }
    disk.close().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_a_level_out_of_service_that_comes_back() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = scratch.path().join("cache");
    fs::write(&path, b"no directory").expect("written");
    let model = Model::new(5, "a", vec![5000; 4]);
    let disk = Disk::open(&path, &model).await;
    assert_eq!(check(&disk.hierarchy, &disk.origin, &model.blocks[0]).await, Medium::ObjectStore);
    let health = &disk.hierarchy.status().levels[1].health;
    assert!(matches!(health, Health::Broken(why) if !why.is_empty()), "{health:?}");
    fs::remove_file(&path).expect("removed");
    // As long as blocks are read, writing is tried again.
    let done = async {
        while disk.level.usage().blocks == 0 {
            disk.cold(&model.blocks[1]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), done).await.expect("it comes back");
    assert_eq!(disk.hierarchy.status().levels[1].health, Health::Ok);
    assert!(disk.hierarchy.status().levels[1].note.is_some(), "it says how it reads");
    disk.close().await;
}

#[tokio::test]
async fn two_processes_do_not_share_a_directory() {
    let scratch = tempfile::tempdir().expect("scratch");
    let first = open(scratch.path(), MIB, &StoreMetrics::default());
    scanned(&first).await;
    let second = open(scratch.path(), MIB, &StoreMetrics::default());
    scanned(&second).await;
    assert!(matches!(second.health(), Health::Broken(why) if why.contains("another process")));
    assert_eq!(first.health(), Health::Ok);
}

#[tokio::test]
async fn a_cache_that_is_emptied_under_the_daemon_is_used_again() {
    let (scratch, model) =
        (tempfile::tempdir().expect("scratch"), Model::new(31, "a", [20_000, 70_000, 5000]));
    let disk = Disk::open(scratch.path(), &model).await;
    fill(&disk, &model).await;
    let root = scratch.path().join("tpad-cache-v1");
    for gone in [root.join("blocks"), root.join("unfinished"), root] {
        fs::remove_dir_all(&gone).expect("it was there");
        for block in &model.blocks {
            // Files that are gone are misses, of which each is written again.
            disk.cold(block).await;
            until("it is written", || disk.level.contains(&block.fetch.id)).await;
        }
        for block in &model.blocks {
            assert_eq!(disk.cold(block).await, Medium::Nvme, "without {}", gone.display());
        }
        assert_eq!(disk.level.health(), Health::Ok);
    }
    // No other process comes in between.
    let other = open(scratch.path(), 64 * MIB, &StoreMetrics::default());
    until("it is told", || matches!(other.health(), Health::Broken(_))).await;
    let Health::Broken(why) = other.health() else { panic!("checked above") };
    assert!(why.contains("in use by another process"), "{why}");
    disk.close().await;
}

#[tokio::test]
async fn a_document_takes_the_room_of_the_version_that_it_replaces() {
    let scratch = tempfile::tempdir().expect("scratch");
    let level = open(scratch.path(), 8 * MIB, &StoreMetrics::default());
    scanned(&level).await;
    let documents = level.documents();
    // Two of them fill the eighth of the level that is theirs, and no third fits.
    let version = |of: u8| Bytes::from(vec![of; 500 << 10]);
    documents.put("old", version(0)).await;
    documents.put("other", version(1)).await;
    for of in 2..5 {
        documents.put("old", version(of)).await;
        assert!(documents.get("old").await == Some(version(of)), "version {of}");
        assert!(documents.get("other").await == Some(version(1)), "nothing had to go");
    }
    // A version that is larger takes what it needs, from the others alone.
    documents.put("old", Bytes::from(vec![5; 600 << 10])).await;
    assert_eq!(documents.get("other").await, None);
    assert_eq!(documents.get("old").await.map(|found| found.len()), Some(600 << 10));
    // A version that cannot be written leaves the last one.
    let unfinished = scratch.path().join("tpad-cache-v1/unfinished");
    fs::remove_dir(&unfinished).expect("it is empty");
    fs::write(&unfinished, "in the way").expect("room");
    documents.put("old", Bytes::from(vec![6; 900 << 10])).await;
    assert!(documents.get("old").await == Some(Bytes::from(vec![5; 600 << 10])));
}

#[tokio::test]
async fn documents_come_back_whole_or_not_at_all() {
    let scratch = tempfile::tempdir().expect("scratch");
    let level = open(scratch.path(), 8 * MIB, &StoreMetrics::default());
    scanned(&level).await;
    let documents = level.documents();
    assert_eq!(documents.get("a").await, None);
    documents.put("a", Bytes::from_static(b"one")).await;
    documents.put("a", Bytes::from_static(b"two")).await;
    documents.put("b", Bytes::new()).await;
    assert_eq!(documents.get("a").await.as_deref(), Some(&b"two"[..]));
    assert_eq!(documents.get("b").await.as_deref(), Some(&b""[..]));

    let directory = scratch.path().join("tpad-cache-v1/documents");
    let paths: Vec<PathBuf> =
        fs::read_dir(&directory).expect("there").map(|f| f.expect("read").path()).collect();
    assert_eq!(paths.len(), 2);
    let (one, other) = (fs::read(&paths[0]).expect("read"), fs::read(&paths[1]).expect("read"));
    fs::write(&paths[0], &other).expect("written");
    fs::write(&paths[1], &one[..one.len() - 1]).expect("written");
    assert_eq!((documents.get("a").await, documents.get("b").await), (None, None));
    assert_eq!(fs::read_dir(&directory).expect("there").count(), 0, "damaged ones are removed");

    // Of what does not fit, the oldest go: an eighth of the level is theirs.
    let large = Bytes::from(vec![7; 400 << 10]);
    for key in ["1", "2", "3"] {
        documents.put(key, large.clone()).await;
    }
    assert_eq!(documents.get("1").await, None);
    assert_eq!(documents.get("3").await, Some(large.clone()));
    documents.put("4", Bytes::from(vec![7; 2 << 20])).await;
    assert_eq!(documents.get("4").await, None, "larger than all of it");
    drop((level, documents));

    let again = open(scratch.path(), 8 * MIB, &StoreMetrics::default());
    let documents = again.documents();
    let done = async {
        while documents.get("3").await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), done).await.expect("after a restart too");
}
