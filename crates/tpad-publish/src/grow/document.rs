//! The revision that follows: the parent's document with one tier more. It is
//! edited as JSON, so that what this version does not know of is kept.

use serde_json::{Map, Value};
use tpad_index::EncodedIndex;
use tpad_manifest::{
    FORMAT_VERSION, GroupScoring, Manifest, ModelVersion, ScoringFunction, TierId, TierRecord,
};

use super::amend::text;
use super::{GrowError, GrowOptions, GrowOutcome, Grown};
use crate::import::blocks::Tier;
use crate::import::document::record;
use crate::{ImportError, Revision};

/// What a tier is added to.
pub(super) struct Successor<'a> {
    parent: &'a Revision,
    manifest: &'a Manifest,
}

/// A document and what it says.
pub(super) struct Draft {
    pub(super) document: String,
    pub(super) manifest: Manifest,
}

impl<'a> Successor<'a> {
    /// The parent must be read whole by this version.
    pub(super) fn of(parent: &'a Revision) -> Result<Self, GrowError> {
        let manifest = parent.accepted()?;
        if manifest.format_version > FORMAT_VERSION {
            return Err(GrowError::Newer {
                url: parent.url(),
                found: manifest.format_version.to_string(),
                known: FORMAT_VERSION.to_string(),
            });
        }
        Ok(Self { parent, manifest })
    }

    /// A token can only be routed over tiers if the scores of its experts are
    /// known: with a scoring that is not, nobody could use the tier, and a
    /// document that is passed on would seem to say how.
    pub(super) fn check_scoring(&self) -> Result<(), GrowError> {
        let scoring = self.manifest.scoring;
        if scoring.function == ScoringFunction::Unknown || scoring.groups == GroupScoring::Unknown {
            return Err(GrowError::Scoring { url: self.parent.url() });
        }
        Ok(())
    }

    pub(super) const fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    /// How many tiers there are with `id`.
    pub(super) fn tiers_with(&self, id: &TierId) -> usize {
        let known = self.manifest.tier(&id.to_string()).is_some();
        self.manifest.tiers.len() + usize::from(!known)
    }

    /// The successor's document.
    pub(super) fn draft(
        &self,
        tier: &Tier,
        parameters: u64,
        options: &GrowOptions,
        index: Option<&EncodedIndex>,
    ) -> Result<Draft, GrowError> {
        let index = index.map(|index| index.reference);
        let record = record(tier, parameters, Some(options.now), index);
        let document = self.edited(&record, options)?;
        let loaded = Manifest::parse(document.as_bytes()).map_err(ImportError::Rejected)?;
        Ok(Draft { document, manifest: loaded.manifest })
    }

    fn edited(&self, record: &TierRecord, options: &GrowOptions) -> Result<String, GrowError> {
        let overtaken = || ImportError::Overtaken { revision: u64::MAX };
        let revision = self.parent.number().checked_add(1).ok_or_else(overtaken)?;
        let ModelVersion { major, minor } = self.manifest.model_version;
        let version = ModelVersion { major, minor: minor.saturating_add(1) };
        let mut document: Map<String, Value> =
            serde_json::from_slice(self.parent.document()).unwrap_or_default();
        // The defaults depend on the tiers, so what the parent's said is said
        // from now on: growth changes nobody.
        let known = value(self.manifest);
        for field in ["layers", "scoring", "default_tier_set", "model"] {
            if let (None, Some(value)) = (document.get(field), known.get(field)) {
                document.insert(field.to_owned(), value.clone());
            }
        }
        let parent = self.parent.digest().to_string();
        document.insert("format_version".to_owned(), FORMAT_VERSION.to_string().into());
        document.insert("model_version".to_owned(), version.to_string().into());
        document.insert("revision".to_owned(), revision.into());
        document.insert("parent".to_owned(), parent.into());
        document.insert("created_at".to_owned(), options.now.to_string().into());
        let tiers = document.entry("tiers").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(tiers) = tiers {
            // A dry run or a repeated run may meet the tier itself.
            tiers.retain(|tier| !tier.get("id").is_some_and(|id| is(&record.id, id)));
            tiers.push(value(record));
        }
        Ok(text(&document))
    }

    /// The id is another tier's.
    pub(super) fn taken(&self, options: &GrowOptions) -> GrowError {
        GrowError::Taken { id: options.id.to_string(), url: self.parent.url() }
    }

    /// Whether the tier that the parent has already is the one to add.
    pub(super) fn unchanged(
        &self,
        index: &EncodedIndex,
        options: &GrowOptions,
        mut grown: Grown,
    ) -> Result<Grown, GrowError> {
        let known = self.manifest.tier(&options.id.to_string());
        let same = |tier: &TierRecord| {
            tier.index.map(|index| index.digest) == Some(index.reference.digest)
                && tier.routing == options.routing
        };
        if !known.is_some_and(same) {
            return Err(self.taken(options));
        }
        if let Some(tier) = known {
            grown.budget = tier.parameter_budget;
            if (tier.placement, tier.parameter_budget) != (options.placement, options.budget) {
                grown.notes.push(format!(
                    "tier {} keeps its placement {} and its budget of {}: `tpactl tier \
                     set-placement` and `set-budget` change them",
                    tier.id,
                    tier.placement.as_str(),
                    tier.parameter_budget
                ));
            }
        }
        grown.outcome = GrowOutcome::Unchanged;
        grown.manifest = self.manifest.clone();
        grown.changes = tpad_manifest::Changes::default();
        Ok(grown)
    }
}

/// Whether an id in a document is this one.
pub(super) fn is(id: &TierId, value: &Value) -> bool {
    match value {
        Value::String(text) => id.is(text),
        Value::Number(number) => id.is(&number.to_string()),
        _ => false,
    }
}

fn value(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}
