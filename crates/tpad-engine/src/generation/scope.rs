//! The blocks of a scope, a tier's layer at a time: a scope may be a tier of
//! millions.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use tpad_manifest::{BlockId, BlockKey};

use super::Generation;
use super::index::{IndexNumber, OpenIndex};
use crate::{EngineError, Scope};

/// What a scope has of one tier at one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScopeStep {
    tier: u32,
    layer: u32,
    part: ScopePart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ScopePart {
    /// Every expert, and the router.
    Whole,
    /// Every expert of the groups, and single ones.
    Some { groups: BTreeSet<u32>, experts: BTreeSet<(u32, u32)> },
}

/// A block that a scope names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScopedBlock {
    pub(crate) key: BlockKey,
    pub(crate) id: BlockId,
    /// Of its image.
    pub(crate) bytes: u64,
}

impl Generation {
    /// A scope's steps, each tier's layers in ascending order.
    ///
    /// # Errors
    /// When the scope names nothing, or something that does not exist or is not
    /// served.
    pub(crate) fn scope_steps(&self, scope: &Scope) -> Result<Vec<ScopeStep>, EngineError> {
        if scope.is_empty() {
            return Err(EngineError::NothingSelected);
        }
        let mut parts: BTreeMap<u32, ScopePart> = BTreeMap::new();
        let nothing = || ScopePart::Some { groups: BTreeSet::new(), experts: BTreeSet::new() };
        for tier in scope.tiers() {
            parts.insert(self.tier(tier)?, ScopePart::Whole);
        }
        for (tier, group) in scope.groups() {
            let tier = self.tier(tier)?;
            self.check_expert(tier, group, 0)?;
            if let ScopePart::Some { groups, .. } = parts.entry(tier).or_insert_with(nothing) {
                groups.insert(group);
            }
        }
        for (tier, group, expert) in scope.experts() {
            let tier = self.tier(tier)?;
            self.check_expert(tier, group, expert)?;
            if let ScopePart::Some { experts, .. } = parts.entry(tier).or_insert_with(nothing) {
                experts.insert((group, expert));
            }
        }
        let mut steps = Vec::new();
        for (tier, part) in parts {
            let layers: Vec<u32> = if scope.layers().is_empty() {
                let index = self.index(IndexNumber::Tier(tier));
                index.into_iter().flat_map(OpenIndex::layers).collect()
            } else {
                scope.layers().iter().try_for_each(|layer| self.check_layer(tier, *layer))?;
                scope.layers().iter().copied().collect()
            };
            let step = |layer| ScopeStep { tier, layer, part: part.clone() };
            steps.extend(layers.into_iter().map(step));
        }
        Ok(steps)
    }

    /// A step's blocks.
    ///
    /// # Errors
    /// When the layer's index segment cannot be read.
    pub(crate) async fn scope_blocks(
        &self,
        step: &ScopeStep,
        deadline: Instant,
    ) -> Result<Vec<ScopedBlock>, EngineError> {
        let ScopeStep { tier, layer, part } = step;
        let segment = self.layer(*tier, *layer, deadline).await?;
        let mut blocks = Vec::new();
        let ids = segment.experts_by_group().unwrap_or_default();
        for (group, experts) in (0..).zip(ids) {
            for (expert, (id, _)) in (0..).zip(experts) {
                let named = match part {
                    ScopePart::Whole => true,
                    ScopePart::Some { groups, experts } => {
                        groups.contains(&group) || experts.contains(&(group, expert))
                    }
                };
                if named {
                    let bytes = segment.expert_image_bytes(group, expert);
                    let bytes = bytes.ok_or_else(|| self.no_expert(*tier, group, expert))?;
                    let key = self.expert_key(*tier, group, expert, *layer);
                    blocks.push(ScopedBlock { key, id, bytes });
                }
            }
        }
        if let (ScopePart::Whole, Some(router)) = (part, segment.router()) {
            let key = BlockKey::Router { tier: self.tier_id(*tier).clone(), layer: *layer };
            let layout = router.layout();
            let bytes = match layout {
                Ok(layout) => layout.bytes,
                Err(source) => return Err(EngineError::BlockSize { key, source }),
            };
            blocks.push(ScopedBlock { key, id: router.id, bytes });
        }
        Ok(blocks)
    }
}
