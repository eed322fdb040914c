//! Routing masks of a generation: what the catalog says, with what only its
//! indexes and the levels know.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use tpad_manifest::{
    BlockId, CostClass, LayerGroup, LayerMask, LayerTier, MaskError, ResidentMask, RoutingMask,
    Source, TierId, fold_sources,
};
use tpad_store::Medium;

use super::Generation;
use super::index::IndexNumber;
use super::select::SEGMENTS_AT_ONCE;
use crate::EngineError;
use crate::mask::{MaskRequest, Residency};

/// Source experts in one reply, layers with equal ones counted once: two
/// numbers of up to three bytes each, so they take 2 MiB at the most.
const SOURCES: u64 = 350_000;

/// A layer's experts by group: their blocks and where they came from.
type Experts = Vec<Vec<(BlockId, Source)>>;

impl Generation {
    /// The mask that a request asks for. `configured` are the configuration's
    /// named TierSets. Has no effect on the caches of blocks.
    ///
    /// # Errors
    /// When there is no such TierSet, nothing is left to route to, the mask is
    /// too large for one reply, or an index segment cannot be read.
    pub(crate) async fn mask(
        self: &Arc<Self>,
        request: &MaskRequest,
        configured: &BTreeMap<String, Vec<TierId>>,
        deadline: Instant,
    ) -> Result<RoutingMask, EngineError> {
        let refused = |source| EngineError::Mask { model: self.model().to_owned(), source };
        let mask = RoutingMask::of(self.catalog(), &request.set, configured);
        let mut mask = mask.map_err(refused)?;
        if request.sources {
            self.add_sources(&mut mask, deadline).await?;
        }
        if let Some(residency) = &request.resident {
            let resident = self.resident(&mask, residency, deadline).await?;
            mask = mask.with_resident(resident).map_err(refused)?;
        }
        Ok(mask)
    }

    /// Fills in where each active tier's experts came from.
    async fn add_sources(
        self: &Arc<Self>,
        mask: &mut RoutingMask,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        let too_large = |entries, what, limit| {
            let model = self.model().to_owned();
            let remedy = "omit sources, or name fewer tiers";
            let source = MaskError::TooLarge { entries, what, limit, remedy };
            EngineError::Mask { model, source }
        };
        let mut entries = 0u64;
        for tier in &mut mask.tiers {
            let Some(number) = self.place(&tier.tier) else { continue };
            let experts = self.experts_of(number);
            let layers = self.index(IndexNumber::Tier(number)).into_iter();
            let layers: Vec<u32> = layers.flat_map(|index| index.layers()).collect();
            // Even if all layers agree, this many are answered.
            if !layers.is_empty() && entries.saturating_add(experts) > SOURCES {
                return Err(too_large(entries.saturating_add(experts), "source experts", SOURCES));
            }
            let blocks = experts.saturating_mul(layers.len() as u64);
            if let Err(EngineError::TooManyBlocks { count, limit }) = self.bounded(blocks) {
                return Err(too_large(count, "blocks to look up", limit as u64));
            }
            let _counted = self.admit(blocks)?;
            let found = self.experts_at(number, &layers, deadline).await?;
            let sources = found.into_iter().map(|(layer, groups)| {
                let group = |group: Vec<(BlockId, Source)>| {
                    group.into_iter().map(|(_, source)| source).collect()
                };
                (layer, groups.into_iter().map(group).collect())
            });
            tier.sources = fold_sources(sources);
            entries = entries.saturating_add(experts.saturating_mul(tier.sources.len() as u64));
            if entries > SOURCES {
                return Err(too_large(entries, "source experts", SOURCES));
            }
        }
        Ok(())
    }

    /// Where each block of the active tiers is now.
    async fn resident(
        self: &Arc<Self>,
        mask: &RoutingMask,
        residency: &Residency,
        deadline: Instant,
    ) -> Result<ResidentMask, EngineError> {
        let mut layers: Vec<u32> = self.manifest().layers.iter().map(|l| l.layer).collect();
        if !residency.layers.is_empty() {
            layers = self.known_layers(mask, &residency.layers, &layers)?;
        }
        let experts = mask.tiers.iter().flat_map(|tier| &tier.groups);
        let experts = experts.fold(0u64, |sum, group| sum.saturating_add(group.experts().into()));
        let _counted = self.admit(experts.saturating_mul(layers.len() as u64))?;
        let none = |layer: &u32| LayerMask { layer: *layer, tiers: Vec::new() };
        let mut found: Vec<LayerMask> = layers.iter().map(none).collect();
        for tier in &mask.tiers {
            let number = self.place(&tier.tier);
            let index = number.and_then(|number| self.index(IndexNumber::Tier(number)));
            let mine: Vec<u32> = match index {
                Some(index) => {
                    let known: Vec<u32> = index.layers().collect();
                    layers.iter().copied().filter(|l| known.binary_search(l).is_ok()).collect()
                }
                None => Vec::new(),
            };
            let at = self.experts_at(number.unwrap_or(u32::MAX), &mine, deadline).await?;
            let mut at: BTreeMap<u32, Experts> = at.into_iter().collect();
            for layer in &mut found {
                // The lookups of a layer are short, of a model they are not.
                tokio::task::yield_now().await;
                let groups = match at.remove(&layer.layer) {
                    Some(groups) => groups.iter().map(|group| self.costs(group)).collect(),
                    None => tier.groups.iter().map(|group| unavailable(group.experts())).collect(),
                };
                let groups: Vec<Vec<CostClass>> = groups;
                let group = |costs| LayerGroup::of(residency.level, costs);
                layer.tiers.push(LayerTier { groups: groups.into_iter().map(group).collect() });
            }
        }
        Ok(ResidentMask { level: residency.level, layers: found })
    }

    /// The layers asked for, ascending and each once, which must exist.
    fn known_layers(
        &self,
        mask: &RoutingMask,
        asked: &[u32],
        known: &[u32],
    ) -> Result<Vec<u32>, EngineError> {
        let mut layers = asked.to_vec();
        layers.sort_unstable();
        layers.dedup();
        match layers.iter().find(|layer| known.binary_search(layer).is_err()) {
            None => Ok(layers),
            Some(layer) => Err(EngineError::UnknownLayer {
                tier: mask.tiers.first().map(|tier| tier.tier.clone()).unwrap_or_default(),
                layer: *layer,
                layers: super::index::describe_runs(known.iter().copied()),
            }),
        }
    }

    /// A tier's experts at these layers, in their order.
    async fn experts_at(
        self: &Arc<Self>,
        tier: u32,
        layers: &[u32],
        deadline: Instant,
    ) -> Result<Vec<(u32, Experts)>, EngineError> {
        let read = |layer: u32| async move {
            let segment = self.layer(tier, layer, deadline).await?;
            // Segments are checked when they are opened: columns are complete.
            Ok::<_, EngineError>((layer, segment.experts_by_group().unwrap_or_default()))
        };
        let layers = futures::stream::iter(layers.iter().copied());
        layers.map(read).buffered(SEGMENTS_AT_ONCE).try_collect().await
    }

    fn costs(&self, group: &[(BlockId, Source)]) -> Vec<CostClass> {
        let hierarchy = &self.shared.hierarchy;
        let devices = &self.shared.devices;
        let cost = |id: &BlockId| match hierarchy.resident(id) {
            _ if devices.has(id) => CostClass::Hbm,
            Some(Medium::Hbm) => CostClass::Hbm,
            Some(Medium::Dram) => CostClass::Dram,
            Some(Medium::Nvme) => CostClass::Nvme,
            Some(Medium::ObjectStore) | None => CostClass::ObjectStore,
        };
        group.iter().map(|(id, _)| cost(id)).collect()
    }

    /// The place of a tier in the manifest, by its id as text.
    fn place(&self, text: &str) -> Option<u32> {
        let place = self.manifest().tiers.iter().position(|tier| tier.id.is(text))?;
        u32::try_from(place).ok()
    }
}

fn unavailable(experts: u32) -> Vec<CostClass> {
    vec![CostClass::Unavailable; usize::try_from(experts).unwrap_or(usize::MAX)]
}

#[cfg(test)]
mod tests;
