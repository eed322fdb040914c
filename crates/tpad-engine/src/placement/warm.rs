//! Bringing tiers home: at load, after all demand, again and again until what
//! fits is there.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{BlockKey, Placement};
use tpad_store::{BlockFetch, CacheClass, Claim, ErrorKind, Medium, NvmeLevel, Staged, slot_bytes};

use super::place::Place;
use super::{Levels, Plan, PlannedTier};
use crate::generation::ScopedBlock;
use crate::{Engine, EngineError, Generation, Scope, WarmState};

/// Blocks on their way at a time, whatever they take: enough that the next ones are
/// read while some are checked and written.
const AT_ONCE: usize = 16;

/// Blocks on their way at most, if they are small: a store that takes 50 ms for each
/// gives 5,000 of them a second.
const MOST_AT_ONCE: usize = 256;

/// What they take together beyond [`AT_ONCE`]: what a link of 10 Gbit/s carries in
/// 200 ms. How much of it is in memory is the hierarchy's affair, which gives it half
/// of what fills may take.
const AHEAD_BYTES: u64 = 256 << 20;

/// So many blocks in a row that could not be read: the store is away.
const ENOUGH: u32 = 64;

/// How long a disk may take to say what it has before it is not waited for.
const SCAN_PATIENCE: Duration = Duration::from_secs(60);

/// How soon what was not brought home is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How late at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Places the engine's models, and again whenever one is loaded, about to be
/// replaced or unloaded. Ends with the engine.
pub(crate) async fn keep_placing(
    engine: Weak<Engine>,
    levels: Levels,
    mut changes: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    loop {
        changes.mark_unchanged();
        let Some(generations) = serving(&engine) else { return };
        let numbers: Vec<u64> = generations.iter().map(|g| g.number()).collect();
        let plan = Plan::of(&generations, &levels);
        drop(generations);
        plan.apply(&levels);
        let work = async {
            plan.carry_out(&levels, &engine).await;
            // What it holds may be unloaded while nothing happens.
            drop(plan);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = work => {}
            () = others(&engine, &mut changes, &numbers) => {}
        }
    }
}

/// What the engine's models serve, or are about to; `None` when it is gone.
fn serving(engine: &Weak<Engine>) -> Option<Vec<Arc<Generation>>> {
    let models = engine.upgrade()?.models();
    Some(models.into_iter().filter_map(|model| model.coming.or(model.generation)).collect())
}

/// Returns when the models serve other generations than these, or the engine is
/// gone.
async fn others(engine: &Weak<Engine>, changes: &mut watch::Receiver<u64>, numbers: &[u64]) {
    while changes.changed().await.is_ok() {
        let now = serving(engine);
        let Some(now) = now else { return };
        if !now.iter().map(|generation| generation.number()).eq(numbers.iter().copied()) {
            return;
        }
    }
}

/// What a look at a tier's blocks left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    /// Nothing: what fits is there.
    Nothing,
    /// The home takes no blocks at present; they are served without.
    Home,
    /// Blocks could not be read.
    Blocks,
}

/// What became of a block.
#[derive(Debug)]
enum Outcome {
    /// It lies where it is to lie.
    There(Medium),
    /// There is no room for it.
    NoRoom,
    /// Its home takes no blocks at present.
    HomeAway,
    /// It could not be read; later, perhaps.
    Later(EngineError),
    /// It cannot be read.
    Lost(EngineError),
}

impl Outcome {
    const fn left(&self) -> Left {
        match self {
            Self::There(_) | Self::NoRoom | Self::Lost(_) => Left::Nothing,
            Self::HomeAway => Left::Home,
            Self::Later(_) => Left::Blocks,
        }
    }
}

impl Plan {
    /// Brings every tier home, the fastest homes first.
    async fn carry_out(&self, levels: &Levels, engine: &Weak<Engine>) {
        let mut tiers: Vec<&PlannedTier> = self.tiers.iter().collect();
        tiers.retain(|tier| tier.fit.home != Placement::ObjectStore);
        tiers.sort_by_key(|tier| tier.fit.home != Placement::Dram);
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(nvme) = &levels.nvme {
                // What is there is not read from the store again, also of a disk that
                // could not be opened at first.
                let _late = tokio::time::timeout(SCAN_PATIENCE, nvme.scanned()).await;
            }
            let mut left = Left::Nothing;
            let mut again = Vec::new();
            for tier in tiers {
                let of_tier = tier.bring(levels).await;
                if of_tier != Left::Nothing {
                    again.push(tier);
                }
                left = left.max(of_tier);
            }
            if left < Left::Blocks {
                self.generations.iter().for_each(|generation| generation.places().finish());
            }
            if let Some(engine) = engine.upgrade() {
                engine.publish_readiness();
            }
            if left == Left::Nothing {
                return;
            }
            tiers = again;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl PlannedTier {
    /// Brings the tier's blocks home, as far as they fit and can be read.
    async fn bring(&self, levels: &Levels) -> Left {
        let started = Instant::now();
        let total = self.generation.catalog().tier(&self.fit.tier);
        let total = total.map_or(0, |(_, header)| header.image_bytes());
        self.update(|place| {
            place.warm.state = WarmState::Warming;
            place.warm.done_bytes = 0;
            place.warm.total_bytes = total;
            place.warm.problem = None;
            place.present_bytes = 0;
        });
        let (left, lost) = self.walk(levels).await;
        let class = CacheClass::from(self.fit.tier.as_str());
        let mut present = 0;
        self.update(|place| {
            place.warm.state = match (left, lost) {
                (Left::Nothing, false) => WarmState::Warm,
                (Left::Nothing, true) => WarmState::Failed,
                _ => WarmState::Waiting,
            };
            place.kept_then = levels.kept_of(place.home, &class);
            present = place.present_bytes;
        });
        self.generation.places().step();
        if left == Left::Nothing {
            let (model, tier) = (self.generation.model(), &self.fit.tier);
            let (home, seconds) = (self.fit.home.as_str(), started.elapsed().as_secs_f64());
            tracing::info!(model, tier, home, bytes = present, of = total, seconds, "tier at home");
        }
        left
    }

    /// Looks at every block. What is left to do, and whether a block is lost.
    async fn walk(&self, levels: &Levels) -> (Left, bool) {
        let (mut left, mut lost) = (Left::Nothing, false);
        let patience = self.generation.patience();
        let steps = match self.generation.scope_steps(&Scope::of_tiers([self.tier.clone()])) {
            Ok(steps) => steps,
            Err(error) => {
                self.problem(&error);
                return (left, true);
            }
        };
        let mut room = (self.fit.spread.dram, self.fit.spread.nvme);
        // Over all steps: the end of a layer is no reason to wait.
        let mut way = Way::default();
        for step in steps {
            let blocks = self.generation.scope_blocks(&step, Instant::now() + patience).await;
            let blocks = match blocks {
                Ok(blocks) => blocks,
                Err(error) if passes(&error) => {
                    self.problem(&error);
                    return (Left::Blocks, lost);
                }
                Err(error) => {
                    self.problem(&error);
                    lost = true;
                    continue;
                }
            };
            for block in blocks {
                while !way.takes(block.bytes) {
                    let Some((bytes, outcome)) = way.arrived().await else { break };
                    lost |= matches!(outcome, Outcome::Lost(_));
                    left = left.max(outcome.left());
                    self.note(&outcome, bytes);
                }
                if way.failed_in_a_row >= ENOUGH {
                    return (left, lost);
                }
                let (goal, bytes) = (goal(&mut room, block.bytes), block.bytes);
                way.begin(bytes, async move {
                    let outcome = self.bring_block(levels, &block, goal, patience).await;
                    (bytes, outcome)
                });
            }
        }
        while let Some((bytes, outcome)) = way.arrived().await {
            lost |= matches!(outcome, Outcome::Lost(_));
            left = left.max(outcome.left());
            self.note(&outcome, bytes);
            if way.failed_in_a_row >= ENOUGH {
                break;
            }
        }
        (left, lost)
    }

    async fn bring_block(
        &self,
        levels: &Levels,
        block: &ScopedBlock,
        goal: Option<Medium>,
        patience: Duration,
    ) -> Outcome {
        let Some(goal) = goal else { return Outcome::NoRoom };
        if levels.hierarchy.settled(goal, &block.id) {
            return Outcome::There(goal);
        }
        let staged =
            self.generation.stage(&block.key, goal, self.claim(), Instant::now() + patience).await;
        match staged {
            Ok(Staged::There) => Outcome::There(goal),
            Ok(Staged::Refused) => Outcome::NoRoom,
            Ok(Staged::OutOfService) => Outcome::HomeAway,
            Err(error) if passes(&error) => Outcome::Later(error),
            Err(error) => Outcome::Lost(error),
        }
    }

    /// A part of a tier does not push out another part that is wanted more.
    const fn claim(&self) -> Claim {
        if self.fit.spread.dram < self.fit.bytes { Claim::Loose } else { Claim::Firm }
    }

    fn note(&self, outcome: &Outcome, bytes: u64) {
        self.update(|place| {
            if outcome.left() == Left::Nothing {
                place.warm.done_bytes += bytes;
            }
            match outcome {
                Outcome::There(medium) if *medium <= place.home => place.present_bytes += bytes,
                Outcome::Later(error) | Outcome::Lost(error) => {
                    place.warm.problem = Some(error.to_string());
                }
                Outcome::There(_) | Outcome::NoRoom | Outcome::HomeAway => {}
            }
        });
    }

    fn problem(&self, error: &EngineError) {
        self.update(|place| place.warm.problem = Some(error.to_string()));
    }

    fn update(&self, change: impl FnOnce(&mut Place)) {
        self.generation.places().update(&self.fit.tier, change);
    }
}

/// Blocks on their way.
struct Way<F> {
    blocks: FuturesUnordered<F>,
    bytes: u64,
    failed_in_a_row: u32,
}

impl<F> Default for Way<F> {
    fn default() -> Self {
        Self { blocks: FuturesUnordered::new(), bytes: 0, failed_in_a_row: 0 }
    }
}

impl<F: Future<Output = (u64, Outcome)>> Way<F> {
    /// Whether another block may be begun.
    fn takes(&self, bytes: u64) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= AHEAD_BYTES;
        self.blocks.len() < if fits { MOST_AT_ONCE } else { AT_ONCE }
    }

    fn begin(&mut self, bytes: u64, block: F) {
        self.bytes += bytes;
        self.blocks.push(block);
    }

    /// The next one that ends, and how; `None` when all have.
    async fn arrived(&mut self) -> Option<(u64, Outcome)> {
        let (bytes, outcome) = self.blocks.next().await?;
        self.bytes -= bytes;
        let later = matches!(outcome, Outcome::Later(_));
        self.failed_in_a_row = if later { self.failed_in_a_row + 1 } else { 0 };
        Some((bytes, outcome))
    }
}

/// Where the next block of a tier goes, while its home has room and then while
/// the disk has.
fn goal((dram, nvme): &mut (u64, u64), image_bytes: u64) -> Option<Medium> {
    let take = |left: &mut u64, bytes: Option<u64>| {
        let rest = left.checked_sub(bytes?)?;
        *left = rest;
        Some(())
    };
    if take(dram, slot_bytes(image_bytes)).is_some() {
        return Some(Medium::Dram);
    }
    take(nvme, NvmeLevel::file_bytes(image_bytes)).map(|()| Medium::Nvme)
}

/// Whether a failure may be gone later.
fn passes(error: &EngineError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded
    )
}

impl Levels {
    /// What a class takes at a home.
    pub(crate) fn kept_of(&self, home: Medium, class: &CacheClass) -> u64 {
        match home {
            Medium::Dram => self.hierarchy.dram().kept_of(class).bytes,
            Medium::Nvme => self.nvme.as_ref().map_or(0, |nvme| nvme.kept_of(class).bytes),
            Medium::Hbm | Medium::ObjectStore => 0,
        }
    }
}

impl Generation {
    /// Brings a block to a level: see [`tpad_store::Hierarchy::stage`].
    async fn stage(
        &self,
        key: &BlockKey,
        home: Medium,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Staged, EngineError> {
        let record = self.record(key, deadline).await?;
        let fetch = BlockFetch::of(&record, self.class(key))
            .map_err(|source| EngineError::BlockSize { key: key.clone(), source })?;
        let staged =
            self.hierarchy().stage(self.objects(), &Arc::new(fetch), home, claim, deadline).await;
        staged.map_err(|error| EngineError::Block { key: key.clone(), source: Arc::new(error) })
    }
}
