//! Whether a generation may take the place of another under workers that use
//! that: the rules of revisions, asked of what was loaded.

use std::collections::BTreeSet;

use tokio::time::Instant;
use tpad_manifest::{Changes, Manifest, Problem, TierId};

use super::Generation;
use super::index::SharedSegment;
use crate::EngineError;

impl Generation {
    /// What changes between two revisions of a model, whichever of them is
    /// this one's: going back is allowed wherever going forth is. Where an index
    /// has another name its blocks are compared, since they may merely have
    /// moved.
    ///
    /// # Errors
    /// When a part of an index that has to be compared cannot be read.
    pub async fn changes(&self, other: &Self, deadline: Instant) -> Result<Changes, EngineError> {
        let (old, new) = in_order(self, other);
        let mut changes = Changes::between(&old.published(), &new.published());
        if announced(old.manifest(), new.manifest()) {
            // Nothing is refused, so nobody waits for the details.
            return Ok(changes);
        }
        for altered in changes.altered_indexes() {
            let blocks = match &altered {
                Some(tier) => tiers(tier, old, new, deadline).await?,
                None => Some(dense(old, new, deadline).await?),
            };
            if let Some(blocks) = blocks {
                changes.refine(altered.as_ref(), blocks);
            }
        }
        Ok(changes)
    }

    /// Why this may not take the place of `serving`, or the other way around:
    /// every breaking change that no new major version announces.
    pub(crate) async fn broken_promises(
        &self,
        serving: &Self,
        deadline: Instant,
    ) -> Result<Vec<Problem>, EngineError> {
        let changes = self.changes(serving, deadline).await?;
        let (old, new) = in_order(serving, self);
        Ok(changes.unannounced(old.manifest(), new.manifest()))
    }
}

impl Generation {
    /// The manifest as it was published: default tiers that an activation names
    /// are meant to differ.
    fn published(&self) -> Manifest {
        let mut manifest = self.manifest().clone();
        manifest.default_tier_set.clone_from(&self.published_default);
        manifest
    }
}

fn in_order<'g>(one: &'g Generation, other: &'g Generation) -> (&'g Generation, &'g Generation) {
    if one.revision() <= other.revision() { (one, other) } else { (other, one) }
}

impl Generation {
    /// Whether another one of its model has other weights behind the same keys.
    pub(crate) fn breaks_with(&self, other: &Self) -> bool {
        announced(self.manifest(), other.manifest())
    }
}

fn announced(old: &Manifest, new: &Manifest) -> bool {
    old.model_version.major != new.model_version.major
}

/// What the blocks of a tier tell; `None` where a side cannot be opened, whose
/// index then counts as altered.
async fn tiers(
    tier: &TierId,
    old: &Generation,
    new: &Generation,
    deadline: Instant,
) -> Result<Option<Changes>, EngineError> {
    let (Ok(before), Ok(after)) = (old.tier(tier), new.tier(tier)) else { return Ok(None) };
    let layers = |generation: &Generation, tier: u32| -> BTreeSet<u32> {
        generation.index_layers(tier).into_iter().collect()
    };
    let (of_old, of_new) = (layers(old, before), layers(new, after));
    let mut changes = Changes::default();
    for layer in of_old.union(&of_new).copied() {
        let read = async |generation: &Generation, place: u32, has: bool| match has {
            true => generation.layer(place, layer, deadline).await.map(Some),
            false => Ok(None),
        };
        let one = read(old, before, of_old.contains(&layer)).await?;
        let other = read(new, after, of_new.contains(&layer)).await?;
        let tier = tier.clone();
        let compared = compare(old, one, other, move |one, other, changes| {
            let sides = (side(one.as_ref()), side(other.as_ref()));
            changes.compare_layer(&tier, layer, sides.0, sides.1);
        });
        changes.extend(compared.await);
    }
    Ok(Some(changes))
}

async fn dense(
    old: &Generation,
    new: &Generation,
    deadline: Instant,
) -> Result<Changes, EngineError> {
    let one = old.dense_segment(deadline).await?;
    let other = new.dense_segment(deadline).await?;
    let compared = compare(old, one, other, |one, other, changes| {
        changes.compare_dense(side(one.as_ref()), side(other.as_ref()));
    });
    Ok(compared.await)
}

fn side(
    segment: Option<&SharedSegment>,
) -> Option<(&tpad_manifest::IndexHeader, &tpad_manifest::Segment)> {
    segment.map(SharedSegment::parts)
}

/// Compares where it holds up nothing else: a segment may list a million blocks.
async fn compare(
    of: &Generation,
    one: Option<SharedSegment>,
    other: Option<SharedSegment>,
    how: impl FnOnce(Option<SharedSegment>, Option<SharedSegment>, &mut Changes) + Send + 'static,
) -> Changes {
    let _turn = of.shared.checks.acquire().await;
    let compared = tokio::task::spawn_blocking(move || {
        let mut changes = Changes::default();
        how(one, other, &mut changes);
        changes
    });
    compared.await.expect("comparing does not panic, and nobody cancels it")
}
