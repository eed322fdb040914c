//! Routing masks: which experts a router may pick.
//!
//! A mask is computed from a catalog and a TierSet alone, so it stands without
//! indexes and weights; who knows where blocks are adds what is resident. What
//! is masked is listed with its reason: routing is never altered silently.

mod bits;
mod etag;
mod resident;
mod set;
mod source;

use std::collections::{BTreeMap, HashMap, HashSet};

pub use bits::ExpertBits;
pub use resident::{CostClass, LayerGroup, LayerMask, LayerTier, ResidentMask};
pub use set::{MAX_TIER_SET_ENTRIES, ResolvedSet, SetOrigin, TierSet};
pub use source::{LayerSources, fold_sources};

use crate::{Catalog, TierId, TierRecord};

/// Experts of one mask, all tiers together: their bitsets are 2 MiB, half of
/// what gRPC clients take in one message.
pub const MAX_MASK_EXPERTS: u64 = 1 << 24;

/// Masked tiers that an error names.
const NAMED: usize = 16;

/// Which experts a router may pick, at one revision and for one TierSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingMask {
    /// The manifest's number.
    pub revision: u64,
    /// Where the TierSet came from.
    pub origin: SetOrigin,
    /// The active tiers, in manifest order.
    pub tiers: Vec<TierMask>,
    /// Tiers for a token: the largest of the active tiers' own, at most as many
    /// as are active.
    pub k_tier: u32,
    /// What was masked: tiers of the manifest in its order, then unknown ones
    /// in the request's.
    pub masked: Vec<MaskedTier>,
    /// What is resident, if it was asked for.
    pub resident: Option<ResidentMask>,
}

/// One active tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierMask {
    /// Its id, as text.
    pub tier: String,
    /// Groups of the tier for a token.
    pub k_group: u32,
    /// Experts of the tier for a token.
    pub k_expert: u32,
    /// The experts that may be picked, by group.
    pub groups: Vec<ExpertBits>,
    /// Whether the manifest has an index for it; without one its blocks cannot
    /// be fetched.
    pub indexed: bool,
    /// Where its experts came from, layers with equal ones together; empty
    /// where that was not asked for or there is no index.
    pub sources: Vec<LayerSources>,
}

/// A tier that was masked, or some of whose blocks were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedTier {
    /// Its id, as text: the manifest's, or the request's if it is unknown.
    pub tier: String,
    /// Why.
    pub reason: MaskReason,
    /// The same for people, where there is more to say.
    pub detail: String,
}

/// Why something was masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MaskReason {
    /// The TierSet does not name the tier.
    NotInTierSet,
    /// The TierSet names a tier that the manifest does not have.
    UnknownTier,
    /// The tier needs what this version does not know.
    SkippedTier,
    /// Some of the tier's blocks cannot be had from anywhere.
    UnavailableBlock,
}

impl MaskReason {
    /// The name that documents use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotInTierSet => "not_in_tier_set",
            Self::UnknownTier => "unknown_tier",
            Self::SkippedTier => "skipped_tier",
            Self::UnavailableBlock => "unavailable_block",
        }
    }
}

/// Why there is no mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Neither the configuration nor the manifest has a TierSet of that name.
    #[error("there is no tier set {name:?}; named are {}", named(known))]
    UnknownSet {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// No expert is left.
    #[error("nothing is left to route to: {why}")]
    Empty {
        /// What was masked.
        why: String,
    },
    /// The mask is too large for one reply.
    #[error("the mask has {entries} {what}, one reply may have {limit}: {remedy}")]
    TooLarge {
        /// How many of what.
        entries: u64,
        /// Experts, source experts, or blocks.
        what: &'static str,
        /// How many there may be.
        limit: u64,
        /// What to ask for instead.
        remedy: &'static str,
    },
}

impl RoutingMask {
    /// The mask of a TierSet. `configured` are the configuration's named sets.
    ///
    /// # Errors
    /// When the set's name is unknown, no tier is left, or the mask is too
    /// large for one reply.
    pub fn of(
        catalog: &Catalog,
        set: &TierSet,
        configured: &BTreeMap<String, Vec<TierId>>,
    ) -> Result<Self, MaskError> {
        let manifest = catalog.manifest();
        let ResolvedSet { origin, tiers: wanted } = set.resolve(manifest, configured)?;
        let known: HashMap<String, &TierRecord> =
            manifest.tiers.iter().map(|tier| (tier.id.to_string(), tier)).collect();
        let asked: HashSet<&str> = wanted.iter().map(String::as_str).collect();
        let mut active = Vec::new();
        let mut masked = Vec::new();
        for tier in &manifest.tiers {
            let text = tier.id.to_string();
            if !asked.contains(&*text) {
                masked.push(MaskedTier::new(text, MaskReason::NotInTierSet, ""));
            } else if let Some(reason) = catalog.skipped(&tier.id) {
                masked.push(MaskedTier::new(text, MaskReason::SkippedTier, reason));
            } else {
                active.push((text, tier));
            }
        }
        let mut seen = HashSet::new();
        for text in wanted.iter().filter(|text| !known.contains_key(*text)) {
            if seen.insert(text) {
                masked.push(MaskedTier::new(text.clone(), MaskReason::UnknownTier, ""));
            }
        }
        if active.is_empty() {
            return Err(MaskError::Empty { why: why_empty(&wanted, &masked) });
        }
        let experts = active.iter().flat_map(|(_, tier)| &tier.groups);
        let experts = experts.fold(0u64, |sum, group| sum.saturating_add(group.experts.into()));
        if experts > MAX_MASK_EXPERTS {
            return Err(MaskError::TooLarge {
                entries: experts,
                what: "experts",
                limit: MAX_MASK_EXPERTS,
                remedy: "name fewer tiers",
            });
        }
        let largest = active.iter().map(|(_, tier)| tier.routing.k_tier).max().unwrap_or(0);
        let count = u32::try_from(active.len()).unwrap_or(u32::MAX);
        let tiers = active.into_iter().map(|(text, tier)| TierMask {
            indexed: catalog.tier(&text).is_ok(),
            tier: text,
            k_group: tier.routing.k_group,
            k_expert: tier.routing.k_expert,
            groups: tier.groups.iter().map(|group| ExpertBits::all(group.experts)).collect(),
            sources: Vec::new(),
        });
        Ok(Self {
            revision: manifest.revision,
            origin,
            tiers: tiers.collect(),
            k_tier: largest.min(count),
            masked,
            resident: None,
        })
    }

    /// Adds what is resident, of the tiers in this mask's order, and tells of
    /// the tiers of which blocks are unavailable.
    ///
    /// # Errors
    /// When no expert is left at any layer.
    pub fn with_resident(mut self, resident: ResidentMask) -> Result<Self, MaskError> {
        let blocks = |place: usize| {
            let tiers = resident.layers.iter().filter_map(move |layer| layer.tiers.get(place));
            tiers.flat_map(|tier| &tier.groups).flat_map(|group| group.costs.iter().copied())
        };
        let mut unavailable = Vec::new();
        for (place, tier) in self.tiers.iter().enumerate() {
            let missing = blocks(place).filter(|cost| *cost == CostClass::Unavailable).count();
            if missing > 0 {
                let detail = format!("{missing} of {} blocks", blocks(place).count());
                let reason = MaskReason::UnavailableBlock;
                unavailable.push(MaskedTier::new(tier.tier.clone(), reason, &detail));
            }
        }
        let layers = resident.layers.iter().flat_map(|layer| &layer.tiers);
        let any = layers.flat_map(|tier| &tier.groups).any(|group| group.experts.ones() > 0);
        if !any {
            let why = format!("no expert is at level {} or faster", resident.level.as_str());
            return Err(MaskError::Empty { why });
        }
        self.masked.extend(unavailable);
        self.resident = Some(resident);
        Ok(self)
    }
}

impl MaskedTier {
    fn new(tier: String, reason: MaskReason, detail: &str) -> Self {
        Self { tier, reason, detail: detail.to_owned() }
    }
}

/// What became of the tiers that a TierSet names.
fn why_empty(wanted: &[String], masked: &[MaskedTier]) -> String {
    if wanted.is_empty() {
        return "the tier set is empty".into();
    }
    let named = masked.iter().filter(|tier| tier.reason != MaskReason::NotInTierSet);
    let said = named.map(|MaskedTier { tier, reason, detail }| match reason {
        MaskReason::SkippedTier => format!("tier {tier} is skipped: {detail}"),
        _ => format!("tier {tier} is unknown"),
    });
    let mut said: Vec<String> = said.collect();
    let more = said.len().saturating_sub(NAMED);
    said.truncate(NAMED);
    if more > 0 {
        said.push(format!("and {more} more"));
    }
    said.join(", ")
}

fn named(known: &[String]) -> String {
    if known.is_empty() {
        return "none".into();
    }
    let shown = known.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match known.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
