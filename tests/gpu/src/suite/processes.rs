//! Workers and daemons are processes, and processes are killed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tpad_cuda::Memory;
use tpad_hbm::{DeviceBlock, SharedDeviceSlab};
use tpad_manifest::BlockId;

use crate::child::{Process, daemon, worker};
use crate::stage::{MIB, Scene, Stage, check, content, demand};

/// Hands a slab to a worker; how long importing it took.
fn import(worker: &Process, scene: &Scene, slab: &SharedDeviceSlab) -> Result<Duration> {
    let device = scene.level.devices().find(|facts| facts.index == slab.device().0);
    let device = device.context("the level has it")?.uuid.to_string();
    let ask = worker::Ask::Import { slab: slab.id(), bytes: slab.bytes(), device };
    match worker.ask(&ask, Some(slab.descriptor()?.as_fd()))? {
        worker::Answer::Imported { nanos } => Ok(Duration::from_nanos(nanos)),
        other => bail!("{other:?}"),
    }
}

/// Whether a worker reads the block of a seed.
fn reads(worker: &Process, block: &DeviceBlock, seed: u64) -> Result<()> {
    let place = block.place();
    let ask = worker::Ask::Read { slab: place.slab, offset: place.offset, bytes: block.bytes() };
    let digest = BlockId::of(&content(seed, block.bytes())).to_string();
    let answer: worker::Answer = worker.ask(&ask, None)?;
    ensure!(answer == worker::Answer::Read { digest }, "block {seed}: {answer:?}");
    Ok(())
}

pub(super) async fn another_process_reads_what_lies_there_and_cannot_write(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(64 * MIB, 64 * MIB)?;
    let worker = Process::start(&stage, "worker", &[])?;
    let mut slabs = BTreeMap::new();
    for seed in 0..6 {
        let block = scene.bring(seed, [MIB, 8 * MIB][usize::try_from(seed % 2)?]).await?;
        let slab = block.shared_slab();
        if let Entry::Vacant(first) = slabs.entry(slab.id()) {
            import(&worker, &scene, &slab)?;
            first.insert(slab);
        }
        reads(&worker, &block, seed)?;
        let place = block.place();
        let write = worker::Ask::Write { slab: place.slab, offset: place.offset };
        let answer: worker::Answer = worker.ask(&write, None)?;
        ensure!(matches!(answer, worker::Answer::Refused { .. }), "{answer:?}");
        check(&block, seed)?;
        reads(&worker, &block, seed)?;
    }
    let (id, slab) = slabs.pop_first().context("there is one")?;
    let device = stage.device()?.facts().uuid.to_string();
    let wrong = worker::Ask::Import { slab: id, bytes: slab.bytes() * 2, device };
    let answer: worker::Answer = worker.ask(&wrong, Some(slab.descriptor()?.as_fd()))?;
    ensure!(matches!(answer, worker::Answer::Refused { .. }), "twice its size: {answer:?}");
    Ok(())
}

pub(super) async fn a_slab_that_a_worker_has_mapped_is_wanted_and_not_given_back(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(8 * MIB, 32 * MIB)?;
    let mut wanted = scene.level.watch_wanted();
    let worker = Process::start(&stage, "worker", &[])?;
    let block = scene.bring(1, 4 * MIB).await?;
    let slab = block.shared_slab();
    import(&worker, &scene, &slab)?;
    drop(block);
    ensure!(slab.wanted_since().is_none());
    // Needs the room of the slab that the worker has.
    let source = scene.block(2, 6 * MIB)?;
    let ask = |options| scene.promote(2, "a", &source, scene.device, options);
    ensure!(ask(demand(1)).await?.is_none());
    ensure!(slab.wanted_since().is_some() && wanted.has_changed()?);
    wanted.mark_unchanged();
    let give_up = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer: worker::Answer = worker.ask(&worker::Ask::Forget { slab: slab.id() }, None)?;
        ensure!(answer == worker::Answer::Forgotten);
        drop(slab);
        Ok(())
    };
    let (block, given_up) = tokio::join!(ask(demand(30)), give_up);
    given_up?;
    check(&block?.context("the worker has given it up")?, 2)
}

pub(super) async fn killed_workers_leave_no_byte(stage: Stage) -> Result<()> {
    let device = stage.device()?;
    // A scene of its own first: contexts and modules are there afterwards.
    stage.scene(8 * MIB, 8 * MIB)?.bring(0, MIB).await?;
    let before = device.memory()?.free_bytes;
    {
        let scene = stage.scene(64 * MIB, 64 * MIB)?;
        let mut blocks = Vec::new();
        for seed in 0..8 {
            blocks.push(scene.bring(seed, 2 * MIB).await?);
        }
        let mapped = scene.level.status().devices[0].mapped_bytes;
        for round in 0..stage.kills {
            let mut worker = Process::start(&stage, "worker", &[])?;
            let mut slabs: BTreeMap<u64, SharedDeviceSlab> = BTreeMap::new();
            for (seed, block) in (0..).zip(&blocks) {
                let slab = block.shared_slab();
                if let Entry::Vacant(first) = slabs.entry(slab.id()) {
                    import(&worker, &scene, &slab)?;
                    first.insert(slab);
                }
                // Killed while it has some or all of it, and while it reads.
                if seed == u64::from(round) % 9 {
                    break;
                }
                reads(&worker, block, seed)?;
            }
            let place = blocks[0].place();
            let (slab, offset) = (place.slab, place.offset);
            worker.say(&worker::Ask::Read { slab, offset, bytes: 2 * MIB }, None)?;
            worker.kill()?;
            drop(slabs);
        }
        for (seed, block) in (0..).zip(&blocks) {
            check(block, seed)?;
        }
        ensure!(scene.level.status().devices[0].mapped_bytes == mapped);
    }
    stage.memory_returns(before).await?;
    Ok(())
}

/// What a worker has of a daemon.
struct Imported {
    slabs: BTreeMap<u64, Arc<dyn Memory>>,
    /// Contents, slabs, offsets and bytes.
    blocks: Vec<(u64, u64, u64, u64)>,
}

impl Imported {
    /// Asks the daemon for all that it holds.
    fn of(stage: &Stage, daemon: &Process) -> Result<Self> {
        let device = stage.device()?;
        let mut imported = Self { slabs: BTreeMap::new(), blocks: Vec::new() };
        daemon.say(&daemon::Ask::Share, None)?;
        loop {
            let (answer, descriptor) = daemon.hear::<daemon::Answer>()?;
            match answer {
                daemon::Answer::Slab { slab, bytes } => {
                    let descriptor = descriptor.context("it comes with its descriptor")?;
                    imported.slabs.insert(slab, device.import(descriptor.as_fd(), bytes)?);
                }
                daemon::Answer::Block { content, slab, offset, bytes } => {
                    imported.blocks.push((content, slab, offset, bytes));
                }
                daemon::Answer::Shared => return Ok(imported),
                other @ daemon::Answer::Filled { .. } => bail!("{other:?}"),
            }
        }
    }

    /// Whether every block is what it was: the first ones whole, and of large ones after
    /// them the beginning, the middle and the end.
    fn check(&self) -> Result<()> {
        let mut contents: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        let mut there = Vec::new();
        for (n, &(seed, slab, offset, bytes)) in self.blocks.iter().enumerate() {
            let right = contents.entry((seed, bytes)).or_insert_with(|| content(seed, bytes));
            let spans = if n < 4 || bytes <= 16 * MIB {
                vec![(0, bytes)]
            } else {
                vec![(0, MIB), (bytes / 2, MIB), (bytes - MIB, MIB)]
            };
            for (from, length) in spans {
                there.resize(usize::try_from(length)?, 0);
                self.slabs[&slab].read(offset + from, &mut there)?;
                let from = usize::try_from(from)?;
                ensure!(there == right[from..from + there.len()], "block {seed} is another one");
            }
        }
        Ok(())
    }
}

fn fill(daemon: &Process, ask: &daemon::Ask) -> Result<(u64, u64, u64)> {
    match daemon.ask(ask, None)? {
        daemon::Answer::Filled { filled, refused, mapped } => Ok((filled, refused, mapped)),
        other => bail!("{other:?}"),
    }
}

pub(super) async fn a_daemon_that_is_killed_leaves_right_bytes(stage: Stage) -> Result<()> {
    let before = stage.device()?.memory()?.free_bytes;
    let memory = [(64 * MIB).to_string(), (64 * MIB).to_string()];
    for round in 0..stage.kills {
        let mut daemon = Process::start(&stage, "daemon", &memory)?;
        let first = u64::from(round) * 8;
        let ask =
            daemon::Ask::Fill { first, count: 8, bytes: 2 * MIB, contents: 1 << 40, patience: 30 };
        let (filled, refused, _) = fill(&daemon, &ask)?;
        ensure!((filled, refused) == (8, 0), "{filled} filled, {refused} refused");
        let imported = Imported::of(&stage, &daemon)?;
        // Killed while it copies other blocks beside them.
        daemon.say(&daemon::Ask::Churn { bytes: 2 * MIB }, None)?;
        imported.check()?;
        tokio::time::sleep(Duration::from_millis(u64::from(round % 7) * 3)).await;
        daemon.kill()?;
        imported.check()?;
    }
    stage.memory_returns(before).await?;
    Ok(())
}

pub(super) async fn a_daemon_starts_under_a_worker_that_holds_most_of_the_memory(
    stage: Stage,
) -> Result<()> {
    let device = stage.device()?;
    let before = device.memory()?;
    let bytes = if stage.is_gpu() { 256 * MIB } else { 8 * MIB };
    let capacity = before.free_bytes / 10 * 9;
    let memory = [capacity.to_string(), (8 * bytes).to_string()];
    let mut first = Process::start(&stage, "daemon", &memory)?;
    let count = before.total_bytes / 10 * 8 / bytes;
    let ask = daemon::Ask::Fill { first: 0, count, bytes, contents: 4, patience: 60 };
    let (filled, refused, _) = fill(&first, &ask)?;
    ensure!(filled == count, "{filled} of {count} filled, {refused} refused");
    let held = Imported::of(&stage, &first)?;
    first.kill()?;
    held.check()?;

    let second = Process::start(&stage, "daemon", &memory)?;
    let ask = daemon::Ask::Fill { first: 0, count, bytes, contents: 4, patience: 0 };
    let (some, refused, mapped) = fill(&second, &ask)?;
    ensure!(some >= 1 && refused >= 1, "{some} filled, {refused} refused");
    ensure!(mapped <= before.total_bytes - count * bytes, "it has {mapped} bytes");
    Imported::of(&stage, &second)?.check()?;
    held.check()?;
    // The worker lets go: the level grows.
    drop(held);
    let ask = daemon::Ask::Fill { first: 0, count, bytes, contents: 4, patience: 30 };
    let (all, refused, mapped) = fill(&second, &ask)?;
    ensure!(
        refused == 0 && mapped > capacity / 2,
        "{all} filled, {refused} refused, {mapped} bytes"
    );
    Imported::of(&stage, &second)?.check()?;
    drop(second);
    stage.memory_returns(before.free_bytes).await?;
    Ok(())
}
