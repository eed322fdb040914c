//! A model that grows at random.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{
    BlockKey, BlockRecord, Catalog, Effect, ExpertKey, LayerKind, Manifest, Placement, Routing,
};
use tpad_publish::{
    AmendOptions, Amendment, GrowError, GrowOptions, ImportOptions, Plan, Revision, Silent,
    add_tier, amend, import,
};
use tpad_store::{ObjectOrigin, OriginOptions};
use tpad_tests::checkpoint::fixture;
use tpad_tests::shards;

const HIDDEN: u64 = 64;

const HOMES: [Placement; 4] =
    [Placement::Hbm, Placement::Dram, Placement::Nvme, Placement::ObjectStore];

const FAMILIES: [&str; 4] = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"];

/// What a revision resolves to: every key with its record, and every file.
pub(super) struct Resolved {
    pub(super) catalog: Catalog,
    pub(super) revision: Revision,
    pub(super) records: BTreeMap<BlockKey, BlockRecord>,
    pub(super) files: BTreeMap<String, blake3::Hash>,
}

fn origin(path: &Path) -> ObjectOrigin {
    ObjectOrigin::open(path.to_str().expect("text"), &OriginOptions::default()).expect("a root")
}

/// Every file below a directory, by its content.
fn files(root: &Path) -> BTreeMap<String, blake3::Hash> {
    let mut found = BTreeMap::new();
    let mut directories: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(root).expect("below").display().to_string();
            found.insert(name, blake3::hash(&std::fs::read(&path).expect("readable")));
        }
    }
    found
}

impl Resolved {
    pub(super) async fn newest(root: &Path) -> Self {
        let url = root.to_str().expect("text");
        let revision = Revision::open(url, &OriginOptions::default()).await.expect("a revision");
        let loaded = revision.manifest().as_ref().expect("it is accepted").clone();
        let (mut headers, mut records) = (BTreeMap::new(), BTreeMap::new());
        for tier in &loaded.manifest.tiers {
            let index = tier.index.as_ref().expect("it has an index");
            let header = Arc::new(revision.header(index).await.expect("its header"));
            for entry in &header.segments {
                let segment = revision.segment(index, &header, entry).await.expect("a segment");
                let layer = entry.layer;
                let router = segment.router(&header).expect("a router");
                records.insert(BlockKey::Router { tier: tier.id.clone(), layer }, router);
                for (group, run) in (0..).zip(&tier.groups) {
                    for expert in 0..run.experts {
                        let record = segment.expert(&header, group, expert).expect("an expert");
                        let key = ExpertKey { tier: tier.id.clone(), group, expert };
                        records.insert(BlockKey::Expert { key, layer }, record);
                    }
                }
            }
            headers.insert(tier.id.clone(), header);
        }
        let dense = match &loaded.manifest.dense {
            None => None,
            Some(index) => {
                let header = Arc::new(revision.header(index).await.expect("its header"));
                let entry = header.segments.first().expect("one segment");
                let segment = revision.segment(index, &header, entry).await.expect("a segment");
                for (n, name) in segment.dense_names().enumerate() {
                    let record = segment.dense(&header, n).expect("a tensor");
                    records.insert(BlockKey::Dense { name: Arc::clone(name) }, record);
                }
                Some(header)
            }
        };
        let catalog = Catalog::new(loaded, headers, dense).expect("it agrees");
        Self { catalog, revision, records, files: files(root) }
    }

    pub(super) fn manifest(&self) -> &Manifest {
        self.catalog.manifest()
    }

    pub(super) fn document(&self) -> Value {
        serde_json::from_slice(self.revision.document()).expect("JSON")
    }
}

/// A model that is published, and what chance did to it.
pub(super) struct Sequence {
    pub(super) root: PathBuf,
    pub(super) scratch: PathBuf,
    pub(super) rng: ChaCha8Rng,
}

impl Sequence {
    pub(super) async fn begin(directory: &Path, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let family = *FAMILIES.choose(&mut rng).expect("some");
        let scratch = directory.join(seed.to_string());
        let root = scratch.join("model");
        std::fs::create_dir_all(&root).expect("a new directory");
        for entry in std::fs::read_dir(fixture(family)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            std::fs::copy(&path, root.join(path.file_name().expect("a name"))).expect("copied");
        }
        let plan = rng.random_bool(0.5).then(|| plan(&mut rng, family));
        let options = ImportOptions {
            model: "model".to_owned(),
            plan: plan.as_deref().map(|plan| Plan::parse(plan).expect("a plan")),
            dry_run: false,
            ledger: None,
            now: "2026-11-23T12:00:00Z".parse().expect("a time"),
        };
        let stop = CancellationToken::new();
        let imported = import(&origin(&root), None, &options, &Silent, &stop).await;
        imported.unwrap_or_else(|error| unreachable!("{family}, {plan:?}: {error}"));
        Self { root, scratch, rng }
    }

    /// Adds a tier of any shape, or changes what may be changed.
    pub(super) async fn step(&mut self, n: u32, before: &Resolved) -> Effect {
        let now = "2026-12-01T08:00:00Z".parse().expect("a time");
        if n > 0 && self.rng.random_bool(0.25) {
            let tiers = &before.manifest().tiers;
            let tier = tiers.choose(&mut self.rng).expect("a tier");
            let amendment = if self.rng.random_bool(0.5) {
                let budget = tier.parameter_budget + u64::from(self.rng.random_range(1..1000u32));
                Amendment::Budget { tier: tier.id.clone(), budget }
            } else {
                let other = HOMES.into_iter().find(|home| *home != tier.placement);
                let placement = other.expect("there are four");
                Amendment::Placement { tier: tier.id.clone(), placement }
            };
            let options = AmendOptions { major: false, dry_run: false, now };
            let amended = amend(&origin(&self.root), &amendment, &options).await;
            amended.unwrap_or_else(|error| unreachable!("{amendment:?}: {error}"));
            return Effect::Metadata;
        }
        let id = if self.rng.random_bool(0.3) { format!("{}", 100 + n) } else { format!("t{n}") };
        let from = self.checkpoint(n, &id, before);
        let options = self.options(&id);
        let stop = CancellationToken::new();
        let grown = add_tier(&origin(&self.root), &origin(&from), &options, &Silent, &stop).await;
        grown.unwrap_or_else(|error| unreachable!("tier {id}: {error}"));
        std::fs::remove_dir_all(from).expect("it was ours");
        Effect::Additive
    }

    /// A checkpoint that brings a tier of any groups, with or without heads.
    fn checkpoint(&mut self, n: u32, id: &str, before: &Resolved) -> PathBuf {
        let layers = before.manifest().layers.iter();
        let layers: Vec<u32> =
            layers.filter(|layer| layer.kind == LayerKind::Moe).map(|layer| layer.layer).collect();
        let groups: Vec<u32> =
            (0..self.rng.random_range(1..4)).map(|_| self.rng.random_range(1..4)).collect();
        let sizes = [HIDDEN, 8 * self.rng.random_range(1..5u64)];
        let from = self.scratch.join(format!("from-{n}"));
        if self.rng.random_bool(0.3) {
            shards::tier_with_heads(&from, id, &layers, &groups, sizes);
        } else {
            shards::tier(&from, id, &layers, &groups, sizes);
        }
        from
    }

    fn options(&mut self, id: &str) -> GrowOptions {
        GrowOptions {
            id: id.parse().expect("an id"),
            plan: None,
            budget: 10_000_000,
            placement: *HOMES.choose(&mut self.rng).expect("four"),
            routing: Routing { k_tier: 1, k_group: 1, k_expert: 1 },
            dry_run: false,
            retention: jiff::SignedDuration::from_hours(24),
            now: "2026-12-01T08:00:00Z".parse().expect("a time"),
        }
    }

    /// One bit of something that exists is another in the checkpoint: refused, and
    /// the tensor named.
    pub(super) async fn flipped_bit_is_refused(&mut self, before: &Resolved) {
        let shards: Vec<PathBuf> = std::fs::read_dir(&self.root)
            .expect("the model")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"))
            .collect();
        let from = self.checkpoint(99, "flipped", before);
        let of = |n: usize| format!("model-{n:05}-of-{:05}.safetensors", shards.len() + 1);
        std::fs::rename(from.join("model.safetensors"), from.join(of(1))).expect("renamed");
        std::fs::copy(self.root.join("config.json"), from.join("config.json")).expect("copied");
        // The whole model beside the tier, one bit of it flipped.
        let chosen = self.rng.random_range(0..shards.len());
        let mut flipped = String::new();
        for (n, shard) in shards.iter().enumerate() {
            let mut bytes = std::fs::read(shard).expect("readable");
            if n == chosen {
                let (name, at) = {
                    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a shard");
                    let mut names = file.names();
                    names.sort_unstable();
                    let name = (*names.choose(&mut self.rng).expect("a tensor")).to_owned();
                    let data = file.tensor(&name).expect("it is there").data();
                    let start = data.as_ptr().addr() - bytes.as_ptr().addr();
                    (name, start + self.rng.random_range(0..data.len()))
                };
                bytes[at] ^= 1 << self.rng.random_range(0..8);
                flipped = name;
            }
            std::fs::write(from.join(of(n + 2)), bytes).expect("written");
        }
        let (options, stop) = (self.options("flipped"), CancellationToken::new());
        let grown = add_tier(&origin(&self.root), &origin(&from), &options, &Silent, &stop).await;
        let error = grown.map(|_| ()).expect_err("one bit is another");
        assert!(matches!(error, GrowError::Differs { .. }), "{flipped}: {error}");
        // A stacked tensor is named by the expert whose slice differs.
        assert!(error.to_string().contains(&flipped), "{flipped} is not named: {error}");
        assert_eq!(files(&self.root), before.files, "nothing was written");
        std::fs::remove_dir_all(from).expect("it was ours");
    }
}

/// All experts of a family in any order, cut into tiers and groups at random.
fn plan(rng: &mut ChaCha8Rng, family: &str) -> String {
    let mut experts: Vec<u32> = (0..8).collect();
    if family != "deepseek_v3" {
        experts.shuffle(rng);
    }
    let mut plan = String::from("default_tier_set = [\"p0\"]\n");
    let mut n = 0;
    while !experts.is_empty() {
        // Writing to a String cannot fail.
        let _infallible =
            writeln!(plan, "[[tiers]]\nid = \"p{n}\"\nk_tier = 1\nk_group = 1\nk_expert = 1");
        for _ in 0..rng.random_range(1..3) {
            let count = rng.random_range(1..=4.min(experts.len().max(1)));
            let group: Vec<String> =
                experts.drain(..count.min(experts.len())).map(|e| e.to_string()).collect();
            if !group.is_empty() {
                let _infallible =
                    writeln!(plan, "[[tiers.groups]]\nexperts = \"{}\"", group.join(", "));
            }
        }
        n += 1;
    }
    plan
}
