//! Which version of an object a range is read from.

/// A version of an object, as far as the store tells them apart. Servers ignore
/// conditions or know no versions: the digest of what came has the last word.
#[derive(Debug, Default)]
pub(super) struct Version {
    /// The ETag of the first answer that had one.
    tag: Option<String>,
}

impl Version {
    /// The condition on the next answer. A weak tag is none: If-Match compares strongly,
    /// so that it would match nothing (RFC 9110, 13.1.1).
    pub(super) fn if_match(&self) -> Option<String> {
        self.tag.clone().filter(|tag| !tag.starts_with("W/"))
    }

    /// Whether an answer with this ETag may be of this version.
    pub(super) fn admits(&mut self, tag: Option<String>) -> bool {
        let Some(tag) = tag else { return true };
        *self.tag.get_or_insert_with(|| tag.clone()) == tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tag_is_the_version_and_weak_ones_are_no_condition() {
        let tag = |text: &str| Some(text.to_owned());
        for (first, condition) in [("\"a\"", tag("\"a\"")), ("W/\"a\"", None)] {
            let mut version = Version::default();
            assert!(version.admits(None));
            assert_eq!(version.if_match(), None);
            assert!(version.admits(tag(first)));
            assert_eq!(version.if_match(), condition);
            assert!(version.admits(None) && version.admits(tag(first)));
            assert!(!version.admits(tag("\"b\"")));
            assert_eq!(version.if_match(), condition, "it stays what it was");
        }
    }
}
