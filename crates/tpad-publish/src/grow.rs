//! Growth: one tier more, and nothing that exists is touched.
//!
//! The order of writes is what makes it safe: shards, then the index, then the
//! revision, which is created and never overwritten. Whatever ends it before
//! that leaves objects that nobody reads and that the next run uses.

mod amend;
mod compare;
mod document;
mod error;
mod incoming;
mod names;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tpad_manifest::{
    BlockRecord, Changes, LayerKind, Manifest, Placement, Problem, Rejected, Routing, TierId,
    index_path, revision_path,
};
use tpad_store::{BlockFetch, Created, ObjectOrigin};

pub use amend::{AmendOptions, Amended, Amendment, amend};
pub use error::GrowError;

use crate::digest::{Digester, Ended};
use crate::import::blocks::{Tier, check_sizes, images};
use crate::{ImportError, Phase, Plan, Progress, Revision, RevisionError, survey};
use compare::Sides;
use document::Successor;
use incoming::{Incoming, incoming};
use shards::Upload;

/// The tier to add, and how.
#[derive(Clone, Debug)]
pub struct GrowOptions {
    /// Its id.
    pub id: TierId,
    /// Which of the checkpoint's experts it has, and in which groups; without it
    /// the names tell, or it has them all.
    pub plan: Option<Plan>,
    /// The most logical parameters that its experts may have.
    pub budget: u64,
    /// Its home.
    pub placement: Placement,
    /// Its k values.
    pub routing: Routing,
    /// Reads headers only, and writes nothing.
    pub dry_run: bool,
    /// How long objects that no revision names are kept by whatever cleans the
    /// store up: ones that are older than half of it are written again.
    pub retention: SignedDuration,
    /// The time that the revision carries.
    pub now: Timestamp,
}

/// What adding a tier came to.
#[derive(Clone, Debug)]
pub struct Grown {
    /// What became of the revision.
    pub outcome: GrowOutcome,
    /// The root that holds, or would hold, the revision.
    pub root: String,
    /// The document; of a dry run it lacks the new index's digest.
    pub manifest: Manifest,
    /// What changes.
    pub changes: Changes,
    /// The layout that was recognised.
    pub family: &'static str,
    /// Blocks of the tier.
    pub blocks: u64,
    /// Bytes of their images.
    pub image_bytes: u64,
    /// Logical parameters of its experts.
    pub parameters: u64,
    /// How many they may be.
    pub budget: u64,
    /// What of the parent was in the checkpoint too, and is equal: blocks.
    pub compared: u64,
    /// Bytes of shards that were there from an earlier run.
    pub reused_bytes: u64,
    /// What a person may want to know.
    pub notes: Vec<String>,
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowOutcome {
    /// It was written.
    Written,
    /// The newest revision has this tier already; nothing was written.
    Unchanged,
    /// It would be written.
    DryRun,
}

impl Grown {
    /// The revision's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.root, revision_path(self.manifest.revision))
    }
}

/// Adds a tier to the newest revision at `root`, from the checkpoint at `from`.
///
/// Cancelling `stop` ends it at the next read or write without a revision.
///
/// # Errors
/// Whatever the Tier Expansion Contract does not allow, and whatever keeps it
/// from being written. The newest revision is what it was then.
pub async fn add_tier(
    root: &ObjectOrigin,
    from: &ObjectOrigin,
    options: &GrowOptions,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Grown, GrowError> {
    options.id.check().map_err(|error| incoming::wrong("--id", error.to_string()))?;
    let parent = Revision::newest(root).await?;
    let parent = parent.ok_or_else(|| RevisionError::None { root: root.url().to_owned() })?;
    let successor = Successor::of(&parent)?;
    successor.check_scoring()?;
    let survey = survey::survey(from, progress, stop).await?;
    let tensors = survey.tensors.clone();
    let Incoming { tier, old, family } = incoming(tensors, &survey.config, options)?;
    incoming::check_routing(&tier, successor.tiers_with(&options.id))?;
    let mut notes = survey.notes.clone();
    // Names tell all of a checkpoint that was made for a tier.
    if !survey.configured && family != incoming::NAMED {
        let what = "there is no config.json in the checkpoint: what it would say of groups and \
                    quantization is taken from shapes and --plan";
        notes.push(what.to_owned());
    }
    check_layers(successor.manifest(), &tier, &mut notes)?;
    let mut blocks = Tier::of(tier);
    check_sizes(blocks.iter())?;
    let parameters = blocks.parameters()?;
    if parameters > options.budget {
        let id = options.id.to_string();
        return Err(GrowError::Budget { id, parameters, budget: options.budget });
    }
    let images = images(blocks.iter())?;
    let compared = old.blocks();
    let draft = successor.draft(&blocks, parameters, options, None)?;
    let mut grown = Grown {
        outcome: GrowOutcome::DryRun,
        root: root.url().to_owned(),
        changes: Changes::between(successor.manifest(), &draft.manifest),
        manifest: draft.manifest,
        family,
        blocks: images.len() as u64,
        image_bytes: images.iter().map(|image| image.bytes).sum(),
        parameters,
        budget: options.budget,
        compared,
        reused_bytes: 0,
        notes,
    };
    let taken = successor.manifest().tier(&options.id.to_string()).is_some();
    if options.dry_run {
        // Whether it is the same tier only its bytes would tell.
        return if taken { Err(successor.taken(options)) } else { Ok(grown) };
    }
    let sides = Sides { from, parent: &parent, manifest: successor.manifest(), progress, stop };
    let problems = sides.differences(old).await?;
    if !problems.is_empty() {
        return Err(GrowError::Differs { url: parent.url(), problems: Rejected(problems) });
    }
    digest(from, &images, &mut blocks, progress, stop).await?;
    survey::unchanged(from, &survey).await?;
    let objects = parent.objects()?;
    let oldest = options.now - options.retention / 2;
    let oldest_ms = oldest.as_millisecond();
    let upload = Upload { from, to: &objects, oldest_ms, progress, stop };
    let mut all: Vec<&mut BlockRecord> = blocks.iter_mut().collect();
    if taken {
        // Nothing is uploaded for an id that is taken: only whether it is the
        // same tier is of interest.
        upload.place(&options.id, &mut all)?;
    } else {
        grown.reused_bytes = upload.run(&options.id, &mut all).await?;
    }
    let index = blocks.index(&BTreeMap::new()).map_err(ImportError::from)?;
    if taken {
        return successor.unchanged(&index, options, grown);
    }
    let draft = successor.draft(&blocks, parameters, options, Some(&index))?;
    grown.changes = Changes::between(successor.manifest(), &draft.manifest);
    let broken = grown.changes.unannounced(successor.manifest(), &draft.manifest);
    if !broken.is_empty() {
        return Err(GrowError::Breaking { url: parent.url(), problems: Rejected(broken) });
    }
    grown.manifest = draft.manifest;
    let path = index_path(&index.reference.digest);
    root.put(&path, Bytes::from(index.bytes)).await?;
    if stop.is_cancelled() {
        return Err(GrowError::Cancelled);
    }
    publish(root, grown.manifest.revision, Bytes::from(draft.document)).await?;
    grown.outcome = GrowOutcome::Written;
    Ok(grown)
}

/// Creates the revision. Of two who publish at once, one succeeds.
async fn publish(root: &ObjectOrigin, revision: u64, document: Bytes) -> Result<(), GrowError> {
    let path = revision_path(revision);
    let found = match root.create(&path, document.clone()).await {
        Ok(Created::New) => return Ok(()),
        Ok(Created::Exists) => root.get(&path, u64::MAX).await.ok(),
        // It may have been written although the answer got lost: look.
        Err(error) => match root.get(&path, u64::MAX).await {
            Ok(found) => Some(found),
            Err(_) => return Err(error.into()),
        },
    };
    match found {
        Some(found) if found == document => Ok(()),
        _ => Err(GrowError::Overtaken { revision }),
    }
}

/// Every MoE layer of the parent has experts and a routing head of the tier.
fn check_layers(
    parent: &Manifest,
    tier: &crate::TierDraft,
    notes: &mut Vec<String>,
) -> Result<(), GrowError> {
    let mut problems = Vec::new();
    if parent.layers.is_empty() {
        let what =
            "the revision lists no MoE layers: import the checkpoint with this version first";
        problems.push(Problem::new("layers", what));
    }
    let brought: BTreeSet<u32> = tier.layers.iter().map(|layer| layer.layer).collect();
    for layer in parent.layers.iter().filter(|layer| !brought.contains(&layer.layer)) {
        let what = format!(
            "there is no routing head of tier {} at this layer: add experts and router of layer {} \
             to the checkpoint",
            tier.id, layer.layer
        );
        match layer.kind {
            LayerKind::Moe => problems.push(Problem::new(format!("layer {}", layer.layer), what)),
            LayerKind::Mtp => notes.push(format!("layer {} drafts tokens: {what}", layer.layer)),
        }
    }
    for layer in &tier.layers {
        if !parent.layers.iter().any(|known| known.layer == layer.layer) {
            let what = "the parent has no such MoE layer";
            problems.push(Problem::new(format!("layer {}", layer.layer), what));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(GrowError::Checkpoint(Rejected(problems))) }
}

/// Gives every block its id.
async fn digest(
    from: &ObjectOrigin,
    images: &[BlockFetch],
    blocks: &mut Tier,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<(), GrowError> {
    progress.begin(Phase::Digests, images.iter().map(|image| image.bytes).sum());
    let mut ids = vec![None; images.len()];
    let mut failure = None;
    let ended = Digester { origin: from, progress, stop }
        .run(images, |digested| {
            for (n, result) in digested {
                match result {
                    Ok(id) => ids[n] = Some(id),
                    Err(error) => failure = Some(error),
                }
            }
            if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .await;
    if let Some(error) = failure {
        return Err(error.into());
    }
    if ended != Ended::All {
        return Err(GrowError::Cancelled);
    }
    for (block, id) in blocks.iter_mut().zip(ids.into_iter().flatten()) {
        block.id = id;
    }
    Ok(())
}
