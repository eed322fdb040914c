//! Activation records: which revision a checkpoint's daemons serve, decided once
//! for all of them.
//!
//! Records are numbered and never changed; the last one counts. A rollback is one
//! more record.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::{FormatVersion, Manifest, TierIdSchema};
use crate::{Problem, TierId};

/// The longest reason, in bytes.
pub(super) const MAX_REASON_BYTES: usize = 1024;

/// The largest record that is read: a set may name every tier.
pub const MAX_ACTIVATION_BYTES: usize = 1 << 20;

/// One decision on what daemons serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Activation {
    /// The document's version; the same major is readable.
    pub format_version: FormatVersion,
    /// The record's number.
    pub activation: u64,
    /// The revision to serve.
    pub revision: u64,
    /// The tiers that a request without a TierSet gets, in place of the
    /// manifest's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<TierIdSchema>>")]
    pub default_tier_set: Option<Vec<TierId>>,
    /// When it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub created_at: Option<Timestamp>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Activation {
    /// The document, readable by people, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a record holds numbers and strings");
        text.push('\n');
        text
    }

    /// What in it does not fit the manifest of its revision.
    #[must_use]
    pub fn check(&self, manifest: &Manifest) -> Vec<Problem> {
        let mut problems = Vec::new();
        if manifest.revision != self.revision {
            let message = format!("{} is named, this is {}", self.revision, manifest.revision);
            problems.push(Problem::new("/revision", message));
        }
        for (n, tier) in self.default_tier_set.iter().flatten().enumerate() {
            if !manifest.tiers.iter().any(|known| known.id == *tier) {
                let message = format!("revision {} has no tier {tier}", manifest.revision);
                problems.push(Problem::new(format!("/default_tier_set/{n}"), message));
            }
        }
        problems
    }
}
