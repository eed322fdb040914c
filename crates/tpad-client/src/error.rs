//! Why a call failed, and what the caller can do about it.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tpad_cuda::{CudaError, CudaErrorKind};
use tpad_manifest::{BlockId, BlockKey, Digest};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is none.
    #[error(
        "{address:?} is no address of a daemon: {reason}; give http://HOST:PORT or unix:///PATH"
    )]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The connection broke while a reply was on its way.
    #[error("the connection to {address} broke: {reason}")]
    Disconnected {
        /// Where to.
        address: String,
        /// What broke.
        reason: String,
    },
    /// The daemon answered with a status other than OK.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The call's deadline passed.
    #[error("no complete answer within {}", seconds(after))]
    Deadline {
        /// The deadline that was set.
        after: Duration,
    },
    /// A block's bytes are not what its id says.
    #[error("{key}: the image's digest is {found}, the block's id is {expected}")]
    CorruptBlock {
        /// The block.
        key: BlockKey,
        /// The id that came with it.
        expected: BlockId,
        /// The digest of the bytes that came.
        found: BlockId,
    },
    /// A file's bytes are not what its digest says.
    #[error("file {name}: the digest is {found}, {expected} was promised")]
    CorruptFile {
        /// The file.
        name: String,
        /// The digest that came with it.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// The reply claims more bytes than the options allow.
    #[error(
        "{what}: {claimed} bytes are announced, the limit is {limit}; raise {option} if that is right"
    )]
    TooLarge {
        /// The block or file.
        what: String,
        /// What the reply claims.
        claimed: u64,
        /// What the options allow.
        limit: u64,
        /// The option that sets the limit.
        option: &'static str,
    },
    /// The memory that blocks were to be received into is too small.
    #[error(
        "the blocks have {needed} bytes, each image on a 256-byte boundary; there is room for {there}"
    )]
    NoRoom {
        /// The images of all blocks.
        needed: u64,
        /// The memory.
        there: u64,
    },
    /// A batch of no keys, or of more than the daemon takes at once.
    #[error("an acquire of {asked} keys: 1 to {most} are taken at a time")]
    TooManyKeys {
        /// How many were asked for.
        asked: usize,
        /// The most.
        most: usize,
    },
    /// This process has no such GPU.
    #[error("no GPU {gpu:?}: {reason}")]
    NoGpu {
        /// As it was named.
        gpu: String,
        /// What is missing.
        reason: String,
    },
    /// The daemon hands over no memory of this GPU.
    #[error("the daemon hands over no memory of {gpu}, but of {there}")]
    NotHandedOver {
        /// The GPU's UUID.
        gpu: String,
        /// Those that it does; "no GPU" without one.
        there: String,
    },
    /// The driver of a GPU failed in this process.
    #[error("{gpu}: {error}{}", dead(error))]
    Gpu {
        /// The GPU's UUID.
        gpu: String,
        /// What it said.
        #[source]
        error: CudaError,
    },
    /// The reply contradicts itself or the protocol.
    #[error("{place}: {what}")]
    Protocol {
        /// Where in the reply.
        place: String,
        /// What is wrong there.
        what: String,
    },
}

/// A status other than OK, with its details.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the caller can do.
    pub kind: Kind,
    /// The gRPC code's number.
    pub code: i32,
    /// What the daemon said.
    pub message: String,
    /// `ErrorInfo.reason`: a constant that programs can compare; empty without one.
    pub reason: String,
    /// `ErrorInfo.metadata`: keys, tiers and the like; empty without one.
    pub metadata: BTreeMap<String, String>,
    /// `RetryInfo`: when to try again, where the daemon says that it helps.
    pub retry_after: Option<Duration>,
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ask for something that exists.
    NotFound,
    /// Get permission.
    Denied,
    /// Try again later, or elsewhere.
    Unavailable,
    /// Ask for less, or later.
    ResourceExhausted,
    /// Give more time.
    DeadlineExceeded,
    /// Bytes are wrong or gone: repair the checkpoint.
    DataLoss,
    /// Ask differently.
    InvalidArgument,
    /// Change the state first: the message says which.
    FailedPrecondition,
    /// The call was cancelled.
    Cancelled,
    /// Report a defect.
    Internal,
}

impl Kind {
    /// The kind's name, as scripts and logs write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
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

    fn of(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::Unavailable | Code::Aborted => Self::Unavailable,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::DataLoss => Self::DataLoss,
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidArgument,
            // A daemon that lacks a method is older than this client.
            Code::FailedPrecondition | Code::AlreadyExists | Code::Unimplemented => {
                Self::FailedPrecondition
            }
            Code::Cancelled => Self::Cancelled,
            Code::Ok | Code::Unknown | Code::Internal => Self::Internal,
        }
    }
}

impl Refusal {
    /// A code and a message without details.
    pub(crate) fn new(code: i32, message: String) -> Self {
        Self {
            kind: Kind::of(Code::from(code)),
            code,
            message,
            reason: String::new(),
            metadata: BTreeMap::new(),
            retry_after: None,
        }
    }
}

impl Error {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Address { .. } | Self::NoRoom { .. } | Self::TooManyKeys { .. } => {
                Kind::InvalidArgument
            }
            Self::Connect { .. } | Self::Disconnected { .. } => Kind::Unavailable,
            Self::Refused(refusal) => refusal.kind,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::CorruptBlock { .. } | Self::CorruptFile { .. } => Kind::DataLoss,
            Self::TooLarge { .. } => Kind::ResourceExhausted,
            Self::NoGpu { .. } | Self::NotHandedOver { .. } => Kind::FailedPrecondition,
            Self::Gpu { error: CudaError::Span { .. }, .. } => Kind::InvalidArgument,
            Self::Gpu { error, .. } => match error.kind() {
                CudaErrorKind::OutOfMemory => Kind::ResourceExhausted,
                CudaErrorKind::Sticky => Kind::FailedPrecondition,
                CudaErrorKind::Refused => Kind::Internal,
            },
            Self::Protocol { .. } => Kind::Internal,
        }
    }

    /// The daemon's status, when it answered with one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn protocol(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Protocol { place: place.into(), what: what.into() }
    }

    /// The error that a status stands for. Statuses made on this side of the
    /// wire carry the transport's error as their source; the daemon's carry
    /// none.
    pub(crate) fn of(status: &Status, address: &str) -> Self {
        if let Some(source) = std::error::Error::source(status) {
            return Self::Disconnected { address: address.to_owned(), reason: root(source) };
        }
        let details = status.get_error_details();
        let info = details.error_info();
        Self::Refused(Box::new(Refusal {
            kind: Kind::of(status.code()),
            code: status.code().into(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            metadata: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }))
    }
}

/// The innermost cause, which names what happened ("Connection refused").
pub(crate) fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What only the end of this process helps against.
fn dead(error: &CudaError) -> &'static str {
    if error.is_sticky() { "; this process can use the GPU no more: restart it" } else { "" }
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
