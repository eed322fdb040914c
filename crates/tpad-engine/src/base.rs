//! Whether a manifest may send reads elsewhere.
//!
//! A manifest is data: whoever can write one must not choose which stores the
//! daemon contacts, with its credentials, or which local directories it serves.

/// Why a manifest's `objects_base` is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BaseError {
    /// It could mean something else than it reads.
    #[error(
        "objects_base {0:?} must be a URL or an absolute path without \".\", \"..\", empty components, escapes, a query or a fragment"
    )]
    Ambiguous(String),
    /// The configuration does not allow it.
    #[error("objects_base {base:?} is not allowed: add it, or a prefix of it, to the model's allowed_bases{}", what_is_allowed(.allowed))]
    NotAllowed {
        /// What the manifest asks for.
        base: String,
        /// What the configuration allows.
        allowed: Vec<String>,
    },
}

fn what_is_allowed(bases: &[String]) -> String {
    if bases.is_empty() {
        return String::from(" (it is empty)");
    }
    format!(" (it holds {})", bases.join(", "))
}

/// Checks that `base` is the model's own root or is, or lies below, an entry of
/// `allowed_bases`.
pub(crate) fn check_base(base: &str, root: &str, allowed: &[String]) -> Result<(), BaseError> {
    let Some(wanted) = Location::of(base) else {
        return Err(BaseError::Ambiguous(base.chars().take(200).collect()));
    };
    let own = Location::of(root).is_some_and(|root| root == wanted);
    let listed = || allowed.iter().filter_map(|base| Location::of(base));
    if own || listed().any(|base| base.holds(&wanted)) {
        return Ok(());
    }
    Err(BaseError::NotAllowed { base: base.into(), allowed: allowed.to_vec() })
}

/// A place in a form in which equal places compare equal.
#[derive(PartialEq, Eq)]
struct Location<'a> {
    /// The URL's scheme in lower case; `file` for paths.
    scheme: String,
    /// Host or bucket, then the path's components.
    components: Vec<&'a str>,
}

impl<'a> Location<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => ("file".into(), text),
        };
        let rest = if scheme == "file" { rest.strip_prefix('/')? } else { rest };
        if rest.contains(['\\', '%', '?', '#', '\0']) {
            return None;
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let components: Vec<&str> = rest.split('/').collect();
        if components.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return None;
        }
        Some(Self { scheme, components })
    }

    /// Whether `other` is this place or lies below it.
    fn holds(&self, other: &Self) -> bool {
        self.scheme == other.scheme && other.components.starts_with(&self.components)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(base: &str, allowed: &[&str]) -> Result<(), BaseError> {
        let allowed: Vec<String> = allowed.iter().map(|base| (*base).to_owned()).collect();
        check_base(base, "s3://own/model", &allowed)
    }

    #[test]
    fn the_root_itself_and_what_lies_below_an_allowed_base_are_allowed() {
        assert_eq!(check("s3://own/model/", &[]), Ok(()));
        assert_eq!(check("s3://shards/a", &["s3://shards/a"]), Ok(()));
        assert_eq!(check("s3://shards/a/b", &["s3://shards/a/"]), Ok(()));
        assert_eq!(check("S3://shards/a", &["s3://shards"]), Ok(()));
        assert_eq!(check("file:///data/a", &["/data"]), Ok(()));
    }

    #[test]
    fn a_prefix_ends_at_a_component() {
        for (base, allowed) in [
            ("s3://shards/ab", "s3://shards/a"),
            ("s3://shards-evil/a", "s3://shards"),
            ("https://good.example@evil.example/a", "https://good.example"),
            ("https://good.example.evil.example/a", "https://good.example"),
            ("gs://shards/a", "s3://shards/a"),
            ("/database", "/data"),
            ("s3://own/model/sub", "s3://other"),
        ] {
            let refused = check(base, &[allowed]);
            assert!(matches!(refused, Err(BaseError::NotAllowed { .. })), "{base}: {refused:?}");
        }
    }

    #[test]
    fn what_could_leave_the_base_is_refused_even_below_it() {
        for base in [
            "s3://shards/a/../b",
            "s3://shards/a/%2e%2e/b",
            "s3://shards//a",
            "s3://shards/./a",
            "s3://shards/a?x=/..",
            "s3://shards/a\\..\\b",
            "shards/a",
            "",
            "/",
        ] {
            let refused = check(base, &["s3://shards", "/"]);
            assert!(matches!(refused, Err(BaseError::Ambiguous(_))), "{base}: {refused:?}");
        }
    }
}
