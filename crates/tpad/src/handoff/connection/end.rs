//! Why a worker is not served any more.

use std::io;

use tonic::Code;
use tpad_proto::handoff::FrameError;
use tpad_proto::handoff::v1::Failure;

use crate::handoff::answer;
use crate::handoff::metrics::Outcome;

/// Why nothing more is read of a worker.
pub(super) enum End {
    /// It or its process has ended.
    Gone(Outcome),
    /// It is told, and its leases stay until it is gone.
    Refused(Failure),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Self::Gone(Outcome::failed)
            }
            // The worker may live, and read what it holds.
            _ => {
                let message = format!("the daemon cannot use the socket: {error}");
                Self::Refused(answer::refused(Code::Unavailable, "SOCKET_FAILED", &message))
            }
        }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Refused(answer::invalid(&error.to_string()))
    }
}
