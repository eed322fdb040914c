//! Mappings: a checkpoint's experts sorted into tiers and groups.

mod planned;
pub(crate) mod rows;

use std::collections::BTreeMap;

use tpad_manifest::{LayerRecord, Placement, Routing, Scoring, TierId};

use crate::layout::{Checkpoint, DraftBlock, ExpertSize, MoeLayer};
use crate::plan::{Plan, PlanError};

/// A checkpoint as a revision will hold it, before its bytes have been read.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    /// The tiers, in the manifest's order.
    pub tiers: Vec<TierDraft>,
    /// The dense blocks, one tensor each, sorted by name.
    pub dense: Vec<DraftBlock>,
    /// The MoE layers, ascending.
    pub layers: Vec<LayerRecord>,
    /// How the router turns logits into weights.
    pub scoring: Scoring,
    /// The tiers that a request without a TierSet gets.
    pub default_tier_set: Vec<TierId>,
    /// TierSets by name.
    pub tier_sets: BTreeMap<String, Vec<TierId>>,
}

/// One tier.
#[derive(Clone, Debug, PartialEq)]
pub struct TierDraft {
    /// The id.
    pub id: TierId,
    /// The medium that is its home.
    pub placement: Placement,
    /// The most logical parameters that its experts may have; `None` means the
    /// exact count.
    pub parameter_budget: Option<u64>,
    /// The k values.
    pub routing: Routing,
    /// Its experts' quantization scheme.
    pub quantization: Option<String>,
    /// The layers, ascending; every one has the same groups.
    pub layers: Vec<LayerDraft>,
}

/// One tier's blocks at one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerDraft {
    /// The layer.
    pub layer: u32,
    /// The experts by group.
    pub groups: Vec<Vec<DraftBlock>>,
    /// The experts' hidden and inner size at this layer.
    pub size: ExpertSize,
    /// The router, cut to the tier's experts in the order of their keys.
    pub router: Option<DraftBlock>,
}

/// The id of the one tier that a checkpoint without a plan becomes.
pub const BASE_TIER: &str = "base";

/// Sorts a checkpoint's experts into tiers: as the plan says, or into one tier
/// named `base` with the router's own groups of consecutive experts.
///
/// # Errors
/// Everything in the plan that does not fit the checkpoint. Without a plan,
/// when `config.json` does not say how many experts a token uses.
pub fn map(checkpoint: &Checkpoint, plan: Option<&Plan>) -> Result<Mapping, PlanError> {
    let (tiers, default_tier_set) = match plan {
        Some(plan) => planned::tiers(checkpoint, plan)?,
        None => {
            let tier = whole(checkpoint)?;
            let id = tier.id.clone();
            (vec![tier], vec![id])
        }
    };
    let layer = |layer: &MoeLayer| LayerRecord { layer: layer.layer, kind: layer.kind };
    Ok(Mapping {
        tiers,
        dense: checkpoint.dense.clone(),
        layers: checkpoint.layers.iter().map(layer).collect(),
        scoring: checkpoint.scoring,
        default_tier_set,
        tier_sets: plan.map(|plan| plan.tier_sets.clone()).unwrap_or_default(),
    })
}

/// The whole checkpoint as one tier.
fn whole(checkpoint: &Checkpoint) -> Result<TierDraft, PlanError> {
    let k_expert = checkpoint.experts_per_token.ok_or(PlanError::NoExpertsPerToken)?;
    let groups = usize::try_from(checkpoint.groups.max(1)).unwrap_or(1);
    let layer = |layer: &MoeLayer| {
        let size = (layer.experts.len() / groups).max(1);
        LayerDraft {
            layer: layer.layer,
            groups: layer.experts.chunks(size).map(<[DraftBlock]>::to_vec).collect(),
            size: layer.size,
            router: Some(DraftBlock {
                tensors: layer.router.iter().map(|tensor| tensor.record.clone()).collect(),
                source: None,
            }),
        }
    };
    Ok(TierDraft {
        id: TierId::Name(BASE_TIER.into()),
        placement: Placement::ObjectStore,
        parameter_budget: None,
        routing: Routing { k_tier: 1, k_group: checkpoint.groups_per_token, k_expert },
        quantization: checkpoint.quantization.clone(),
        layers: checkpoint.layers.iter().map(layer).collect(),
    })
}
