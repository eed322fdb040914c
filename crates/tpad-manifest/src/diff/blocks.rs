//! Blocks against each other, one layer at a time: only layers whose segments
//! differ need to be read.

use std::collections::BTreeMap;

use super::{Change, Changes};
use crate::{BlockRecord, ExpertKey, IndexHeader, Segment, TierId};

const NEW: &str = "it is new";
const GONE: &str = "it is gone";
const BYTES: &str = "its bytes differ";
const TENSORS: &str = "its tensors have other names, types or shapes";
const SOURCE: &str = "its source expert or router column differs";

type Side<'a> = Option<(&'a IndexHeader, &'a Segment)>;

pub(super) fn layer(
    tier: &TierId,
    layer: u32,
    old: Side<'_>,
    new: Side<'_>,
    changes: &mut Changes,
) {
    let mut moved = 0u64;
    let sizes = |side: Side<'_>| -> Vec<u32> {
        side.map(|(_, segment)| segment.groups.iter().map(|run| run.experts).collect())
            .unwrap_or_default()
    };
    let (before, after) = (sizes(old), sizes(new));
    for (n, group) in (0..before.len().max(after.len())).zip(0u32..) {
        let count = |sizes: &[u32]| sizes.get(n).copied().unwrap_or(0);
        for expert in 0..count(&before).max(count(&after)) {
            let record = |side: Side<'_>| {
                side.and_then(|(header, segment)| segment.expert(header, group, expert))
            };
            if let Some(what) = verdict(record(old), record(new), &mut moved) {
                let key = ExpertKey { tier: tier.clone(), group, expert };
                changes.add(Change::ExpertAltered { key, layer, what });
            }
        }
    }
    let router = |side: Side<'_>| side.and_then(|(header, segment)| segment.router(header));
    if let Some(what) = verdict(router(old), router(new), &mut moved) {
        changes.add(Change::RouterAltered { tier: tier.clone(), layer, what });
    }
    if moved > 0 {
        changes.add(Change::BlocksMoved { tier: Some(tier.clone()), layer, blocks: moved });
    }
}

pub(super) fn dense(old: Side<'_>, new: Side<'_>, changes: &mut Changes) {
    let mut moved = 0u64;
    let records = |side: Side<'_>| -> BTreeMap<_, _> {
        let Some((header, segment)) = side else { return BTreeMap::new() };
        let names = segment.dense_names().cloned().enumerate();
        names.filter_map(|(n, name)| Some((name, segment.dense(header, n)?))).collect()
    };
    let (mut before, after) = (records(old), records(new));
    for (name, record) in after {
        let Some(earlier) = before.remove(&name) else {
            changes.add(Change::DenseAltered { name, what: NEW });
            continue;
        };
        if let Some(what) = verdict(Some(earlier), Some(record), &mut moved) {
            changes.add(Change::DenseAltered { name, what });
        }
    }
    for name in before.into_keys() {
        changes.add(Change::DenseAltered { name, what: GONE });
    }
    if moved > 0 {
        changes.add(Change::BlocksMoved { tier: None, layer: 0, blocks: moved });
    }
}

/// What changed about a block, if a worker would notice. One that is only kept
/// elsewhere is counted.
fn verdict(
    old: Option<BlockRecord>,
    new: Option<BlockRecord>,
    moved: &mut u64,
) -> Option<&'static str> {
    let (mut old, mut new) = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => return Some(NEW),
        (Some(_), None) => return Some(GONE),
        (Some(old), Some(new)) => (old, new),
    };
    if old == new {
        return None;
    }
    if old.id != new.id {
        return Some(BYTES);
    }
    if old.source != new.source {
        return Some(SOURCE);
    }
    for tensor in old.tensors.iter_mut().chain(&mut new.tensors) {
        tensor.ranges.clear();
        // Where the bytes lie decides it: a slice that was copied out is the
        // same tensor.
        tensor.sliced = false;
    }
    if old.tensors != new.tensors {
        return Some(TENSORS);
    }
    *moved += 1;
    None
}
