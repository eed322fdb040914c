//! Assignment: a plan's experts at one layer, checked against the layer.

use std::collections::BTreeMap;

use tpad_manifest::Problem;

use super::{ExpertList, Plan, ranges, wrong};

/// A layer's experts by tier and group.
pub(crate) type Assignment = Vec<Vec<Vec<u32>>>;

/// Where a plan puts an expert.
type Owner = String;

/// Sorts a layer's experts as the plan says and notes whatever does not fit.
/// `layer` is the layer's number when the plan treats it alone.
pub(crate) fn assign(
    plan: &Plan,
    layer: u32,
    experts: u32,
    problems: &mut Vec<Problem>,
) -> Assignment {
    let mut owners: BTreeMap<u32, Owner> = BTreeMap::new();
    let mut assignment = Vec::with_capacity(plan.tiers.len());
    for (t, tier) in plan.tiers.iter().enumerate() {
        let mut groups = Vec::with_capacity(tier.groups.len());
        for (g, group) in tier.groups.iter().enumerate() {
            let (list, at) = group.at(layer);
            let place = format!("/tiers/{t}/groups/{g}{at}");
            if list.len() != group.experts.len() {
                let what = format!(
                    "{} experts, but the group has {} at other layers",
                    list.len(),
                    group.experts.len(),
                );
                wrong(problems, place.clone(), what);
            }
            let owner = format!("tier {}, group {g}", tier.id);
            groups.push(claim(list, &place, &owner, experts, &mut owners, problems));
        }
        assignment.push(groups);
    }
    let (list, at) = plan.unused.at(layer);
    let _ = claim(list, &format!("/unused{at}"), "[unused]", experts, &mut owners, problems);
    let missing: Vec<u32> = (0..experts).filter(|expert| !owners.contains_key(expert)).collect();
    if !missing.is_empty() {
        let what = format!(
            "layer {layer}: experts {} are in no tier; name them in [unused] if that is meant",
            ranges(&missing),
        );
        wrong(problems, "/tiers", what);
    }
    assignment
}

/// The list's experts, each noted as the owner's.
fn claim(
    list: &ExpertList,
    place: &str,
    owner: &str,
    experts: u32,
    owners: &mut BTreeMap<u32, Owner>,
    problems: &mut Vec<Problem>,
) -> Vec<u32> {
    if let Some(highest) = list.highest().filter(|highest| *highest >= experts) {
        let what = format!("there is no expert {highest}: the checkpoint has {experts}, from 0");
        wrong(problems, place, what);
        return Vec::new();
    }
    if list.len() > experts.into() {
        let what = format!("{} experts, but the checkpoint has {experts}", list.len());
        wrong(problems, place, what);
        return Vec::new();
    }
    let claimed: Vec<u32> = list.iter().collect();
    let mut twice: BTreeMap<Owner, Vec<u32>> = BTreeMap::new();
    for expert in &claimed {
        if let Some(other) = owners.insert(*expert, owner.into()) {
            twice.entry(other).or_default().push(*expert);
        }
    }
    for (other, mut experts) in twice {
        experts.sort_unstable();
        wrong(problems, place, format!("{} are in {other} already", ranges(&experts)));
    }
    claimed
}
