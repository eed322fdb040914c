//! How fast blocks get to a device, beside plain copies of pinned memory in the same run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;
use tpad_store::BlockBytes;

use super::{Spread, judge, threads};
use crate::log::Log;
use crate::stage::{MIB, Scene, Stage, demand, id};

/// Rounds of each size, after one to warm up. In each a plain run comes before and after.
const ROUNDS: usize = 7;

/// A size of blocks, what is copied of it in a round, how many at once, and the goal.
const SIZES: &[(u64, u64, usize, f64)] = &[
    (MIB, 2048 * MIB, 32, 0.85),
    (4 * MIB, 4096 * MIB, 16, 0.0),
    (16 * MIB, 4096 * MIB, 8, 0.95),
    (64 * MIB, 4096 * MIB, 6, 0.95),
    (256 * MIB, 6144 * MIB, 4, 0.95),
];

/// Measures, blocks of one size alone if one is given. On a stand-in everything is smaller,
/// and shows only that it runs.
///
/// # Errors
/// When a fill fails or is refused.
pub async fn run(stage: &Stage, log: &Log, only_mib: Option<u64>) -> Result<bool> {
    let part = if stage.is_gpu() { 1 } else { 64 };
    let mut met = true;
    for &(bytes, total, at_once, goal) in SIZES {
        if !stage.is_gpu() && bytes > 4 * MIB || only_mib.is_some_and(|mib| mib * MIB != bytes) {
            continue;
        }
        let total = total / part;
        let sources = (1024 * MIB / part).max(2 * bytes) / bytes;
        let capacity = (4096 * MIB / part).max(64 * MIB);
        let scene = stage.scene(capacity, sources * bytes * 5 / 4 + 64 * MIB)?;
        let sources: Vec<BlockBytes> =
            (0..sources).map(|seed| scene.block(seed, bytes)).collect::<Result<_>>()?;
        let device = stage.device()?;
        let count = total / bytes;
        let (mut plain, mut fills, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut number = 0;
        let mut busy = Vec::new();
        for round in 0..=ROUNDS {
            let before = rate(total, device.plain_copies(bytes, count)?);
            if round == 0 {
                // Until there is a slab for every byte of the capacity.
                fill(&scene, &sources, &mut number, capacity / bytes, at_once).await?;
            }
            let threads = threads::spent();
            let took = fill(&scene, &sources, &mut number, count, at_once).await?;
            busy.push(threads::each(&threads, count));
            let filled = rate(total, took);
            let after = rate(total, device.plain_copies(bytes, count)?);
            if round > 0 {
                plain.extend([before, after]);
                fills.push(filled);
                ratios.push(filled / f64::midpoint(before, after));
            }
        }
        let (plain, fills, ratios) = (Spread::of(plain), Spread::of(fills), Spread::of(ratios));
        let mib = bytes / MIB;
        let line = format!(
            "fill {mib:>3} MiB, {at_once:>2} at once: {:.2} GB/s ({:.2}-{:.2}), plain pinned copy \
             {:.2} GB/s ({:.2}-{:.2}), ratio {:.3} ({:.3}-{:.3})",
            fills.median,
            fills.low,
            fills.high,
            plain.median,
            plain.low,
            plain.high,
            ratios.median,
            ratios.low,
            ratios.high,
        );
        let values = json!({
            "block_bytes": bytes, "at_once": at_once, "bytes_per_round": total, "rounds": ROUNDS,
            "fill_gb_per_s": fills.json(), "plain_gb_per_s": plain.json(), "ratio": ratios.json(),
            "thread_us_per_fill": busy.last(),
        });
        log.say(&line, "rate", &values);
        let busy = busy.last().into_iter().flatten();
        let busy: Vec<String> = busy.map(|(name, us)| format!("{name} {us:.1}")).collect();
        log.say(
            &format!("  us of each thread for a fill: {}", busy.join(", ")),
            "threads",
            &json!({}),
        );
        if goal > 0.0 {
            let what = format!("{mib} MiB at {goal} of a plain pinned copy");
            met &= judge(log, stage.is_gpu(), &what, ratios.median >= goal);
        }
        latency(&scene, &sources, &mut number, log).await?;
    }
    Ok(met)
}

/// Fills `count` new blocks, so many at once.
async fn fill(
    scene: &Scene,
    sources: &[BlockBytes],
    number: &mut u64,
    count: u64,
    at_once: usize,
) -> Result<Duration> {
    let class = "a".into();
    let first = *number;
    let mut todo: VecDeque<u64> = (first..first + count).collect();
    *number += count;
    let ids: Vec<_> = todo.iter().map(|number| id(*number)).collect();
    let began = Instant::now();
    let mut under_way = FuturesUnordered::new();
    while !todo.is_empty() || !under_way.is_empty() {
        while under_way.len() < at_once
            && let Some(number) = todo.pop_front()
        {
            let place = usize::try_from(number - first)?;
            let source = &sources[place % sources.len()];
            under_way.push(scene.level.promote(
                &ids[place],
                &class,
                source,
                scene.device,
                demand(60),
            ));
        }
        if let Some(filled) = under_way.next().await {
            filled?.context("it was refused")?;
        }
    }
    Ok(began.elapsed())
}

/// One at a time, and how long asking for what is there takes.
async fn latency(scene: &Scene, sources: &[BlockBytes], number: &mut u64, log: &Log) -> Result<()> {
    let mut fills = Vec::new();
    for _ in 0..50 {
        fills.push(fill(scene, sources, number, 1, 1).await?.as_secs_f64() * 1e6);
    }
    let last = id(*number - 1);
    let mut gets = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        let found = scene.level.get(&last, scene.device);
        gets.push(began.elapsed().as_secs_f64() * 1e6);
        found.context("it was kept")?;
    }
    let (fills, gets) = (Spread::of(fills), Spread::of(gets));
    let line = format!(
        "  one at a time: {:.0} us ({:.0}-{:.0}); get of what is there: {:.2} us",
        fills.median, fills.low, fills.high, gets.median
    );
    let values = json!({
        "block_bytes": sources[0].len(), "fill_us": fills.json(), "get_us": gets.json(),
    });
    log.say(&line, "latency", &values);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}
