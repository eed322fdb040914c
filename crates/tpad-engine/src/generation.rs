//! One revision of one model, as the daemon serves it: immutable, and held by
//! every read from start to end, so that a reload never mixes two manifests.

mod addresses;
mod files;
mod index;
mod mask;
mod names;
mod pages;
mod report;
mod scope;
mod select;
mod succession;
mod tally;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{BlockKey, BlockRecord, Catalog, Digest, FileRecord, Manifest, TierId};
use tpad_store::{
    BlockFetch, CacheClass, Hierarchy, Medium, ObjectOrigin, Origin, ReadOptions, Served,
    StoreMetrics, Tasks,
};

use crate::kept::Kept;
use crate::placement::Places;
use crate::shelf::Shelf;
use crate::{Bounds, DeviceMemory, EngineError, EngineMetrics, TierReads};

pub(crate) use self::addresses::Addresses;
pub use self::addresses::Memory;
pub(crate) use self::index::index_range;
use self::index::{OpenIndex, SegmentKey, SharedSegment};
pub use self::pages::{ListedBlock, Page, PageRequest};
use self::report::Report;
pub(crate) use self::scope::{ScopeStep, ScopedBlock};
pub use self::select::{Selected, Selection};
use self::tally::Tally;

/// One revision of one model.
pub struct Generation {
    model: Arc<str>,
    number: u64,
    /// BLAKE3 of the manifest document.
    document: Digest,
    /// The number of the activation record that chose it, 0 for none. Another one
    /// that says the same takes its place.
    activation: AtomicU64,
    catalog: Catalog,
    warnings: Vec<String>,
    /// One for each tier of the manifest; `None` where it is not served.
    tiers: Vec<Option<OpenIndex>>,
    dense: Option<OpenIndex>,
    /// Where indexes lie.
    root: Arc<ObjectOrigin>,
    /// Where shards and files lie.
    objects: Arc<dyn Origin>,
    /// The document's own default tiers, which an activation may replace.
    published_default: Vec<TierId>,
    segments: Arc<Shelf<SegmentKey, SharedSegment>>,
    files: Arc<Shelf<Digest, Bytes>>,
    report: Report,
    tally: Tally,
    places: Places,
    stale: Mutex<Option<String>>,
    /// Where its blocks lie, once a worker wants to know. Locked when it is retired.
    addresses: Mutex<Option<Arc<Addresses>>>,
    retired: CancellationToken,
    shared: Shared,
}

/// What generations share with the engine.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) hierarchy: Arc<Hierarchy>,
    pub(crate) devices: DeviceMemory,
    /// Where origins count their retries.
    pub(crate) store_metrics: StoreMetrics,
    pub(crate) metrics: EngineMetrics,
    pub(crate) bounds: Bounds,
    pub(crate) tasks: Tasks,
    pub(crate) stop: CancellationToken,
    /// Bounds the blocks selected by requests in progress.
    pub(crate) selections: Arc<Semaphore>,
    /// Bounds the index segments that are checked at a time: that is CPU work.
    pub(crate) checks: Arc<Semaphore>,
    /// Bounds the files that are read at a time: each takes memory.
    pub(crate) file_reads: Arc<Semaphore>,
    /// What is served while a store is away.
    pub(crate) kept: Kept,
}

/// What a generation is made of.
pub(crate) struct Parts {
    pub(crate) model: Arc<str>,
    pub(crate) number: u64,
    pub(crate) document: Digest,
    pub(crate) activation: Option<u64>,
    pub(crate) catalog: Catalog,
    pub(crate) warnings: Vec<String>,
    pub(crate) root: Arc<ObjectOrigin>,
    pub(crate) objects: Arc<dyn Origin>,
    /// The document's own default tiers, which an activation may replace.
    pub(crate) published_default: Vec<TierId>,
    /// Why the document is the last good one and not the store's.
    pub(crate) stale: Option<String>,
}

/// A block that was read.
#[derive(Clone, Debug)]
pub struct Block {
    /// What was asked for.
    pub key: BlockKey,
    /// What it is.
    pub record: BlockRecord,
    /// Its image, verified, and the level that it came from.
    pub served: Served,
}

impl Generation {
    pub(crate) fn new(parts: Parts, shared: Shared) -> Self {
        let Parts {
            model,
            number,
            document,
            activation,
            catalog,
            warnings,
            root,
            objects,
            published_default,
            stale,
        } = parts;
        let shelf = (shared.tasks.clone(), shared.stop.clone());
        Self {
            model,
            number,
            document,
            activation: AtomicU64::new(activation.unwrap_or(0)),
            tiers: index::of_tiers(&catalog),
            dense: index::of_dense(&catalog),
            tally: Tally::of(&catalog),
            catalog,
            warnings,
            root,
            objects,
            published_default,
            segments: Shelf::new(shared.bounds.segment_bytes, shelf.clone()),
            files: Shelf::new(shared.bounds.file_bytes, shelf),
            report: Report::default(),
            places: Places::default(),
            stale: Mutex::new(stale),
            addresses: Mutex::default(),
            retired: shared.stop.child_token(),
            shared,
        }
    }

    /// The model's name in the configuration.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The daemon's count of swaps when this generation was made.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The manifest's number.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.manifest().revision
    }

    /// The activation record that chose the revision; `None` when it is pinned or
    /// the highest.
    #[must_use]
    pub fn activation(&self) -> Option<u64> {
        Some(self.activation.load(Ordering::Relaxed)).filter(|number| *number > 0)
    }

    /// Whether `other` serves the same to everybody.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let (one, two) = (self.manifest(), other.manifest());
        self.document == other.document && one.default_tier_set == two.default_tier_set
    }

    /// BLAKE3 of the manifest document.
    #[must_use]
    pub fn document(&self) -> &Digest {
        &self.document
    }

    /// Cancelled when this is no longer what the model serves, or the engine
    /// stops: what works for a generation in the background ends then. Reads go
    /// on.
    #[must_use]
    pub fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.catalog.manifest()
    }

    /// The manifest with its indexes' headers.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Why this may be older than what the store has: the store was away when it
    /// was loaded from local disk, and has not been seen since.
    #[must_use]
    pub fn stale(&self) -> Option<String> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store has the same, as `newer` found. Says whether that is news.
    pub(crate) fn confirm(&self, newer: &Self) -> bool {
        self.activation.store(newer.activation.load(Ordering::Relaxed), Ordering::Relaxed);
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// What is odd about the manifest but does not stop it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many dense tensors there are.
    #[must_use]
    pub fn dense_tensors(&self) -> u64 {
        self.catalog.dense().map_or(0, |header| header.blocks())
    }

    /// Where reads of a tier's blocks found them, by the class of the tier.
    #[must_use]
    pub fn reads(&self, class: &CacheClass) -> TierReads {
        self.tally.reads(class.as_str())
    }

    /// How far its tiers are on their way home.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Where its indexes, its revision and its successors lie.
    pub(crate) fn root(&self) -> &Arc<ObjectOrigin> {
        &self.root
    }

    /// How long what is done in the background waits for one thing.
    pub(crate) fn patience(&self) -> Duration {
        self.shared.bounds.load_deadline
    }

    pub(crate) fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.shared.hierarchy
    }

    pub(crate) fn objects(&self) -> &Arc<dyn Origin> {
        &self.objects
    }

    /// The record of a block. Reads its index segment if it is not there, and
    /// leaves the caches of blocks alone.
    ///
    /// # Errors
    /// When there is no such block, or its segment cannot be read.
    pub async fn record(
        &self,
        key: &BlockKey,
        deadline: Instant,
    ) -> Result<BlockRecord, EngineError> {
        match key {
            BlockKey::Expert { key, layer } => {
                let tier = self.tier(&key.tier)?;
                self.check_expert(tier, key.group, key.expert)?;
                let segment = self.layer(tier, *layer, deadline).await?;
                segment
                    .expert(key.group, key.expert)
                    .ok_or_else(|| self.no_expert(tier, key.group, key.expert))
            }
            BlockKey::Router { tier, layer } => {
                let tier = self.tier(tier)?;
                let segment = self.layer(tier, *layer, deadline).await?;
                segment.router().ok_or_else(|| self.no_router(tier, Some(*layer)))
            }
            BlockKey::Dense { name } => {
                let Some(segment) = self.dense_segment(deadline).await? else {
                    return Err(self.no_dense(name, None));
                };
                segment.dense(name).ok_or_else(|| self.no_dense(name, Some(&segment)))
            }
        }
    }

    /// Reads a block: its record, then its verified image from the fastest
    /// level that holds it. A caller that drops this stops nothing for others.
    ///
    /// # Errors
    /// As [`Generation::record`], and when the image cannot be had in time.
    pub async fn read(&self, key: BlockKey, options: ReadOptions) -> Result<Block, EngineError> {
        let read = self.read_block(&key, options).await;
        if let Err(error @ (EngineError::Block { .. } | EngineError::BlockSize { .. })) = &read {
            self.report.note(&self.model, &key.to_string(), error);
        }
        let (record, served) = read?;
        Ok(Block { key, record, served })
    }

    async fn read_block(
        &self,
        key: &BlockKey,
        options: ReadOptions,
    ) -> Result<(BlockRecord, Served), EngineError> {
        let (record, class, served) = self.fetch(key, options).await?;
        self.count_served(&class, &served);
        Ok((record, served))
    }

    /// Counts a block that [`Generation::fetch`] read as a request's.
    pub(crate) fn count(&self, block: &Block) {
        self.count_served(&self.class(&block.key), &block.served);
    }

    fn count_served(&self, class: &CacheClass, served: &Served) {
        self.count_bytes(class, served.medium, served.bytes.len());
    }

    /// Counts a block that was found there as a request's.
    pub(crate) fn count_found(&self, key: &BlockKey, medium: Medium, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.count_bytes(&self.class(key), medium, bytes);
    }

    fn count_bytes(&self, class: &CacheClass, medium: Medium, bytes: usize) {
        self.shared.metrics.served(class.as_str(), medium, bytes);
        self.tally.count(class.as_str(), medium);
    }

    /// A block as [`Generation::read`] reads it, which is not counted as a
    /// request's.
    pub(crate) async fn fetch(
        &self,
        key: &BlockKey,
        options: ReadOptions,
    ) -> Result<(BlockRecord, CacheClass, Served), EngineError> {
        let record = self.record(key, options.deadline).await?;
        let class = self.class(key);
        let fetch = BlockFetch::of(&record, class.clone())
            .map_err(|source| EngineError::BlockSize { key: key.clone(), source })?;
        let read = self.shared.hierarchy.read(&self.objects, &Arc::new(fetch), options).await;
        let served =
            read.map_err(|error| EngineError::Block { key: key.clone(), source: Arc::new(error) })?;
        Ok((record, class, served))
    }

    /// Where a read would find the block now: a level, or the object store.
    #[must_use]
    pub fn medium_of(&self, record: &BlockRecord) -> Medium {
        if self.shared.devices.has(&record.id) {
            return Medium::Hbm;
        }
        self.shared.hierarchy.resident(&record.id).unwrap_or(Medium::ObjectStore)
    }

    /// GPU memory, where blocks can be copied.
    pub(crate) fn device_memory(&self) -> &DeviceMemory {
        &self.shared.devices
    }

    /// A small file that the manifest lists, verified.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read.
    pub async fn file(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<(FileRecord, Bytes), EngineError> {
        let read = files::read(self, name, deadline).await;
        if let Err(error @ EngineError::File { .. }) = &read {
            self.report.note(&self.model, name, error);
        }
        read
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The cache that a block belongs to.
    pub(crate) fn class(&self, key: &BlockKey) -> CacheClass {
        match key {
            BlockKey::Expert { key, .. } => match &key.tier {
                TierId::Name(name) => CacheClass::new(Arc::clone(name)),
                TierId::Number(number) => number.to_string().into(),
            },
            BlockKey::Router { .. } => "router".into(),
            BlockKey::Dense { .. } => "dense".into(),
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("model", &self.model)
            .field("number", &self.number)
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
