//! Bringing tiers home: at load, after all demand, again and again until what
//! fits is there.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_hbm::HbmLevel;
use tpad_manifest::{BlockKey, Placement};
use tpad_store::{BlockFetch, CacheClass, Claim, Medium, NvmeLevel, Staged, slot_bytes};

use super::place::Place;
use super::way::{self, Left, Outcome, Passed, passes};
use super::{Levels, Plan, PlannedTier};
use crate::generation::ScopedBlock;
use crate::{Engine, EngineError, Generation, Scope, WarmState};

/// Layers whose indexes are read at a time: the next one's comes while the blocks of
/// the one before are asked for.
const LAYERS: usize = 2;

/// How long a disk may take to say what it has before it is not waited for.
const SCAN_PATIENCE: Duration = Duration::from_secs(60);

/// How soon what was not brought home is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How late at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Places the engine's models, and again whenever one is loaded, about to be
/// replaced or unloaded, or GPU memory breaks. Ends with the engine.
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
        // Before the plan counts on it.
        let devices = levels.devices.working().cloned();
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
            () = broke(devices) => {}
        }
    }
}

/// Returns when GPU memory that worked does not any more.
async fn broke(devices: Option<Arc<HbmLevel>>) {
    match devices {
        Some(level) => level.broke().await,
        None => std::future::pending().await,
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

impl Plan {
    /// Brings every tier home, the fastest homes first.
    async fn carry_out(&self, levels: &Levels, engine: &Weak<Engine>) {
        let mut tiers: Vec<&PlannedTier> = self.tiers.iter().collect();
        tiers.retain(|tier| tier.fit.home != Placement::ObjectStore);
        tiers.sort_by_key(|tier| super::medium(tier.fit.home));
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
        let (mut left, lost) = self.walk(levels).await;
        if left == Left::Nothing && self.lacks_devices(levels) {
            left = Left::Home;
        }
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
        let patience = self.generation.patience();
        let steps = match self.generation.scope_steps(&Scope::of_tiers([self.tier.clone()])) {
            Ok(steps) => steps,
            Err(error) => {
                self.problem(&error);
                return (Left::Nothing, true);
            }
        };
        let spread = &self.fit.spread;
        let mut room = [spread.hbm, spread.dram, spread.nvme];
        let index = |step| async move {
            self.generation.scope_blocks(&step, Instant::now() + patience).await
        };
        let layers = stream::iter(steps).map(index).buffered(LAYERS);
        let bring = |block: ScopedBlock| {
            let (goal, bytes) = (goal(&mut room, block.bytes), block.bytes);
            async move { (bytes, self.bring_block(levels, &block, goal, patience).await) }
        };
        way::walk(layers, bring, |passed| match passed {
            Passed::Block(bytes, outcome) => self.note(outcome, bytes),
            Passed::Layer(error) => self.problem(error),
        })
        .await
    }

    /// Whether a device keeps less of the tier than it has a home for there: others have the
    /// device's memory, and what came last took the place of what came first.
    fn lacks_devices(&self, levels: &Levels) -> bool {
        let class = CacheClass::from(self.fit.tier.as_str());
        let kept = levels.devices.kept_of(&class);
        // A block that did not fit beside the others is no sign of that.
        let slack = self.fit.spread.hbm / 8;
        levels.devices.working().is_some() && kept < self.fit.spread.hbm - slack
    }

    async fn bring_block(
        &self,
        levels: &Levels,
        block: &ScopedBlock,
        goal: Option<Medium>,
        patience: Duration,
    ) -> Outcome {
        let Some(goal) = goal else { return Outcome::NoRoom };
        if goal == Medium::Hbm {
            let Some(level) = levels.devices.working() else { return Outcome::HomeAway };
            let deadline = Instant::now() + patience;
            return match self.generation.promote(level, &block.key, deadline).await {
                Ok(true) => Outcome::There(goal),
                // Others have the device's memory: they may give it back.
                Ok(false) | Err(EngineError::Device { .. }) => Outcome::HomeAway,
                Err(error) if passes(&error) => Outcome::Later(error),
                Err(error) => Outcome::Lost(error),
            };
        }
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

/// Where the next block of a tier goes, while its home has room and then while
/// the disk has.
fn goal([hbm, dram, nvme]: &mut [u64; 3], image_bytes: u64) -> Option<Medium> {
    let take = |left: &mut u64, bytes: Option<u64>| {
        let rest = left.checked_sub(bytes?)?;
        *left = rest;
        Some(())
    };
    if take(hbm, slot_bytes(image_bytes)).is_some() {
        return Some(Medium::Hbm);
    }
    if take(dram, slot_bytes(image_bytes)).is_some() {
        return Some(Medium::Dram);
    }
    take(nvme, NvmeLevel::file_bytes(image_bytes)).map(|()| Medium::Nvme)
}

impl Levels {
    /// What a class takes at a home.
    pub(crate) fn kept_of(&self, home: Medium, class: &CacheClass) -> u64 {
        match home {
            Medium::Dram => self.hierarchy.dram().kept_of(class).bytes,
            Medium::Nvme => self.nvme.as_ref().map_or(0, |nvme| nvme.kept_of(class).bytes),
            Medium::Hbm => self.devices.kept_of(class),
            Medium::ObjectStore => 0,
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
