//! What a request asks for, as blocks.

mod order;

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tpad_manifest::{BlockKey, ExpertKey, TierId};

use self::order::{Experts, Order, Request, distinct};
use super::Generation;
use super::index::{IndexNumber, SharedSegment};
use crate::EngineError;

/// Lookups of a selection before other tasks have their turn: some ten microseconds. A layer's
/// are not divided, and may be a hundred thousand. A request for few blocks gives no turn
/// away: beside bulk reads that would cost it a write of each of them.
const PICKS_AT_ONCE: usize = 1024;

/// Segments read at a time for one selection: enough to hide an object store's
/// latency, few enough to keep what is held small.
pub(super) const SEGMENTS_AT_ONCE: usize = 8;

/// Experts that a request asks for, in three ways that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each at every layer of `layers`.
    pub keys: Vec<ExpertKey>,
    /// Each as it is, whatever `layers` says.
    pub blocks: Vec<(ExpertKey, u32)>,
    /// All experts of these tiers, at every layer of `layers`.
    pub tiers: Vec<TierId>,
    /// Empty: every layer at which an expert exists.
    pub layers: Vec<u32>,
}

/// The blocks that a request resolved to, each once. Holds its generation.
#[derive(Debug)]
pub struct Selected {
    generation: Arc<Generation>,
    /// Each with the size of its image.
    picks: Vec<(Pick, u64)>,
    bytes: u64,
    /// Names the dense picks.
    dense: Option<SharedSegment>,
    _counted: OwnedSemaphorePermit,
}

/// A block in few bytes: a request may select a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pick {
    Expert { tier: u32, group: u32, expert: u32, layer: u32 },
    Router { tier: u32, layer: u32 },
    Dense { number: usize },
}

impl Selected {
    /// How many blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.picks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    /// The sum of their images.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The generation that they belong to.
    #[must_use]
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// The `n`th block's key and the size of its image.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<(BlockKey, u64)> {
        let (pick, bytes) = *self.picks.get(n)?;
        let key = match pick {
            Pick::Expert { tier, group, expert, layer } => {
                self.generation.expert_key(tier, group, expert, layer)
            }
            Pick::Router { tier, layer } => {
                BlockKey::Router { tier: self.generation.tier_id(tier).clone(), layer }
            }
            Pick::Dense { number } => {
                BlockKey::Dense { name: self.dense.as_ref()?.dense_name(number)?.clone() }
            }
        };
        Some((key, bytes))
    }
}

impl Generation {
    /// The blocks of a selection, in this order: for each layer the keys, tier
    /// by tier as they first appear; the single blocks; for each tier its
    /// layers, groups and experts. What appears again is left out.
    ///
    /// # Errors
    /// The first thing asked for that does not exist or is not served; more
    /// blocks than one request, or all together, may select; segments that
    /// cannot be read.
    pub async fn select(
        self: &Arc<Self>,
        selection: &Selection,
        deadline: Instant,
    ) -> Result<Selected, EngineError> {
        if selection.keys.is_empty() && selection.blocks.is_empty() && selection.tiers.is_empty() {
            return Err(EngineError::NothingSelected);
        }
        let mut order = Order::of(self, selection)?;
        let counted = self.admit(order.count)?;
        let requests = std::mem::take(&mut order.requests);
        let mut picks = Picks::new(order.may_repeat);
        let mut segments = futures::stream::iter(requests)
            .map(|request| async move {
                let segment = self.layer(request.tier, request.layer, deadline).await?;
                Ok::<_, EngineError>((request, segment))
            })
            .buffered(SEGMENTS_AT_ONCE);
        let mut since_pause = 0;
        while let Some((request, segment)) = segments.try_next().await? {
            if since_pause >= PICKS_AT_ONCE {
                since_pause = 0;
                tokio::task::yield_now().await;
            }
            let Request { tier, layer, experts } = request;
            let mut add = |group, expert| -> Result<(), EngineError> {
                since_pause += 1;
                let pick = Pick::Expert { tier, group, expert, layer };
                let bytes = segment.expert_image_bytes(group, expert);
                picks.push(pick, bytes.ok_or_else(|| self.no_expert(tier, group, expert))?);
                Ok(())
            };
            match experts {
                Experts::All => {
                    for (run, group) in segment.groups().iter().zip(0..) {
                        for expert in 0..run.experts {
                            add(group, expert)?;
                        }
                    }
                }
                Experts::Listed(places) => {
                    for (group, expert) in places.iter() {
                        add(*group, *expert)?;
                    }
                }
            }
        }
        drop(segments);
        Ok(picks.finish(Arc::clone(self), None, counted))
    }

    /// The routers of `tiers` at `layers`, in that order. Without tiers those of
    /// the manifest's default tier set, without layers wherever there is one.
    ///
    /// # Errors
    /// As [`Generation::select`].
    pub async fn routers(
        self: &Arc<Self>,
        tiers: &[TierId],
        layers: &[u32],
        deadline: Instant,
    ) -> Result<Selected, EngineError> {
        let tiers = if tiers.is_empty() { &self.manifest().default_tier_set } else { tiers };
        if tiers.is_empty() {
            return Err(EngineError::NothingSelected);
        }
        let mut requests = Vec::new();
        let layers = &distinct(layers)[..];
        for tier in self.distinct_tiers(tiers)? {
            let found = self.layers_of(tier, layers)?;
            self.bounded(requests.len().saturating_add(found.len()) as u64)?;
            requests.extend(found.into_iter().map(|layer| (tier, layer)));
        }
        let counted = self.admit(requests.len() as u64)?;
        let mut picks = Picks::new(false);
        let mut without = HashSet::new();
        let mut with = HashSet::new();
        let mut segments = futures::stream::iter(requests)
            .map(|(tier, layer)| async move {
                let segment = self.layer(tier, layer, deadline).await?;
                Ok::<_, EngineError>((tier, layer, segment))
            })
            .buffered(SEGMENTS_AT_ONCE);
        while let Some((tier, layer, segment)) = segments.try_next().await? {
            let Some(router) = segment.router() else {
                if !layers.is_empty() {
                    return Err(self.no_router(tier, Some(layer)));
                }
                without.insert(tier);
                continue;
            };
            with.insert(tier);
            let key = BlockKey::Router { tier: self.tier_id(tier).clone(), layer };
            let layout = router.layout();
            let layout = layout.map_err(|source| EngineError::BlockSize { key, source })?;
            picks.push(Pick::Router { tier, layer }, layout.bytes);
        }
        drop(segments);
        if let Some(tier) = without.difference(&with).min() {
            return Err(self.no_router(*tier, None));
        }
        Ok(picks.finish(Arc::clone(self), None, counted))
    }

    /// The dense tensors of these names, in that order; without names all.
    ///
    /// # Errors
    /// As [`Generation::select`].
    pub async fn dense(
        self: &Arc<Self>,
        names: &[impl AsRef<str> + Sync],
        deadline: Instant,
    ) -> Result<Selected, EngineError> {
        let segment = self.dense_segment(deadline).await?;
        let mut numbers = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            let number = segment.as_ref().and_then(|segment| segment.dense_number(name));
            numbers.push(number.ok_or_else(|| self.no_dense(name, segment.as_ref()))?);
        }
        if let (true, Some(segment)) = (names.is_empty(), &segment) {
            numbers.extend(0..segment.dense_names().count());
        }
        let counted = self.admit(numbers.len() as u64)?;
        let mut picks = Picks::new(!names.is_empty());
        for number in numbers {
            let Some(record) = segment.as_ref().and_then(|segment| segment.dense_record(number))
            else {
                continue;
            };
            let layout = record.layout().map_err(|source| {
                let name = record.tensors.first().map_or_else(|| "".into(), |t| t.name.clone());
                EngineError::BlockSize { key: BlockKey::Dense { name }, source }
            })?;
            picks.push(Pick::Dense { number }, layout.bytes);
        }
        Ok(picks.finish(Arc::clone(self), segment, counted))
    }

    /// The tiers of these ids, each once.
    fn distinct_tiers(&self, ids: &[TierId]) -> Result<Vec<u32>, EngineError> {
        let mut seen = HashSet::new();
        let mut tiers = Vec::new();
        for id in ids {
            let tier = self.tier(id)?;
            if seen.insert(tier) {
                tiers.push(tier);
            }
        }
        Ok(tiers)
    }

    /// The layers asked for, of which none repeats, or all that the tier has.
    fn layers_of(&self, tier: u32, asked: &[u32]) -> Result<Vec<u32>, EngineError> {
        if asked.is_empty() {
            let index = self.index(IndexNumber::Tier(tier));
            return Ok(index.into_iter().flat_map(|index| index.layers()).collect());
        }
        asked.iter().try_for_each(|layer| self.check_layer(tier, *layer))?;
        Ok(asked.to_vec())
    }

    pub(crate) fn bounded(&self, count: u64) -> Result<usize, EngineError> {
        let limit = self.shared.bounds.selected_blocks;
        match usize::try_from(count) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(EngineError::TooManyBlocks { count, limit }),
        }
    }

    /// Counts a selection against the bound on one and on all.
    pub(super) fn admit(&self, count: u64) -> Result<OwnedSemaphorePermit, EngineError> {
        let count = self.bounded(count)?;
        let permits = u32::try_from(count).unwrap_or(u32::MAX);
        let counted = Arc::clone(&self.shared.selections).try_acquire_many_owned(permits);
        counted.map_err(|_| EngineError::SelectionsBusy { count })
    }
}

/// Picks in order, each once.
struct Picks {
    picks: Vec<(Pick, u64)>,
    /// `None` where nothing can repeat.
    seen: Option<HashSet<Pick>>,
    bytes: u64,
}

impl Picks {
    fn new(may_repeat: bool) -> Self {
        Self { picks: Vec::new(), seen: may_repeat.then(HashSet::new), bytes: 0 }
    }

    fn push(&mut self, pick: Pick, bytes: u64) {
        if self.seen.as_mut().is_none_or(|seen| seen.insert(pick)) {
            self.picks.push((pick, bytes));
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    fn finish(
        self,
        generation: Arc<Generation>,
        dense: Option<SharedSegment>,
        mut counted: OwnedSemaphorePermit,
    ) -> Selected {
        // Repeats were counted and take no room.
        let repeats = counted.num_permits().saturating_sub(self.picks.len());
        drop(counted.split(repeats));
        Selected { generation, picks: self.picks, bytes: self.bytes, dense, _counted: counted }
    }
}

#[cfg(test)]
mod tests;
