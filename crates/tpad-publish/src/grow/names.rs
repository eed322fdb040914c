//! The names that tensors of a tier have in a checkpoint made for tpad:
//!
//! ```text
//! tpad_tiers.{tier}.layers.{layer}.groups.{group}.experts.{expert}.gate_proj.weight
//! tpad_tiers.{tier}.layers.{layer}.router.weight
//! tpad_tiers.{tier}.layers.{layer}.tier_head.weight
//! tpad_tiers.{tier}.layers.{layer}.group_heads.weight
//! ```
//!
//! Experts are numbered through all groups of the tier. What follows the
//! expert's number is named as in any Hugging Face checkpoint, so quantized
//! experts bring their companions under the usual names.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tpad_manifest::{
    ByteRange, GateUp, Orientation, Part, Problem, Projection, Rejected, Role, TensorRecord,
};

use super::GrowError;
use crate::layout::{Checkpoint, recognise, without_counts};
use crate::{LayoutError, ShardTensor};

const MARK: &str = "tpad_tiers.";

/// Problems that are told of one checkpoint.
const MAX_PROBLEMS: usize = 64;

/// A tier's tensors, found by their names.
#[derive(Debug, Default)]
pub(super) struct Named {
    tensors: Vec<ShardTensor>,
    /// The name that a tensor has in the checkpoint, by the one under which
    /// layouts know it.
    names: BTreeMap<Arc<str>, Arc<str>>,
    /// Experts of each group, by layer.
    groups: BTreeMap<u32, BTreeMap<u32, Vec<u32>>>,
    heads: BTreeMap<u32, Vec<TensorRecord>>,
}

/// A tier as its names tell it.
pub(super) struct NamedTier {
    /// Its experts and routers.
    pub(super) checkpoint: Checkpoint,
    /// Experts of each group, the same at every layer.
    pub(super) groups: Vec<u32>,
    /// Tier and group heads by layer.
    pub(super) heads: BTreeMap<u32, Vec<TensorRecord>>,
}

enum Place {
    Expert { group: u32, expert: u32, rest: String },
    Router { rest: String },
    Head(Projection),
}

/// Takes the tensors that are named as a tier's, by tier; the rest stays.
pub(super) fn split(
    tensors: Vec<ShardTensor>,
) -> Result<(BTreeMap<String, Named>, Vec<ShardTensor>), GrowError> {
    let mut tiers: BTreeMap<String, Named> = BTreeMap::new();
    let mut rest = Vec::new();
    let mut problems = Vec::new();
    for tensor in tensors {
        let Some((_, tail)) = tensor.name.split_once(MARK) else {
            rest.push(tensor);
            continue;
        };
        match read(tail) {
            Some((tier, layer, part)) => {
                tiers.entry(tier.to_owned()).or_default().add(layer, part, tensor);
            }
            None if problems.len() < MAX_PROBLEMS => {
                let what = "is no name of a tier's tensor: \
                            tpad_tiers.TIER.layers.N.groups.N.experts.N.PART, ….router.PART, \
                            ….tier_head.weight or ….group_heads.weight is expected";
                problems.push(Problem::new(&*tensor.name, what));
            }
            None => {}
        }
    }
    if problems.is_empty() {
        Ok((tiers, rest))
    } else {
        Err(GrowError::Checkpoint(Rejected(problems)))
    }
}

fn read(tail: &str) -> Option<(&str, u32, Place)> {
    let (tier, rest) = tail.split_once(".layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let layer = layer.parse().ok()?;
    let part = match rest {
        "tier_head.weight" => Place::Head(Projection::TierHead),
        "group_heads.weight" => Place::Head(Projection::GroupHeads),
        _ => match rest.strip_prefix("router.") {
            Some(rest) => Place::Router { rest: rest.to_owned() },
            None => {
                let (group, rest) = rest.strip_prefix("groups.")?.split_once('.')?;
                let (expert, rest) = rest.strip_prefix("experts.")?.split_once('.')?;
                let (group, expert) = (group.parse().ok()?, expert.parse().ok()?);
                Place::Expert { group, expert, rest: rest.to_owned() }
            }
        },
    };
    Some((tier, layer, part))
}

impl Named {
    fn add(&mut self, layer: u32, part: Place, mut tensor: ShardTensor) {
        let known = match part {
            Place::Expert { group, expert, rest } => {
                let experts = self.groups.entry(layer).or_default().entry(group).or_default();
                experts.push(expert);
                format!("model.layers.{layer}.mlp.experts.{expert}.{rest}")
            }
            Place::Router { rest } => format!("model.layers.{layer}.mlp.gate.{rest}"),
            Place::Head(projection) => {
                self.heads.entry(layer).or_default().push(head(projection, &tensor));
                return;
            }
        };
        let known: Arc<str> = known.into();
        self.names.insert(known.clone(), std::mem::replace(&mut tensor.name, known));
        self.tensors.push(tensor);
    }

    /// Reads the tier's layout.
    pub(super) fn read(mut self, config: &Value) -> Result<NamedTier, GrowError> {
        let groups = self.sizes()?;
        let mut checkpoint = recognise(&self.tensors, &without_counts(config))
            .map_err(|error| self.renamed(error))?;
        for layer in &mut checkpoint.layers {
            let experts = layer.experts.iter_mut().flat_map(|expert| &mut expert.tensors);
            let routers = layer.router.iter_mut().map(|tensor| &mut tensor.record);
            for tensor in experts.chain(routers) {
                if let Some(name) = self.names.get(&tensor.name) {
                    tensor.name = name.clone();
                }
            }
        }
        for heads in self.heads.values_mut() {
            heads.sort_by_key(|head| head.role.projection);
        }
        Ok(NamedTier { checkpoint, groups, heads: self.heads })
    }

    /// Every layer has the same groups, and their experts follow one another.
    fn sizes(&mut self) -> Result<Vec<u32>, GrowError> {
        let mut problems = Vec::new();
        let mut common: Option<(u32, Vec<u32>)> = None;
        for (layer, groups) in &mut self.groups {
            let mut sizes = Vec::with_capacity(groups.len());
            let mut next = 0u32;
            for ((expected, (group, experts)), _) in
                (0u32..).zip(groups.iter_mut()).zip(0..MAX_PROBLEMS)
            {
                experts.sort_unstable();
                experts.dedup();
                let follows = experts.iter().zip(next..).all(|(expert, n)| *expert == n);
                let count = u32::try_from(experts.len()).unwrap_or(u32::MAX);
                if *group != expected || !follows {
                    let what = format!(
                        "group {group} has experts {}: groups count from 0, and experts through \
                         all groups, so group {expected} begins with expert {next}",
                        crate::plan::ranges(experts)
                    );
                    problems.push(Problem::new(format!("layer {layer}"), what));
                    break;
                }
                next = next.saturating_add(count);
                sizes.push(count);
            }
            match &common {
                None => common = Some((*layer, sizes)),
                Some((first, other)) if *other != sizes && problems.len() < MAX_PROBLEMS => {
                    let what = format!("groups of {sizes:?} experts, layer {first} has {other:?}");
                    problems.push(Problem::new(format!("layer {layer}"), what));
                }
                Some(_) => {}
            }
        }
        match common {
            Some((_, sizes)) if problems.is_empty() => Ok(sizes),
            _ => Err(GrowError::Checkpoint(Rejected(problems))),
        }
    }

    /// An error in the words of the checkpoint's own names.
    fn renamed(&self, error: LayoutError) -> GrowError {
        let mut text = error.to_string();
        for (known, name) in &self.names {
            if text.contains(&**known) {
                text = text.replace(&**known, name);
            }
        }
        GrowError::Checkpoint(Rejected(vec![Problem::new("the new tier's tensors", text)]))
    }
}

fn head(projection: Projection, tensor: &ShardTensor) -> TensorRecord {
    TensorRecord {
        name: tensor.name.clone(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        role: Role { projection, part: Part::Weight },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
        ranges: vec![ByteRange {
            object: tensor.object.clone(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }],
    }
}
