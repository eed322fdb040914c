//! Who waits for room, and for how long.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, select_all};
use tokio::time::{Instant, timeout};
use tpad_hbm::DeviceBlock;

use crate::stage::{MIB, Scene, Stage, check, demand, id};

/// As long as an application may wait.
const LONG: u64 = 600;
/// More at once than get a turn.
const MANY: u64 = 300;

/// A level whose device is held whole.
async fn full(stage: &Stage) -> Result<(Scene, Vec<DeviceBlock>)> {
    let scene = stage.scene(8 * MIB, 32 * MIB)?;
    let mut held = Vec::new();
    for seed in 0..4 {
        held.push(scene.bring(seed, 2 * MIB).await?);
        scene.level.remove(&id(seed), scene.device);
    }
    Ok((scene, held))
}

pub(super) async fn a_fill_that_nobody_waits_for_does_not_wait_for_room(
    stage: Stage,
) -> Result<()> {
    let (scene, mut held) = full(&stage).await?;
    let (first, source) = (scene.block(1000, 2 * MIB)?, scene.block(0, 2 * MIB)?);
    let of_first = first.padded().len() as u64;
    let waits = async {
        let block = scene.promote(1000, "a", &first, scene.device, demand(LONG)).await?;
        check(&block.context("somebody waits for it")?, 1000)
    };
    let hang_up = async {
        // Two wait for slots, some for the budget, and the rest for a turn.
        let asking = (0..MANY)
            .map(|n| Box::pin(scene.promote(100 + n, "a", &source, scene.device, demand(LONG))));
        let silent = timeout(Duration::from_millis(300), select_all(asking)).await.is_err();
        ensure!(silent, "nothing comes free");
        drop(source);
        let began = Instant::now();
        while scene.arena.usage().held > of_first {
            ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", scene.arena.usage());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let given_up = scene.counted("tpad_hbm_fills_total{device=\"0\",outcome=\"no_room\"}")?;
        ensure!(given_up == MANY as f64, "{given_up} were");
        held.pop();
        Ok(())
    };
    // One that fails does not wait for the other.
    tokio::try_join!(waits, hang_up)?;
    Ok(())
}

pub(super) async fn who_joins_what_is_given_up_waits_all_the_same(stage: Stage) -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(20);
    let (scene, held) = full(&stage).await?;
    let source = scene.block(10, 2 * MIB)?;
    for n in 0..50 {
        let ask = |options| scene.promote(10, "a", &source, scene.device, options);
        let heard = timeout(Duration::from_millis(2), ask(demand(LONG))).await;
        ensure!(heard.is_err(), "nothing comes free");
        // Has the fill look whether anybody waits, at about the time when somebody does.
        let nudge = held[0].clone();
        let looks = tokio::spawn(async move {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
            drop(nudge);
        });
        let began = Instant::now();
        let deadline = tpad_store::ReadOptions { deadline: began + PATIENCE, ..demand(0) };
        ensure!(ask(deadline).await?.is_none());
        ensure!(began.elapsed() >= PATIENCE, "refused after {:?}", began.elapsed());
        looks.await?;
    }
    Ok(())
}

pub(super) async fn closing_ends_the_waits_for_room(stage: Stage) -> Result<()> {
    let (scene, held) = full(&stage).await?;
    let source = scene.block(10, 2 * MIB)?;
    let ask = |seed| scene.promote(seed, "a", &source, scene.device, demand(LONG));
    let asking = async { Ok(join_all((0..MANY).map(|n| ask(100 + n))).await) };
    let close = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let closed = timeout(Duration::from_secs(10), scene.level.close()).await;
        closed.context("it waits for those who wait")
    };
    let (refused, ()) = tokio::try_join!(asking, close)?;
    for refused in refused {
        ensure!(refused?.is_none(), "there was no room");
    }
    drop(source);
    ensure!(scene.arena.usage().held == 0, "sources are let go of");
    for (seed, block) in (0..).zip(&held) {
        check(block, seed)?;
    }
    Ok(())
}
