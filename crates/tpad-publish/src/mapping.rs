//! Mappings: a checkpoint's experts sorted into tiers and groups.

use tpad_manifest::{LayerRecord, Placement, Routing, Scoring, TierId};

use crate::layout::{Checkpoint, DraftBlock, ExpertSize};
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

/// Sorts a checkpoint's experts into tiers: as the plan says, or into one tier
/// with the router's own groups.
///
/// # Errors
/// Everything in the plan that does not fit the checkpoint.
pub fn map(_checkpoint: &Checkpoint, _plan: Option<&Plan>) -> Result<Mapping, PlanError> {
    Err(PlanError::Rejected(tpad_manifest::Rejected(Vec::new())))
}
