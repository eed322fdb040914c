//! Revisions that differ from the newest one in their document alone: another
//! home or budget of a tier, or a document that a person edited.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tpad_manifest::{
    Catalog, Changes, Effect, Manifest, ModelVersion, Placement, Problem, Rejected, TierId,
};
use tpad_store::ObjectOrigin;

use super::document::is;
use super::{GrowError, GrowOutcome, incoming, publish};
use crate::{ImportError, Revision, RevisionError};

/// What to change.
#[derive(Clone, Debug)]
pub enum Amendment {
    /// A tier's home.
    Placement {
        /// The tier.
        tier: TierId,
        /// Its home from now on.
        placement: Placement,
    },
    /// The most logical parameters that a tier's experts may have.
    Budget {
        /// The tier.
        tier: TierId,
        /// Not less than they have.
        budget: u64,
    },
    /// The newest revision's document as someone edited it.
    Document {
        /// JSON, with the number of the revision that it was made from.
        text: Bytes,
    },
}

/// How to change it.
#[derive(Clone, Copy, Debug)]
pub struct AmendOptions {
    /// Breaking changes make a new major version instead of being refused.
    pub major: bool,
    /// Writes nothing.
    pub dry_run: bool,
    /// The time that the revision carries.
    pub now: Timestamp,
}

/// What an amendment came to.
#[derive(Clone, Debug)]
pub struct Amended {
    /// What became of the revision.
    pub outcome: GrowOutcome,
    /// The root that holds, or would hold, the revision.
    pub root: String,
    /// The document; the newest one where nothing changed.
    pub manifest: Manifest,
    /// The version before.
    pub from: ModelVersion,
    /// What changes.
    pub changes: Changes,
}

impl Amended {
    /// The revision's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.root, tpad_manifest::revision_path(self.manifest.revision))
    }
}

/// Publishes the revision after the newest one at `root`, with `amendment`.
///
/// # Errors
/// A breaking change without [`AmendOptions::major`], with every violation; what
/// readers would refuse; a tier over its budget; and what keeps it from being
/// written.
pub async fn amend(
    root: &ObjectOrigin,
    amendment: &Amendment,
    options: &AmendOptions,
) -> Result<Amended, GrowError> {
    let parent = Revision::newest(root).await?;
    let parent = parent.ok_or_else(|| RevisionError::None { root: root.url().to_owned() })?;
    let (before, mut document) = (parent.accepted()?, edited(&parent, amendment)?);
    let draft = parse(&document)?;
    let changes = changes(&parent, before, &draft).await?;
    let mut amended = Amended {
        outcome: GrowOutcome::Unchanged,
        root: root.url().to_owned(),
        manifest: before.clone(),
        from: before.model_version,
        changes,
    };
    let Some(effect) = amended.changes.effect() else { return Ok(amended) };
    if effect == Effect::Breaking && !options.major {
        return Err(GrowError::Breaking {
            url: parent.url(),
            problems: Rejected(amended.changes.unannounced(before, before)),
        });
    }
    let version = version(before.model_version, effect)?;
    let revision = parent.number().checked_add(1);
    let revision = revision.ok_or(GrowError::Overtaken { revision: u64::MAX })?;
    document.insert("model_version".to_owned(), version.to_string().into());
    document.insert("revision".to_owned(), revision.into());
    document.insert("parent".to_owned(), parent.digest().to_string().into());
    document.insert("created_at".to_owned(), options.now.to_string().into());
    amended.manifest = parse(&document)?;
    check(&parent, &document).await?;
    amended.outcome = GrowOutcome::DryRun;
    if !options.dry_run {
        publish(root, revision, Bytes::from(text(&document))).await?;
        amended.outcome = GrowOutcome::Written;
    }
    Ok(amended)
}

fn version(from: ModelVersion, effect: Effect) -> Result<ModelVersion, GrowError> {
    let last = || incoming::wrong("model_version", "the version cannot be counted any further");
    crate::changes::step(from, Some(effect)).ok_or_else(last)
}

/// The newest document with the change, its own numbers as they were.
fn edited(parent: &Revision, amendment: &Amendment) -> Result<Map<String, Value>, GrowError> {
    let (tier, field, value): (_, _, Value) = match amendment {
        Amendment::Placement { tier, placement } => (tier, "placement", placement.as_str().into()),
        Amendment::Budget { tier, budget } => (tier, "parameter_budget", (*budget).into()),
        Amendment::Document { text } => return document(parent, text),
    };
    let mut document = object(parent.document())?;
    let tiers = document.get_mut("tiers").and_then(Value::as_array_mut);
    let found = tiers.into_iter().flatten().filter_map(Value::as_object_mut);
    let mut found = found.filter(|record| record.get("id").is_some_and(|id| is(tier, id)));
    let Some(record) = found.next() else {
        return Err(GrowError::UnknownTier { id: tier.to_string(), url: parent.url() });
    };
    record.insert(field.to_owned(), value);
    Ok(document)
}

/// A document that someone edited: of this parent, or later changes would be
/// undone in passing.
fn document(parent: &Revision, text: &[u8]) -> Result<Map<String, Value>, GrowError> {
    let document = object(text)?;
    let of = document.get("revision").and_then(Value::as_u64);
    if of != Some(parent.number()) {
        let of = of.map_or_else(|| "no revision".to_owned(), |of| format!("revision {of}"));
        let what = format!(
            "it was made from {of}, and the newest is {}: take that with `tpactl manifest show` and \
             edit it",
            parent.number()
        );
        return Err(incoming::wrong("revision", what));
    }
    Ok(document)
}

fn object(text: &[u8]) -> Result<Map<String, Value>, GrowError> {
    serde_json::from_slice(text).map_err(|error| incoming::wrong("the document", error.to_string()))
}

fn parse(document: &Map<String, Value>) -> Result<Manifest, GrowError> {
    let loaded = Manifest::parse(text(document).as_bytes()).map_err(GrowError::Checkpoint)?;
    Ok(loaded.manifest)
}

pub(super) fn text(document: &Map<String, Value>) -> String {
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

/// To the block, where an index has another name.
async fn changes(
    parent: &Revision,
    before: &Manifest,
    after: &Manifest,
) -> Result<Changes, GrowError> {
    let mut changes = Changes::between(before, after);
    crate::changes::refine(&mut changes, (parent, before), (parent, after)).await?;
    Ok(changes)
}

/// Refuses what a daemon would: indexes that are not there or say something
/// else, and tiers over their budgets.
async fn check(parent: &Revision, document: &Map<String, Value>) -> Result<(), GrowError> {
    let loaded = Manifest::parse(text(document).as_bytes()).map_err(GrowError::Checkpoint)?;
    let mut tiers = BTreeMap::new();
    for tier in &loaded.manifest.tiers {
        if let (Some(index), false) = (&tier.index, loaded.skipped.contains_key(&tier.id)) {
            tiers.insert(tier.id.clone(), Arc::new(parent.header(index).await?));
        }
    }
    let dense = match &loaded.manifest.dense {
        Some(index) => Some(Arc::new(parent.header(index).await?)),
        None => None,
    };
    let catalog = Catalog::new(loaded, tiers, dense);
    let catalog = catalog.map_err(|problems| ImportError::Rejected(Rejected(problems)))?;
    let over = |(tier, parameters, budget): (TierId, u64, u64)| {
        let what = format!(
            "its experts have {parameters} logical parameters, {} more than the budget of {budget}",
            parameters - budget
        );
        Problem::new(format!("tier {tier}"), what)
    };
    let problems: Vec<Problem> = catalog.over_budget().into_iter().map(over).collect();
    if problems.is_empty() { Ok(()) } else { Err(GrowError::Checkpoint(Rejected(problems))) }
}
