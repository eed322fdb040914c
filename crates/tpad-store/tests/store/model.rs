//! Made-up checkpoints: objects, and blocks whose parts lie in them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use tpad_manifest::{BlockId, IMAGE_ALIGN_BYTES};
use tpad_store::testing::MemoryOrigin;
use tpad_store::{
    BlockFetch, DramConfig, FetchPart, FetchTuning, Hierarchy, HierarchyConfig, Level, Medium,
    Origin, ReadError, ReadOptions, Served, StoreMetrics, Urgency,
};

pub(crate) const MIB: u64 = 1 << 20;

/// A checkpoint in memory.
pub(crate) struct Model {
    pub(crate) objects: Vec<(String, Bytes)>,
    pub(crate) blocks: Vec<Block>,
}

/// A block and the image that reading it has to give.
pub(crate) struct Block {
    pub(crate) fetch: Arc<BlockFetch>,
    pub(crate) image: Vec<u8>,
}

impl Model {
    /// Blocks of these sizes, each of up to three tensors, which lie out of order
    /// and with gaps in three objects.
    pub(crate) fn new(seed: u64, class: &str, sizes: impl IntoIterator<Item = u64>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut objects = vec![Vec::new(); 3];
        let mut blocks = Vec::new();
        for bytes in sizes {
            let mut image = Vec::new();
            let mut parts = Vec::new();
            for tensor in cut(&mut rng, bytes) {
                let number = rng.random_range(0..objects.len());
                let object = &mut objects[number];
                let gap = rng.random_range(0..300);
                object.extend((0..gap).map(|_| rng.random::<u8>()));
                let at = image.len() as u64;
                let offset = object.len() as u64;
                let mut content = vec![0; usize::try_from(tensor).expect("small")];
                rng.fill(&mut content[..]);
                object.extend_from_slice(&content);
                image.extend_from_slice(&content);
                image.resize(image.len().next_multiple_of(IMAGE_ALIGN_BYTES as usize), 0);
                let object = format!("shard-{number}").into();
                parts.push(FetchPart { object, offset, bytes: tensor, at });
            }
            parts.reverse();
            let id = BlockId::of(&image);
            let fetch = BlockFetch { id, bytes: image.len() as u64, parts, class: class.into() };
            blocks.push(Block { fetch: Arc::new(fetch), image });
        }
        let named = |(number, object)| (format!("shard-{number}"), Bytes::from(object));
        Self { objects: objects.into_iter().enumerate().map(named).collect(), blocks }
    }

    pub(crate) fn memory_origin(&self) -> Arc<MemoryOrigin> {
        Arc::new(MemoryOrigin::new(self.objects.iter().cloned()))
    }

    pub(crate) fn origin(&self) -> Arc<dyn Origin> {
        self.memory_origin()
    }
}

fn cut(rng: &mut ChaCha8Rng, bytes: u64) -> Vec<u64> {
    if bytes < 8 {
        return vec![bytes];
    }
    let first = rng.random_range(1..bytes / 2);
    let second = rng.random_range(1..bytes / 2);
    vec![first, second, bytes - first - second]
}

pub(crate) fn config(capacity_bytes: u64) -> HierarchyConfig {
    let dram = DramConfig { capacity_bytes, class_budgets: [].into() };
    HierarchyConfig { dram, fetch: FetchTuning::default() }
}

pub(crate) fn hierarchy(capacity_bytes: u64, lower: Vec<Arc<dyn Level>>) -> Arc<Hierarchy> {
    let metrics = StoreMetrics::default();
    Hierarchy::new(config(capacity_bytes), lower, metrics).expect("sound bounds")
}

pub(crate) fn within(limit: Duration) -> ReadOptions {
    ReadOptions { deadline: Instant::now() + limit, urgency: Urgency::Demand }
}

/// Reads with plenty of time.
pub(crate) async fn read(
    hierarchy: &Hierarchy,
    origin: &Arc<dyn Origin>,
    block: &Block,
) -> Result<Served, ReadError> {
    hierarchy.read(origin, &block.fetch, within(Duration::from_secs(60))).await
}

/// Reads, and compares every byte.
pub(crate) async fn check(
    hierarchy: &Hierarchy,
    origin: &Arc<dyn Origin>,
    block: &Block,
) -> Medium {
    let served = read(hierarchy, origin, block).await.expect("served");
    assert!(served.bytes[..] == block.image[..], "wrong bytes");
    served.medium
}

/// A metric's value, by its name and labels as the text format writes them.
pub(crate) fn metric(metrics: &StoreMetrics, name: &str) -> u64 {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}
