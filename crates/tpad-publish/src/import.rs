//! Import: from a checkpoint in the Hugging Face layout to a revision that
//! points into its shards.
//!
//! Everything that headers can tell is checked before a weight is read. Then
//! every block is read once for its digest, the indexes are written under their
//! content's names, and the revision is created last: whatever happens before,
//! a reader sees the checkpoint as it was.

pub(crate) mod blocks;
pub(crate) mod document;
mod error;
mod publish;

use std::ops::ControlFlow;
use std::path::PathBuf;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Manifest, revision_path};
use tpad_store::{BlockFetch, ObjectOrigin};

pub use error::ImportError;

use crate::digest::{Digester, Ended};
use crate::ledger::{ImageKey, Ledger};
use crate::survey::{self, Survey};
use crate::{Phase, Plan, Progress, map, recognise};
use blocks::Blocks;
use publish::Published;

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The model's name in the manifest.
    pub model: String,
    /// How experts are sorted into tiers and groups; without it there is one
    /// tier with the router's own groups.
    pub plan: Option<Plan>,
    /// Reads headers only, and writes nothing.
    pub dry_run: bool,
    /// Where an interrupted import keeps what it has digested; without it an
    /// interrupted import starts over.
    pub ledger: Option<PathBuf>,
    /// The time that the revision carries.
    pub now: Timestamp,
}

/// What an import came to.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What became of the revision.
    pub outcome: ImportOutcome,
    /// The root that holds, or would hold, the revision.
    pub root: String,
    /// The document; of a dry run it lacks the indexes' digests.
    pub manifest: Manifest,
    /// The layout that was recognised.
    pub family: &'static str,
    /// Blocks of all tiers and of the dense index.
    pub blocks: u64,
    /// Bytes of their images.
    pub image_bytes: u64,
    /// Logical parameters of each tier, in the manifest's order.
    pub parameters: Vec<u64>,
    /// Blocks that an interrupted import had digested before.
    pub resumed: u64,
    /// What a person may want to know.
    pub notes: Vec<String>,
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// It was written.
    Written,
    /// The newest revision says the same; nothing was written.
    Unchanged,
    /// It would be written.
    DryRun,
}

impl Imported {
    /// The revision's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.root, revision_path(self.manifest.revision))
    }
}

/// Imports the checkpoint at `root`. The revision and its indexes are written
/// to `out`, or to the root itself.
///
/// Cancelling `stop` ends it at the next read without a revision; what was
/// digested stays in the ledger. Dropping the future does the same.
///
/// # Errors
/// Whatever keeps the checkpoint from being served as it is: the error names
/// shard, tensor or tier. Nothing was published then.
pub async fn import(
    root: &ObjectOrigin,
    out: Option<&ObjectOrigin>,
    options: &ImportOptions,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Imported, ImportError> {
    let survey = survey::survey(root, progress, stop).await?;
    let checkpoint = recognise(&survey.tensors, &survey.config)?;
    let mapping = map(&checkpoint, options.plan.as_ref())?;
    let mut notes = survey.notes.clone();
    if !survey.configured {
        let what = "there is no config.json: routing takes defaults where shapes do not tell";
        notes.push(what.to_owned());
    }
    notes.extend(checkpoint.notes.iter().cloned());
    let family = checkpoint.family;
    drop(checkpoint);
    let mut blocks = Blocks::of(mapping)?;
    let parameters = blocks.parameters()?;
    let images = blocks.images()?;
    let target = out.unwrap_or(root);
    let base = out.map(|_| root.url().to_owned());
    let draft =
        document::Draft { options, base, files: survey.files.clone(), parameters: &parameters };
    let mut imported = Imported {
        outcome: ImportOutcome::DryRun,
        root: target.url().to_owned(),
        manifest: draft.manifest(&blocks, None),
        family,
        blocks: images.len() as u64,
        image_bytes: images.iter().map(|image| image.bytes).sum(),
        parameters: parameters.clone(),
        resumed: 0,
        notes,
    };
    // What a reader would refuse is known before the weights are read.
    Manifest::parse(imported.manifest.to_json().as_bytes()).map_err(ImportError::Rejected)?;
    if options.dry_run {
        imported.manifest.revision = publish::next_number(target).await?;
        return Ok(imported);
    }
    // Before the weights are read: a target that cannot be listed cannot be
    // published to.
    publish::next_number(target).await?;
    let mut ledger = Digests::open(options, root.url(), &mut imported.notes).await;
    imported.resumed = ledger.digest(root, &survey, &images, &mut blocks, progress, stop).await?;
    if stop.is_cancelled() {
        return Err(ImportError::Cancelled);
    }
    survey::unchanged(root, &survey).await?;
    let indexes = blocks.indexes(&survey.shards)?;
    let manifest = draft.manifest(&blocks, Some(&indexes));
    let published = publish::publish(target, manifest, &indexes, stop).await?;
    (imported.outcome, imported.manifest) = match published {
        Published::New(manifest) => (ImportOutcome::Written, manifest),
        Published::Unchanged(manifest) => (ImportOutcome::Unchanged, manifest),
    };
    ledger.remove(&mut imported.notes);
    Ok(imported)
}

/// The digests that are known, and a ledger that may keep them.
struct Digests {
    ledger: Option<Ledger>,
}

impl Digests {
    async fn open(options: &ImportOptions, root: &str, notes: &mut Vec<String>) -> Self {
        let Some(directory) = options.ledger.clone() else { return Self { ledger: None } };
        let (root, shown) = (root.to_owned(), directory.display().to_string());
        match crate::blocking::blocking(move || Ledger::open(&directory, &root)).await {
            Ok(ledger) => Self { ledger: Some(ledger) },
            Err(error) => {
                notes.push(format!(
                    "{shown} cannot be written ({error}): an interrupted import would start over"
                ));
                Self { ledger: None }
            }
        }
    }

    /// Digests what the ledger does not know, and gives every block its id.
    /// Returns how many were known.
    async fn digest(
        &mut self,
        root: &ObjectOrigin,
        survey: &Survey,
        images: &[BlockFetch],
        blocks: &mut Blocks,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<u64, ImportError> {
        let keys: Vec<Option<ImageKey>> = images
            .iter()
            .map(|image| ImageKey::of(image, |path| survey.shards.get(path)))
            .collect();
        let mut ids = vec![None; images.len()];
        if let Some(ledger) = &self.ledger {
            for (id, key) in ids.iter_mut().zip(&keys) {
                *id = key.and_then(|key| ledger.known(key));
            }
        }
        let known = ids.iter().flatten().count() as u64;
        let missing: Vec<usize> = (0..images.len()).filter(|n| ids[*n].is_none()).collect();
        let work: Vec<BlockFetch> = missing.iter().map(|n| images[*n].clone()).collect();
        progress.begin(Phase::Digests, images.iter().map(|image| image.bytes).sum());
        let done: u64 =
            images.iter().zip(&ids).filter(|(_, id)| id.is_some()).map(|(i, _)| i.bytes).sum();
        progress.advance(done);
        let mut failure = None;
        let digester = Digester { origin: root, progress, stop };
        let ended = digester
            .run(&work, |digested| {
                let mut new = Vec::with_capacity(digested.len());
                for (n, result) in digested {
                    let n = missing[n];
                    match result {
                        Ok(id) => {
                            ids[n] = Some(id);
                            new.extend(keys[n].map(|key| (key, id)));
                        }
                        Err(error) => failure = Some(error),
                    }
                }
                self.keep(new);
                if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await;
        if let Some(error) = failure {
            return Err(error.into());
        }
        if ended != Ended::All {
            return Err(ImportError::Cancelled);
        }
        blocks.set_ids(ids.into_iter().flatten());
        Ok(known)
    }

    /// A ledger that cannot be written is given up: it only saves time.
    fn keep(&mut self, digests: Vec<(ImageKey, tpad_manifest::BlockId)>) {
        if let Some(ledger) = &mut self.ledger
            && ledger.keep(digests.into_iter()).is_err()
        {
            self.ledger = None;
        }
    }

    fn remove(self, notes: &mut Vec<String>) {
        if let Some(ledger) = self.ledger
            && let Err(error) = ledger.remove()
        {
            notes.push(format!("the import's ledger could not be removed: {error}"));
        }
    }
}
