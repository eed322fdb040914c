//! From a manifest and its indexes to a revision.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Digest, Manifest, ModelVersion, TierRecord, index_path, revision_path};
use tpad_store::{Created, ObjectOrigin};

use super::ImportError;
use super::blocks::Indexes;
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
        succeed(&mut manifest, &loaded.manifest, revision.digest());
    }
    manifest.revision = number.checked_add(1).ok_or(ImportError::Overtaken { revision: number })?;
    let document = manifest.to_json();
    // What a reader would refuse is never published.
    Manifest::parse(document.as_bytes()).map_err(ImportError::Rejected)?;
    for index in indexes.tiers.iter().chain(&indexes.dense) {
        let path = index_path(&index.reference.digest);
        target.put(&path, Bytes::from(index.bytes.clone())).await?;
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

/// Makes `manifest` the successor of `newest`: tiers that are still the same
/// keep their time, and the model's version tells what the step is. Growth and
/// metadata name their parent; what breaks something starts anew.
fn succeed(manifest: &mut Manifest, newest: &Manifest, digest: Digest) {
    keep_times(manifest, newest);
    let kept = |old: &TierRecord| {
        manifest.tiers.iter().any(|tier| tier.id == old.id && same_tier(tier, old))
    };
    let ModelVersion { major, minor } = newest.model_version;
    if manifest.dense != newest.dense || !newest.tiers.iter().all(kept) {
        manifest.model_version = ModelVersion { major: major.saturating_add(1), minor: 0 };
        return;
    }
    manifest.parent = Some(digest);
    manifest.model_version = match manifest.tiers.len() > newest.tiers.len() {
        true => ModelVersion { major, minor: minor.saturating_add(1) },
        false => newest.model_version,
    };
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
            succeed(&mut new, &old, digest);
            (new.model_version.to_string(), new.parent)
        };
        assert_eq!(step(manifest(&[(1, 1), (2, 2), (3, 3)])), ("2.4".to_owned(), Some(digest)));
        assert_eq!(step(manifest(&[(1, 1), (2, 2)])), ("2.3".to_owned(), Some(digest)));
        assert_eq!(step(manifest(&[(1, 1), (2, 9)])), ("3.0".to_owned(), None));
        assert_eq!(step(manifest(&[(1, 1)])), ("3.0".to_owned(), None));
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
