//! What changed between two published revisions, to the block.

use std::collections::BTreeSet;
use std::sync::Arc;

use tpad_manifest::{
    Changes, Effect, IndexHeader, IndexRef, Manifest, ModelVersion, Segment, TierId,
};

use crate::{Revision, RevisionError};

/// Compares two revisions, the earlier one first, in whatever roots they are.
/// Documents are compared first; where an index has another name, its blocks
/// are, one layer at a time.
///
/// # Errors
/// When a document is refused, or an index that has to be compared cannot be
/// read.
pub async fn changes(old: &Revision, new: &Revision) -> Result<Changes, RevisionError> {
    let (before, after) = (old.accepted()?, new.accepted()?);
    let mut changes = Changes::between(before, after);
    refine(&mut changes, (old, before), (new, after)).await?;
    Ok(changes)
}

/// Says of altered indexes what their blocks tell: those of the manifests, in
/// the roots of the revisions.
pub(crate) async fn refine(
    changes: &mut Changes,
    (old, before): (&Revision, &Manifest),
    (new, after): (&Revision, &Manifest),
) -> Result<(), RevisionError> {
    for altered in changes.altered_indexes() {
        let (Some(one), Some(other)) =
            (index(before, altered.as_ref()), index(after, altered.as_ref()))
        else {
            continue;
        };
        let (one, other) = (Side::open(old, one).await?, Side::open(new, other).await?);
        let blocks = compare(altered.as_ref(), &one, &other).await?;
        changes.refine(altered.as_ref(), blocks);
    }
    Ok(())
}

/// The version of what follows `from` with changes of this effect: what breaks
/// workers steps the major, what is new the minor, and metadata neither. `None`
/// when it cannot be counted any further.
pub(crate) fn step(from: ModelVersion, effect: Option<Effect>) -> Option<ModelVersion> {
    let ModelVersion { major, minor } = from;
    Some(match effect {
        Some(Effect::Breaking) => ModelVersion { major: major.checked_add(1)?, minor: 0 },
        Some(Effect::Additive) => ModelVersion { major, minor: minor.checked_add(1)? },
        Some(Effect::Metadata) | None => from,
    })
}

fn index<'m>(manifest: &'m Manifest, tier: Option<&TierId>) -> Option<&'m IndexRef> {
    match tier {
        Some(tier) => manifest.tier(&tier.to_string())?.index.as_ref(),
        None => manifest.dense.as_ref(),
    }
}

/// One revision's index.
struct Side<'a> {
    revision: &'a Revision,
    index: &'a IndexRef,
    header: Arc<IndexHeader>,
}

impl<'a> Side<'a> {
    async fn open(revision: &'a Revision, index: &'a IndexRef) -> Result<Self, RevisionError> {
        let header = Arc::new(revision.header(index).await?);
        Ok(Self { revision, index, header })
    }

    async fn layer(&self, layer: u32) -> Result<Option<Segment>, RevisionError> {
        match self.header.segment(layer) {
            Some(entry) => self.revision.segment(self.index, &self.header, entry).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn compare(
    tier: Option<&TierId>,
    one: &Side<'_>,
    other: &Side<'_>,
) -> Result<Changes, RevisionError> {
    let sides = [one, other].into_iter().flat_map(|side| &side.header.segments);
    let layers: BTreeSet<u32> = sides.map(|entry| entry.layer).collect();
    let mut changes = Changes::default();
    for layer in layers {
        let (before, after) = (one.layer(layer).await?, other.layer(layer).await?);
        let before = before.as_ref().map(|segment| (&*one.header, segment));
        let after = after.as_ref().map(|segment| (&*other.header, segment));
        match tier {
            Some(tier) => changes.compare_layer(tier, layer, before, after),
            None => changes.compare_dense(before, after),
        }
    }
    Ok(changes)
}
