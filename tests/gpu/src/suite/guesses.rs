//! Blocks that nobody waits for yet.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use crate::stage::{MIB, Scene, Stage, check, demand, id, prefetch};

/// More than two pieces of a copy, and no whole number of them.
const LARGE: u64 = 20 * MIB + 4096;

pub(super) async fn a_guess_is_whole_whoever_comes_for_it_and_whenever(stage: Stage) -> Result<()> {
    let scene = stage.scene(96 * MIB, 128 * MIB)?;
    for seed in 0..12 {
        let guessed = scene.block(seed, LARGE)?;
        let guess = scene.promote(seed, "a", &guessed, scene.device, prefetch(60));
        // Sooner or later on its way: before its first piece, between two, after the last.
        let needed = async {
            tokio::time::sleep(Duration::from_micros(100 * seed * seed)).await;
            scene.promote(seed, "a", &guessed, scene.device, demand(60)).await
        };
        // And others, which press before it.
        let others = join_all((0..8).map(|n| scene.bring(1000 + 8 * seed + n, MIB)));
        let (guess, needed, others) = tokio::join!(guess, needed, others);
        check(&guess?.context("there was room")?, seed)?;
        check(&needed?.context("it was waited for")?, seed)?;
        for (n, other) in (0..).zip(others) {
            check(&other?, 1000 + 8 * seed + n)?;
        }
        for n in 0..8 {
            scene.level.remove(&id(1000 + 8 * seed + n), scene.device);
        }
        scene.level.remove(&id(seed), scene.device);
    }
    nothing_is_left(&scene).await
}

pub(super) async fn a_guess_that_is_given_up_leaves_no_byte(stage: Stage) -> Result<()> {
    let scene = stage.scene(96 * MIB, 128 * MIB)?;
    for seed in 0..30 {
        let source = scene.block(seed, LARGE)?;
        let guess = scene.promote(seed, "a", &source, scene.device, prefetch(60));
        drop(timeout(Duration::from_micros(200 * seed), guess).await);
        drop(source);
        if seed % 3 == 0 {
            // Whoever comes for it after all gets it.
            let source = scene.block(seed, LARGE)?;
            let needed = scene.promote(seed, "a", &source, scene.device, demand(60)).await?;
            check(&needed.context("it was waited for")?, seed)?;
        }
        scene.level.remove(&id(seed), scene.device);
    }
    // What came all the same goes like what is kept.
    scene.level.close().await;
    for seed in 0..30 {
        scene.level.remove(&id(seed), scene.device);
    }
    nothing_is_left(&scene).await
}

/// Neither on the device nor of what was to go there.
async fn nothing_is_left(scene: &Scene) -> Result<()> {
    let began = Instant::now();
    loop {
        let held = scene.level.status().devices.iter().map(|device| device.held_bytes).sum::<u64>();
        let here = scene.arena.usage().held;
        if held == 0 && here == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(10), "{held} bytes there, {here} here");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
