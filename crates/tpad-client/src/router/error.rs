//! Why a token could not be routed.

use std::fmt;

/// Why a token could not be routed. All are the caller's to mend: the router
/// guesses nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// The manifest's scoring is not known or contradicts itself.
    #[error("the manifest's scoring cannot be computed: {what}")]
    Scoring {
        /// Why.
        what: &'static str,
    },
    /// No expert of any tier is allowed.
    #[error("the mask allows no expert")]
    NothingAllowed,
    /// A k value is zero, so nothing could be chosen.
    #[error("{what}{} is 0", of(tier.as_deref()))]
    ZeroK {
        /// Which one.
        what: &'static str,
        /// The tier; `None` for the mask's own.
        tier: Option<String>,
    },
    /// The logits, or what is resident, are of another number of tiers.
    #[error("the mask has {expected} tiers, {found} were given")]
    Tiers {
        /// The mask's tiers.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// An input of a tier has another length than the mask.
    #[error("tier {tier} has {found} {what}, the mask has {expected}")]
    Length {
        /// The tier.
        tier: String,
        /// Which input.
        what: &'static str,
        /// Experts or groups of the mask.
        expected: u64,
        /// How many were given.
        found: usize,
    },
    /// A correction bias is missing, or is there though the family has none.
    #[error(
        "tier {tier} {}",
        if *expected { "has no correction bias, which the manifest's scoring adds" }
        else { "has a correction bias, which the manifest's scoring does not know" }
    )]
    CorrectionBias {
        /// The tier.
        tier: String,
        /// Whether the scoring has one.
        expected: bool,
    },
    /// An input that counts is infinite or not a number.
    #[error("tier {tier}: the {input} is {value}")]
    NotFinite {
        /// The tier.
        tier: String,
        /// Which input.
        input: RouteInput,
        /// What it is.
        value: f32,
    },
    /// The mask does not say where the tier's experts came from.
    #[error("the mask has no sources of tier {tier} at layer {layer}: ask for one with sources")]
    NoSources {
        /// The tier.
        tier: String,
        /// The layer's number in the checkpoint's tensor names.
        layer: u32,
    },
    /// The whole router's logits end before a column that scores an expert.
    #[error("tier {tier} at layer {layer} is scored by column {column}, the router has {columns}")]
    NoColumn {
        /// The tier.
        tier: String,
        /// The layer's number in the checkpoint's tensor names.
        layer: u32,
        /// The column.
        column: u32,
        /// How many logits were given.
        columns: usize,
    },
    /// The mask does not tell what is resident at the layer.
    #[error("the mask does not tell what is resident at layer {layer}: ask for it")]
    NotResident {
        /// The layer's number in the checkpoint's tensor names.
        layer: u32,
    },
}

/// One number that a router is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteInput {
    /// An expert's logit.
    Expert {
        /// The group.
        group: u32,
        /// The expert.
        expert: u32,
    },
    /// An expert's correction bias.
    CorrectionBias {
        /// The group.
        group: u32,
        /// The expert.
        expert: u32,
    },
    /// A group's logit.
    Group {
        /// The group.
        group: u32,
    },
    /// The tier's logit.
    Tier,
}

impl fmt::Display for RouteInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expert { group, expert } => write!(f, "logit of expert {group}/{expert}"),
            Self::CorrectionBias { group, expert } => {
                write!(f, "correction bias of expert {group}/{expert}")
            }
            Self::Group { group } => write!(f, "logit of group {group}"),
            Self::Tier => f.write_str("tier's logit"),
        }
    }
}

fn of(tier: Option<&str>) -> String {
    tier.map(|tier| format!(" of tier {tier}")).unwrap_or_default()
}
