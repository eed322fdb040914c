//! What a driver does wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tpad_cuda::fault::{Faults, Faulty};
use tpad_hbm::HbmError;
use tpad_store::Health;

use crate::stage::{MIB, Scene, Stage, check, demand, id};

pub(super) async fn a_sticky_error_turns_the_level_off_and_blocks_stay_harmless(
    stage: Stage,
) -> Result<()> {
    let faults = Arc::<Faults>::default();
    let driver = Faulty::over(Arc::clone(&stage.driver), &faults);
    let scene = Scene::open(&driver, &[0], 32 * MIB, &[], 32 * MIB)?;
    let before = scene.bring(0, MIB).await?;
    ensure!(scene.level.health() == Health::Ok);
    faults.copies_to_death.store(2, Ordering::SeqCst);
    scene.bring(1, MIB).await?;
    let source = scene.block(2, MIB)?;
    let ask = || scene.promote(2, "a", &source, scene.device, demand(30));
    let error = ask().await.expect_err("the context dies");
    ensure!(matches!(&error, HbmError::Cuda { source, .. } if source.is_sticky()), "{error}");
    ensure!(faults.fired() == 1, "it fired {} times", faults.fired());
    ensure!(matches!(scene.level.health(), Health::Broken(why) if why.contains("ILLEGAL_ADDRESS")));
    for seed in 0..3 {
        ensure!(scene.level.get(&id(seed), scene.device).is_none(), "{seed}");
        ensure!(!scene.level.contains(&id(seed), scene.device), "{seed}");
    }
    ensure!(ask().await?.is_none(), "it is refused from then on");
    ensure!(scene.counted("tpad_hbm_broken")? == 1.0);
    let status = serde_json::to_value(scene.level.status())?;
    ensure!(status["health"]["broken"].is_string(), "{status}");
    // What is held says where it was, and can be dropped.
    ensure!(before.place().device == scene.device);
    drop(before);
    ensure!(scene.arena.usage().held == source.padded().len() as u64, "no source is kept");
    Ok(())
}

pub(super) async fn a_device_without_memory_is_asked_again_and_the_level_grows(
    stage: Stage,
) -> Result<()> {
    let faults = Arc::<Faults>::default();
    let driver = Faulty::over(Arc::clone(&stage.driver), &faults);
    let scene = Scene::open(&driver, &[0], 64 * MIB, &[], 64 * MIB)?;
    scene.bring(0, 2 * MIB).await?;
    faults.creates_refused.store(u64::MAX, Ordering::SeqCst);
    // There is one slot, and no memory for another: nothing goes for a guess ...
    for seed in 1..4 {
        ensure!(scene.offer(seed, 2 * MIB, "a").await?.is_none(), "there is room in the budget");
        ensure!(scene.level.contains(&id(0), scene.device), "it is within its budget");
    }
    // ... and the last one for each that is waited for.
    for seed in 1..4 {
        scene.bring(seed, 2 * MIB).await?;
    }
    let refused = faults.fired();
    ensure!(refused >= 1);
    ensure!(scene.level.usage(scene.device).blocks == 1);
    ensure!(scene.level.health() == Health::Ok, "others use the memory: nothing is broken");
    // Held, it stays; the next one waits until the device has memory again.
    faults.creates_refused.store(2, Ordering::SeqCst);
    let held = scene.level.get(&id(3), scene.device).context("it was kept")?;
    let block = scene.bring(10, 2 * MIB).await?;
    check(&held, 3)?;
    check(&block, 10)?;
    ensure!(faults.fired() == refused + 2, "it fired {} times", faults.fired());
    ensure!(scene.counted("tpad_hbm_no_memory_total{device=\"0\"}")? >= 3.0);
    for seed in 20..40 {
        scene.bring(seed, 2 * MIB).await?;
    }
    ensure!(scene.level.usage(scene.device).blocks >= 20, "it grows to its capacity");
    tokio::time::timeout(Duration::from_secs(5), scene.level.close()).await?;
    Ok(())
}

pub(super) async fn host_memory_that_is_not_registered_is_copied_all_the_same(
    stage: Stage,
) -> Result<()> {
    let faults = Arc::<Faults>::default();
    faults.registrations_refused.store(u64::MAX, Ordering::SeqCst);
    let driver = Faulty::over(Arc::clone(&stage.driver), &faults);
    let scene = Scene::open(&driver, &[0], 32 * MIB, &[], 32 * MIB)?;
    for seed in 0..4 {
        check(&scene.bring(seed, 4 * MIB).await?, seed)?;
    }
    ensure!(faults.fired() > 0);
    ensure!(scene.counted("tpad_hbm_registration_failures_total")? == faults.fired() as f64);
    ensure!(scene.counted("tpad_hbm_registered_host_bytes")? == 0.0);
    Ok(())
}
