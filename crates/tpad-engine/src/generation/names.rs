//! Errors that name what does exist.

use std::sync::Arc;

use super::Generation;
use super::index::SharedSegment;
use crate::EngineError;

/// Names offered beside an unknown one.
const NAMES_OFFERED: usize = 3;

/// Names looked at for similar ones: enough for the dense tensors of any model
/// that is published, little enough to be done in a request.
const NAMES_COMPARED: usize = 20_000;

impl Generation {
    pub(super) fn no_expert(&self, tier: u32, group: u32, expert: u32) -> EngineError {
        let groups = self.groups(tier);
        let record = usize::try_from(group).ok().and_then(|group| groups.get(group));
        EngineError::UnknownExpert {
            tier: self.tier_id(tier).to_string(),
            group,
            expert,
            experts: record.map_or(0, |group| group.experts),
        }
    }

    pub(super) fn no_router(&self, tier: u32, layer: Option<u32>) -> EngineError {
        EngineError::NoRouter {
            tier: self.tier_id(tier).to_string(),
            place: layer.map_or_else(|| "any layer".into(), |layer| format!("layer {layer}")),
        }
    }

    pub(super) fn no_dense(&self, name: &str, among: Option<&SharedSegment>) -> EngineError {
        let close = among.map(|segment| similar(name, segment.dense_names())).unwrap_or_default();
        let name = name.chars().take(200).collect();
        EngineError::UnknownDense { model: self.model.to_string(), name, close }
    }
}

/// The names most like `wanted`: those that share most of it at both ends, as
/// misspelled paths do.
fn similar<'a>(wanted: &str, names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
    let shared = |name: &str| {
        let pairs = wanted.bytes().zip(name.bytes());
        let start = pairs.take_while(|(a, b)| a == b).count();
        let pairs = wanted.bytes().rev().zip(name.bytes().rev());
        let end = pairs.take_while(|(a, b)| a == b).count();
        (start + end).min(name.len())
    };
    let mut found: Vec<(usize, &Arc<str>)> = names
        .take(NAMES_COMPARED)
        .map(|name| (shared(name), name))
        .filter(|(shared, name)| *shared * 2 >= name.len().max(wanted.len()))
        .collect();
    found.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    found.into_iter().take(NAMES_OFFERED).map(|(_, name)| name.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_share_both_ends() {
        let names: Vec<Arc<str>> =
            ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
                .map(Arc::from)
                .into();
        let close = |name: &str| similar(name, names.iter());
        let found = close("model.embed_token.weight");
        assert_eq!(found, ["model.embed_tokens.weight", "model.norm.weight"]);
        assert_eq!(close("lm_head.weights"), ["lm_head.weight"]);
        assert!(close("x").is_empty());
    }
}
