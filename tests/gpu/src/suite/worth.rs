//! What stays of what would all have a right to.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, ensure};

use crate::stage::{MIB, Scene, Stage, check, demand, id};

pub(super) async fn what_is_used_most_stays_when_layers_ask_in_turn(stage: Stage) -> Result<()> {
    // Of each of 16 layers' 4 experts one is picked nine times in ten. Two thirds of them
    // fit, less than the most recent token's and the one's before.
    let scene = stage.scene(22 * MIB, 32 * MIB)?;
    let mut recent = Recent::new(22);
    let (mut found, mut expected, mut random) = (0, 0, 7_u64);
    for token in 0..60 {
        for layer in 0..16 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let other = if random % 10 == 0 { 1 + (random >> 20) % 3 } else { 0 };
            let seed = layer * 4 + (layer + other) % 4;
            let there = scene.level.get(&id(seed), scene.device);
            if token >= 10 {
                found += u32::from(there.is_some());
                expected += u32::from(recent.has(seed));
            }
            recent.use_one(seed);
            if let Some(block) = there {
                check(&block, seed)?;
            } else {
                bring(&scene, seed).await?;
            }
        }
    }
    // The favourites are nine in ten of the uses and three quarters of what fits.
    ensure!(found > 50 * 16 * 8 / 10, "{found} of {} were there", 50 * 16);
    ensure!(found > expected, "{found} were there, {expected} with the most recent ones alone");
    // Tastes change: what was a favourite goes when others are.
    let before: Vec<u64> = (0..16).map(|layer| layer * 4 + layer % 4).collect();
    for _ in 0..40 {
        for layer in 0..16 {
            let seed = layer * 4 + (layer + 1) % 4;
            if scene.level.get(&id(seed), scene.device).is_none() {
                bring(&scene, seed).await?;
            }
        }
    }
    let left = before.iter().filter(|seed| scene.level.contains(&id(**seed), scene.device));
    let left = left.count();
    ensure!(left <= 6, "{left} of 16 that nobody uses any more are left");
    Ok(())
}

pub(super) async fn what_was_used_before_its_model_ended_gives_way_to_a_prefetch(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..16 {
        bring(&scene, seed).await?;
        scene.level.used(&id(seed), scene.device, 10);
    }
    for seed in 100..103 {
        ensure!(scene.offer(seed, MIB, "a").await?.is_none(), "favourites stay");
    }
    scene.level.forget_uses(&["b".into()]);
    ensure!(scene.offer(100, MIB, "a").await?.is_none(), "another class was forgotten");
    scene.level.forget_uses(&["a".into()]);
    for seed in 100..116 {
        ensure!(scene.offer(seed, MIB, "a").await?.is_some(), "nothing speaks for the old ones");
    }
    let left = (0..16).filter(|seed| scene.level.contains(&id(*seed), scene.device)).count();
    ensure!(left == 0, "{left} of the old ones are left");
    // What nobody used does not push out what nobody used, however often it is wished.
    for _ in 0..3 {
        for seed in 200..216 {
            ensure!(scene.offer(seed, MIB, "a").await?.is_none(), "{seed} is worth no more");
        }
        bring(&scene, 100).await?;
    }
    // Used, it does.
    drop(scene.bring(200, MIB).await?);
    scene.level.claim(&id(200), scene.device).context("it was brought")?;
    ensure!(scene.level.contains(&id(100), scene.device), "it is used, too");
    Ok(())
}

pub(super) async fn what_is_expected_takes_the_place_of_what_is_used_least(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..16 {
        bring(&scene, seed).await?;
    }
    for seed in 2..16 {
        scene.level.used(&id(seed), scene.device, 10);
    }
    ensure!(scene.offer(100, MIB, "a").await?.is_none(), "what stays was used more");
    for (seed, goes) in [(100, 0), (101, 1)] {
        scene.level.expect(&id(seed), scene.device);
        scene.level.used(&id(seed - 90), scene.device, 1);
        let block = scene.offer(seed, MIB, "a").await?.context("it is expected")?;
        check(&block, seed)?;
        ensure!(!scene.level.contains(&id(goes), scene.device), "{goes} was used least");
    }
    // However often it is said.
    for seed in 200..216 {
        (0..1000).for_each(|_| scene.level.expect(&id(seed), scene.device));
        scene.offer(seed, MIB, "a").await?;
    }
    let left = (2..16).filter(|seed| scene.level.contains(&id(*seed), scene.device)).count();
    ensure!(left == 14, "{left} of 14 favourites are left");
    // Forgotten with all uses.
    scene.level.expect(&id(102), scene.device);
    scene.level.forget_uses(&["none".into()]);
    ensure!(scene.offer(102, MIB, "a").await?.is_none(), "it is expected no more");
    Ok(())
}

pub(super) async fn a_batch_keeps_what_it_found_until_the_rest_is_there(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..16 {
        bring(&scene, seed).await?;
    }
    // The first is worth least but for what comes now.
    for seed in 1..16 {
        scene.level.used(&id(seed), scene.device, 50);
    }
    ensure!(scene.level.get(&id(0), scene.device).is_some(), "it is there");
    for seed in 100..108 {
        drop(scene.bring(seed, MIB).await?);
    }
    ensure!(scene.level.claim(&id(0), scene.device).is_some(), "it was found, and is come for");
    // Come for, it is the next to go.
    drop(scene.bring(200, MIB).await?);
    ensure!(scene.level.claim(&id(0), scene.device).is_none(), "it is worth least");
    Ok(())
}

pub(super) async fn whoever_joins_a_fill_is_counted_and_awaited_too(stage: Stage) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    let (many, one) = (scene.block(50, MIB)?, scene.block(51, MIB)?);
    let asked = (0..8).map(|_| scene.promote(50, "a", &many, scene.device, demand(30)));
    futures::future::try_join_all(asked).await?;
    scene.promote(51, "a", &one, scene.device, demand(30)).await?;
    for seed in [51, 50] {
        ensure!(scene.level.claim(&id(seed), scene.device).is_some());
    }
    for seed in 0..15 {
        bring(&scene, seed).await?;
        scene.level.used(&id(seed), scene.device, 4);
    }
    ensure!(scene.level.contains(&id(50), scene.device), "eight uses are more than one");
    ensure!(!scene.level.contains(&id(51), scene.device), "it had the least");
    Ok(())
}

/// Has a block brought and comes for it.
async fn bring(scene: &Scene, seed: u64) -> Result<()> {
    drop(scene.bring(seed, MIB).await?);
    let block = scene.level.claim(&id(seed), scene.device).context("it was brought")?;
    check(&block, seed)
}

/// What a level would keep that knows only what was used last.
struct Recent {
    slots: usize,
    used: VecDeque<u64>,
}

impl Recent {
    fn new(slots: usize) -> Self {
        Self { slots, used: VecDeque::new() }
    }

    fn has(&self, seed: u64) -> bool {
        self.used.contains(&seed)
    }

    fn use_one(&mut self, seed: u64) {
        self.used.retain(|used| *used != seed);
        self.used.push_back(seed);
        if self.used.len() > self.slots {
            self.used.pop_front();
        }
    }
}

pub(super) async fn a_batch_finds_what_it_had_brought_just_now(stage: Stage) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..16 {
        scene.bring(seed, MIB).await?;
        for _ in 0..20 {
            ensure!(scene.level.get(&id(seed), scene.device).is_some(), "{seed} is there");
        }
    }
    // Nobody used these before: they are worth least, and still nobody's to take.
    for seed in 100..110 {
        drop(scene.bring(seed, MIB).await?);
    }
    for seed in 100..110 {
        let block = scene.level.claim(&id(seed), scene.device).context("it was brought")?;
        check(&block, seed)?;
    }
    // Those that were come for go before the favourites.
    for seed in 200..220 {
        bring(&scene, seed).await?;
    }
    let left = (0..16).filter(|seed| scene.level.contains(&id(*seed), scene.device)).count();
    ensure!(left >= 5, "{left} of 16 favourites are left");
    Ok(())
}
