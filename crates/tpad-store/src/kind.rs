//! What the caller of a failed operation can do: one closed list for all crates above.

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// It does not exist: ask for something else.
    NotFound,
    /// The origin refuses these credentials: fix them.
    Denied,
    /// A passing failure: try again.
    Unavailable,
    /// A bound is reached: try again later, with less at once.
    ResourceExhausted,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The bytes are wrong or gone: the checkpoint needs repair.
    DataLoss,
    /// The request makes no sense as it stands.
    InvalidArgument,
    /// The configuration or the checkpoint does not allow it.
    FailedPrecondition,
    /// The daemon is stopping, or the caller left.
    Cancelled,
    /// A fault of the program.
    Internal,
}

impl ErrorKind {
    /// The kind's name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::ResourceExhausted => "resource_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::DataLoss => "data_loss",
            Self::InvalidArgument => "invalid_argument",
            Self::FailedPrecondition => "failed_precondition",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}
