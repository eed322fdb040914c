//! Object paths: relative to a checkpoint's root, and never out of it.

use crate::Digest;

/// Where a checkpoint's revisions lie, relative to its root.
pub const REVISIONS: &str = "tpad/revisions";

/// Where a checkpoint's activation records lie, relative to its root.
pub const ACTIVATIONS: &str = "tpad/activations";

/// The longest path that is accepted, in bytes: the limit of object stores.
const MAX_PATH_BYTES: usize = 1024;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is empty or too long.
    #[error("an object path has 1 to {MAX_PATH_BYTES} bytes")]
    Length,
    /// The path starts with a slash or names a drive or scheme.
    #[error("an object path is relative to the checkpoint's root")]
    Absolute,
    /// The path would leave the root, or has a component that stores and
    /// directories read differently.
    #[error("an object path has no empty, \".\" or \"..\" component")]
    Component,
    /// The path holds a character that some store or file system cannot carry.
    #[error("an object path has no backslash and no control character")]
    Character,
}

/// The revision's document, relative to the root.
#[must_use]
pub fn revision_path(revision: u64) -> String {
    format!("{REVISIONS}/{revision}.json")
}

/// The activation record of this number, relative to the root.
#[must_use]
pub fn activation_path(activation: u64) -> String {
    format!("{ACTIVATIONS}/{activation}.json")
}

/// The number of the revision or activation record whose document a path names.
#[must_use]
pub fn revision_of(path: &str) -> Option<u64> {
    let name = path.rsplit('/').next()?.strip_suffix(".json")?;
    let number = name.parse().ok()?;
    (name == format!("{number}")).then_some(number)
}

/// An index object, relative to the root.
#[must_use]
pub fn index_path(digest: &Digest) -> String {
    format!("tpad/index/{digest}")
}

/// Checks a path that came from outside.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_object_path(path: &str) -> Result<(), PathError> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return Err(PathError::Length);
    }
    if path.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(PathError::Character);
    }
    if path.starts_with('/') || path.contains("://") {
        return Err(PathError::Absolute);
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(PathError::Component);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        assert_eq!(check_object_path("a/b..c/.d"), Ok(()));
        for path in
            ["", "/a", "a//b", "./a", "a/..", "../a", "a/../../b", "s3://b/a", "a\\b", "a\0"]
        {
            assert!(check_object_path(path).is_err(), "{path:?} was accepted");
        }
        assert!(check_object_path(&"x".repeat(1025)).is_err());
    }

    #[test]
    fn revisions_are_canonical_numbers() {
        assert_eq!(revision_of(&revision_path(12)), Some(12));
        for path in
            ["tpad/revisions/012.json", "tpad/revisions/1.json.tmp", "tpad/revisions/x.json"]
        {
            assert_eq!(revision_of(path), None, "{path}");
        }
    }
}
