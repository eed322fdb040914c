//! From a manifest and its indexes to a revision.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{
    Changes, Digest, Effect, Manifest, Problem, Rejected, TierRecord, index_path, revision_path,
};
use tpad_store::{Created, ErrorKind, ObjectOrigin};

use super::ImportError;
use super::blocks::Indexes;
use crate::RevisionError;
use crate::changes::step;
use crate::revision::{Revision, newest_number};

/// What publishing came to.
pub(super) enum Published {
    /// The revision is there now.
    New(Manifest),
    /// This one says the same.
    Unchanged(Manifest),
}

/// The number that the next revision at `target` would have.
pub(super) async fn next_number(target: &ObjectOrigin) -> Result<u64, ImportError> {
    Ok(newest_number(target).await?.unwrap_or(0).saturating_add(1))
}

/// Publishes `manifest` as the revision after the newest one, unless that says
/// the same. Create-only: whoever comes second sees what the first one did.
pub(super) async fn publish(
    target: &ObjectOrigin,
    mut manifest: Manifest,
    indexes: &Indexes,
    stop: &CancellationToken,
) -> Result<Published, ImportError> {
    let newest = Revision::newest(target).await?;
    let number = newest.as_ref().map_or(0, Revision::number);
    if let Some(revision) = &newest
        && let Ok(loaded) = revision.manifest()
    {
        if same(&loaded.manifest, &manifest) {
            return Ok(Published::Unchanged(loaded.manifest.clone()));
        }
        keep_times(&mut manifest, &loaded.manifest);
        write(target, indexes).await?;
        let changes = changes(revision, &loaded.manifest, &manifest).await?;
        succeed(&mut manifest, &loaded.manifest, revision.digest(), &changes)?;
    }
    manifest.revision = number.checked_add(1).ok_or(ImportError::Overtaken { revision: number })?;
    let document = manifest.to_json();
    // What a reader would refuse is never published.
    Manifest::parse(document.as_bytes()).map_err(ImportError::Rejected)?;
    if newest.is_none_or(|revision| revision.manifest().is_err()) {
        write(target, indexes).await?;
    }
    if stop.is_cancelled() {
        return Err(ImportError::Cancelled);
    }
    let path = revision_path(manifest.revision);
    let document = Bytes::from(document);
    match target.create(&path, document.clone()).await {
        Ok(Created::New) => return Ok(Published::New(manifest)),
        Ok(Created::Exists) => {}
        // It may have been written although the answer got lost: look.
        Err(error) => match target.get(&path, document.len() as u64).await {
            Ok(found) if found == document => return Ok(Published::New(manifest)),
            _ => return Err(error.into()),
        },
    }
    let other = Revision::read(target, manifest.revision).await?;
    match other.manifest() {
        Ok(other) if same(&other.manifest, &manifest) => {
            Ok(Published::Unchanged(other.manifest.clone()))
        }
        _ => Err(ImportError::Overtaken { revision: manifest.revision }),
    }
}

/// Whether two revisions say the same, whenever and in whatever order they were
/// made.
fn same(published: &Manifest, new: &Manifest) -> bool {
    let mut new = new.clone();
    new.revision = published.revision;
    new.created_at = published.created_at;
    new.parent = published.parent;
    new.model_version = published.model_version;
    keep_times(&mut new, published);
    *published == new
}

/// Writes the indexes, which nobody reads until a revision names them.
async fn write(target: &ObjectOrigin, indexes: &Indexes) -> Result<(), ImportError> {
    for index in indexes.tiers.iter().chain(&indexes.dense) {
        let path = index_path(&index.reference.digest);
        target.put(&path, Bytes::from(index.bytes.clone())).await?;
    }
    Ok(())
}

/// What changes, by the rules that daemons and `tpactl manifest diff` apply.
/// Both revisions' indexes are at the same root.
async fn changes(
    newest: &Revision,
    before: &Manifest,
    after: &Manifest,
) -> Result<Changes, ImportError> {
    let mut changes = Changes::between(before, after);
    match crate::changes::refine(&mut changes, (newest, before), (newest, after)).await {
        Ok(()) => Ok(changes),
        Err(RevisionError::Origin(error)) if error.kind() != ErrorKind::NotFound => {
            Err(error.into())
        }
        // An index that is lost or broken tells no block: whatever it was for
        // counts as altered.
        Err(_) => Ok(Changes::between(before, after)),
    }
}

/// Makes `manifest` the successor of `newest`, whose version tells what the step
/// means. Growth and metadata name their parent; what breaks something starts
/// anew.
fn succeed(
    manifest: &mut Manifest,
    newest: &Manifest,
    digest: Digest,
    changes: &Changes,
) -> Result<(), ImportError> {
    let effect = changes.effect();
    let last = || {
        let what = "the version of the newest revision cannot be counted any further";
        ImportError::Rejected(Rejected(vec![Problem::new("/model_version", what)]))
    };
    manifest.model_version = step(newest.model_version, effect).ok_or_else(last)?;
    manifest.parent = (effect != Some(Effect::Breaking)).then_some(digest);
    Ok(())
}

fn keep_times(manifest: &mut Manifest, older: &Manifest) {
    for tier in &mut manifest.tiers {
        if let Some(old) = older.tiers.iter().find(|old| old.id == tier.id && same_tier(tier, old))
        {
            tier.created_at = old.created_at;
        }
    }
}

/// Whether two tiers have the same blocks.
fn same_tier(a: &TierRecord, b: &TierRecord) -> bool {
    a.index.map(|index| index.digest) == b.index.map(|index| index.digest)
}

#[cfg(test)]
mod tests {
    use tpad_manifest::Placement;

    use super::*;

    fn manifest(tiers: &[(u64, u8)]) -> Manifest {
        let tiers: Vec<String> = tiers
            .iter()
            .map(|(id, content)| {
                let digest = Digest::from_bytes([*content; 32]);
                format!(
                    r#"{{"id":{id},"parameter_budget":1,"groups":[{{"experts":1}}],
                        "index":{{"digest":"{digest}","header_bytes":20,"bytes":20}}}}"#
                )
            })
            .collect();
        let document = format!(
            r#"{{"format_version":"1.1","model":"m","revision":4,"model_version":"2.3",
                "layers":[{{"layer":0,"kind":"moe"}}],"tiers":[{}]}}"#,
            tiers.join(",")
        );
        Manifest::parse(document.as_bytes()).expect("a manifest").manifest
    }

    #[test]
    fn the_version_tells_what_a_step_breaks() {
        let old = manifest(&[(1, 1), (2, 2)]);
        let digest = Digest::of(b"old");
        let step = |mut new: Manifest| {
            let changes = Changes::between(&old, &new);
            succeed(&mut new, &old, digest, &changes).expect("it can be counted");
            (new.model_version.to_string(), new.parent)
        };
        let same = || manifest(&[(1, 1), (2, 2)]);
        let grown = manifest(&[(1, 1), (2, 2), (3, 3)]);
        // The default is all tiers here, and growth must not change it.
        assert_eq!(step(grown.clone()), ("3.0".to_owned(), None));
        let grown = Manifest { default_tier_set: old.default_tier_set.clone(), ..grown };
        assert_eq!(step(grown), ("2.4".to_owned(), Some(digest)));
        assert_eq!(step(same()), ("2.3".to_owned(), Some(digest)));
        assert_eq!(step(manifest(&[(1, 1), (2, 9)])), ("3.0".to_owned(), None));
        assert_eq!(step(manifest(&[(1, 1)])), ("3.0".to_owned(), None));
        let mut other = same();
        other.tiers[1].placement = Placement::Nvme;
        assert_eq!(step(other), ("2.3".to_owned(), Some(digest)));
        let mut other = same();
        other.tiers[1].routing.k_expert += 1;
        assert_eq!(step(other), ("3.0".to_owned(), None));
        let mut other = same();
        other.scoring.normalize = !other.scoring.normalize;
        assert_eq!(step(other), ("3.0".to_owned(), None));
        let mut other = same();
        other.default_tier_set.truncate(1);
        assert_eq!(step(other), ("3.0".to_owned(), None));
    }

    #[test]
    fn a_version_that_cannot_be_counted_further_is_refused() {
        let mut old = manifest(&[(1, 1)]);
        old.model_version.major = u32::MAX;
        let mut new = manifest(&[(1, 2)]);
        let changes = Changes::between(&old, &new);
        let error = succeed(&mut new, &old, Digest::of(b"old"), &changes).expect_err("the end");
        assert!(error.to_string().contains("/model_version"), "{error}");
    }

    #[test]
    fn times_and_numbers_do_not_make_a_difference() {
        let old = manifest(&[(1, 1)]);
        let mut new = manifest(&[(1, 1)]);
        new.created_at = Some(jiff::Timestamp::UNIX_EPOCH);
        new.tiers[0].created_at = Some(jiff::Timestamp::UNIX_EPOCH);
        new.revision = 9;
        assert!(same(&old, &new));
        new.model = "n".to_owned();
        assert!(!same(&old, &new));
    }
}
