//! What stays, and what has to go.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tpad_hbm::DeviceBlock;

use crate::stage::{MIB, Scene, Stage, check, demand, id, prefetch};

pub(super) async fn no_schedule_takes_more_than_the_capacity_or_mixes_blocks(
    stage: Stage,
) -> Result<()> {
    let capacity = 24 * MIB;
    let budgets = [("a", 12 * MIB), ("b", 4 * MIB)];
    let scene = Scene::open(&stage.driver, &[0], capacity, &budgets, 64 * MIB)?;
    let sizes = [4096, 300 * 1024, MIB, 2 * MIB, 5 * MIB];
    let mut held: VecDeque<(u64, DeviceBlock)> = VecDeque::new();
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    for _ in 0..300 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let seed = random % 60;
        let bytes = sizes[usize::try_from(seed)? % sizes.len()];
        let class = ["a", "b", "c"][usize::try_from(random >> 20 & 0xFF)? % 3];
        let source = scene.block(seed, bytes)?;
        let options = if random >> 40 & 1 == 0 {
            prefetch(30)
        } else {
            let deadline = tokio::time::Instant::now() + Duration::from_millis(20);
            tpad_store::ReadOptions { deadline, ..demand(0) }
        };
        let block = scene.promote(seed, class, &source, scene.device, options).await?;
        if let Some(block) = block {
            ensure!(block.bytes() == bytes);
            if random >> 50 & 3 == 0 {
                held.push_back((seed, block));
            } else {
                check(&block, seed)?;
            }
        }
        if (held.len() > 6 || random >> 55 & 7 == 0)
            && let Some((seed, block)) = held.pop_front()
        {
            check(&block, seed)?;
        }
        if random >> 60 == 0 {
            scene.level.remove(&id(seed), scene.device);
        }
        let status = scene.level.status();
        let device = &status.devices[0];
        ensure!(device.mapped_bytes <= capacity && device.held_bytes <= device.mapped_bytes);
        ensure!(device.kept_bytes <= device.budget_bytes, "{device:?}");
        for class in &device.classes {
            ensure!(class.bytes <= class.budget, "{class:?}");
        }
    }
    ensure!(scene.counted("tpad_hbm_evictions_total")? > 0.0, "nothing had to go");
    for (seed, block) in &held {
        check(block, *seed)?;
    }
    Ok(())
}

pub(super) async fn a_cold_class_does_not_push_out_a_hot_one(stage: Stage) -> Result<()> {
    let budgets = [("hot", 8 * MIB), ("cold", 8 * MIB)];
    let scene = Scene::open(&stage.driver, &[0], 20 * MIB, &budgets, 32 * MIB)?;
    let cold = "cold".into();
    for seed in 0..8 {
        let source = scene.block(seed, MIB)?;
        let there = scene.promote(seed, "hot", &source, scene.device, demand(30)).await?;
        ensure!(there.is_some());
    }
    for seed in 100..200 {
        let source = scene.block(seed, MIB)?;
        scene.promote(seed, "cold", &source, scene.device, demand(30)).await?;
    }
    for seed in 0..8 {
        let block = scene.level.get(&id(seed), scene.device).context("the hot class has it")?;
        check(&block, seed)?;
    }
    ensure!(scene.level.kept_of(&cold, scene.device).bytes <= 8 * MIB);
    scene.level.set_budgets(&[("cold".to_owned(), 4 * MIB)].into())?;
    ensure!(scene.level.kept_of(&cold, scene.device).bytes <= 4 * MIB, "budgets can shrink");
    ensure!(scene.level.set_budgets(&[("cold".to_owned(), 21 * MIB)].into()).is_err());
    Ok(())
}

pub(super) async fn a_prefetch_does_not_push_out_what_is_used_more_often(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..15 {
        ensure!(scene.offer(seed, MIB, "a").await?.is_some(), "there is room for {seed}");
    }
    for _ in 0..10 {
        for seed in 0..15 {
            ensure!(scene.level.get(&id(seed), scene.device).is_some(), "{seed} is there");
        }
    }
    let copied = scene.counted("tpad_hbm_fill_bytes_total{device=\"0\"}")?;
    for seed in 100..150 {
        scene.offer(seed, MIB, "a").await?;
    }
    let survivors = (0..15).filter(|seed| scene.level.contains(&id(*seed), scene.device)).count();
    ensure!(survivors >= 12, "{survivors} of 15 are left");
    let more = scene.counted("tpad_hbm_fill_bytes_total{device=\"0\"}")? - copied;
    ensure!(more < (25 * MIB) as f64, "what would not stay is not copied: {more} bytes were");
    Ok(())
}

pub(super) async fn what_nobody_holds_goes_first(stage: Stage) -> Result<()> {
    let scene = Scene::open(&stage.driver, &[0], 16 * MIB, &[("a", 6 * MIB)], 32 * MIB)?;
    let held = [scene.bring(0, 2 * MIB).await?, scene.bring(1, 2 * MIB).await?];
    for seed in 2..20 {
        scene.bring(seed, 2 * MIB).await?;
    }
    for (seed, block) in (0..).zip(&held) {
        ensure!(scene.level.contains(&id(seed), scene.device), "{seed} frees no slot");
        check(block, seed)?;
    }
    drop(held);
    for seed in 20..23 {
        scene.bring(seed, 2 * MIB).await?;
    }
    ensure!((0..2).all(|seed| !scene.level.contains(&id(seed), scene.device)), "they are oldest");
    Ok(())
}

pub(super) async fn a_demand_waits_for_a_slot_until_its_deadline_and_a_prefetch_does_not(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(8 * MIB, 32 * MIB)?;
    let mut held = Vec::new();
    for seed in 0..4 {
        // Given up at once, and held: the slots do not come free.
        held.push(scene.bring(seed, 2 * MIB).await?);
        scene.level.remove(&id(seed), scene.device);
    }
    let source = scene.block(10, 2 * MIB)?;
    let ask = |options| scene.promote(10, "a", &source, scene.device, options);
    let began = Instant::now();
    ensure!(ask(prefetch(30)).await?.is_none());
    ensure!(began.elapsed() < Duration::from_secs(5), "a prefetch does not wait");
    let began = Instant::now();
    ensure!(ask(demand(1)).await?.is_none());
    let waited = began.elapsed();
    ensure!(waited >= Duration::from_millis(990) && waited < Duration::from_secs(10), "{waited:?}");
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(held.pop());
    };
    let began = Instant::now();
    let (block, ()) = tokio::join!(ask(demand(30)), release);
    ensure!(began.elapsed() >= Duration::from_millis(200), "it waited for who held one");
    check(&block?.context("a slot came free")?, 10)
}

pub(super) async fn more_demands_at_once_than_there_is_room_for_all_arrive(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 64 * MIB)?;
    let sources: Vec<_> = (0..16).map(|seed| scene.block(seed, 3 * MIB)).collect::<Result<_>>()?;
    let asking = (0..).zip(&sources).map(|(seed, source)| {
        let scene = &scene;
        async move {
            let block = scene.promote(seed, "a", source, scene.device, demand(30)).await?;
            check(&block.context("it waits for its turn")?, seed)
        }
    });
    futures::future::try_join_all(asking).await?;
    ensure!(scene.level.status().devices[0].mapped_bytes <= 16 * MIB);
    Ok(())
}

pub(super) async fn another_slot_size_gets_the_room_of_what_nobody_holds(
    stage: Stage,
) -> Result<()> {
    let scene = stage.scene(16 * MIB, 32 * MIB)?;
    for seed in 0..15 {
        scene.bring(seed, MIB).await?;
    }
    let large = scene.bring(100, 12 * MIB).await?;
    check(&large, 100)?;
    ensure!(scene.level.status().devices[0].mapped_bytes <= 16 * MIB);
    drop(large);
    let small = scene.bring(200, 4096).await?;
    check(&small, 200)?;
    // Held, it is in the way of what needs all of the room, for as long as it is held.
    let source = scene.block(300, 15 * MIB)?;
    let ask = |options| scene.promote(300, "a", &source, scene.device, options);
    ensure!(ask(demand(1)).await?.is_none());
    drop(small);
    check(&ask(demand(30)).await?.context("nobody holds anything")?, 300)
}
