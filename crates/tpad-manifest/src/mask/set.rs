//! TierSets: which tiers are active for a request.

use std::collections::BTreeMap;

use super::MaskError;
use crate::{Manifest, TierId};

/// Entries of a TierSet that a request spells out: four times what a manifest
/// can hold, so that only nonsense has more.
pub const MAX_TIER_SET_ENTRIES: usize = 4096;

/// What a request says of the tiers it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TierSet {
    /// Nothing: the manifest's `default_tier_set`.
    #[default]
    Default,
    /// These tiers, by their ids as text.
    Tiers(Vec<String>),
    /// The set of that name: the configuration's, else the manifest's.
    Named(String),
    /// This tier and all before it in manifest order.
    UpTo(String),
}

/// Where a request's TierSet came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetOrigin {
    /// The manifest's `default_tier_set`.
    Default,
    /// The request spells it out.
    Tiers,
    /// The request names the last tier.
    UpTo(String),
    /// The configuration has a set of this name.
    Configuration(String),
    /// The manifest has a set of this name.
    Manifest(String),
}

/// The tiers that a TierSet stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedSet {
    /// Where they were found.
    pub origin: SetOrigin,
    /// Ids as text, in the set's order; they may repeat and need not exist.
    pub tiers: Vec<String>,
}

impl TierSet {
    /// The tiers that the set stands for. Names are looked up among names alone
    /// and ids among ids, so one may equal the other.
    ///
    /// # Errors
    /// [`MaskError::UnknownSet`].
    pub fn resolve(
        &self,
        manifest: &Manifest,
        configured: &BTreeMap<String, Vec<TierId>>,
    ) -> Result<ResolvedSet, MaskError> {
        let texts = |ids: &[TierId]| ids.iter().map(ToString::to_string).collect();
        let (origin, tiers) = match self {
            Self::Default => (SetOrigin::Default, texts(&manifest.default_tier_set)),
            Self::Tiers(tiers) => (SetOrigin::Tiers, tiers.clone()),
            Self::UpTo(last) => (SetOrigin::UpTo(last.clone()), up_to(manifest, last)),
            Self::Named(name) => {
                if let Some(set) = configured.get(name) {
                    (SetOrigin::Configuration(name.clone()), texts(set))
                } else if let Some(set) = manifest.tier_sets.get(name) {
                    (SetOrigin::Manifest(name.clone()), texts(set))
                } else {
                    let known = configured.keys().chain(manifest.tier_sets.keys());
                    let mut known: Vec<String> = known.cloned().collect();
                    known.sort_unstable();
                    known.dedup();
                    let name = name.chars().take(128).collect();
                    return Err(MaskError::UnknownSet { name, known });
                }
            }
        };
        Ok(ResolvedSet { origin, tiers })
    }
}

/// A tier and all before it; the unknown tier alone if there is none such.
fn up_to(manifest: &Manifest, last: &str) -> Vec<String> {
    match manifest.tiers.iter().position(|tier| tier.id.is(last)) {
        Some(place) => manifest.tiers.iter().take(place + 1).map(|t| t.id.to_string()).collect(),
        None => vec![last.to_owned()],
    }
}
