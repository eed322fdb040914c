//! A check of a published revision: the document, its indexes, and every byte
//! of every block and file against its digest.
//!
//! It finds all problems, not the first. What it cannot decide because a store
//! does not answer is an error, not a problem.

mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Catalog, Digest, IndexHeader, IndexRef, Loaded, Problem, TierId};
use tpad_store::{ErrorKind, ObjectOrigin, OriginError};

use crate::digest::is_of_store;
use crate::{Phase, Progress, Revision, RevisionError};
use verify::Verifier;

/// The largest of the small files that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Objects that are looked at at once.
const LOOKS: usize = 16;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// The revision's URL.
    pub url: String,
    /// The model's name; empty when the document is refused.
    pub model: String,
    /// Blocks whose bytes were read, all of them or up to a problem.
    pub blocks: u64,
    /// Bytes of their images.
    pub image_bytes: u64,
    /// Small files that were read.
    pub files: u64,
    /// Tiers that this version cannot serve and did not check, with the reason.
    pub skipped: BTreeMap<TierId, String>,
    /// What is odd and does no harm.
    pub warnings: Vec<Problem>,
    /// What is wrong. Empty: every byte is what the revision says.
    pub problems: Vec<Problem>,
}

/// A check did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The revision's objects cannot be read.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// It was cancelled.
    #[error("interrupted before everything was checked")]
    Cancelled,
}

impl CheckError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Origin(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

/// An index that could be opened.
struct Opened {
    reference: IndexRef,
    header: Arc<IndexHeader>,
    /// The tier's place among the manifest's; `None` for the dense index.
    tier: Option<usize>,
}

/// Checks `revision` to the last byte.
///
/// # Errors
/// When a store does not answer or refuses, and when `stop` is cancelled.
/// What is missing or wrong is no error but a problem in the result.
pub async fn check(
    revision: &Revision,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Checked, CheckError> {
    let mut checked = Checked { url: revision.url(), ..Checked::default() };
    let loaded = match revision.manifest() {
        Ok(loaded) => loaded,
        Err(rejected) => {
            checked.problems.clone_from(&rejected.0);
            return Ok(checked);
        }
    };
    checked.model.clone_from(&loaded.manifest.model);
    checked.skipped.clone_from(&loaded.skipped);
    checked.warnings.clone_from(&loaded.warnings);
    let number = loaded.manifest.revision;
    if number != revision.number() {
        let message = format!("{number}, but the document is named {}", revision.number());
        checked.problems.push(Problem::new("/revision", message));
    }
    let objects = revision.objects()?;
    let run = run(revision, loaded, &objects, progress, stop, &mut checked);
    match stop.run_until_cancelled(run).await {
        Some(result) => result?,
        None => return Err(CheckError::Cancelled),
    }
    Ok(checked)
}

async fn run(
    revision: &Revision,
    loaded: &Loaded,
    objects: &ObjectOrigin,
    progress: &dyn Progress,
    stop: &CancellationToken,
    checked: &mut Checked,
) -> Result<(), CheckError> {
    let indexes = open(revision, loaded, checked).await?;
    join(loaded, &indexes, checked);
    check_objects(objects, &indexes, checked).await?;
    check_files(objects, loaded, checked).await?;
    progress
        .begin(Phase::Verification, indexes.iter().map(|index| index.header.image_bytes()).sum());
    let mut verifier = Verifier::new(objects, progress, stop, checked);
    for Opened { reference, header, tier } in &indexes {
        let tier = tier.and_then(|n| loaded.manifest.tiers.get(n));
        for entry in &header.segments {
            match revision.segment(reference, header, entry).await {
                Ok(segment) => verifier.push(tier, header, &segment).await?,
                Err(error) => {
                    let place = match tier {
                        Some(tier) => format!("tier {}, layer {}", tier.id, entry.layer),
                        None => "dense index".to_owned(),
                    };
                    verifier.problem(place, decided(error)?);
                }
            }
        }
    }
    verifier.finish().await
}

/// Opens the indexes of all tiers that are served, and the dense one.
async fn open(
    revision: &Revision,
    loaded: &Loaded,
    checked: &mut Checked,
) -> Result<Vec<Opened>, CheckError> {
    let manifest = &loaded.manifest;
    let served = |(n, tier): (usize, &tpad_manifest::TierRecord)| {
        let skipped = loaded.skipped.contains_key(&tier.id);
        let index = tier.index.filter(|_| !skipped)?;
        Some((index, Some(n), format!("/tiers/{n}/index")))
    };
    let tiers = manifest.tiers.iter().enumerate().filter_map(served);
    let dense = manifest.dense.map(|index| (index, None, "/dense".to_owned()));
    let mut opened = Vec::new();
    for (reference, tier, place) in tiers.chain(dense) {
        match revision.header(&reference).await {
            Ok(header) => opened.push(Opened { reference, header: Arc::new(header), tier }),
            Err(error) if error.is_newer() && tier.is_some() => {
                let tier = tier.and_then(|n| manifest.tiers.get(n));
                checked.skipped.extend(tier.map(|tier| (tier.id.clone(), error.to_string())));
                continue;
            }
            Err(error) => {
                checked.problems.push(Problem::new(place, decided(error)?));
                continue;
            }
        }
        let bytes = revision.index_bytes(&reference).await?;
        if bytes != reference.bytes {
            let message =
                format!("the object has {bytes} bytes, the manifest says {}", reference.bytes);
            checked.problems.push(Problem::new(place, message));
        }
    }
    Ok(opened)
}

/// Holds manifest and headers against each other.
fn join(loaded: &Loaded, indexes: &[Opened], checked: &mut Checked) {
    let tiers = indexes.iter().filter_map(|index| {
        let tier = loaded.manifest.tiers.get(index.tier?)?;
        Some((tier.id.clone(), index.header.clone()))
    });
    let dense = indexes.iter().find(|index| index.tier.is_none()).map(|index| index.header.clone());
    match Catalog::new(loaded.clone(), tiers.collect(), dense) {
        Err(problems) => checked.problems.extend(problems),
        Ok(catalog) => {
            for (tier, parameters, budget) in catalog.over_budget() {
                let message = format!(
                    "{parameters} parameters, {} more than its parameter_budget of {budget}",
                    parameters - budget
                );
                checked.problems.push(Problem::new(format!("tier {tier}"), message));
            }
        }
    }
}

/// Whether the objects that indexes point into have the sizes that they had.
async fn check_objects(
    objects: &ObjectOrigin,
    indexes: &[Opened],
    checked: &mut Checked,
) -> Result<(), CheckError> {
    let records = indexes.iter().flat_map(|index| &index.header.objects);
    let recorded: BTreeMap<&str, u64> =
        records.map(|object| (&*object.path, object.bytes)).collect();
    let looks = recorded.into_iter().map(async |(path, bytes)| {
        let message = match objects.size(path).await {
            Ok(found) if found == bytes => return Ok(None),
            Ok(found) => format!("{found} bytes, it had {bytes} when it was indexed"),
            Err(error) => decided(error.into())?,
        };
        Ok::<_, CheckError>(Some(Problem::new(format!("object {path}"), message)))
    });
    let problems: Vec<Option<Problem>> =
        futures::stream::iter(looks).buffered(LOOKS).try_collect().await?;
    checked.problems.extend(problems.into_iter().flatten());
    Ok(())
}

async fn check_files(
    objects: &ObjectOrigin,
    loaded: &Loaded,
    checked: &mut Checked,
) -> Result<(), CheckError> {
    for (name, record) in &loaded.manifest.files {
        let place = format!("file {name}");
        if record.bytes > MAX_FILE_BYTES {
            let message = format!("{} bytes: files have at most {MAX_FILE_BYTES}", record.bytes);
            checked.problems.push(Problem::new(place, message));
            continue;
        }
        checked.files += 1;
        match objects.get(&record.object, record.bytes).await {
            Ok(bytes) => {
                let found = Digest::of(&bytes);
                if found != record.digest {
                    let message = format!(
                        "{}: its digest is {found}, the manifest has {}: it was changed or damaged",
                        record.object, record.digest
                    );
                    checked.problems.push(Problem::new(place, message));
                }
            }
            Err(error @ OriginError::TooLarge { .. }) => {
                checked.problems.push(Problem::new(place, error.to_string()));
            }
            Err(error) => checked.problems.push(Problem::new(place, decided(error.into())?)),
        }
    }
    Ok(())
}

/// The message of a failure that says something about the revision; a store
/// that does not answer says nothing.
fn decided(error: RevisionError) -> Result<String, CheckError> {
    match (is_of_store(error.kind()), error) {
        (true, RevisionError::Origin(error)) => Err(error.into()),
        (_, error) => Ok(error.to_string()),
    }
}
