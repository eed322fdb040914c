//! Blocks arrive.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use tpad_hbm::DeviceId;

use crate::stage::{MIB, Scene, Stage, check, demand, id};

pub(super) async fn a_block_of_any_size_arrives_whole_and_is_read_where_it_lies(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(64 * MIB, 64 * MIB)?;
    let sizes = [256, 4096, 5120, MIB, 3 * MIB + 256, 5 * MIB - 256, 16 * MIB];
    for (seed, bytes) in (0..).zip(sizes) {
        ensure!(scene.level.get(&id(seed), scene.device).is_none(), "nothing was there");
        let block = scene.bring(seed, bytes).await?;
        let place = block.place();
        let slab = block.shared_slab();
        ensure!(block.bytes() == bytes && place.slot_bytes >= bytes, "{place:?}");
        ensure!(slab.id() == place.slab && place.offset + place.slot_bytes <= slab.bytes());
        ensure!(place.offset % 4096 == 0 && place.device == scene.device, "{place:?}");
    }
    for (seed, bytes) in (0..).zip(sizes) {
        ensure!(scene.level.contains(&id(seed), scene.device));
        let block = scene.level.get(&id(seed), scene.device).context("it was kept")?;
        ensure!(block.bytes() == bytes);
        check(&block, seed)?;
        ensure!(block.read(bytes - 1, &mut [0; 2]).is_err(), "beyond the image");
    }
    ensure!(scene.level.usage(scene.device).blocks == sizes.len() as u64);
    ensure!(scene.level.remove(&id(3), scene.device) && !scene.level.remove(&id(3), scene.device));
    ensure!(scene.level.get(&id(3), scene.device).is_none());
    ensure!(scene.arena.usage().held == 0, "sources are let go of");
    Ok(())
}

pub(super) async fn whoever_asks_at_once_gets_one_copy(stage: Stage) -> Result<()> {
    let scene = stage.scene(32 * MIB, 32 * MIB)?;
    let source = scene.block(1, 4 * MIB)?;
    let asking = || scene.promote(1, "a", &source, scene.device, demand(30));
    let blocks = join_all((0..64).map(|_| asking())).await;
    let mut places = Vec::new();
    for block in blocks {
        let block = block?.context("there is room")?;
        places.push(block.place());
    }
    ensure!(places.iter().all(|place| *place == places[0]), "{places:?}");
    ensure!(scene.counted("tpad_hbm_fill_bytes_total{device=\"0\"}")? == (4 * MIB) as f64);
    Ok(())
}

pub(super) async fn callers_that_hang_up_leave_the_copy_to_the_level(stage: Stage) -> Result<()> {
    let scene = stage.scene(64 * MIB, 64 * MIB)?;
    for seed in 0..32 {
        let source = scene.block(seed, MIB)?;
        let asking = scene.promote(seed, "a", &source, scene.device, demand(30));
        // Hangs up before, while, or after it is copied.
        let patience = Duration::from_micros(seed * 20);
        let _heard = tokio::time::timeout(patience, asking).await;
    }
    for seed in 0..32 {
        // Whatever was begun is finished; what was not is begun.
        let block = scene.bring(seed, MIB).await?;
        check(&block, seed)?;
    }
    scene.level.close().await;
    ensure!(scene.arena.usage().held == 0, "sources are let go of");
    Ok(())
}

pub(super) async fn what_is_held_outlasts_its_eviction(stage: Stage) -> Result<()> {
    // A budget of what is held: it goes last, but it goes.
    let scene = Scene::open(&stage.driver, &[0], 16 * MIB, &[("a", 4 * MIB)], 32 * MIB)?;
    let held = [scene.bring(0, 2 * MIB).await?, scene.bring(1, 2 * MIB).await?];
    for seed in 2..40 {
        scene.bring(seed, 2 * MIB).await?;
    }
    ensure!(scene.level.get(&id(0), scene.device).is_none(), "it was given up");
    for (seed, block) in (0..).zip(&held) {
        check(block, seed)?;
    }
    let place = held[0].place();
    for seed in 40..80 {
        let other = scene.bring(seed, 2 * MIB).await?;
        ensure!(other.place() != place, "its slot was used while it was held");
    }
    drop(held);
    let mut reused = false;
    for seed in 80..120 {
        reused |= scene.bring(seed, 2 * MIB).await?.place() == place;
    }
    ensure!(reused, "its slot is used again afterwards");
    Ok(())
}

pub(super) async fn host_memory_is_registered_as_long_as_it_is_mapped(stage: Stage) -> Result<()> {
    let scene = stage.scene(16 * MIB, 8 * MIB)?;
    let registered = "tpad_hbm_registered_host_bytes";
    ensure!(scene.counted(registered)? == 0.0);
    let blocks = [scene.block(0, MIB)?, scene.block(1, MIB)?, scene.block(2, 3 * MIB)?];
    ensure!(scene.counted(registered)? == scene.arena.usage().mapped as f64);
    drop(blocks);
    // Slabs of other sizes are unmapped for it.
    let whole = scene.block(3, 8 * MIB)?;
    ensure!(scene.counted(registered)? == (8 * MIB) as f64);
    let Scene { level, metrics, arena, device } = scene;
    let block = level.promote(&id(3), &"a".into(), &whole, device, demand(30)).await?;
    check(&block.context("there is room")?, 3)?;
    drop((whole, arena));
    let scene = Scene { level, metrics, arena: tpad_store::Arena::new(0), device };
    ensure!(scene.counted(registered)? == 0.0, "nothing is registered that is not mapped");
    Ok(())
}

pub(super) async fn blocks_live_on_several_devices(stage: Stage) -> Result<()> {
    let count = u32::try_from(stage.driver.devices()?.len())?;
    let devices: Vec<u32> = (0..count).collect();
    let scene = Scene::open(&stage.driver, &devices, 32 * MIB, &[], 32 * MIB)?;
    for seed in 0..8 {
        let source = scene.block(seed, MIB)?;
        for device in (0..count).map(DeviceId).filter(|device| seed != 7 || device.0 == 0) {
            let block = scene.promote(seed, "a", &source, device, demand(30)).await?;
            let block = block.context("there is room")?;
            ensure!(block.place().device == device);
            check(&block, seed)?;
        }
    }
    ensure!(scene.level.holders(&id(0)).len() == devices.len());
    ensure!(scene.level.holders(&id(7)) == [DeviceId(0)]);
    let mut slabs: Vec<u64> = Vec::new();
    for device in (0..count).map(DeviceId) {
        let block = scene.level.get(&id(0), device).context("it is there")?;
        check(&block, 0)?;
        slabs.push(block.place().slab);
        ensure!(scene.level.remove(&id(0), device), "one device's own");
    }
    slabs.dedup();
    ensure!(slabs.len() == devices.len(), "a slab's number is of one device: {slabs:?}");
    let source = scene.block(0, MIB)?;
    let nowhere = scene.promote(0, "a", &source, DeviceId(99), demand(1)).await;
    ensure!(nowhere.is_err(), "there is no such device");
    Ok(())
}
