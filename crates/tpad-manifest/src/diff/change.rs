//! The kinds of change.

use std::fmt;
use std::sync::Arc;

use crate::{ExpertKey, Placement, TierId};

/// What a change means for workers that use the older revision. The weightiest
/// is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Something is there that was not: nothing that existed reads differently.
    Additive,
    /// Hints, names and places: the same keys resolve to the same bytes and
    /// route alike.
    Metadata,
    /// A key resolves to other bytes, or routes otherwise, or not at all.
    Breaking,
}

impl Effect {
    /// The name that documents use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Additive => "additive",
            Self::Metadata => "metadata",
            Self::Breaking => "breaking",
        }
    }
}

/// One difference between two revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A tier is there that was not.
    TierAdded {
        /// The tier.
        tier: TierId,
    },
    /// A tier is gone.
    TierRemoved {
        /// The tier.
        tier: TierId,
    },
    /// Tiers that both have come in another order, or after a new one: sets of
    /// all tiers up to one follow the order.
    TiersReordered {
        /// The older order.
        from: Vec<TierId>,
        /// The later one.
        to: Vec<TierId>,
    },
    /// A group has other sizes, or is there or not.
    GroupAltered {
        /// The tier.
        tier: TierId,
        /// The group.
        group: u32,
        /// What changed.
        what: String,
    },
    /// A k value of an existing tier.
    RoutingAltered {
        /// The tier.
        tier: TierId,
        /// Which one.
        value: &'static str,
        /// What it was.
        from: u32,
        /// What it is.
        to: u32,
    },
    /// What an existing tier asks of its readers.
    CompatibilityAltered {
        /// The tier.
        tier: TierId,
        /// Which field.
        field: &'static str,
        /// What it was.
        from: String,
        /// What it is.
        to: String,
    },
    /// A tier's home.
    PlacementChanged {
        /// The tier.
        tier: TierId,
        /// What it was.
        from: Placement,
        /// What it is.
        to: Placement,
    },
    /// When an existing tier was made: nothing reads it, and nobody should have
    /// touched it.
    CreatedAtChanged {
        /// The tier.
        tier: TierId,
    },
    /// A tier's parameter budget.
    BudgetChanged {
        /// The tier.
        tier: TierId,
        /// What it was.
        from: u64,
        /// What it is.
        to: u64,
    },
    /// A tier that was metadata alone has blocks.
    IndexAdded {
        /// The tier; `None` for the dense tensors.
        tier: Option<TierId>,
    },
    /// A tier that had blocks is metadata alone.
    IndexRemoved {
        /// The tier; `None` for the dense tensors.
        tier: Option<TierId>,
    },
    /// An index differs; which of its blocks do is not known here.
    IndexAltered {
        /// The tier; `None` for the dense tensors.
        tier: Option<TierId>,
    },
    /// An expert of a layer.
    ExpertAltered {
        /// The expert.
        key: ExpertKey,
        /// The layer.
        layer: u32,
        /// What changed.
        what: &'static str,
    },
    /// A tier's router at a layer.
    RouterAltered {
        /// The tier.
        tier: TierId,
        /// The layer.
        layer: u32,
        /// What changed.
        what: &'static str,
    },
    /// A dense tensor.
    DenseAltered {
        /// Its name.
        name: Arc<str>,
        /// What changed.
        what: &'static str,
    },
    /// The same blocks are kept in other objects.
    BlocksMoved {
        /// The tier; `None` for the dense tensors.
        tier: Option<TierId>,
        /// The layer; 0 for the dense tensors.
        layer: u32,
        /// How many.
        blocks: u64,
    },
    /// A field of the document that steers serving or routing.
    DocumentAltered {
        /// The field.
        field: &'static str,
        /// What changed.
        what: String,
    },
    /// A field of the document that is for people or says where things are.
    DocumentChanged {
        /// The field.
        field: &'static str,
        /// What changed.
        what: String,
    },
    /// A file or a named TierSet that was not there.
    EntryAdded {
        /// The map.
        field: &'static str,
        /// The entry.
        name: String,
    },
    /// A named TierSet stands for other tiers, or is gone.
    TierSetChanged {
        /// Its name.
        name: String,
        /// What changed.
        what: String,
    },
    /// A file that travels with the model is another one, or is gone.
    FileAltered {
        /// Its name.
        name: String,
        /// What changed.
        what: &'static str,
    },
}

impl Change {
    /// What it means for workers of the older revision.
    #[must_use]
    pub const fn effect(&self) -> Effect {
        match self {
            Self::TierAdded { .. } | Self::IndexAdded { .. } | Self::EntryAdded { .. } => {
                Effect::Additive
            }
            Self::PlacementChanged { .. }
            | Self::BudgetChanged { .. }
            | Self::CreatedAtChanged { .. }
            | Self::BlocksMoved { .. }
            | Self::DocumentChanged { .. }
            | Self::TierSetChanged { .. } => Effect::Metadata,
            Self::TierRemoved { .. }
            | Self::TiersReordered { .. }
            | Self::GroupAltered { .. }
            | Self::RoutingAltered { .. }
            | Self::CompatibilityAltered { .. }
            | Self::IndexRemoved { .. }
            | Self::IndexAltered { .. }
            | Self::ExpertAltered { .. }
            | Self::RouterAltered { .. }
            | Self::DenseAltered { .. }
            | Self::DocumentAltered { .. }
            | Self::FileAltered { .. } => Effect::Breaking,
        }
    }

    /// The kind's name in documents.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TierAdded { .. } => "tier_added",
            Self::TierRemoved { .. } => "tier_removed",
            Self::TiersReordered { .. } => "tiers_reordered",
            Self::GroupAltered { .. } => "group_altered",
            Self::RoutingAltered { .. } => "routing_altered",
            Self::CompatibilityAltered { .. } => "compatibility_altered",
            Self::PlacementChanged { .. } => "placement_changed",
            Self::BudgetChanged { .. } => "budget_changed",
            Self::CreatedAtChanged { .. } => "created_at_changed",
            Self::IndexAdded { .. } => "index_added",
            Self::IndexRemoved { .. } => "index_removed",
            Self::IndexAltered { .. } => "index_altered",
            Self::ExpertAltered { .. } => "expert_altered",
            Self::RouterAltered { .. } => "router_altered",
            Self::DenseAltered { .. } => "dense_altered",
            Self::BlocksMoved { .. } => "blocks_moved",
            Self::DocumentAltered { .. } => "document_altered",
            Self::DocumentChanged { .. } => "document_changed",
            Self::EntryAdded { .. } => "entry_added",
            Self::TierSetChanged { .. } => "tier_set_changed",
            Self::FileAltered { .. } => "file_altered",
        }
    }

    /// Where it is, in the words of the manifest.
    #[must_use]
    pub fn place(&self) -> String {
        let index = |tier: &Option<TierId>| {
            tier.as_ref().map_or_else(|| "dense".into(), |tier| format!("tier {tier}"))
        };
        match self {
            Self::TierAdded { tier }
            | Self::TierRemoved { tier }
            | Self::RoutingAltered { tier, .. }
            | Self::CompatibilityAltered { tier, .. }
            | Self::PlacementChanged { tier, .. }
            | Self::CreatedAtChanged { tier }
            | Self::BudgetChanged { tier, .. } => format!("tier {tier}"),
            Self::TiersReordered { .. } => "tiers".into(),
            Self::GroupAltered { tier, group, .. } => format!("tier {tier}, group {group}"),
            Self::IndexAdded { tier }
            | Self::IndexRemoved { tier }
            | Self::IndexAltered { tier } => index(tier),
            Self::BlocksMoved { tier: Some(tier), layer, .. } => {
                format!("tier {tier}, layer {layer}")
            }
            Self::BlocksMoved { tier: None, .. } => "dense".into(),
            Self::ExpertAltered { key, layer, .. } => format!("expert {key}, layer {layer}"),
            Self::RouterAltered { tier, layer, .. } => {
                format!("router of tier {tier}, layer {layer}")
            }
            Self::DenseAltered { name, .. } => format!("dense tensor {name}"),
            Self::DocumentAltered { field, .. } | Self::DocumentChanged { field, .. } => {
                (*field).into()
            }
            Self::EntryAdded { field, name } => format!("{field} {name:?}"),
            Self::TierSetChanged { name, .. } => format!("tier_sets {name:?}"),
            Self::FileAltered { name, .. } => format!("files {name:?}"),
        }
    }
}

/// What changed, without its place.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TierAdded { .. } => f.write_str("the tier is new"),
            Self::TierRemoved { .. } => f.write_str("the tier is gone"),
            Self::TiersReordered { from, to } => {
                write!(f, "the order {} has become {}", ids(from), ids(to))
            }
            Self::GroupAltered { what, .. }
            | Self::DocumentAltered { what, .. }
            | Self::DocumentChanged { what, .. }
            | Self::TierSetChanged { what, .. } => f.write_str(what),
            Self::RoutingAltered { value, from, to, .. } => {
                write!(f, "{value} was {from} and is {to}")
            }
            Self::CompatibilityAltered { field, from, to, .. } => {
                write!(f, "{field} was {from} and is {to}")
            }
            Self::PlacementChanged { from, to, .. } => {
                write!(f, "placement was {} and is {}", from.as_str(), to.as_str())
            }
            Self::BudgetChanged { from, to, .. } => {
                write!(f, "parameter_budget was {from} and is {to}")
            }
            Self::CreatedAtChanged { .. } => f.write_str("created_at differs"),
            Self::IndexAdded { .. } => f.write_str("its blocks are new"),
            Self::IndexRemoved { .. } => f.write_str("its blocks are gone"),
            Self::IndexAltered { .. } => f.write_str("its index differs"),
            Self::ExpertAltered { what, .. }
            | Self::RouterAltered { what, .. }
            | Self::DenseAltered { what, .. }
            | Self::FileAltered { what, .. } => f.write_str(what),
            Self::BlocksMoved { blocks, .. } => {
                write!(f, "{blocks} blocks are kept elsewhere, their bytes unchanged")
            }
            Self::EntryAdded { .. } => f.write_str("it is new"),
        }
    }
}

fn ids(tiers: &[TierId]) -> String {
    tiers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
