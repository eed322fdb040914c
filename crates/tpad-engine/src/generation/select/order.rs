//! The order in which a selection's experts come, counted before any of them is
//! spelled out: a request for ten million blocks is refused at its arrival.

use std::collections::HashSet;
use std::sync::Arc;

use tpad_manifest::{ExpertKey, TierId};

use super::Selection;
use crate::{EngineError, Generation};

/// An expert within its tier: group and number.
pub(super) type Place = (u32, u32);

/// Experts of one layer of one tier.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) tier: u32,
    pub(super) layer: u32,
    pub(super) experts: Experts,
}

#[derive(Debug)]
pub(super) enum Experts {
    All,
    Listed(Arc<Vec<Place>>),
}

/// A selection's experts in order.
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) requests: Vec<Request>,
    /// Blocks, repeats included.
    pub(super) count: u64,
    /// Whether a block may come more than once.
    pub(super) may_repeat: bool,
}

/// Each once, in order. A request has room for millions of repeats, which must
/// not be looked at again for each of its tiers.
pub(super) fn distinct(layers: &[u32]) -> Vec<u32> {
    let mut seen = HashSet::new();
    layers.iter().copied().filter(|layer| seen.insert(*layer)).collect()
}

impl Order {
    pub(super) fn of(generation: &Generation, selection: &Selection) -> Result<Self, EngineError> {
        let Selection { keys, blocks, tiers, layers } = selection;
        let only_tiers = keys.is_empty() && blocks.is_empty();
        let mut order = Self { may_repeat: !only_tiers, ..Self::default() };
        let layers = distinct(layers);
        order.add_keys(generation, keys, &layers)?;
        order.add_blocks(generation, blocks)?;
        order.add_tiers(generation, tiers, &layers)?;
        Ok(order)
    }

    fn add_keys(
        &mut self,
        generation: &Generation,
        keys: &[ExpertKey],
        layers: &[u32],
    ) -> Result<(), EngineError> {
        let mut by_tier: Vec<(u32, Vec<Place>)> = Vec::new();
        let mut last: Option<(&TierId, usize)> = None;
        for key in keys {
            // Keys mostly come tier by tier: look a tier up when it changes.
            let at = match last {
                Some((tier, at)) if *tier == key.tier => at,
                _ => {
                    let tier = generation.tier(&key.tier)?;
                    let known = by_tier.iter().position(|(known, _)| *known == tier);
                    known.unwrap_or_else(|| {
                        by_tier.push((tier, Vec::new()));
                        by_tier.len() - 1
                    })
                }
            };
            last = Some((&key.tier, at));
            let (tier, places) = &mut by_tier[at];
            generation.check_expert(*tier, key.group, key.expert)?;
            places.push((key.group, key.expert));
        }
        let mut ranked: Vec<(usize, Request)> = Vec::new();
        for (tier, places) in by_tier {
            let places = Arc::new(places);
            let found = generation.layers_of(tier, layers)?;
            self.expect(generation, found.len() as u64, places.len() as u64)?;
            for (n, layer) in found.into_iter().enumerate() {
                let rank = if layers.is_empty() { layer as usize } else { n };
                let experts = Experts::Listed(Arc::clone(&places));
                ranked.push((rank, Request { tier, layer, experts }));
            }
        }
        // Stable: tiers stay in the order in which they first appeared.
        ranked.sort_by_key(|(rank, _)| *rank);
        self.requests.extend(ranked.into_iter().map(|(_, request)| request));
        Ok(())
    }

    fn add_blocks(
        &mut self,
        generation: &Generation,
        blocks: &[(ExpertKey, u32)],
    ) -> Result<(), EngineError> {
        self.expect(generation, 1, blocks.len() as u64)?;
        let first = self.requests.len();
        for (key, layer) in blocks {
            let (tier, layer) = (generation.tier(&key.tier)?, *layer);
            generation.check_expert(tier, key.group, key.expert)?;
            let place = (key.group, key.expert);
            // Neighbours at one layer share one look at its segment.
            match self.requests[first..].last_mut() {
                Some(Request { tier: t, layer: l, experts: Experts::Listed(places) })
                    if (*t, *l) == (tier, layer) =>
                {
                    Arc::make_mut(places).push(place);
                }
                _ => {
                    generation.check_layer(tier, layer)?;
                    let experts = Experts::Listed(Arc::new(vec![place]));
                    self.requests.push(Request { tier, layer, experts });
                }
            }
        }
        Ok(())
    }

    fn add_tiers(
        &mut self,
        generation: &Generation,
        tiers: &[TierId],
        layers: &[u32],
    ) -> Result<(), EngineError> {
        for tier in generation.distinct_tiers(tiers)? {
            let found = generation.layers_of(tier, layers)?;
            self.expect(generation, found.len() as u64, generation.experts_of(tier))?;
            let requests = found.into_iter();
            self.requests.extend(requests.map(|layer| Request {
                tier,
                layer,
                experts: Experts::All,
            }));
        }
        Ok(())
    }

    /// Adds to the count, and stops at the bound.
    fn expect(
        &mut self,
        generation: &Generation,
        layers: u64,
        experts: u64,
    ) -> Result<(), EngineError> {
        self.count = self.count.saturating_add(layers.saturating_mul(experts));
        generation.bounded(self.count).map(|_| ())
    }
}
