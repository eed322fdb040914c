//! How fast blocks come from disk into their slots, checked, beside what the disk
//! and the checksum give at most.
//!
//! `cargo bench -p tpad-store --bench cold -- DIRECTORY [MIB [BLOCK_MIB [AT_ONCE]]]`
//! writes blocks below the directory, which must be on the disk to be measured, and
//! reads all of them past the page cache in rounds, each way once in every round:
//!
//! - `raw`: one file of the same size, 4 MiB reads by 8 threads, nothing checked;
//! - `crc`: the checksum over the same bytes in memory, on all cores;
//! - `io_uring`, `threads`: the level, through either reader;
//! - `serial`: as the level read before it had readers: each block by one thread,
//!   8 MiB at a time, and its checksum afterwards on another.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tpad_manifest::BlockId;
use tpad_store::{
    Arena, Check, Level, LevelRead, LevelReader, NvmeConfig, NvmeIo, NvmeLevel, SlotMut,
    StoreMetrics, Urgency, crc64_nvme,
};

const ROUNDS: usize = 5;
const MIB: usize = 1 << 20;

/// Direct reads want memory and offsets at whole pages.
const PAGE: usize = 4096;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What is read, and how.
struct Scene {
    directory: PathBuf,
    blocks: Vec<BlockId>,
    block_bytes: usize,
    at_once: usize,
    arena: Arc<Arena>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        println!("name a directory on the disk to be measured");
        return Ok(());
    };
    let mut number = |default: usize| -> Result<usize> {
        Ok(arguments.next().map(|text| text.parse()).transpose()?.unwrap_or(default))
    };
    let (mib, block_mib, at_once) = (number(2048)?, number(16)?, number(16)?);
    let directory = directory.join(format!("tpad-cold-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(run(&directory, mib, block_mib, at_once));
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn run(directory: &Path, mib: usize, block_mib: usize, at_once: usize) -> Result<()> {
    let block_bytes = block_mib * MIB;
    let arena = Arena::new(((at_once + 4) * block_bytes * 2) as u64);
    let scene = Scene {
        directory: directory.to_owned(),
        blocks: write(directory, mib / block_mib, block_bytes, &arena).await?,
        block_bytes,
        at_once,
        arena,
    };
    println!("{} blocks of {block_mib} MiB, {at_once} at once; GB/s, CPU s/GB", scene.blocks.len());
    let mut rates: [(&str, Vec<f64>); 5] = [
        ("raw", vec![]),
        ("crc", vec![]),
        ("io_uring", vec![]),
        ("threads", vec![]),
        ("serial", vec![]),
    ];
    for round in 0..=ROUNDS {
        for (way, rates) in &mut rates {
            let (took, cpu) = match *way {
                "raw" => timed(async || scene.raw()).await?,
                "crc" => timed(async || scene.checksum()).await?,
                "serial" => timed(async || scene.serial().await).await?,
                io => {
                    let level = scene.level(io).await?;
                    let timed = timed(async || scene.read(&level).await).await?;
                    level.close().await;
                    timed
                }
            };
            let gb = (scene.blocks.len() * block_bytes) as f64 / 1e9;
            // The first warms up slots and directories.
            if round > 0 {
                rates.push(gb / took.as_secs_f64());
                println!("round {round} {way:9} {:.2} {:.3}", gb / took.as_secs_f64(), cpu / gb);
            }
        }
    }
    for (way, rates) in &mut rates {
        rates.sort_unstable_by(f64::total_cmp);
        println!(
            "median {way:9} {:.2}  ({:.2} to {:.2})",
            rates[ROUNDS / 2],
            rates[0],
            rates[ROUNDS - 1]
        );
    }
    Ok(())
}

/// Writes the blocks as the level does, and one file of as many bytes.
async fn write(
    directory: &Path,
    count: usize,
    bytes: usize,
    arena: &Arc<Arena>,
) -> Result<Vec<BlockId>> {
    let level = open(directory, NvmeIo::Auto).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut raw = File::create(directory.join("raw"))?;
    let mut blocks = Vec::new();
    for _ in 0..count {
        let mut slot = slot(arena, bytes)?;
        rng.fill(&mut slot[..]);
        std::io::Write::write_all(&mut raw, &slot)?;
        let block = slot.freeze();
        let id = BlockId::of(&block);
        if !level.admit(&id, &"bench".into(), &block).await? {
            return Err("the disk takes no more blocks".into());
        }
        blocks.push(id);
    }
    raw.sync_all()?;
    level.close().await;
    Ok(blocks)
}

async fn open(directory: &Path, io: NvmeIo) -> Result<Arc<NvmeLevel>> {
    let config =
        NvmeConfig { path: directory.to_owned(), capacity_bytes: 1 << 40, free_floor_bytes: 0, io };
    let level = NvmeLevel::open(config, StoreMetrics::default())?;
    level.scanned().await;
    Ok(level)
}

fn slot(arena: &Arc<Arena>, bytes: usize) -> Result<SlotMut> {
    Ok(arena.slot(bytes)?.ok_or("no slot is free")?)
}

impl Scene {
    async fn level(&self, io: &str) -> Result<Arc<NvmeLevel>> {
        let wish = if io == "threads" { NvmeIo::Threads } else { NvmeIo::IoUring };
        let level = open(&self.directory, wish).await?;
        match level.reader() {
            Some(LevelReader { io: chosen, .. }) if chosen == io => Ok(level),
            other => Err(format!("{io} is not to be had: {other:?}").into()),
        }
    }

    async fn read(&self, level: &NvmeLevel) -> Result<()> {
        let read = |id: &BlockId| {
            let id = *id;
            async move {
                let slot = slot(&self.arena, self.block_bytes)?;
                match level.read(&id, slot, Urgency::Demand).await? {
                    LevelRead::Hit { check: Check::Held, .. } => Ok(()),
                    other => Err(format!("not read and checked: {other:?}").into()),
                }
            }
        };
        stream::iter(self.blocks.iter().map(read))
            .buffer_unordered(self.at_once)
            .try_collect()
            .await
    }

    async fn serial(&self) -> Result<()> {
        let read = |id: &BlockId| {
            let name = id.to_string();
            let path = self.directory.join("tpad-cache-v1/blocks").join(&name[..2]).join(&name);
            async move {
                let mut slot = slot(&self.arena, self.block_bytes)?;
                let read = tokio::task::spawn_blocking(move || -> Result<(SlotMut, u64)> {
                    let file = direct(&path)?;
                    let mut page = vec![0; 2 * PAGE];
                    let start = page.as_ptr().align_offset(PAGE);
                    read_exact(&file, &mut page[start..start + PAGE], 0)?;
                    let mut at = PAGE;
                    for piece in slot.padded_mut().chunks_mut(8 * MIB) {
                        read_exact(&file, piece, at)?;
                        at += piece.len();
                    }
                    let kept = page[start + 48..start + 56].try_into()?;
                    Ok((slot, u64::from_le_bytes(kept)))
                });
                let (slot, kept) = read.await??;
                let crc = tokio::task::spawn_blocking(move || crc64_nvme(&slot)).await?;
                if crc == kept { Ok(()) } else { Err("wrong bytes".into()) }
            }
        };
        stream::iter(self.blocks.iter().map(read))
            .buffer_unordered(self.at_once)
            .try_collect()
            .await
    }

    /// One large file, by threads that do nothing else.
    fn raw(&self) -> Result<()> {
        const PIECE: usize = 4 * MIB;
        let file = direct(&self.directory.join("raw"))?;
        let (pieces, next) = (self.blocks.len() * self.block_bytes / PIECE, AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let work = || -> Result<()> {
                let mut slot = slot(&self.arena, PIECE)?;
                loop {
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    if piece >= pieces {
                        return Ok(());
                    }
                    read_exact(&file, &mut slot, piece * PIECE)?;
                }
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a panic")?)
        })
    }

    /// The checksum of as many bytes, cold in the processor's caches as they are
    /// when they come from a disk.
    fn checksum(&self) -> Result<()> {
        let cores = std::thread::available_parallelism()?.get();
        let next = AtomicUsize::new(0);
        let mut slots: Vec<SlotMut> =
            (0..8).map(|_| slot(&self.arena, self.block_bytes)).collect::<Result<_>>()?;
        slots.iter_mut().for_each(|slot| slot[0] = 1);
        std::thread::scope(|scope| {
            let work = || loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= self.blocks.len() {
                    return;
                }
                std::hint::black_box(crc64_nvme(&slots[n % slots.len()]));
            };
            (0..cores).for_each(|_| drop(scope.spawn(work)));
        });
        Ok(())
    }
}

fn direct(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    Ok(File::options().read(true).custom_flags(flags).open(path)?)
}

fn read_exact(file: &File, mut into: &mut [u8], mut at: usize) -> Result<()> {
    while !into.is_empty() {
        let read = rustix::io::pread(file, &mut *into, at as u64)?;
        if read == 0 {
            return Err("a file is cut short".into());
        }
        into = &mut into[read..];
        at += read;
    }
    Ok(())
}

/// Wall time and processor time.
async fn timed(work: impl AsyncFnOnce() -> Result<()>) -> Result<(Duration, f64)> {
    let (began, cpu) = (Instant::now(), processor_seconds());
    work().await?;
    Ok((began.elapsed(), processor_seconds() - cpu))
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
