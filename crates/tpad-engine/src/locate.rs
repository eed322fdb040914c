//! Where a model's manifest is: a root and the revision to read there.

use tpad_manifest::{ACTIVATIONS, REVISIONS, activation_path, revision_of, revision_path};
use tpad_store::{ObjectOrigin, OriginError};

/// What a model's `root` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The checkpoint's root.
    pub(crate) root: String,
    /// The revision to stay on; `None` follows the highest.
    pub(crate) pinned: Option<u64>,
}

impl Place {
    /// Tells a root from the URL of one of its revisions.
    pub(crate) fn of(text: &str) -> Self {
        let pinned = text.rsplit_once('/').and_then(|(directory, name)| {
            let number = revision_of(name)?;
            let root = match directory.strip_suffix(REVISIONS)? {
                "" => ".",
                root => root.strip_suffix('/')?,
            };
            // "/tpad/revisions/3.json" lies in the root directory itself.
            Some((if root.is_empty() { "/" } else { root }, number))
        });
        match pinned {
            Some((root, number)) => Self { root: root.into(), pinned: Some(number) },
            None => Self { root: text.into(), pinned: None },
        }
    }
}

/// The newest of what a root has to say of the revision to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Latest {
    /// This activation record.
    Activation(u64),
    /// There is none: this revision, the highest.
    Revision(u64),
}

/// The last activation record under `origin`, or the highest revision; `None` when
/// there is neither.
pub(crate) async fn latest(origin: &ObjectOrigin) -> Result<Option<Latest>, OriginError> {
    if let Some(activation) = highest(origin, ACTIVATIONS, activation_path).await? {
        return Ok(Some(Latest::Activation(activation)));
    }
    let revision = highest(origin, REVISIONS, revision_path).await?;
    Ok(revision.map(Latest::Revision))
}

async fn highest(
    origin: &ObjectOrigin,
    directory: &str,
    path: fn(u64) -> String,
) -> Result<Option<u64>, OriginError> {
    let entries = origin.list(directory).await?;
    let numbers = entries
        .iter()
        .filter_map(|entry| revision_of(&entry.path).filter(|number| path(*number) == entry.path));
    Ok(numbers.max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revisions_url_pins_it() {
        let pinned = |text: &str| {
            let place = Place::of(text);
            place.pinned.map(|number| (place.root, number))
        };
        assert_eq!(pinned("s3://b/m/tpad/revisions/12.json"), Some(("s3://b/m".into(), 12)));
        assert_eq!(pinned("/m/tpad/revisions/0.json"), Some(("/m".into(), 0)));
        assert_eq!(pinned("/tpad/revisions/3.json"), Some(("/".into(), 3)));
        assert_eq!(pinned("tpad/revisions/3.json"), Some((".".into(), 3)));
        for root in [
            "s3://b/m",
            "/m/tpad/revisions",
            "/m/tpad/revisions/",
            "/m/tpad/revisions/03.json",
            "/m/tpad/revisions/+3.json",
            "/m/tpad/revisions/x.json",
            "/m/xtpad/revisions/3.json",
            "/m/tpad/activations/3.json",
            "/m/tpad/revisions/99999999999999999999.json",
        ] {
            assert_eq!(Place::of(root), Place { root: root.into(), pinned: None });
        }
    }
}
