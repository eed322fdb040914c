//! Why an origin could not do something.

use std::sync::Arc;

use tpad_manifest::PathError;

use crate::ErrorKind;

/// Why an origin could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OriginError {
    /// The root cannot be used.
    #[error("{url:?} cannot be an origin: {problem}")]
    Root {
        /// As it was given.
        url: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// A path would leave the root or cannot be stored.
    #[error("object path {path:?}: {source}")]
    Path {
        /// The path.
        path: String,
        /// The rule that it breaks.
        source: PathError,
    },
    /// There is no such object.
    #[error("{object} does not exist")]
    NotFound {
        /// The object, with its root.
        object: String,
    },
    /// The store refuses.
    #[error("{object}: access denied{}: {source}", check_credentials(object))]
    Denied {
        /// The object, with its root.
        object: String,
        /// The store's words.
        source: Arc<object_store::Error>,
    },
    /// The object is larger than the caller allows.
    #[error("{object} has {bytes} bytes, at most {limit} are read")]
    TooLarge {
        /// The object, with its root.
        object: String,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The object ends before the range does.
    #[error("{object} has {bytes} bytes, {needed} are needed: it was cut or replaced")]
    Truncated {
        /// The object, with its root.
        object: String,
        /// Its size.
        bytes: u64,
        /// Where the range ends.
        needed: u64,
    },
    /// The object is not the one any more that a range of it began in.
    #[error("{object} was replaced while it was read")]
    Replaced {
        /// The object, with its root.
        object: String,
    },
    /// The store sent another number of bytes than it was asked for.
    #[error("{object}: {found} bytes came for a range of {expected}")]
    Length {
        /// The object, with its root.
        object: String,
        /// How many were asked for.
        expected: u64,
        /// How many came; counting stops when there are too many.
        found: u64,
    },
    /// The store failed, and went on failing when tried again.
    #[error("{object}: failed {attempts} times, lastly: {source}")]
    Failed {
        /// The object, with its root.
        object: String,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: Arc<object_store::Error>,
    },
    /// A local file could not be read.
    #[error("{object}: {source}")]
    Io {
        /// The object, with its root.
        object: String,
        /// The system's words.
        source: Arc<std::io::Error>,
    },
    /// The deadline passed.
    #[error("{object}: the deadline passed{}", last.as_ref().map(|e| format!(" after a failure: {e}")).unwrap_or_default())]
    Deadline {
        /// The object, with its root.
        object: String,
        /// The failure that was being tried again.
        last: Option<Box<OriginError>>,
    },
    /// This kind of store cannot do that.
    #[error("{url}: {operation} is not possible there")]
    Unsupported {
        /// The root.
        url: String,
        /// What was asked for.
        operation: &'static str,
    },
}

impl OriginError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Root { .. } | Self::Path { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::TooLarge { .. } | Self::Unsupported { .. } => ErrorKind::FailedPrecondition,
            Self::Truncated { .. } | Self::Length { .. } => ErrorKind::DataLoss,
            Self::Io { source, .. } if is_refusal(source.kind()) => ErrorKind::Denied,
            Self::Failed { .. } | Self::Io { .. } | Self::Replaced { .. } => ErrorKind::Unavailable,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Io { source, .. } => !is_refusal(source.kind()),
            _ => matches!(self, Self::Failed { .. } | Self::Length { .. }),
        }
    }

    /// Whether the store said something, be it nonsense or that it fails.
    pub(crate) fn is_answer(&self) -> bool {
        let Self::Failed { source, .. } = self else { return true };
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
        while let Some(error) = source {
            if error.is::<object_store::client::HttpError>() {
                return false;
            }
            source = error.source();
        }
        true
    }

    /// The same failure, met on the way to another object.
    pub(crate) fn about(self, object: &str) -> Self {
        match self {
            Self::Failed { source, attempts, .. } => {
                Self::Failed { object: object.to_owned(), attempts, source }
            }
            other => other,
        }
    }

    /// The object store's error, in our words.
    pub(crate) fn of(object: &str, error: object_store::Error) -> Self {
        use object_store::Error;
        let object = object.to_owned();
        match error {
            Error::NotFound { .. } => Self::NotFound { object },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Self::Denied { object, source: Arc::new(error) }
            }
            error => match status(&error) {
                Some(401 | 403) => Self::Denied { object, source: Arc::new(error) },
                Some(404) => Self::NotFound { object },
                _ => Self::of_system(object, error),
            },
        }
    }

    /// The local store's error, in our words.
    fn of_system(object: String, error: object_store::Error) -> Self {
        use std::io::ErrorKind::{IsADirectory, NotADirectory};
        match io_kind(&error) {
            Some(kind) if is_refusal(kind) => Self::Denied { object, source: Arc::new(error) },
            // A component of the path is a file, or the path is a directory.
            Some(NotADirectory | IsADirectory) => Self::NotFound { object },
            _ => Self::Failed { object, attempts: 1, source: Arc::new(error) },
        }
    }
}

/// Whether the system refuses, now and later.
fn is_refusal(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(kind, PermissionDenied | ReadOnlyFilesystem)
}

/// What to do about a store's refusal; files know no credentials.
fn check_credentials(object: &str) -> &'static str {
    match object.contains("://") {
        true => "; check the credentials, or give some if there are none",
        false => "",
    }
}

/// The HTTP status that a store's error tells of. Listings hide it in an error
/// whose type is private, so its text is all there is; without a match the
/// failure counts as a passing one.
fn status(error: &object_store::Error) -> Option<u16> {
    let object_store::Error::Generic { source, .. } = error else { return None };
    let text = source.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The system's error at the bottom of a local store's error.
fn io_kind(error: &object_store::Error) -> Option<std::io::ErrorKind> {
    let object_store::Error::Generic { store: "LocalFileSystem", source } = error else {
        return None;
    };
    let mut source: &(dyn std::error::Error + 'static) = &**source;
    loop {
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        source = source.source()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_refuses_is_denied_and_not_tried_again() {
        for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::ReadOnlyFilesystem] {
            let source = Box::new(std::io::Error::from(kind));
            let store = object_store::Error::Generic { store: "LocalFileSystem", source };
            let io = OriginError::Io { object: "/m/a".into(), source: Arc::new(kind.into()) };
            for error in [OriginError::of("/m/a", store), io] {
                assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
                assert!(!error.is_transient(), "{error}");
                assert!(!error.to_string().contains("credentials"), "{error}");
            }
        }
        let remote =
            object_store::Error::PermissionDenied { path: "a".into(), source: "no".into() };
        assert!(OriginError::of("s3://b/a", remote).to_string().contains("credentials"));
    }
}
