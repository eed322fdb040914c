//! Keys: what a worker asks for.

use std::fmt;
use std::sync::Arc;

use crate::TierId;

/// One expert of a model, across all layers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertKey {
    /// The tier.
    pub tier: TierId,
    /// The group, from 0 within the tier.
    pub group: u32,
    /// The expert, from 0 within the group.
    pub expert: u32,
}

/// One block within a model's revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockKey {
    /// One expert at one layer.
    Expert {
        /// The expert.
        key: ExpertKey,
        /// The layer's number in the checkpoint's tensor names.
        layer: u32,
    },
    /// One tier's router at one layer.
    Router {
        /// The tier.
        tier: TierId,
        /// The layer's number in the checkpoint's tensor names.
        layer: u32,
    },
    /// One dense tensor.
    Dense {
        /// The tensor's name in the checkpoint.
        name: Arc<str>,
    },
}

impl fmt::Display for ExpertKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tier, self.group, self.expert)
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expert { key, layer } => write!(f, "expert {key} at layer {layer}"),
            Self::Router { tier, layer } => write!(f, "router of tier {tier} at layer {layer}"),
            Self::Dense { name } => write!(f, "dense tensor {name}"),
        }
    }
}
