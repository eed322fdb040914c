//! Mapping as a plan says.

use std::collections::{BTreeMap, BTreeSet};

use tpad_manifest::{Problem, Rejected, Routing, TensorRecord, TierId};

use super::{LayerDraft, TierDraft, rows};
use crate::layout::{Checkpoint, DraftBlock, MoeLayer, RouterTensor};
use crate::plan::{Assignment, Members, Plan, PlanError, TierPlan, assign, wrong};

/// The plan's tiers and the set that a request without one gets.
pub(super) fn tiers(
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<(Vec<TierDraft>, Vec<TierId>), PlanError> {
    let mut problems = Vec::new();
    check_layers(checkpoint, plan, &mut problems);
    let assignments = assignments(checkpoint, plan, &mut problems);
    check_routers(checkpoint, &assignments, &mut problems);
    let mut tiers = Vec::with_capacity(plan.tiers.len());
    for (n, tier) in plan.tiers.iter().enumerate() {
        let place = format!("/tiers/{n}");
        let routing = routing(checkpoint, plan, tier, &place, &mut problems);
        let mut layers = Vec::with_capacity(checkpoint.layers.len());
        for (layer, assignment) in checkpoint.layers.iter().zip(&assignments) {
            layers.push(draft(layer, assignment.get(n).map_or(&[], Vec::as_slice)));
        }
        if let Some(budget) = tier.parameter_budget {
            check_budget(&layers, budget, &format!("{place}/parameter_budget"), &mut problems);
        }
        tiers.push(TierDraft {
            id: tier.id.clone(),
            placement: tier.placement,
            parameter_budget: tier.parameter_budget,
            routing,
            quantization: checkpoint.quantization.clone(),
            layers,
        });
    }
    if !problems.is_empty() {
        return Err(Rejected(problems).into());
    }
    let all = || plan.tiers.iter().map(|tier| tier.id.clone()).collect();
    Ok((tiers, plan.default_tier_set.clone().unwrap_or_else(all)))
}

/// Every layer that the plan names is a MoE layer.
fn check_layers(checkpoint: &Checkpoint, plan: &Plan, problems: &mut Vec<Problem>) {
    let known: BTreeSet<u32> = checkpoint.layers.iter().map(|layer| layer.layer).collect();
    let mut check = |members: &Members, place: String| {
        for layer in members.layers.keys().filter(|layer| !known.contains(layer)) {
            let what = format!("layer {layer} is no MoE layer of the checkpoint");
            wrong(problems, format!("{place}/layers/{layer}"), what);
        }
    };
    for (t, tier) in plan.tiers.iter().enumerate() {
        for (g, group) in tier.groups.iter().enumerate() {
            check(group, format!("/tiers/{t}/groups/{g}"));
        }
    }
    check(&plan.unused, "/unused".into());
}

/// The experts of every layer by tier and group. Layers that the plan treats
/// alike are checked once.
fn assignments(
    checkpoint: &Checkpoint,
    plan: &Plan,
    problems: &mut Vec<Problem>,
) -> Vec<Assignment> {
    let groups = plan.tiers.iter().flat_map(|tier| &tier.groups).chain([&plan.unused]);
    let special: BTreeSet<u32> = groups.flat_map(|group| group.layers.keys().copied()).collect();
    let mut known: BTreeMap<Option<u32>, Assignment> = BTreeMap::new();
    let mut assignments = Vec::with_capacity(checkpoint.layers.len());
    for layer in &checkpoint.layers {
        let alone = Some(layer.layer).filter(|layer| special.contains(layer));
        let experts = u32::try_from(layer.experts.len()).unwrap_or(u32::MAX);
        let assignment =
            known.entry(alone).or_insert_with(|| assign(plan, layer.layer, experts, problems));
        assignments.push(assignment.clone());
    }
    assignments
}

/// Every router can be cut as the plan asks.
fn check_routers(checkpoint: &Checkpoint, assignments: &[Assignment], problems: &mut Vec<Problem>) {
    for (layer, assignment) in checkpoint.layers.iter().zip(assignments) {
        for tensor in &layer.router {
            let experts = u32::try_from(layer.experts.len()).ok();
            let spare = tensor.rows.filter(|rows| Some(*rows) != experts);
            let whole = assignment.iter().any(|groups| is_whole(groups, layer.experts.len()));
            let name = &tensor.record.name;
            let what = match spare {
                _ if whole => continue,
                Some(rows) => format!(
                    "layer {}: {name} has {rows} rows for {} experts, and a plan cannot say which \
                     tier gets those that score no expert",
                    layer.layer,
                    layer.experts.len(),
                ),
                None if tensor.cuttable => continue,
                None => format!(
                    "layer {}: {name} is quantized in a way that mixes experts, so no tier can \
                     have a part of it",
                    layer.layer,
                ),
            };
            wrong(problems, "/tiers", what);
        }
    }
}

/// Whether a tier has every expert in its old order.
fn is_whole(groups: &[Vec<u32>], experts: usize) -> bool {
    let mut order = groups.iter().flatten();
    let same = (0..experts).all(|n| order.next().and_then(|n| usize::try_from(*n).ok()) == Some(n));
    same && order.next().is_none()
}

/// The k values: what the plan says, or what leaves every expert within a
/// token's reach as before.
fn routing(
    checkpoint: &Checkpoint,
    plan: &Plan,
    tier: &TierPlan,
    place: &str,
    problems: &mut Vec<Problem>,
) -> Routing {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let groups = count(tier.groups.len());
    let experts = tier.groups.iter().map(|group| group.experts.len()).sum::<u64>();
    let experts = u32::try_from(experts).unwrap_or(u32::MAX);
    let k_tier = tier.k_tier.unwrap_or(count(plan.tiers.len()));
    let k_group = tier.k_group.unwrap_or(groups);
    let k_expert = tier.k_expert.or(checkpoint.experts_per_token.map(|k| k.min(experts)));
    let most = [
        ("k_tier", k_tier, count(plan.tiers.len()), "tiers"),
        ("k_group", k_group, groups, "groups"),
    ];
    for (name, k, most, what) in most {
        if k > most {
            wrong(problems, format!("{place}/{name}"), format!("{k} of {most} {what}"));
        }
    }
    match k_expert {
        Some(k) if k > experts => {
            wrong(problems, format!("{place}/k_expert"), format!("{k} of {experts} experts"));
        }
        Some(_) => {}
        None => wrong(
            problems,
            format!("{place}/k_expert"),
            "config.json does not say how many experts a token uses: it must be given here",
        ),
    }
    Routing { k_tier, k_group, k_expert: k_expert.unwrap_or(1) }
}

/// One tier at one layer.
fn draft(layer: &MoeLayer, groups: &[Vec<u32>]) -> LayerDraft {
    let expert =
        |number: &u32| usize::try_from(*number).ok().and_then(|n| layer.experts.get(n)).cloned();
    let columns: Vec<u32> = groups.iter().flatten().copied().collect();
    let whole = is_whole(groups, layer.experts.len());
    let router = |tensor: &RouterTensor| {
        if whole { Some(tensor.record.clone()) } else { rows::cut(tensor, &columns) }
    };
    LayerDraft {
        layer: layer.layer,
        groups: groups.iter().map(|group| group.iter().filter_map(expert).collect()).collect(),
        size: layer.size,
        router: Some(DraftBlock {
            tensors: layer.router.iter().filter_map(router).collect(),
            source: None,
        }),
    }
}

fn check_budget(layers: &[LayerDraft], budget: u64, place: &str, problems: &mut Vec<Problem>) {
    let blocks = layers.iter().flat_map(|layer| layer.groups.iter().flatten());
    let tensors = blocks.flat_map(|block| &block.tensors);
    let total = tensors.map(TensorRecord::parameters).try_fold(0u64, |sum, parameters| {
        parameters.map(|parameters| sum.saturating_add(parameters))
    });
    match total {
        Ok(total) if total <= budget => {}
        Ok(total) => {
            let what =
                format!("the tier's experts have {total} parameters, {} more", total - budget);
            wrong(problems, place, what);
        }
        Err(error) => wrong(problems, place, error.to_string()),
    }
}
