//! Replays recorded routing through a level and says how much of it was found there, beside
//! a cache that keeps what was used last.
//!
//! ```sh
//! cargo run --release -p tpad-gpu --example replay -- route.csv [SEQUENCES]
//! ```
//!
//! The file is a routing trace: a line `# model=... n_layer=48 n_expert=128`, a line of names,
//! and then rows of `turn,phase,step,layer,slot,expert,...`. What one layer picks in one step is asked for at
//! once. With more than one sequence the trace is cut into as many parts, which decode side
//! by side: a step of a layer asks for what all of them pick. The level is real and runs on
//! a stand-in for a GPU; blocks are a page each, since sizes do not matter here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;

use anyhow::{Context as _, Result};
use tpad_gpu::stage::{Scene, demand, id};

/// Bytes of a block.
const PAGE: u64 = 4096;
/// Of all experts, what fits, in hundredths.
const SHARES: [u64; 5] = [5, 10, 20, 33, 50];

/// What one layer picks in one step: blocks, each once.
type Event = Vec<u64>;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: replay route.csv [SEQUENCES]")?;
    let sequences = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let events = events(&text, sequences)?;
    let wanted: usize = events.iter().map(Vec::len).sum();
    let experts = text
        .lines()
        .filter_map(|line| {
            let of = line.strip_prefix("# model=")?.split_whitespace();
            let number = |name: &str| of.clone().find_map(|word| word.strip_prefix(name));
            let layers: u64 = number("n_layer=")?.parse().ok()?;
            Some(layers * number("n_expert=")?.parse::<u64>().ok()?)
        })
        .next()
        .context("the trace does not say how many layers and experts there are")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} events of {wanted} blocks, {sequences} at a time", events.len())?;
    writeln!(out, "| fits | level | least recently used |\n|---|---|---|")?;
    for share in SHARES {
        let slots = experts * share / 100;
        let found = level(&events, slots).await?;
        let recent = recent(&events, slots);
        let part = |found: usize| 100.0 * found as f64 / wanted as f64;
        writeln!(out, "| {share} % | {:.1} % | {:.1} % |", part(found), part(recent))?;
    }
    Ok(())
}

/// The trace, in its order, or cut into sequences that go side by side, layer by layer.
fn events(text: &str, sequences: usize) -> Result<Vec<Event>> {
    let mut steps = HashMap::new();
    let mut events: Vec<(usize, u64, Event)> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())) {
        let mut fields = line.split(',');
        let mut next = || fields.next().context("a row is too short");
        let of = (next()?, next()?, next()?);
        let layer: u64 = next()?.parse()?;
        let expert: u64 = fields.nth(1).context("a row is too short")?.parse()?;
        let new = steps.len();
        let step = *steps.entry(of).or_insert(new);
        match events.last_mut().filter(|(s, l, _)| (*s, *l) == (step, layer)) {
            Some((_, _, picked)) => picked.push(layer << 32 | expert),
            None => events.push((step, layer, vec![layer << 32 | expert])),
        }
    }
    if sequences <= 1 {
        return Ok(events.into_iter().map(|(_, _, picked)| picked).collect());
    }
    // The steps of a part, each with the same of all other parts.
    let part = steps.len().div_ceil(sequences);
    let mut side_by_side: BTreeMap<(usize, u64), Event> = BTreeMap::new();
    for (step, layer, picked) in events {
        let event = side_by_side.entry((step % part, layer)).or_default();
        for block in picked {
            if !event.contains(&block) {
                event.push(block);
            }
        }
    }
    Ok(side_by_side.into_values().collect())
}

/// How many blocks a level of so many slots has when they are asked for.
async fn level(events: &[Event], slots: u64) -> Result<usize> {
    let directory = tempfile::tempdir()?;
    // The budget is what bounds: there is memory for fills in flight besides.
    let (budget, capacity) = (slots * PAGE, 2 * slots * PAGE + (64 << 20));
    let driver = tpad_cuda::StandIn::on(directory.path(), 1, 2 * capacity);
    let scene = Scene::open(&(driver as _), &[0], capacity, &[("a", budget)], 64 << 20)?;
    let source = scene.block(0, PAGE)?;
    let mut found = 0;
    for event in events {
        let mut missing = Vec::new();
        for block in event {
            match scene.level.get(&id(*block), scene.device) {
                Some(_) => found += 1,
                None => missing.push(*block),
            }
        }
        for block in missing {
            let brought = scene.promote(block, "a", &source, scene.device, demand(30)).await?;
            brought.context("there is a slot")?;
        }
        let claimed = event.iter().filter_map(|it| scene.level.claim(&id(*it), scene.device));
        let claimed = claimed.count();
        anyhow::ensure!(claimed == event.len(), "{claimed} of {} are there", event.len());
    }
    Ok(found)
}

/// The same of a cache that gives up what was used longest ago.
fn recent(events: &[Event], slots: u64) -> usize {
    let (mut used, mut order) = (HashMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
    let (mut clock, mut found) = (0, 0);
    for event in events {
        let now: HashSet<u64> = event.iter().copied().collect();
        found += event.iter().filter(|block| used.contains_key(block)).count();
        for block in event {
            clock += 1;
            if let Some(before) = used.insert(*block, clock) {
                order.remove(&before);
            }
            order.insert(clock, *block);
        }
        while used.len() as u64 > slots {
            let oldest = order.iter().find(|(_, block)| !now.contains(block));
            let Some((at, block)) = oldest.map(|(at, block)| (*at, *block)) else { break };
            order.remove(&at);
            used.remove(&block);
        }
    }
    found
}
