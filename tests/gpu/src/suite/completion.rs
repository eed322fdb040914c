//! Leases outlast the work that was submitted under them.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tpad_cuda::Reaper;
use tpad_cuda::fault::{LateRead, checksum};

use crate::stage::{MIB, Scene, Stage, content, demand, id};

/// How long the work waits before it reads.
const DELAY: Duration = Duration::from_secs(1);
const BYTES: u64 = 16 * MIB;

pub(super) async fn work_that_was_submitted_reads_what_it_was_to_read(stage: Stage) -> Result<()> {
    let (scene, late, began) = launch(&stage, true).await?;
    let next = refill(&scene).await?;
    let refilled = began.elapsed();
    ensure!(refilled >= DELAY, "the slot was used after {refilled:?}, the work reads at {DELAY:?}");
    ensure!(late.checksum()? == checksum(&content(1, BYTES)), "it read something else");
    crate::stage::check(&next, 2)
}

/// The same without waiting: shows that the other one can fail.
pub(super) async fn without_waiting_it_would_read_something_else(stage: Stage) -> Result<()> {
    let (scene, late, began) = launch(&stage, false).await?;
    let next = refill(&scene).await?;
    let refilled = began.elapsed();
    ensure!(refilled < DELAY, "too slow to show anything: {refilled:?}");
    ensure!(late.checksum()? == checksum(&content(2, BYTES)), "it read something else");
    crate::stage::check(&next, 2)
}

/// Submits work that reads block 1 late, drops the lease on it at once, through the
/// reaper or not, and has the level forget it.
async fn launch(stage: &Stage, waits: bool) -> Result<(Scene, Box<dyn LateRead>, Instant)> {
    // Room for one.
    let scene = stage.scene(BYTES + 2 * MIB, 4 * BYTES)?;
    let block = scene.bring(1, BYTES).await?;
    // As a worker has it: mapped from a descriptor, to be read.
    let (device, slab, place) = (stage.device()?, block.shared_slab(), block.place());
    let descriptor = slab.descriptor()?;
    let memory = device.import(descriptor.as_fd(), slab.bytes())?;
    let reaper = Reaper::new(&device)?;
    // The first launch compiles the work; only the second one's time counts.
    device.read_late(&memory, place.offset, BYTES, Duration::ZERO)?.wait()?;
    let began = Instant::now();
    let late = device.read_late(&memory, place.offset, BYTES, DELAY)?;
    if waits {
        reaper.give_up(block);
        ensure!(reaper.pending() == 1, "it is not given up before the work is over");
    } else {
        drop(block);
    }
    ensure!(scene.level.remove(&id(1), scene.device));
    tokio::task::spawn_blocking(move || drop(reaper));
    Ok((scene, late, began))
}

async fn refill(scene: &Scene) -> Result<tpad_hbm::DeviceBlock> {
    let source = scene.block(2, BYTES)?;
    let block = scene.promote(2, "a", &source, scene.device, demand(30)).await?;
    let block = block.context("the slot comes free")?;
    ensure!(block.place().offset == 0, "there is one slot: {block:?}");
    Ok(block)
}

pub(super) async fn leases_go_in_order_and_all_of_them(stage: Stage) -> Result<()> {
    /// Says when it goes.
    struct Lease(u64, Arc<AtomicU64>, Arc<AtomicU64>);
    impl Drop for Lease {
        fn drop(&mut self) {
            let before = self.1.fetch_add(1, Ordering::SeqCst);
            self.2.fetch_add(u64::from(before != self.0), Ordering::SeqCst);
        }
    }
    let scene = stage.scene(8 * MIB, 8 * MIB)?;
    let block = scene.bring(1, MIB).await?;
    let (device, slab, place) = (stage.device()?, block.shared_slab(), block.place());
    let memory = device.import(slab.descriptor()?.as_fd(), slab.bytes())?;
    let reaper = Reaper::new(&device)?;
    let (gone, wrong) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let mut work = Vec::new();
    for n in 0..200 {
        if n % 20 == 0 {
            let delay = Duration::from_millis(5);
            work.push(device.read_late(&memory, place.offset, MIB, delay)?);
        }
        reaper.give_up(Lease(n, Arc::clone(&gone), Arc::clone(&wrong)));
    }
    tokio::task::spawn_blocking(move || {
        reaper.drain();
        reaper.pending()
    })
    .await?;
    ensure!(gone.load(Ordering::SeqCst) == 200 && wrong.load(Ordering::SeqCst) == 0);
    for work in work {
        ensure!(work.is_done()?, "leases go after the work");
        ensure!(work.checksum()? == checksum(&content(1, MIB)));
    }
    Ok(())
}
