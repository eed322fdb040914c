//! How a command fails: an exit code that scripts can rely on, and a message
//! that says what failed and what to do.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The process's exit code. The numbers are documented in `docs/tpactl.md` and
/// never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// A check ran to its end and found problems.
    CheckFailed = 1,
    /// The arguments make no sense. `clap` uses the same number.
    Usage = 2,
    /// Nobody answers at the address, or the daemon or store is not available.
    Unavailable = 3,
    /// No such model, tier, expert, tensor, file or object.
    NotFound = 4,
    /// Bytes do not match their digest, or are missing where they should be.
    DataLoss = 5,
    /// The request was understood and refused as malformed.
    InvalidArgument = 6,
    /// Refused in the present state: a skipped tier, a model still loading.
    FailedPrecondition = 7,
    /// A limit of the daemon or the store was reached.
    ResourceExhausted = 8,
    /// The deadline passed.
    DeadlineExceeded = 9,
    /// Credentials or permissions do not suffice.
    Denied = 10,
    /// A local file or the terminal cannot be read or written.
    Local = 11,
    /// The other side broke its own rules: a defect, here or there.
    Internal = 12,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The word for this outcome in `--json` errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CheckFailed => "check_failed",
            Self::Usage => "usage",
            Self::Unavailable => "unavailable",
            Self::NotFound => "not_found",
            Self::DataLoss => "data_loss",
            Self::InvalidArgument => "invalid_argument",
            Self::FailedPrecondition => "failed_precondition",
            Self::ResourceExhausted => "resource_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Denied => "denied",
            Self::Local => "local",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The process's exit code.
    pub(crate) exit: Exit,
    /// What failed, naming the key or file.
    pub(crate) message: String,
    /// What the caller can do about it, where that is known.
    pub(crate) remedy: Option<String>,
    /// Nobody reads any more (`tpactl ... | head`): end quietly.
    pub(crate) quiet: bool,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), remedy: None, quiet: false }
    }

    /// The same failure with what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same failure, saying what it was about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Something on this machine failed.
    pub(crate) fn local(message: impl fmt::Display) -> Self {
        Self::new(Exit::Local, message)
    }

    /// Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted")
    }

    /// Standard output cannot be written.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        let mut failure = Self::local(format!("cannot write to standard output: {error}"));
        failure.quiet = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }
}

impl From<tpad_store::ErrorKind> for Exit {
    fn from(kind: tpad_store::ErrorKind) -> Self {
        use tpad_store::ErrorKind;
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Denied => Self::Denied,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::ResourceExhausted => Self::ResourceExhausted,
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorKind::DataLoss => Self::DataLoss,
            ErrorKind::InvalidArgument => Self::InvalidArgument,
            ErrorKind::FailedPrecondition => Self::FailedPrecondition,
            // Only Ctrl-C cancels work in this process.
            ErrorKind::Cancelled => Self::Interrupted,
            ErrorKind::Internal => Self::Internal,
        }
    }
}
