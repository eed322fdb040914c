//! The manifest of an import.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tpad_manifest::{
    Compatibility, Dtype, FORMAT_VERSION, FileRecord, GroupRecord, IndexRef, Manifest,
    ModelVersion, Projection, TierRecord,
};

use super::ImportOptions;
use super::blocks::{Blocks, Indexes, Tier};

/// What a manifest says besides its blocks.
pub(super) struct Draft<'a> {
    pub(super) options: &'a ImportOptions,
    /// The shards' root, when the manifest is kept elsewhere.
    pub(super) base: Option<String>,
    pub(super) files: BTreeMap<String, FileRecord>,
    /// Logical parameters of each tier.
    pub(super) parameters: &'a [u64],
}

impl Draft<'_> {
    /// The document, as a first revision; publishing settles number, version
    /// and times against what is published already.
    pub(super) fn manifest(&self, blocks: &Blocks, indexes: Option<&Indexes>) -> Manifest {
        let now = Some(self.options.now);
        let tier = |(n, tier): (usize, &Tier)| {
            let index = indexes.and_then(|indexes| indexes.tiers.get(n));
            record(tier, self.parameters[n], now, index.map(|index| index.reference))
        };
        Manifest {
            format_version: FORMAT_VERSION,
            model_version: ModelVersion::default(),
            model: self.options.model.clone(),
            revision: 1,
            parent: None,
            created_at: now,
            objects_base: self.base.clone(),
            layers: blocks.layers.clone(),
            scoring: blocks.scoring,
            default_tier_set: blocks.default_tier_set.clone(),
            tier_sets: blocks.tier_sets.clone(),
            requires: Vec::new(),
            files: self.files.clone(),
            dense: indexes.and_then(|indexes| indexes.dense.as_ref()).map(|index| index.reference),
            tiers: blocks.tiers.iter().enumerate().map(tier).collect(),
        }
    }
}

/// What a manifest says of a tier.
pub(crate) fn record(
    tier: &Tier,
    parameters: u64,
    now: Option<Timestamp>,
    index: Option<IndexRef>,
) -> TierRecord {
    TierRecord {
        id: tier.draft.id.clone(),
        created_at: now,
        parameter_budget: tier.draft.parameter_budget.unwrap_or(parameters),
        groups: groups(tier),
        placement: tier.draft.placement,
        routing: tier.draft.routing,
        compatibility: Compatibility {
            // Indexes came with this version.
            format_version: FORMAT_VERSION,
            requires: requirements(tier),
            dtypes: dtypes(tier),
            quantization: tier.draft.quantization.clone(),
        },
        index,
    }
}

/// What the tier's heads ask of its readers.
fn requirements(tier: &Tier) -> Vec<String> {
    let has = |projection| {
        let mut tensors = tier.iter().flat_map(|block| &block.tensors);
        tensors.any(|tensor| tensor.role.projection == projection)
    };
    let named = [(Projection::GroupHeads, "group_heads"), (Projection::TierHead, "tier_head")];
    let asked = named.iter().filter(|(projection, _)| has(*projection));
    asked.map(|(_, name)| (*name).to_owned()).collect()
}

/// The groups, whose sizes are those of the tier's layers where these agree.
fn groups(tier: &Tier) -> Vec<GroupRecord> {
    let Some(first) = tier.layers.first() else { return Vec::new() };
    let agreed = |size: fn(&super::blocks::Layer) -> Option<u64>| {
        size(first).filter(|value| tier.layers.iter().all(|layer| size(layer) == Some(*value)))
    };
    let hidden_size = agreed(|layer| layer.size.hidden);
    let intermediate_size = agreed(|layer| layer.size.intermediate);
    let group = |experts: &Vec<_>| GroupRecord {
        // A checkpoint with more experts was refused when it was mapped.
        experts: u32::try_from(experts.len()).unwrap_or(u32::MAX),
        hidden_size,
        intermediate_size,
    };
    first.groups.iter().map(group).collect()
}

/// The element types of the tier's experts, sorted by name.
fn dtypes(tier: &Tier) -> Vec<Dtype> {
    let blocks = tier.layers.iter().flat_map(|layer| layer.groups.iter().flatten());
    let tensors = blocks.flat_map(|block| &block.tensors);
    let names: std::collections::BTreeSet<&str> =
        tensors.map(|tensor| tensor.dtype.name()).collect();
    names.into_iter().map(Dtype::from).collect()
}
