//! Where a model's manifest is: a root and the revision to read there.

use tpad_manifest::{REVISIONS, revision_of, revision_path};
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

/// The highest revision under `origin`; `None` when there is none.
pub(crate) async fn highest_revision(origin: &ObjectOrigin) -> Result<Option<u64>, OriginError> {
    let entries = origin.list(REVISIONS).await?;
    let numbers = entries.iter().filter_map(|entry| {
        let number = revision_of(&entry.path)?;
        (entry.path == revision_path(number)).then_some(number)
    });
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
