//! What to fetch.

use std::collections::HashSet;

use tpad_manifest::{BlockKey, ExpertKey};

/// Experts by key, by lists of keys and layers, or by tier. The parts add up.
#[derive(Clone, Debug, Default)]
pub struct FetchExperts {
    /// The model's name.
    pub model: String,
    /// Fetched at every layer of `layers`.
    pub keys: Vec<ExpertKey>,
    /// Fetched as they are, whatever `layers` says.
    pub blocks: Vec<(ExpertKey, u32)>,
    /// All experts of these tiers, at every layer of `layers`.
    pub tiers: Vec<String>,
    /// Empty: every layer at which the expert exists.
    pub layers: Vec<u32>,
}

/// Router heads.
#[derive(Clone, Debug, Default)]
pub struct FetchRouters {
    /// The model's name.
    pub model: String,
    /// Empty: the manifest's default tier set.
    pub tiers: Vec<String>,
    /// Empty: every layer.
    pub layers: Vec<u32>,
}

/// Dense tensors.
#[derive(Clone, Debug, Default)]
pub struct FetchDense {
    /// The model's name.
    pub model: String,
    /// Names as in the checkpoint. Empty: every dense tensor.
    pub names: Vec<String>,
}

/// What a stream may answer: a reply with another block is wrong, however
/// right its digest is. An empty set of layers, tiers or names is any.
#[derive(Debug)]
pub(crate) enum Asked {
    Experts {
        keys: HashSet<ExpertKey>,
        blocks: HashSet<(ExpertKey, u32)>,
        tiers: HashSet<String>,
        layers: HashSet<u32>,
    },
    Routers {
        tiers: HashSet<String>,
        layers: HashSet<u32>,
    },
    Dense {
        names: HashSet<String>,
    },
}

impl Asked {
    pub(crate) fn experts(request: &FetchExperts) -> Self {
        Self::Experts {
            keys: request.keys.iter().map(canonical).collect(),
            blocks: request.blocks.iter().map(|(key, layer)| (canonical(key), *layer)).collect(),
            tiers: request.tiers.iter().cloned().collect(),
            layers: request.layers.iter().copied().collect(),
        }
    }

    pub(crate) fn routers(request: &FetchRouters) -> Self {
        Self::Routers {
            tiers: request.tiers.iter().cloned().collect(),
            layers: request.layers.iter().copied().collect(),
        }
    }

    pub(crate) fn dense(request: &FetchDense) -> Self {
        Self::Dense { names: request.names.iter().cloned().collect() }
    }

    /// Whether `key`, as read from the wire, is among what was asked for.
    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        let at = |layers: &HashSet<u32>, layer| layers.is_empty() || layers.contains(layer);
        match (self, key) {
            (Self::Experts { keys, blocks, tiers, layers }, BlockKey::Expert { key, layer }) => {
                let listed = keys.contains(key) || tiers.contains(&key.tier.to_string());
                (listed && at(layers, layer)) || blocks.contains(&(key.clone(), *layer))
            }
            (Self::Routers { tiers, layers }, BlockKey::Router { tier, layer }) => {
                (tiers.is_empty() || tiers.contains(&tier.to_string())) && at(layers, layer)
            }
            (Self::Dense { names }, BlockKey::Dense { name }) => {
                names.is_empty() || names.contains(&**name)
            }
            _ => false,
        }
    }
}

/// The key as the wire's text reads back: `Name("7")` and `Number(7)` are one.
fn canonical(key: &ExpertKey) -> ExpertKey {
    let tier = key.tier.to_string().parse().unwrap_or_else(|_| key.tier.clone());
    ExpertKey { tier, ..key.clone() }
}

#[cfg(test)]
mod tests {
    use tpad_manifest::TierId;

    use super::*;

    #[test]
    fn only_what_was_asked_for_is_contained() {
        let key = |tier: &str, expert| ExpertKey {
            tier: tier.parse().expect("a tier"),
            group: 0,
            expert,
        };
        let at = |tier: &str, expert, layer| BlockKey::Expert { key: key(tier, expert), layer };
        let asked = Asked::experts(&FetchExperts {
            keys: vec![ExpertKey { tier: TierId::Name("7".into()), group: 0, expert: 1 }],
            blocks: vec![(key("a", 2), 9)],
            tiers: vec!["b".to_owned()],
            layers: vec![3],
            ..FetchExperts::default()
        });
        for (block, wanted) in [
            (at("7", 1, 3), true),
            (at("7", 1, 4), false),
            (at("7", 2, 3), false),
            (at("a", 2, 9), true),
            (at("a", 2, 3), false),
            (at("b", 8, 3), true),
            (at("b", 8, 9), false),
            (BlockKey::Dense { name: "x".into() }, false),
        ] {
            assert_eq!(asked.contains(&block), wanted, "{block}");
        }
        let routers = Asked::routers(&FetchRouters::default());
        assert!(routers.contains(&BlockKey::Router { tier: TierId::Number(1), layer: 0 }));
        let dense = Asked::dense(&FetchDense { names: vec!["x".into()], ..FetchDense::default() });
        assert!(dense.contains(&BlockKey::Dense { name: "x".into() }));
        assert!(!dense.contains(&BlockKey::Dense { name: "y".into() }));
    }
}
