//! Reading a manifest: tolerant of what is newer, strict about what is wrong,
//! and complete about both.

mod activation;
mod fields;
mod record;

use std::collections::BTreeMap;

use self::fields::Fields;
use super::json::Json;
use super::{FORMAT_VERSION, FormatVersion, Manifest};
use crate::problem::MAX_PROBLEMS;
use crate::{Problem, Rejected, TierId};

/// The largest document that is read. A manifest names indexes instead of
/// listing blocks, so an honest one is a few kilobytes.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// Unknown requirements that one message names.
const SHOWN_REQUIREMENTS: usize = 8;

/// What a document's `requires` may ask of this version.
pub(super) const KNOWN_REQUIREMENTS: &[&str] = &["group_heads", "tier_head"];

/// A manifest that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The manifest, defaults filled in.
    pub manifest: Manifest,
    /// What is odd but does not stop it.
    pub warnings: Vec<Problem>,
    /// Tiers that cannot be served, each with the reason.
    pub skipped: BTreeMap<TierId, String>,
}

impl Manifest {
    /// Reads a document.
    ///
    /// Unknown fields are ignored, missing ones take the defaults that
    /// `docs/manifest.md` tables.
    ///
    /// # Errors
    /// Every problem with its place, or, for a version or requirement that is
    /// not known here, that problem alone: the rest may mean something else.
    pub fn parse(document: &[u8]) -> Result<Loaded, Rejected> {
        let json = tree(document).map_err(|problem| Rejected(vec![problem]))?;
        let mut problems = Vec::new();
        json.duplicates(&mut problems);
        let Json::Object(members) = &json else {
            let message = format!("the document is {}, an object is expected", json.kind());
            return Err(Rejected(vec![Problem::new("", message)]));
        };
        let mut warnings = Vec::new();
        let mut skipped = BTreeMap::new();
        let mut fields = Fields::new(String::new(), members, &mut problems);
        understood(&mut fields, "a manifest").map_err(|problem| Rejected(vec![problem]))?;
        let manifest = record::manifest(&mut fields, &mut warnings, &mut skipped);
        problems.extend(manifest.check());
        problems.sort();
        problems.dedup();
        if problems.is_empty() {
            return Ok(Loaded { manifest, warnings, skipped });
        }
        if problems.len() > MAX_PROBLEMS {
            problems.truncate(MAX_PROBLEMS);
            problems.push(Problem::new("", "there are more problems than these"));
        }
        Err(Rejected(problems))
    }
}

fn tree(document: &[u8]) -> Result<Json, Problem> {
    within(document, MAX_DOCUMENT_BYTES)
}

fn within(document: &[u8], most: usize) -> Result<Json, Problem> {
    if document.len() > most {
        let bytes = document.len();
        let message = format!("the document has {bytes} bytes, at most {most} are read");
        return Err(Problem::new("", message));
    }
    Json::parse(document).map_err(|error| Problem::new("", format!("not JSON: {error}")))
}

/// Whether this version can make sense of `what` at all.
fn understood(fields: &mut Fields<'_, '_>, what: &str) -> Result<(), Problem> {
    let known = FORMAT_VERSION;
    match fields.parsed::<FormatVersion>("format_version") {
        Some(version) if version.major != known.major => {
            let remedy = if version.major > known.major {
                "upgrade tpad, or serve an older revision"
            } else {
                "import the checkpoint again with this version"
            };
            let message = format!(
                "the document has format version {version}, this tpad supports {}.x (written as {known}): {remedy}",
                known.major
            );
            return Err(Problem::new("/format_version", message));
        }
        Some(_) => {}
        None if fields.has("format_version") => {}
        None => {
            let message =
                format!("missing: {what} names its version, such as \"{known}\"; is this {what}?");
            return Err(Problem::new("/format_version", message));
        }
    }
    let unknown = unknown_requirements(&fields.texts("requires"));
    if unknown.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the checkpoint requires {}, which this tpad (format {known}) does not know: upgrade tpad, or serve an older revision",
        unknown.join(", ")
    );
    Err(Problem::new("/requires", message))
}

fn unknown_requirements(requires: &[String]) -> Vec<String> {
    let unknown = requires.iter().filter(|entry| !KNOWN_REQUIREMENTS.contains(&&***entry));
    let mut unknown = unknown.map(|entry| format!("{entry:?}"));
    let mut shown: Vec<String> = unknown.by_ref().take(SHOWN_REQUIREMENTS).collect();
    let more = unknown.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown
}
