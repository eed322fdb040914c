//! The catalog: a manifest and the headers of its indexes, held against each
//! other once and immutable from then on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::problem::note;
use crate::{Dtype, IndexHeader, LOOSE, Loaded, Manifest, Problem, Segment, TierId, TierRecord};

/// Tiers that an error names.
const SHOWN_TIERS: usize = 16;

/// A validated manifest with the indexes of the tiers that are served.
#[derive(Clone, Debug)]
pub struct Catalog {
    manifest: Manifest,
    skipped: BTreeMap<TierId, String>,
    tiers: BTreeMap<TierId, Arc<IndexHeader>>,
    dense: Option<Arc<IndexHeader>>,
}

/// What a catalog answers when asked for a tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// The manifest has no such tier.
    #[error("tier {tier} is unknown; the manifest has {}", shown(known))]
    Unknown {
        /// What was asked for.
        tier: String,
        /// The tiers that there are.
        known: Vec<String>,
    },
    /// The tier is in the manifest but cannot be served.
    #[error("tier {tier} is skipped: {reason}")]
    Skipped {
        /// The tier.
        tier: String,
        /// Why.
        reason: String,
    },
    /// The tier is metadata alone.
    #[error("tier {tier} has no index in this manifest: import the checkpoint to serve it")]
    NoIndex {
        /// The tier.
        tier: String,
    },
}

/// The first of what may be a thousand: the message goes to a client.
fn shown(known: &[String]) -> String {
    match known.len().checked_sub(SHOWN_TIERS) {
        None | Some(0) => known.join(", "),
        Some(more) => format!("{} and {more} more", known[..SHOWN_TIERS].join(", ")),
    }
}

impl Catalog {
    /// Joins a manifest with the headers of its indexes: `tiers` holds one for
    /// each tier that has an index and is not skipped.
    ///
    /// # Errors
    /// Every place where a header contradicts the manifest.
    pub fn new(
        loaded: Loaded,
        tiers: BTreeMap<TierId, Arc<IndexHeader>>,
        dense: Option<Arc<IndexHeader>>,
    ) -> Result<Self, Vec<Problem>> {
        let Loaded { manifest, skipped, .. } = loaded;
        let mut problems = Vec::new();
        for (n, tier) in manifest.tiers.iter().enumerate() {
            if let Some(header) = tiers.get(&tier.id) {
                check_tier(&manifest, tier, header, &format!("/tiers/{n}"), &mut problems);
            }
        }
        if let Some(header) = &dense
            && header.tier.is_some()
        {
            problems.push(Problem::new("/dense", "the index belongs to a tier"));
        }
        let catalog = Self { manifest, skipped, tiers, dense };
        if problems.is_empty() { Ok(catalog) } else { Err(problems) }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tier that `text` names, with its index's header.
    ///
    /// # Errors
    /// When the tier is unknown, skipped or without an index.
    pub fn tier(&self, text: &str) -> Result<(&TierRecord, &Arc<IndexHeader>), TierError> {
        let Some(tier) = self.manifest.tier(text) else {
            let known = self.manifest.tiers.iter().map(|tier| tier.id.to_string()).collect();
            return Err(TierError::Unknown { tier: text.chars().take(128).collect(), known });
        };
        if let Some(reason) = self.skipped.get(&tier.id) {
            return Err(TierError::Skipped { tier: text.to_owned(), reason: reason.clone() });
        }
        match self.tiers.get(&tier.id) {
            Some(header) => Ok((tier, header)),
            None => Err(TierError::NoIndex { tier: text.to_owned() }),
        }
    }

    /// Why a tier is skipped, if it is.
    #[must_use]
    pub fn skipped(&self, tier: &TierId) -> Option<&str> {
        self.skipped.get(tier).map(String::as_str)
    }

    /// The header of the dense index.
    #[must_use]
    pub const fn dense(&self) -> Option<&Arc<IndexHeader>> {
        self.dense.as_ref()
    }

    /// Tiers whose experts have more logical parameters than their budget: the
    /// tier, its count and its budget.
    #[must_use]
    pub fn over_budget(&self) -> Vec<(TierId, u64, u64)> {
        let mut over = Vec::new();
        for tier in &self.manifest.tiers {
            if let Some(header) = self.tiers.get(&tier.id)
                && header.parameters() > tier.parameter_budget
            {
                over.push((tier.id.clone(), header.parameters(), tier.parameter_budget));
            }
        }
        over
    }
}

fn check_tier(
    manifest: &Manifest,
    tier: &TierRecord,
    header: &IndexHeader,
    place: &str,
    problems: &mut Vec<Problem>,
) {
    if !header.tier.as_ref().is_some_and(|id| tier.id.is(id)) {
        let found = header.tier.as_deref().unwrap_or("the dense tensors");
        let message = format!("the index is of {found}, not of tier {}", tier.id);
        problems.push(Problem::new(format!("{place}/index"), message));
    }
    for entry in &header.segments {
        // A manifest's layers are in order.
        if manifest.layers.binary_search_by_key(&entry.layer, |layer| layer.layer).is_err() {
            note(problems, || {
                let message = format!("the index has layer {}, the manifest does not", entry.layer);
                Problem::new(format!("{place}/index"), message)
            });
        }
    }
    let listed: HashSet<&Dtype> = tier.compatibility.dtypes.iter().collect();
    if listed.is_empty() {
        return;
    }
    for tensor in header.templates.iter().flat_map(|template| &template.tensors) {
        if !listed.contains(&tensor.dtype) {
            note(problems, || {
                let message =
                    format!("tensor {} is {}, which is not listed", tensor.name, tensor.dtype);
                Problem::new(format!("{place}/compatibility/dtypes"), message)
            });
        }
    }
}

impl TierRecord {
    /// Where a segment of this tier's index contradicts the record: its groups'
    /// sizes and the structure of their experts.
    #[must_use]
    pub fn check_segment(&self, header: &IndexHeader, segment: &Segment) -> Vec<Problem> {
        let place = format!("tier {}, layer {}", self.id, segment.layer);
        let mut problems = Vec::new();
        if segment.groups.len() != self.groups.len() {
            let message =
                format!("{} groups, the manifest has {}", segment.groups.len(), self.groups.len());
            problems.push(Problem::new(place, message));
            return problems;
        }
        for (n, (run, group)) in segment.groups.iter().zip(&self.groups).enumerate() {
            let place = format!("{place}, group {n}");
            if run.experts != group.experts {
                let message =
                    format!("{} experts, the manifest has {}", run.experts, group.experts);
                problems.push(Problem::new(place.clone(), message));
            }
            if run.template == LOOSE {
                continue;
            }
            let template = usize::try_from(run.template).ok().and_then(|n| header.templates.get(n));
            let Some((hidden, inner)) = template.and_then(crate::BlockTemplate::structure) else {
                continue;
            };
            for (what, found, declared) in [
                ("hidden size", hidden, group.hidden_size),
                ("intermediate size", inner, group.intermediate_size),
            ] {
                if declared.is_some_and(|declared| declared != found) {
                    let message = format!(
                        "its experts' {what} is {found}, the manifest has {}",
                        declared.unwrap_or_default()
                    );
                    problems.push(Problem::new(place.clone(), message));
                }
            }
        }
        problems
    }
}
