//! What masks are asked of: a random checkpoint and its engine, and books of
//! what was put on which level.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tpad_manifest::{BlockId, BlockKey, TierId, TierSet, revision_path};
use tpad_store::{HierarchyConfig, Medium, NvmeConfig, NvmeIo, ReadOptions, StoreMetrics};

use super::{CLASSES, soon};
use crate::fixture::{Checkpoint, Shape, Tier};
use crate::{Bounds, Engine, EngineConfig, EngineMetrics, ModelConfig, Readiness};

/// Names of TierSets; one may also be a tier's.
const NAMES: [&str; 3] = ["small", "tier_0", "both"];

/// Numbers that look random and are the same in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).expect("small")
    }

    fn small(&mut self, sides: u32) -> u32 {
        u32::try_from(self.roll(sides as usize)).expect("small")
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }

    /// Some of these, each at most once, in any order.
    fn some(&mut self, of: &[String]) -> Vec<String> {
        let mut left = of.to_vec();
        let mut taken = Vec::new();
        while !left.is_empty() && !self.one_in(4) {
            taken.push(left.remove(self.roll(left.len())));
        }
        taken
    }

    fn tier(&mut self, n: usize) -> Tier {
        let groups: Vec<u32> = (0..=self.roll(3)).map(|_| self.small(11) + 1).collect();
        let layers: Vec<u32> = (0..6).filter(|_| self.one_in(2)).collect();
        let id = if self.one_in(3) { (n + 40).to_string() } else { format!("tier_{n}") };
        let mut tier = Tier::new(&id, &groups, &layers);
        tier.index = !layers.is_empty() && !self.one_in(6);
        tier.routers = !self.one_in(3);
        tier.variety = self.one_in(2).then(|| self.small(9) + 1);
        if self.one_in(7) {
            tier.requires.push("warp".into());
        }
        tier
    }
}

/// A published checkpoint, what its manifest and the configuration say, and
/// where its images are.
pub(super) struct World {
    pub(super) checkpoint: Checkpoint,
    pub(super) shape: Shape,
    pub(super) document: Value,
    pub(super) configured: BTreeMap<String, Vec<String>>,
    pub(super) dram: BTreeSet<BlockId>,
    pub(super) nvme: BTreeSet<BlockId>,
}

/// One question.
pub(super) struct Asked {
    pub(super) set: TierSet,
    pub(super) sources: bool,
    pub(super) level: usize,
    pub(super) layers: Vec<u32>,
}

/// Tier ids as documents write them: some are numbers.
fn written(ids: &[String]) -> Value {
    let id = |id: &String| id.parse::<u64>().map_or_else(|_| json!(id), |number| json!(number));
    ids.iter().map(id).collect()
}

impl World {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let shape = Shape::of((0..=dice.roll(5)).map(|n| dice.tier(n)).collect());
        let checkpoint = Checkpoint::new(&shape);
        let path = checkpoint.path().join(revision_path(1));
        let bytes = std::fs::read(&path).expect("a revision");
        let mut document: Value = serde_json::from_slice(&bytes).expect("JSON");
        let ids: Vec<String> = shape.tiers.iter().map(|tier| tier.id.to_string()).collect();
        document["default_tier_set"] = written(&dice.some(&ids));
        let mut configured = BTreeMap::new();
        for name in NAMES {
            if dice.one_in(2) {
                document["tier_sets"][name] = written(&dice.some(&ids));
            }
            if dice.one_in(3) {
                let mut set = dice.some(&ids);
                set.extend(dice.one_in(2).then(|| "nowhere".to_owned()));
                configured.insert(name.to_owned(), set);
            }
        }
        for (n, tier) in shape.tiers.iter().enumerate() {
            document["tiers"][n]["routing"] = json!({
                "k_tier": dice.roll(5) + 1,
                "k_group": dice.roll(tier.groups.len()) + 1,
                "k_expert": dice.small(tier.groups.iter().sum()) + 1,
            });
        }
        std::fs::write(&path, document.to_string()).expect("room");
        let (dram, nvme) = (BTreeSet::new(), BTreeSet::new());
        Self { checkpoint, shape, document, configured, dram, nvme }
    }

    pub(super) async fn serve(&self, disk: &TempDir, dice: &mut Dice) -> Arc<Engine> {
        let ids = |set: &Vec<String>| set.iter().map(|id| id.parse().expect("an id")).collect();
        let sets = self.configured.iter().map(|(name, set)| (name.clone(), ids(set)));
        let model = ModelConfig {
            name: "m".into(),
            root: self.checkpoint.root(),
            allowed_bases: Vec::new(),
            tier_sets: sets.collect(),
            origin: tpad_store::OriginOptions::default(),
        };
        let mut config = EngineConfig::new(vec![model], HierarchyConfig::new(64 << 20));
        if dice.one_in(3) {
            // Then segments are read anew for each mask.
            config.bounds = Bounds { segment_bytes: 1, ..Bounds::default() };
        }
        config.nvme = Some(NvmeConfig {
            path: disk.path().to_owned(),
            capacity_bytes: 256 << 20,
            free_floor_bytes: 0,
            io: NvmeIo::Auto,
        });
        let engine = Engine::start(config, EngineMetrics::default(), StoreMetrics::default());
        let engine = engine.expect("it starts");
        let mut readiness = engine.watch_readiness();
        let ready = readiness.wait_for(Readiness::is_ready);
        let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
        assert!(ready.is_ok(), "{:?}", engine.view("m"));
        engine
    }

    /// What can be read.
    pub(super) fn keys(&self) -> Vec<BlockKey> {
        let served = |id: &TierId| {
            let tier = self.shape.tiers.iter().find(|tier| tier.id == *id).expect("of the shape");
            tier.index && tier.requires.is_empty()
        };
        let mut keys: Vec<BlockKey> = self.checkpoint.blocks.keys().cloned().collect();
        keys.retain(|key| match key {
            BlockKey::Expert { key, .. } => served(&key.tier),
            BlockKey::Router { tier, .. } => served(tier),
            BlockKey::Dense { .. } => true,
        });
        keys
    }

    /// Reads a block into the levels, or has one or all of them forget one.
    pub(super) async fn happen(&mut self, engine: &Engine, dice: &mut Dice, keys: &[BlockKey]) {
        let key = dice.pick(keys).clone();
        let id = BlockId::of(&self.checkpoint.blocks[&key]);
        let level = dice.roll(8);
        if level > 2 {
            let generation = engine.open("m").expect("it is served");
            generation.read(key, ReadOptions::demand(soon())).await.expect("it reads");
            if self.dram.insert(id) {
                self.nvme.insert(id);
            }
            // The disk is written behind the reader's back.
            let written = async {
                while engine.status().store.levels[1].usage.blocks != self.nvme.len() as u64 {
                    tokio::task::yield_now().await;
                }
            };
            let written = tokio::time::timeout(Duration::from_secs(20), written).await;
            written.expect("the block comes to disk");
            return;
        }
        engine.hierarchy().evict(&id, [None, Some(Medium::Dram), Some(Medium::Nvme)][level]).await;
        if level != 2 {
            self.dram.remove(&id);
        }
        if level != 1 {
            self.nvme.remove(&id);
        }
    }

    pub(super) fn ask(&self, dice: &mut Dice) -> Asked {
        let mut any: Vec<String> =
            self.shape.tiers.iter().map(|tier| tier.id.to_string()).collect();
        any.extend(["nowhere".to_owned(), "007".to_owned()]);
        let set = match dice.roll(5) {
            0 => TierSet::Default,
            1 => TierSet::Named((*dice.pick(&NAMES)).to_owned()),
            2 => TierSet::UpTo(dice.pick(&any).clone()),
            _ => {
                let mut tiers = dice.some(&any);
                tiers.extend(dice.some(&tiers.clone()));
                TierSet::Tiers(tiers)
            }
        };
        let mut layers: Vec<u32> = self.layers().into_iter().filter(|_| dice.one_in(3)).collect();
        layers.reverse();
        layers.extend_from_within(..layers.len() / 2);
        if dice.one_in(25) {
            layers.push(17);
        }
        Asked { set, sources: dice.one_in(2), level: dice.roll(CLASSES.len()), layers }
    }

    /// The manifest's layers.
    pub(super) fn layers(&self) -> BTreeSet<u32> {
        self.shape.tiers.iter().flat_map(|tier| tier.layers.iter().copied()).collect()
    }
}
