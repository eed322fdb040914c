//! What a checkpoint brings to a tier that is added: the tier itself, and
//! whatever of the parent it holds besides.

use std::collections::BTreeMap;

use serde_json::Value;
use tpad_manifest::{Problem, Rejected, Routing, TensorRecord};

use super::names::{self, NamedTier};
use super::{GrowError, GrowOptions};
use crate::layout::{Checkpoint, MoeLayer};
use crate::mapping::rows;
use crate::{DraftBlock, LayerDraft, LayoutError, ShardTensor, TierDraft, map, recognise};

/// The layout of checkpoints that were made for a tier.
pub(super) const NAMED: &str = "tensors named for a tier";

/// A checkpoint, taken apart.
pub(super) struct Incoming {
    /// The tier to add; its layers hold its blocks.
    pub(super) tier: TierDraft,
    /// What the parent should hold too.
    pub(super) old: Old,
    /// The layout, for people.
    pub(super) family: &'static str,
}

/// What a checkpoint holds of the parent.
#[derive(Default)]
pub(super) struct Old {
    /// Experts and routers.
    pub(super) layers: Vec<OldLayer>,
    /// Dense tensors.
    pub(super) dense: Vec<DraftBlock>,
}

/// Experts of one checkpoint at one layer, and the router that scores them.
pub(super) struct OldLayer {
    /// The tier that the names tell; without one the experts are the first
    /// tier's whose experts have these numbers and names.
    pub(super) tier: Option<String>,
    pub(super) layer: MoeLayer,
    /// The experts that are meant, by their numbers in the checkpoint.
    pub(super) experts: Vec<u32>,
    /// Tier and group heads, which belong to the router's block.
    pub(super) heads: Vec<TensorRecord>,
}

/// Sorts a checkpoint's tensors into the new tier and what is old.
pub(super) fn incoming(
    tensors: Vec<ShardTensor>,
    config: &Value,
    options: &GrowOptions,
) -> Result<Incoming, GrowError> {
    let (mut named, rest) = names::split(tensors)?;
    let id = options.id.to_string();
    let Some(own) = named.remove(&id) else {
        if let Some(other) = named.keys().next() {
            let what = format!("tensors are named for tier {other}, none for tier {id}");
            return Err(wrong("--from", what));
        }
        return foreign(&rest, config, options);
    };
    if options.plan.is_some() {
        let what = "the checkpoint's names say which expert is in which group: leave --plan out";
        return Err(wrong("--plan", what));
    }
    let own = own.read(config)?;
    let mut old = Old::default();
    for (tier, tensors) in named {
        let NamedTier { checkpoint, heads, .. } = tensors.read(config)?;
        old.layers.extend(old_layers(checkpoint, Some(&tier), heads));
    }
    if !rest.is_empty() {
        match recognise(&rest, config) {
            Ok(mut checkpoint) => {
                old.dense = std::mem::take(&mut checkpoint.dense);
                old.layers.extend(old_layers(checkpoint, None, BTreeMap::new()));
            }
            // No experts among them: all are dense.
            Err(LayoutError::Unrecognised { .. }) => {
                old.dense = crate::layout::dense(&rest, config)
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Incoming { family: NAMED, tier: tier(own, options), old })
}

/// A tier from a checkpoint that was made for tpad.
fn tier(own: NamedTier, options: &GrowOptions) -> TierDraft {
    let NamedTier { checkpoint, groups, mut heads } = own;
    let quantization = checkpoint.quantization.clone();
    let layers = checkpoint.layers.into_iter().map(|layer| {
        let mut experts = layer.experts.into_iter();
        let group = |size: &u32| -> Vec<DraftBlock> {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            experts.by_ref().take(size).collect()
        };
        let groups = groups.iter().map(group).collect();
        let router = layer.router.into_iter().map(|tensor| tensor.record);
        let heads = heads.remove(&layer.layer).unwrap_or_default();
        let tensors = router.chain(heads).collect();
        LayerDraft {
            layer: layer.layer,
            groups,
            size: layer.size,
            router: Some(DraftBlock { tensors, source: None }),
        }
    });
    draft(options, quantization, layers.collect())
}

/// A tier from any Mixture-of-Experts checkpoint: the experts that the plan
/// names, or all. What the plan calls unused is the parent's.
fn foreign(
    tensors: &[ShardTensor],
    config: &Value,
    options: &GrowOptions,
) -> Result<Incoming, GrowError> {
    let mut checkpoint = recognise(tensors, config)?;
    checkpoint.experts_per_token = Some(options.routing.k_expert);
    if let Some(plan) = &options.plan {
        match &*plan.tiers {
            [tier] if tier.id.is(&options.id.to_string()) => {}
            [tier] => {
                let what = format!("the plan is of tier {}, --id says {}", tier.id, options.id);
                return Err(wrong("--plan", what));
            }
            tiers => {
                let what = format!("the plan has {} tiers: one is added at a time", tiers.len());
                return Err(wrong("--plan", what));
            }
        }
    }
    let mapping = map(&checkpoint, options.plan.as_ref())?;
    let Some(mapped) = mapping.tiers.into_iter().next() else {
        return Err(wrong("--plan", "the plan has no tier"));
    };
    let mut old = Old { dense: mapping.dense, layers: Vec::new() };
    let family = checkpoint.family;
    for layer in checkpoint.layers {
        let experts: Vec<u32> = match &options.plan {
            Some(plan) => plan.unused.at(layer.layer).0.iter().collect(),
            None => Vec::new(),
        };
        if !experts.is_empty() {
            old.layers.push(OldLayer { tier: None, layer, experts, heads: Vec::new() });
        }
    }
    Ok(Incoming { tier: draft(options, mapped.quantization, mapped.layers), old, family })
}

fn old_layers(
    checkpoint: Checkpoint,
    tier: Option<&str>,
    mut heads: BTreeMap<u32, Vec<TensorRecord>>,
) -> impl Iterator<Item = OldLayer> {
    let tier = tier.map(str::to_owned);
    checkpoint.layers.into_iter().map(move |layer| OldLayer {
        tier: tier.clone(),
        experts: (0..u32::try_from(layer.experts.len()).unwrap_or(u32::MAX)).collect(),
        heads: heads.remove(&layer.layer).unwrap_or_default(),
        layer,
    })
}

fn draft(
    options: &GrowOptions,
    quantization: Option<String>,
    layers: Vec<LayerDraft>,
) -> TierDraft {
    TierDraft {
        id: options.id.clone(),
        placement: options.placement,
        parameter_budget: Some(options.budget),
        routing: options.routing,
        quantization,
        layers,
    }
}

impl OldLayer {
    /// The router's block as the parent would have it: the rows of these
    /// experts in this order, and the heads.
    pub(super) fn router(&self, experts: &[u32]) -> Option<DraftBlock> {
        let whole = (0u32..).zip(experts).all(|(n, expert)| n == *expert)
            && experts.len() == self.layer.experts.len();
        let tensors: Option<Vec<TensorRecord>> = self
            .layer
            .router
            .iter()
            .map(
                |tensor| {
                    if whole { Some(tensor.record.clone()) } else { rows::cut(tensor, experts) }
                },
            )
            .collect();
        let tensors = tensors?.into_iter().chain(self.heads.iter().cloned()).collect();
        Some(DraftBlock { tensors, source: None })
    }

    /// The expert of this number.
    pub(super) fn expert(&self, number: u32) -> Option<&DraftBlock> {
        self.layer.experts.get(usize::try_from(number).ok()?)
    }
}

/// Checks the k values against the tier's content.
pub(super) fn check_routing(tier: &TierDraft, tiers: usize) -> Result<(), GrowError> {
    let Some(layer) = tier.layers.first() else { return Ok(()) };
    let experts: usize = layer.groups.iter().map(Vec::len).sum();
    let Routing { k_tier, k_group, k_expert } = tier.routing;
    let mut problems = Vec::new();
    for (flag, k, most, what) in [
        ("--k-tier", k_tier, tiers, "tiers"),
        ("--k-group", k_group, layer.groups.len(), "groups"),
        ("--k-expert", k_expert, experts, "experts"),
    ] {
        if k == 0 || usize::try_from(k).unwrap_or(usize::MAX) > most {
            problems.push(Problem::new(flag, format!("{k} of {most} {what}")));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(GrowError::Checkpoint(Rejected(problems))) }
}

pub(super) fn wrong(place: &str, what: impl Into<String>) -> GrowError {
    GrowError::Checkpoint(Rejected(vec![Problem::new(place, what)]))
}

impl Old {
    /// How many blocks there are to compare.
    pub(super) fn blocks(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.experts.len() as u64 + 1);
        layers.sum::<u64>() + self.dense.len() as u64
    }
}
