//! Documents against each other.

use std::collections::BTreeMap;

use super::{Change, Changes};
use crate::{GroupRecord, IndexRef, Manifest, TierId, TierRecord};

pub(super) fn compare(old: &Manifest, new: &Manifest, changes: &mut Changes) {
    document(old, new, changes);
    files(old, new, changes);
    tier_sets(old, new, changes);
    index(None, old.dense, new.dense, changes);
    tiers(old, new, changes);
}

fn document(old: &Manifest, new: &Manifest, changes: &mut Changes) {
    if old.format_version.major != new.format_version.major {
        let what = was(&old.format_version, &new.format_version);
        changes.add(Change::DocumentAltered { field: "format_version", what });
    } else if old.format_version != new.format_version {
        let what = was(&old.format_version, &new.format_version);
        changes.add(Change::DocumentChanged { field: "format_version", what });
    }
    if old.layers != new.layers {
        let what = "the MoE layers differ".to_owned();
        changes.add(Change::DocumentAltered { field: "layers", what });
    }
    if old.scoring != new.scoring {
        let what = format!("was {} and is {}", json(&old.scoring), json(&new.scoring));
        changes.add(Change::DocumentAltered { field: "scoring", what });
    }
    if !same_tiers(&old.default_tier_set, &new.default_tier_set) {
        let what = format!(
            "was {} and is {}: requests without a TierSet would route otherwise; activate with a \
             TierSet instead",
            ids(&old.default_tier_set),
            ids(&new.default_tier_set)
        );
        changes.add(Change::DocumentAltered { field: "default_tier_set", what });
    }
    let asks_more = new.requires.iter().any(|asked| !old.requires.contains(asked));
    if asks_more {
        let what = format!("was {} and is {}", json(&old.requires), json(&new.requires));
        changes.add(Change::DocumentAltered { field: "requires", what });
    } else if old.requires.len() > new.requires.len() {
        let what = format!("was {} and is {}", json(&old.requires), json(&new.requires));
        changes.add(Change::DocumentChanged { field: "requires", what });
    }
    if old.model != new.model {
        let what = format!("was {:?} and is {:?}", old.model, new.model);
        changes.add(Change::DocumentChanged { field: "model", what });
    }
    if old.objects_base != new.objects_base {
        let text = |base: &Option<String>| base.clone().unwrap_or_else(|| "the root".into());
        let what = was(&text(&old.objects_base), &text(&new.objects_base));
        changes.add(Change::DocumentChanged { field: "objects_base", what });
    }
}

fn files(old: &Manifest, new: &Manifest, changes: &mut Changes) {
    for (name, file) in &old.files {
        let what = match new.files.get(name) {
            None => "it is gone",
            Some(now) if now.digest != file.digest => "its bytes differ",
            Some(now) if now.bytes != file.bytes => "its size differs",
            Some(now) => {
                if now.object != file.object {
                    let what = format!("{name}: {}", was(&file.object, &now.object));
                    changes.add(Change::DocumentChanged { field: "files", what });
                }
                continue;
            }
        };
        changes.add(Change::FileAltered { name: name.clone(), what });
    }
    added("files", &old.files, &new.files, changes);
}

fn tier_sets(old: &Manifest, new: &Manifest, changes: &mut Changes) {
    for (name, set) in &old.tier_sets {
        let what = match new.tier_sets.get(name) {
            None => "it is gone".to_owned(),
            Some(now) if !same_tiers(set, now) => was(&ids(set), &ids(now)),
            Some(_) => continue,
        };
        changes.add(Change::TierSetChanged { name: name.clone(), what });
    }
    added("tier_sets", &old.tier_sets, &new.tier_sets, changes);
}

fn added<T>(
    field: &'static str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    changes: &mut Changes,
) {
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        changes.add(Change::EntryAdded { field, name: name.clone() });
    }
}

fn tiers(old: &Manifest, new: &Manifest, changes: &mut Changes) {
    let kept = |of: &Manifest, by: &Manifest| -> Vec<TierId> {
        let both = of.tiers.iter().filter(|tier| find(by, &tier.id).is_some());
        both.map(|tier| tier.id.clone()).collect()
    };
    let (from, to) = (kept(old, new), kept(new, old));
    let reordered = from.iter().zip(&to).any(|(one, other)| !other.is(&one.to_string()));
    // A set of all tiers up to one must not come to hold a tier that is new.
    let is_old = |tier: &&TierRecord| find(old, &tier.id).is_some();
    let inserted = new.tiers.iter().take(to.len()).filter(is_old).count() < to.len();
    if reordered || inserted {
        let all = |of: &Manifest| of.tiers.iter().map(|tier| tier.id.clone()).collect();
        changes.add(Change::TiersReordered { from: all(old), to: all(new) });
    }
    for tier in &old.tiers {
        match find(new, &tier.id) {
            Some(now) => compare_tier(tier, now, changes),
            None => changes.add(Change::TierRemoved { tier: tier.id.clone() }),
        }
    }
    for tier in new.tiers.iter().filter(|tier| find(old, &tier.id).is_none()) {
        changes.add(Change::TierAdded { tier: tier.id.clone() });
    }
}

fn compare_tier(old: &TierRecord, new: &TierRecord, changes: &mut Changes) {
    let tier = || old.id.clone();
    if old.placement != new.placement {
        let (from, to) = (old.placement, new.placement);
        changes.add(Change::PlacementChanged { tier: tier(), from, to });
    }
    if old.parameter_budget != new.parameter_budget {
        let (from, to) = (old.parameter_budget, new.parameter_budget);
        changes.add(Change::BudgetChanged { tier: tier(), from, to });
    }
    if old.created_at != new.created_at {
        changes.add(Change::CreatedAtChanged { tier: tier() });
    }
    for (value, from, to) in [
        ("k_tier", old.routing.k_tier, new.routing.k_tier),
        ("k_group", old.routing.k_group, new.routing.k_group),
        ("k_expert", old.routing.k_expert, new.routing.k_expert),
    ] {
        if from != to {
            changes.add(Change::RoutingAltered { tier: tier(), value, from, to });
        }
    }
    let (was, is) = (&old.compatibility, &new.compatibility);
    for (field, from, to) in [
        ("format_version", was.format_version.to_string(), is.format_version.to_string()),
        ("requires", json(&sorted(&was.requires)), json(&sorted(&is.requires))),
        ("dtypes", json(&was.dtypes), json(&is.dtypes)),
        ("quantization", json(&was.quantization), json(&is.quantization)),
    ] {
        if from != to {
            changes.add(Change::CompatibilityAltered { tier: tier(), field, from, to });
        }
    }
    let most = old.groups.len().max(new.groups.len());
    for (n, group) in (0..most).zip(0u32..) {
        let what = match (old.groups.get(n), new.groups.get(n)) {
            (Some(from), Some(to)) if from == to => continue,
            (Some(from), Some(to)) => format!("{} has become {}", sizes(from), sizes(to)),
            (None, _) => "the group is new".into(),
            (_, None) => "the group is gone".into(),
        };
        changes.add(Change::GroupAltered { tier: tier(), group, what });
    }
    index(Some(&old.id), old.index, new.index, changes);
}

fn index(
    tier: Option<&TierId>,
    old: Option<IndexRef>,
    new: Option<IndexRef>,
    changes: &mut Changes,
) {
    let tier = tier.cloned();
    match (old, new) {
        (None, None) => {}
        (None, Some(_)) => changes.add(Change::IndexAdded { tier }),
        (Some(_), None) => changes.add(Change::IndexRemoved { tier }),
        (Some(old), Some(new)) if old == new => {}
        (Some(_), Some(_)) => changes.add(Change::IndexAltered { tier }),
    }
}

/// The tier of the same id, written as a number or as text.
fn find<'m>(manifest: &'m Manifest, id: &TierId) -> Option<&'m TierRecord> {
    manifest.tier(&id.to_string())
}

/// A TierSet's order and repeats mean nothing.
fn same_tiers(one: &[TierId], other: &[TierId]) -> bool {
    let texts = |set: &[TierId]| {
        let mut texts: Vec<String> = set.iter().map(ToString::to_string).collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    };
    texts(one) == texts(other)
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

fn sizes(group: &GroupRecord) -> String {
    let mut text = format!("{} experts", group.experts);
    for (what, size) in [("hidden", group.hidden_size), ("intermediate", group.intermediate_size)] {
        if let Some(size) = size {
            text.push_str(&format!(", {what} size {size}"));
        }
    }
    text
}

fn ids(set: &[TierId]) -> String {
    let texts: Vec<String> = set.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", "))
}

fn was(from: &impl std::fmt::Display, to: &impl std::fmt::Display) -> String {
    format!("was {from} and is {to}")
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
